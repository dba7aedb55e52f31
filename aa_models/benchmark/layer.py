"""Compare the augmented convolution with other layers of the same channels on one map.

All layers go from C to C channels and have no biases. By default attention makes all of them (dv = C), since that is
what timm's `BottleneckAttn` does; with a smaller --dv each gets the same 3×3 convolution for the rest.

  aa          AugmentedConv2d, softmax attention with relative positions: what the others are compared with
  laa         AugmentedConv2d, linear attention with sine/cosine positions
  conv        a plain 3×3 convolution
  bottleneck  timm's BottleneckAttn with the same heads, key and value depths and table sizes; it has no output
              projection and does not scale its position logits
  naive       the listing in the paper's appendix, with all logits in memory
  sdpa        fused attention without positions between the same projections: the floor

Examples:
  aa-models benchmark layer
  aa-models benchmark layer --dtype bfloat16 --rivals bottleneck
  aa-models benchmark layer --size 96 --batch-size 1 --channels 64 --rivals conv sdpa
"""
import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import get_attn
from torch import nn

from aa_models.layers import AugmentedConv2d

from . import options
from .case import Case
from .rivals import Concat, ListingAttention, PlainAttention


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCase(Case):
    """A layer of `LAYERS`, by its name.

    Args:
        channels: Channels of input and output.
        num_heads: Heads of the attention.
        dim_head: Depth of a head's queries and keys.
        dv: Depth of the values, all heads together: the channels that attention makes.

    See `Case` for the other arguments.
    """
    channels: int
    num_heads: int
    dim_head: int
    dv: int

    @property
    def in_chans(self) -> int:
        return self.channels

    @property
    def dk(self) -> int:
        """Depth of the keys, all heads together."""
        return self.num_heads * self.dim_head

    def module(self, device: str) -> nn.Module:
        return LAYERS[self.name](self, device=device, dtype=getattr(torch, self.dtype))

    def inputs(self) -> tuple[torch.Tensor]:
        return self.draw(self.batch_size, self.channels, *self.size).requires_grad_(),

    def backward(self) -> Callable[[torch.Tensor], None]:
        gradient = self.draw(self.batch_size, self.channels, *self.size)
        return lambda output: output.backward(gradient)


def _ours(case: LayerCase, **kwargs: Any) -> nn.Module:
    return AugmentedConv2d(
        case.channels, case.channels, 3, padding=1, bias=False, dk=case.dk, dv=case.dv, num_heads=case.num_heads,
        feat_size=case.size, **kwargs)


def _linear(case: LayerCase, **dd: Any) -> nn.Module:
    return _ours(case, attention='linear', pos_embed='sincos', **dd)


def _conv(case: LayerCase, **dd: Any) -> nn.Module:
    return nn.Conv2d(case.channels, case.channels, 3, padding=1, bias=False, **dd)


def _beside_conv(case: LayerCase, attn: nn.Module, **dd: Any) -> nn.Module:
    channels = case.channels - case.dv
    conv = nn.Conv2d(case.channels, channels, 3, padding=1, bias=False, **dd) if channels else None
    return Concat(conv, attn)


def _bottleneck(case: LayerCase, **dd: Any) -> nn.Module:
    attn = get_attn('bottleneck')(
        case.channels, case.dv, feat_size=case.size, num_heads=case.num_heads, dim_head=case.dim_head, **dd)
    return _beside_conv(case, attn, **dd)


def _naive(case: LayerCase, **dd: Any) -> nn.Module:
    attn = ListingAttention(case.channels, case.dk, case.dv, case.num_heads, feat_size=case.size, **dd)
    return _beside_conv(case, attn, **dd)


def _sdpa(case: LayerCase, **dd: Any) -> nn.Module:
    return _beside_conv(case, PlainAttention(case.channels, case.dk, case.dv, case.num_heads, **dd), **dd)


LAYERS = {
    'aa': _ours, 'laa': _linear, 'conv': _conv, 'bottleneck': _bottleneck, 'naive': _naive, 'sdpa': _sdpa,
}
OURS, *RIVALS = LAYERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the benchmark."""
    options.add_size(parser)
    options.add_common(parser, batch_size=16)
    add_layer_arguments(parser, channels=160)


def add_layer_arguments(parser: argparse.ArgumentParser, channels: int) -> None:
    """Declare what a layer is made of."""
    parser.add_argument('--channels', type=int, default=channels, metavar='C',
                        help='channels of input and output (default: %(default)s)')
    options.add_heads(parser, 'C')
    parser.add_argument('--rivals', nargs='+', default=RIVALS, choices=RIVALS, metavar='NAME',
                        help=f'layers to compare with, of {", ".join(RIVALS)} (default: all)')


def groups(args: argparse.Namespace) -> Sequence[Sequence[Case]]:
    """The cases that are timed together, each compared with the first of them."""
    return [layers(args, options.size_of(args))]


def layers(args: argparse.Namespace, size: tuple[int, int]) -> list[LayerCase]:
    """The augmented convolution and its rivals on a map of `size`."""
    return [
        LayerCase(
            name=name, size=size, channels=args.channels, num_heads=args.num_heads, dim_head=args.dim_head,
            dv=args.channels if args.dv is None else args.dv, **options.how(args))
        for name in (OURS, *dict.fromkeys(args.rivals))
    ]


def title(args: argparse.Namespace) -> str:
    """What all cases have in common, for the head of the results."""
    dv = args.channels if args.dv is None else args.dv
    return f'{args.channels} channels, dk {args.num_heads * args.dim_head}, dv {dv}, {args.num_heads} heads'
