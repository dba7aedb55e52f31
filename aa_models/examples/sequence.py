"""Recall across a sequence: the augmented 1-D convolution against plain ones with as many parameters.

The task is associative recall, a usual probe of sequence models; its data are generated here. A sequence is a row of
pairs, key value key value …. What a key stands for is drawn anew for each sequence, and keys come again. Some values
are hidden, and the network says what they are:

    3 b  7 d  1 a  7 ?  3 b  5 c  1 ?          the answers are d and a

The answer stands wherever the key stood before, or, for networks that are not causal, stands later. So the network has
to look far, and the content says where to. A convolution always looks at the same distances.

Examples:
  python -m aa_models.examples.sequence
  python -m aa_models.examples.sequence --models augmented --seeds 1 --length 128 --steps 600
"""
import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import nn
from tqdm import trange

from aa_models.errors import InputError
from aa_models.layers import AugmentedConv1d

MODELS = {'conv': 'Conv1d', 'dilated': 'Conv1d, dilated', 'augmented': 'AugmentedConv1d'}
# No position tables: what the layer's convolution sees is order enough to tie a value to its key, and the content alone
# says where the answer stands.
ATTENTION = dict(dk=32, dv=32, num_heads=4, pos_embed=None)
NOTHING_ASKED = -100  # what `cross_entropy` leaves out
LEAST_ASKED = 10  # answers in 1000 sequences


@dataclass(frozen=True)
class Recall:
    """The task. Tokens are the values 0, 1, …, then the keys, then one that stands for a hidden value.

    Args:
        length: Tokens of a sequence, two for each pair.
        keys: How many keys there are.
        values: How many values there are; a guess is right once in so many.
        causal: Ask only what an earlier pair answers; otherwise what any other pair answers.
        hidden: Share of the values that are hidden.

    Raises:
        InputError: A number is impossible.
    """
    length: int = 64
    keys: int = 12
    values: int = 8
    causal: bool = True
    hidden: float = 0.25

    def __post_init__(self) -> None:
        for name, possible, requirement in (
                ('length', self.length >= 4 and self.length % 2 == 0, 'even, at least 4'),
                ('keys', self.keys >= 1, 'at least 1'),
                ('values', self.values >= 2, 'at least 2'),
                ('hidden', 0 < self.hidden < 1, 'between 0 and 1'),
        ):
            if not possible:
                raise InputError(f'{name} must be {requirement}, got {getattr(self, name)}')

    @property
    def tokens(self) -> int:
        """How many different tokens there are."""
        return self.values + self.keys + 1

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw sequences.

        Returns:
            Tokens, answers and distances, each (batch_size, length). An answer is the value, or -100 where nothing is
            asked; the distance is that to the nearest token that gives the answer.
        """
        pairs = self.length // 2
        meaning = torch.randint(self.values, (batch_size, self.keys), generator=generator)
        key = torch.randint(self.keys, (batch_size, pairs), generator=generator)
        value = meaning.gather(1, key)
        hidden = torch.rand(batch_size, pairs, generator=generator) < self.hidden

        position = torch.arange(pairs)
        offset = position.unsqueeze(1) - position  # from the pair that answers (columns) to the pair asked (rows)
        answered = (key.unsqueeze(2) == key.unsqueeze(1)) & ~hidden.unsqueeze(1)  # (batch_size, pairs, pairs)
        if self.causal:
            answered &= offset > 0
        distance = torch.where(answered, 2 * offset.abs(), self.length).amin(2)
        asked = hidden & (distance < self.length)

        tokens = torch.stack([self.values + key, value.masked_fill(hidden, self.tokens - 1)], dim=2)
        answers = torch.stack([torch.full_like(value, NOTHING_ASKED), value.where(asked, NOTHING_ASKED)], dim=2)
        return tokens.flatten(1), answers.flatten(1), distance.repeat_interleave(2, dim=1)


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
        span = task.length if task.causal else 2 * task.length
        dilations = [3 ** i for i in range(span) if 3 ** i < span]
    # dv=0 is a plain `nn.Conv1d`, padded as the augmented one
    options = dict(padding=0 if task.causal else 'same', causal=task.causal) | (
        ATTENTION if model == 'augmented' else dict(dv=0))
    blocks = [Block(AugmentedConv1d(channels, channels, 3, dilation=dilation, **options)) for dilation in dilations]
    return nn.Sequential(
        nn.Embedding(task.tokens, channels), *blocks, nn.LayerNorm(channels), nn.Linear(channels, task.values))


def count_parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def equal_width(task: Recall, model: str, channels: int) -> int:
    """The smallest width at which a model has as many parameters as the augmented one of `channels`."""
    with torch.device('meta'):
        wanted = count_parameters(sequence_net(task, 'augmented', channels))
        width = channels if model == 'augmented' else 1
        while count_parameters(sequence_net(task, model, width)) < wanted:
            width += 1
    return width


def train(
        net: nn.Module, task: Recall, steps: int = 300, batch_size: int = 32, lr: float = 0.01, seed: int = 0,
        label: str = '') -> list[float]:
    """Train a network on ever new sequences, by AdamW and one cycle of the learning rate; the loss of each step."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in trange(steps, desc=label, leave=False, disable=None):
        tokens, answers, _ = task.draw(batch_size, generator)
        while (answers == NOTHING_ASKED).all():  # the loss would be the mean of nothing
            tokens, answers, _ = task.draw(batch_size, generator)
        loss = F.cross_entropy(net(tokens).flatten(0, 1), answers.flatten(), ignore_index=NOTHING_ASKED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def accuracy(net: nn.Module, task: Recall, sequences: int = 2000) -> tuple[float, float]:
    """Share of right answers, of all and of those over a quarter of the length away, on the same new sequences."""
    tokens, answers, distance = task.draw(sequences, torch.Generator().manual_seed(2 ** 32))
    guesses = torch.cat([net(part).argmax(2) for part in tokens.split(250)])
    asked = answers != NOTHING_ASKED
    far = asked & (4 * distance > task.length)
    right = (guesses == answers).double()
    return right[asked].mean().item(), right[far].mean().item()


def compare(args: argparse.Namespace) -> None:
    """Train every contestant with every seed, causal and not, and print the table row by row."""
    line = '| {:15} | {:6} | {:10} | {:14} | {:14} |'
    print(f'{args.length} tokens, {args.keys} keys, {args.values} values (chance {1 / args.values:.1%}), '
          f'{args.steps} steps of {args.batch_size} sequences, seeds: {args.seeds}')
    print(line.format('model', 'causal', 'parameters', 'right', 'right when far'), line.format(*['---'] * 5), sep='\n')
    for causal in (True, False):
        task = Recall(args.length, args.keys, args.values, causal)
        for model in args.models:
            width, results = equal_width(task, model, args.channels), []
            for seed in range(args.seeds):
                torch.manual_seed(seed)
                net = sequence_net(task, model, width)
                train(net, task, args.steps, args.batch_size, args.lr, seed, f'{MODELS[model]}, seed {seed}')
                results.append(accuracy(net, task))
            right, far = map(_percent, zip(*results))
            cells = MODELS[model], 'yes' if causal else 'no', f'{count_parameters(net):,}', right, far
            print(line.format(*cells), flush=True)


def _percent(shares: Sequence[float]) -> str:
    spread = f' ± {100 * statistics.stdev(shares):.1f}' if len(shares) > 1 else ''
    return f'{100 * statistics.mean(shares):.1f}{spread} %'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        Exit status: 0, or 2 for a request that cannot be met.
    """
    parser = argparse.ArgumentParser('python -m aa_models.examples.sequence', description=__doc__,
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
            ('lr', 0.01, 'highest learning rate'),
    ):
        parser.add_argument(
            f'--{name}', type=type(default), default=default, metavar='N', help=f'{text} (default: %(default)s)')
    args = parser.parse_args(argv)
    try:
        task = Recall(args.length, args.keys, args.values)
        for name, least in (('seeds', 1), ('steps', 1), ('batch_size', 1), ('channels', ATTENTION['dv']), ('lr', 1e-9)):
            if not getattr(args, name) >= least:
                raise InputError(f'{name} must be at least {least}, got {getattr(args, name)}')
        _, answers, _ = task.draw(1000, torch.Generator().manual_seed(0))
        asked = (answers != NOTHING_ASKED).sum().item()
        if asked < LEAST_ASKED:
            raise InputError(f'keys = {args.keys}, length = {args.length}: {asked} answers are asked for in 1000 '
                             f'sequences, at least {LEAST_ASKED} are needed')
    except InputError as error:
        parser.error(str(error))
    compare(args)
    return 0


if __name__ == '__main__':
    sys.exit(main())
