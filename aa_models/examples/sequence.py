"""Recall across a sequence: the augmented 1-D convolution against plain ones with as many parameters.

The task is associative recall, a usual probe of sequence models; its data are generated here. A sequence is a row of
pairs, key value key value …. What a key stands for is drawn anew for each sequence, and keys come again. Some values
are hidden, and the network says what they are:

    3 b  7 d  1 a  7 ?  3 b  5 c  1 ?          the answers are d and a

The answer stands wherever the key stood before, or, for networks that are not causal, stands later. So it takes long
range, and the content says where to look. A convolution always looks at the same distances.

Examples:
  python -m aa_models.examples.sequence
  python -m aa_models.examples.sequence --models augmented --seeds 1 --length 128 --steps 600
"""
import argparse
import bisect
import inspect
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import nn
from tqdm import trange

from aa_models.layers import AugmentedConv1d

__all__ = ['Recall', 'accuracy', 'main', 'sequence_net', 'train']

KERNEL_SIZE = 3
# dv=0 is a plain `nn.Conv1d`, padded as the augmented one. There are no position tables: what the layer's convolution
# sees is order enough to tie a value to its key, and where the answer stands, only the content says.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    'conv': ('Conv1d', dict(dv=0)),
    'dilated': ('Conv1d, dilated', dict(dv=0)),
    'augmented': ('AugmentedConv1d', dict(dk=32, dv=32, num_heads=4, pos_embed=None)),
}
_UNASKED = -100  # what `cross_entropy` leaves out


@dataclass(frozen=True)
class Recall:
    """The task. Tokens are the values 0, 1, …, then the keys, then the one in the place of a hidden value.

    Args:
        length: Tokens of a sequence, two for each pair.
        keys: How many keys there are.
        values: How many values there are; a guess is right once in so many.
        causal: Ask only what an earlier pair answers; otherwise what any other pair answers.
        hidden: Share of the values that are hidden.

    Raises:
        ValueError: A number is impossible.
    """
    length: int = 64
    keys: int = 12
    values: int = 8
    causal: bool = True
    hidden: float = 0.25

    def __post_init__(self) -> None:
        if self.length < 4 or self.length % 2:
            raise ValueError(f'length must be even, at least 4, got {self.length}')
        for name, least in (('keys', 1), ('values', 2)):
            if getattr(self, name) < least:
                raise ValueError(f'{name} must be at least {least}, got {getattr(self, name)}')
        if not 0 < self.hidden < 1:
            raise ValueError(f'hidden must lie between 0 and 1, got {self.hidden}')

    @property
    def tokens(self) -> int:
        """How many different tokens there are."""
        return self.values + self.keys + 1

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw sequences.

        Returns:
            Tokens, answers and distances, each (batch_size, length). An answer is the value, or -100 where nothing is
            asked; a distance is how many tokens off the nearest place is that gives the answer.
        """
        pairs = self.length // 2
        meaning = torch.randint(self.values, (batch_size, self.keys), generator=generator)
        key = torch.randint(self.keys, (batch_size, pairs), generator=generator)
        value = meaning.gather(1, key)
        hidden = torch.rand(batch_size, pairs, generator=generator) < self.hidden

        place = torch.arange(pairs)
        apart = place.unsqueeze(1) - place  # of the pair asked (rows) and the one that answers (columns)
        tells = (key.unsqueeze(2) == key.unsqueeze(1)) & ~hidden.unsqueeze(1)  # (batch_size, pairs, pairs)
        if self.causal:
            tells &= apart > 0
        distance = torch.where(tells, 2 * apart.abs(), self.length).amin(2)
        asked = hidden & (distance < self.length)

        nothing = torch.full_like(value, _UNASKED)
        shown = value.masked_fill(hidden, self.tokens - 1)
        tokens = torch.stack([self.values + key, shown], dim=2).flatten(1)
        answers = torch.stack([nothing, torch.where(asked, value, nothing)], dim=2).flatten(1)
        return tokens, answers, distance.repeat_interleave(2, dim=1)


class Block(nn.Module):
    """A convolution that mixes positions, then two layers that mix channels, both residual: (B, L, C) -> (B, L, C)."""

    def __init__(self, conv: AugmentedConv1d) -> None:
        super().__init__()
        channels = conv.in_channels
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.conv, self.mlp = conv, Mlp(channels, 2 * channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.conv(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp(self.norm2(x))


def sequence_net(task: Recall, model: str, channels: int = 48) -> nn.Sequential:
    """Tokens (B, L) in, logits of the values at every position (B, L, values) out.

    Two blocks are the fewest that can do it: the first ties a value to the key before it, the second finds the key. The
    dilated network is as deep as it takes to see the whole sequence (dilations 1, 3, 9, …).

    Args:
        task: What the network is for.
        model: A key of `MODELS`.
        channels: Width.
    """
    dilations = [1, 1]
    if model == 'dilated':
        seen = task.length if task.causal else 2 * task.length
        dilations = [KERNEL_SIZE ** i for i in range(seen) if KERNEL_SIZE ** i < seen]
    padding = 0 if task.causal else 'same'
    blocks = [
        Block(AugmentedConv1d(
            channels, channels, KERNEL_SIZE, padding=padding, dilation=dilation, causal=task.causal,
            **MODELS[model][1]))
        for dilation in dilations]
    return nn.Sequential(
        nn.Embedding(task.tokens, channels), *blocks, nn.LayerNorm(channels), nn.Linear(channels, task.values))


def equal_width(task: Recall, model: str, channels: int) -> int:
    """The smallest width at which a model has as many parameters as the augmented one of `channels`."""
    if model == 'augmented':
        return channels

    def parameters(model: str, width: int) -> int:
        with torch.device('meta'):
            return sum(p.numel() for p in sequence_net(task, model, width).parameters())

    wanted = parameters('augmented', channels)
    widths = range(1, 4 * channels)
    return widths[bisect.bisect_left(widths, wanted, key=lambda width: parameters(model, width))]


def train(
        net: nn.Module,
        task: Recall,
        steps: int = 300,
        batch_size: int = 32,
        lr: float = 0.01,
        seed: int = 0,
        label: str = '',
) -> list[float]:
    """Train a network on ever new sequences, by AdamW and one cycle of the learning rate.

    Returns:
        The loss of each step.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in trange(steps, desc=label, leave=False, disable=None):
        tokens, answers, _ = task.draw(batch_size, generator)
        loss = F.cross_entropy(net(tokens).flatten(0, 1), answers.flatten(), ignore_index=_UNASKED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def accuracy(net: nn.Module, task: Recall, sequences: int = 2000) -> tuple[float, float]:
    """Share of right answers on the same new sequences for all networks.

    Returns:
        Of all answers; of the far ones, more than a quarter of the sequence off.
    """
    tokens, answers, distance = task.draw(sequences, torch.Generator().manual_seed(2 ** 32))
    guesses = torch.cat([net(part).argmax(2) for part in tokens.split(250)])
    asked = answers != _UNASKED
    far = asked & (4 * distance > task.length)
    right = (guesses == answers).double()
    return right[asked].mean().item(), right[far].mean().item()


def _line(cells: Sequence[str]) -> str:
    return '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(cells, (15, 6, 10, 14, 14))) + ' |'


def _percent(shares: Sequence[float]) -> str:
    spread = f' ± {100 * statistics.stdev(shares):.1f}' if len(shares) > 1 else ''
    return f'{100 * statistics.mean(shares):.1f}{spread} %'


def compare(args: argparse.Namespace) -> None:
    """Train every contestant with every seed, causal and not, and print the table row by row."""
    print(f'{args.length} tokens, {args.keys} keys, {args.values} values (chance {1 / args.values:.1%}), '
          f'{args.steps} steps of {args.batch_size} sequences, seeds: {args.seeds}')
    print(_line(['model', 'causal', 'parameters', 'right', 'right when far']))
    print(_line(['---'] * 5))
    for causal in (True, False):
        task = Recall(args.length, args.keys, args.values, causal)
        for model in args.models:
            results = []
            for seed in range(args.seeds):
                torch.manual_seed(seed)
                net = sequence_net(task, model, equal_width(task, model, args.channels))
                train(net, task, args.steps, args.batch_size, args.lr, seed, f'{MODELS[model][0]}, seed {seed}')
                results.append(accuracy(net, task))
            parameters = sum(p.numel() for p in net.parameters())
            cells = [MODELS[model][0], 'yes' if causal else 'no', f'{parameters:,}', *map(_percent, zip(*results))]
            print(_line(cells), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m aa_models.examples.sequence', description=inspect.getdoc(sys.modules[__name__]),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS), help='(default: all)')
    for name, default, text in (
            ('seeds', 3, 'trainings of each model'),
            ('steps', 300, 'steps of a training'),
            ('batch-size', 32, 'sequences in a batch'),
            ('channels', 48, 'width of the augmented network; the others get its number of parameters'),
            ('length', Recall.length, 'tokens of a sequence'),
            ('keys', Recall.keys, 'different keys'),
            ('values', Recall.values, 'different values'),
    ):
        parser.add_argument(f'--{name}', type=int, default=default, metavar='N', help=f'{text} (default: %(default)s)')
    parser.add_argument('--lr', type=float, default=0.01, metavar='LR',
                        help='highest learning rate (default: %(default)s)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        Exit status: 0, or 2 where the user asked for what cannot be.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        Recall(args.length, args.keys, args.values)
        for name in ('seeds', 'steps', 'batch_size', 'channels', 'lr'):
            if not getattr(args, name) > 0:
                raise ValueError(f'{name} = {getattr(args, name)} must be more than 0')
        if args.channels < 32:
            raise ValueError(f'channels = {args.channels} must be at least 32, the channels of the attention')
    except ValueError as error:
        parser.error(str(error))
    compare(args)
    return 0


if __name__ == '__main__':
    sys.exit(main())
