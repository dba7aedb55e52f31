"""What is measured: a module with its input, run forward or through a training step."""
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import nn

from aa_models.analysis.macs import count_macs

MODES = ('infer', 'train')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to measure, and where and how. It holds no tensor, so it can be sent to a process of its own.

    Args:
        name: What it is called in the results.
        size: Height and width of the input.
        batch_size: Inputs in a batch.
        device: Where it runs.
        dtype: 'float32', 'bfloat16' or 'float16', of parameters and input unless a subclass says otherwise.
        channels_last: Keep input and weights in channels_last order.
        compile: Run it through `torch.compile`.
    """
    name: str
    size: tuple[int, int]
    batch_size: int
    device: str = 'cpu'
    dtype: str = 'float32'
    channels_last: bool = False
    compile: bool = False
    tiny_size: ClassVar[int] = 4  # enough to load every library that the case needs

    def module(self, device: str) -> nn.Module:
        """Make the module, in its dtype."""
        raise NotImplementedError

    def inputs(self) -> tuple[torch.Tensor, ...]:
        """Draw what the module takes."""
        raise NotImplementedError

    def backward(self) -> Callable[[torch.Tensor], None]:
        """Draw what a training step needs beside the inputs; the function takes an output and goes back from it."""
        raise NotImplementedError

    def autocast(self) -> AbstractContextManager[object]:
        """The context to run forward in."""
        return nullcontext()

    def counts(self) -> tuple[int | None, int | None]:
        """Parameters, and multiply-accumulates for one input; None where a count says nothing."""
        module = self.module('meta')
        return sum(p.numel() for p in module.parameters()), count_macs(module, (self.in_chans, *self.size))

    @property
    def in_chans(self) -> int:
        """Channels of the input."""
        raise NotImplementedError

    def tiny(self) -> 'Case':
        """The same on a small batch of small inputs."""
        # two images: batch norm cannot be trained on a single value
        return dataclasses.replace(self, size=(self.tiny_size,) * 2, batch_size=2)

    def step(self, mode: str) -> Callable[[], None]:
        """Make module and input; the function runs them once.

        Args:
            mode: 'infer' for a forward pass in `torch.inference_mode`, 'train' for forward and backward, gradients of
                parameters and of a layer's inputs included. What an optimiser would do then is the same for all
                contestants and left out. No gradient is kept from run to run.
        """
        module = self.module(self.device).train(mode == 'train')
        if self.channels_last:
            module.to(memory_format=torch.channels_last)
        forward = torch.compile(module, dynamic=False) if self.compile else module
        inputs = self.inputs()

        @torch.inference_mode()
        def infer() -> None:
            with self.autocast():
                forward(*inputs)

        if mode == 'infer':
            return infer
        go_back = self.backward()
        leaves = [*inputs, *module.parameters()]

        def train() -> None:
            with self.autocast():
                output = forward(*inputs)
            go_back(output)
            for leaf in leaves:
                leaf.grad = None

        return train

    def draw(self, *shape: int) -> torch.Tensor:
        """Random numbers of the case's device, dtype and, for maps, memory format."""
        x = torch.randn(shape, device=self.device, dtype=getattr(torch, self.dtype))
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and len(shape) == 4 else x
