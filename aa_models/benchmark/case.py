"""What is measured: a module with its inputs, run forward or through a training step."""
import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from aa_models.device import autocast, find_device
from aa_models.errors import InputError
from aa_models.models.cpu_training import speed_up_training
from aa_models.models.memory import check_memory, check_pass

BENCH = {'inference': ['infer'], 'train': ['train'], 'both': ['infer', 'train']}  # timm's words, and its columns'
DTYPES = ('float32', 'bfloat16', 'float16')


def check_positive(**numbers: int | None) -> None:
    """Refuse numbers below 1; None is a number that was not given."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise InputError(f'{name} = {number} must be at least 1')


@dataclasses.dataclass(kw_only=True)
class Settings:
    """How something is measured: the options of all benchmarks, which `aa-models benchmark layer --help` explains.

    Layers have parameters and inputs in `dtype`, networks have float32 parameters and autocast, as in training.

    Raises:
        InputError: A value is impossible, or the device is not there.
    """
    batch_size: int = 16
    bench: str = 'both'
    dtype: str = 'float32'
    channels_last: bool = False
    compile: bool = False
    device: str | None = None
    rounds: int = 10
    warmup: int = 2
    memory: bool = True

    def __post_init__(self) -> None:
        check_positive(batch_size=self.batch_size, rounds=self.rounds, warmup=self.warmup)
        for name, possible in (('bench', BENCH), ('dtype', DTYPES)):
            if getattr(self, name) not in possible:
                raise InputError(f'{name} = {getattr(self, name)!r} must be one of {", ".join(possible)}')
        self.modes = BENCH[self.bench]
        self.where = find_device(self.device)
        if self.where.type not in ('cpu', 'cuda'):
            raise InputError(f'device = {self.device!r} cannot be measured; possible are cpu and cuda')


@dataclasses.dataclass(frozen=True)
class Case:
    """One contestant. It holds no tensor, so it can be sent to a process of its own.

    Args:
        name: What it is called in the results.
        make: Makes the module when called with `size`, `device` and `dtype`; can be pickled.
        size, channels: Height and width of the inputs, and their channels or, of q, k and v, heads.
        settings: How it is measured.
        depths: Depths of q, k and v, where these are the inputs and the module's `attend` is called.
        network: It is a whole network: its input needs no gradient, and a dtype other than float32 is autocast.
    """
    name: str
    make: Callable[..., nn.Module]
    size: tuple[int, int]
    channels: int
    settings: Settings
    depths: Sequence[int] = ()
    network: bool = False

    def module(self, device: torch.device | str) -> nn.Module:
        """Make the module; on 'meta' that costs nothing."""
        return self.make(size=self.size, device=device, dtype=self._dtype)

    def check_memory(self) -> None:
        """Refuse what would take more than the memory allowed.

        Raises:
            InputError: The forward pass would.
        """
        shape = (self.settings.batch_size, self.channels, *self.size)
        what = f'{self.name} at {self.size[0]} x {self.size[1]} with batch_size = {self.settings.batch_size}'
        if self.depths:
            check_memory(math.prod(shape) * sum(self.depths) * self._dtype.itemsize, what)
        else:
            check_pass(self.module('meta'), shape, what)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32 if self.network else getattr(torch, self.settings.dtype)

    def step(self, mode: str) -> Callable[[], None]:
        """Make module and inputs; the function runs them once.

        Args:
            mode: 'infer' for a forward pass in `torch.inference_mode`; 'train' for a forward pass and a backward pass
                to the parameters and to a layer's inputs. The optimizer's step would be the same for all contestants
                and is left out. No gradient is kept from run to run.
        """
        module = self.module(self.settings.where).train(mode == 'train')
        if self.settings.channels_last:
            module.to(memory_format=torch.channels_last)
        forward: Callable[..., torch.Tensor] = cast(Any, module).attend if self.depths else module
        if self.settings.compile:
            forward = torch.compile(forward, dynamic=False)
        inputs = self._inputs()
        mixed = self.network and self.settings.dtype != 'float32'
        precision = autocast(self.settings.where, True, self.settings.dtype) if mixed else contextlib.nullcontext()
        if mixed and not self.settings.compile:
            speed_up_training(module, self.settings.where, self.settings.dtype)

        @torch.inference_mode()
        def infer() -> None:
            with precision:
                forward(*inputs)

        if mode == 'infer':
            return infer
        # as from a next layer: the output's shape is that of the input, or of v. For a network any gradient does
        gradient = None if self.network else self._inputs()[-1].detach()
        leaves = [*inputs, *module.parameters()]

        def train() -> None:
            with precision:
                output = forward(*inputs)
            output.backward(output.detach() if gradient is None else gradient)
            for leaf in leaves:
                leaf.grad = None

        return train

    def _inputs(self) -> list[torch.Tensor]:
        settings, C, (H, W) = self.settings, self.channels, self.size
        shape = [settings.batch_size, *((H, W, C) if settings.channels_last else (C, H, W))]
        inputs = [torch.randn(*shape, *depth, device=settings.where, dtype=self._dtype)
                  for depth in ([[depth] for depth in self.depths] or [[]])]
        return [(x.movedim(3, 1) if settings.channels_last else x).requires_grad_(not self.network) for x in inputs]
