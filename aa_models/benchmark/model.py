"""Compare models with their plain counterparts.

NAME:RIVAL names two models of timm; for this package's augmented networks NAME is enough, the rival is then the plain
network. Models with the same rival are timed with it together, with its classes, and at its input size unless
--img-size says otherwise. A training step is forward, cross-entropy and backward. --dtype other than float32 is
autocast, with parameters in float32, as in training.

Examples:
  aa-models benchmark model aa_resnet50
  aa-models benchmark model aa_resnet18 --img-size 128 --dtype bfloat16 --bench train
  aa-models benchmark model aa_wrn28_10:wrn28_10 laa_wrn28_10 --batch-size 512 --channels-last --compile
  aa-models benchmark model seresnet50:resnet50
"""
import argparse
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from torch import nn

from aa_models.device import autocast
from aa_models.models.create import build_model, num_classes_of
from aa_models.zoo import own_models

from . import options
from .case import Case

DEFAULT = ('aa_resnet18', 'laa_resnet18', 'aa_resnet50', 'laa_resnet50', 'aa_wrn28_10', 'laa_wrn28_10')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCase(Case):
    """A model of timm, by its name.

    Args:
        num_classes: Classes of the model.

    See `Case` for the other arguments; a dtype other than float32 is autocast.
    """
    num_classes: int
    tiny_size: ClassVar[int] = 32
    in_chans: ClassVar[int] = 3

    def module(self, device: str) -> nn.Module:
        own = dict(img_size=self.size) if self.name in own_models() else {}  # what relative tables are made for
        return build_model(self.name, num_classes=self.num_classes, device=device, **own)

    def inputs(self) -> tuple[torch.Tensor]:
        # float32 as a loader gives them
        return dataclasses.replace(self, dtype='float32').draw(self.batch_size, self.in_chans, *self.size),

    def backward(self) -> Callable[[torch.Tensor], None]:
        labels = torch.randint(self.num_classes, (self.batch_size,), device=self.device)
        return lambda output: F.cross_entropy(output.float(), labels).backward()

    def autocast(self) -> AbstractContextManager[object]:
        enabled = self.dtype != 'float32'
        return autocast(torch.device(self.device), enabled, self.dtype if enabled else 'bfloat16')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the benchmark."""
    parser.add_argument('models', nargs='*', default=DEFAULT, metavar='NAME[:RIVAL]',
                        help=f'models to compare (default: {" ".join(DEFAULT)})')
    parser.add_argument('--img-size', type=int, metavar='PX', help="side of the input (default: the rival's)")
    options.add_common(parser, batch_size=16)


def groups(args: argparse.Namespace) -> Sequence[Sequence[Case]]:
    """For each rival the cases that are timed together, the rival first.

    Raises:
        ValueError: A model is unknown, or its rival is not named.
    """
    models: dict[str, list[str]] = {}
    for pair in args.models:
        name, rival = _pair(pair)
        models.setdefault(rival, [rival]).append(name)
    return [_group(names, args) for names in models.values()]


def _pair(text: str) -> tuple[str, str]:
    """Split NAME[:RIVAL]; the rival of an augmented network is the one without its prefix."""
    name, _, rival = text.partition(':')
    for prefix in ('laa_', 'aa_'):
        if not rival and name.startswith(prefix):
            rival = name.removeprefix(prefix)
    if not rival:
        raise ValueError(f'models: {text!r} needs a rival to be compared with: {name}:RIVAL')
    return name, rival


def _group(names: Sequence[str], args: argparse.Namespace) -> list[ModelCase]:
    rival = build_model(names[0], device='meta')
    size = args.img_size or resolve_data_config(model=rival)['input_size'][-1]
    return [
        ModelCase(name=name, size=(size, size), num_classes=num_classes_of(rival), **options.how(args))
        for name in dict.fromkeys(names)
    ]


def title(args: argparse.Namespace) -> str:
    """What all cases have in common, for the head of the results."""
    return 'models'
