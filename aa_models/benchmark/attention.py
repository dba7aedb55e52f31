"""Compare attention with relative positions with fused attention without any, from q, k and v on.

  sdpa  F.scaled_dot_product_attention of the same q, k and v: the floor
  aa    SoftmaxAttention.attend, its relative tables made for the map

q, k and v lie in memory head by head; with --channels-last as a 1×1 convolution in that order leaves them.

Examples:
  aa-models benchmark attention
  aa-models benchmark attention --size 14 --dim-head 64 --dtype bfloat16
"""
import argparse
import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import nn

from aa_models.layers import AttentionArgs
from aa_models.layers.softmax_attention import SoftmaxAttention

from . import options
from .case import Case
from .rivals import PlainAttention


class _Attend(nn.Module):
    """An attention layer without its projections."""

    def __init__(self, attn: SoftmaxAttention | PlainAttention) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.attn.attend(q, k, v)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionCase(Case):
    """Attention named 'aa' or 'sdpa'.

    Args:
        num_heads: Number of heads.
        dim_head: Depth of a head's queries and keys.
        dv: Depth of the values, all heads together.

    See `Case` for the other arguments.
    """
    num_heads: int
    dim_head: int
    dv: int

    def module(self, device: str) -> nn.Module:
        dd = dict(device=device, dtype=getattr(torch, self.dtype))
        depths = (1, self.num_heads * self.dim_head, self.dv, self.num_heads)  # no channel in would be refused
        if self.name == 'aa':
            return _Attend(SoftmaxAttention(1, AttentionArgs(*depths[1:]), feat_size=self.size, **dd))
        return _Attend(PlainAttention(*depths, **dd))

    def inputs(self) -> tuple[torch.Tensor, ...]:
        return tuple(self._heads(depth).requires_grad_() for depth in (*[self.dim_head] * 2, self.dv // self.num_heads))

    def _heads(self, depth: int) -> torch.Tensor:
        """(batch_size, num_heads, H, W, depth)"""
        if self.channels_last:
            return self.draw(self.batch_size, *self.size, self.num_heads, depth).permute(0, 3, 1, 2, 4)
        return self.draw(self.batch_size, self.num_heads, *self.size, depth)

    def backward(self) -> Callable[[torch.Tensor], None]:
        gradient = self._heads(self.dv // self.num_heads)
        return lambda output: output.backward(gradient)

    def counts(self) -> tuple[None, None]:
        """Neither: a part of a layer has no counts of its own."""
        return None, None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the benchmark."""
    options.add_size(parser)
    options.add_common(parser, batch_size=16)
    options.add_heads(parser, 'dk')


def groups(args: argparse.Namespace) -> Sequence[Sequence[Case]]:
    """The cases that are timed together, each compared with the first of them."""
    case = AttentionCase(
        name='sdpa', size=options.size_of(args), num_heads=args.num_heads, dim_head=args.dim_head, dv=_dv(args),
        **options.how(args))
    return [[case, dataclasses.replace(case, name='aa')]]


def _dv(args: argparse.Namespace) -> int:
    return args.num_heads * args.dim_head if args.dv is None else args.dv


def title(args: argparse.Namespace) -> str:
    """What all cases have in common, for the head of the results."""
    return f'dk {args.num_heads * args.dim_head}, dv {_dv(args)}, {args.num_heads} heads'
