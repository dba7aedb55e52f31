"""What both kinds of attention share: reading q, k and v off a map and writing the heads back to it.

Attention Augmented Convolutional Networks (arXiv 1904.09925), section 3: one 1×1 convolution gives q, k and v, the
heads attend over all positions of the map, and a second 1×1 convolution mixes their concatenation.
"""
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import fx, nn

from aa_models.errors import InputError

from .attention_args import AttentionArgs
from .position import add_sincos, append_coords
from .tracing import as_one_node, is_transformed

CONV: dict[int, Callable[..., nn.Conv1d | nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
_POOL: dict[int, Callable[..., nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d}


def check_shape(x: torch.Tensor, in_channels: int, ndim: int) -> None:
    """Refuse an input that is not (B, in_channels, a length for each axis); torch.fx's stand-in has no shape."""
    if not isinstance(x, fx.Proxy) and (x.dim() != ndim + 2 or x.shape[1] != in_channels):
        axes = 'L' if ndim == 1 else 'H, W'
        raise InputError(f'x must have the shape (B, {in_channels}, {axes}), got {tuple(x.shape)}')


class GridAttention(nn.Module):
    """Multi-head attention over the positions of a map (B, C, H, W) or a sequence (B, C, L).

    Subclasses compute the attention of the heads. They see a sequence as a map of one row.

    The attended map is the input, padded by `sample_pad`, at every `stride`-th pixel; where p = `attn_pool` > 1, the
    average of (2p - 1)-wide windows at every p-th pixel of that, and the result is brought back bilinearly. Absolute
    positions (`'sincos'`, `'coord'`) count the pixels of the attended map.

    Args:
        in_channels: Channels of the input.
        args: The attention's arguments, with `dk` and `dv` as channels that `num_heads` divides.
        stride: Step between the positions read, one for each axis.
        sample_pad: Zeros to add around the map before reading, as `torch.nn.functional.pad` takes them (last axis
            first); negative ones crop.
        bias: Learn biases in both projections.
        out_channels: Channels of the output, by default `dv`.
    """

    if TYPE_CHECKING:  # TorchScript reads annotations too, and would take this one for optional at run time
        q_const: torch.Tensor | None

    def __init__(
            self, in_channels: int, args: AttentionArgs, *, stride: Sequence[int] = (1, 1),
            sample_pad: Sequence[int] = (0, 0, 0, 0), bias: bool = True, out_channels: int | None = None,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        ndim = len(stride)
        self.in_channels = in_channels
        self.dk, self.dv = int(args.dk), int(args.dv)
        self.num_heads = args.num_heads
        self.stride: list[int] = list(stride)
        self.sample_pad: list[int] = list(sample_pad)
        self.attn_pool = args.attn_pool
        self.attn_init = args.attn_init
        self.pos_embed = cast(str, args.pos_embed)  # None has become '' there

        extra = ndim + 1 if args.pos_embed == 'coord' else 0
        # windows at the border average what is inside the map only
        self.pool = nn.Identity() if args.attn_pool == 1 else _POOL[ndim](
            2 * args.attn_pool - 1, args.attn_pool, args.attn_pool - 1, count_include_pad=False)
        self.qkv = CONV[ndim](in_channels + extra, 2 * self.dk + self.dv, 1, bias=bias, **dd)
        self.proj = CONV[ndim](self.dv, out_channels or self.dv, 1, bias=bias, **dd)
        self.attn_drop = nn.Dropout(args.attn_drop)
        self.register_buffer('q_const', None)  # a constant part of the queries, where a subclass has one

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for layer in (self.qkv, self.proj):
            trunc_normal_(layer.weight, std=layer.weight.shape[1] ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def sample(self, x: torch.Tensor) -> torch.Tensor:
        """Read the positions that belong to the output pixels: (B, C, H_in, W_in) -> (B, C, H_out, W_out)."""
        if any([p != 0 for p in self.sample_pad]):  # noqa: C419, TorchScript has no generators
            x = F.pad(x, self.sample_pad)
        if self.stride[0] > 1:
            x = x[:, :, ::self.stride[0]]
        if len(self.stride) == 2 and self.stride[-1] > 1:
            x = x[:, :, :, ::self.stride[-1]]
        return x

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pool and project a sampled map.

        Args:
            x: (B, in_channels, H_out, W_out) or (B, in_channels, L_out).

        Returns:
            q and k (B, num_heads, H, W, dk / num_heads) and v (B, num_heads, H, W, dv / num_heads).
        """
        x = self.pool(x)
        if self.pos_embed == 'sincos':
            x = add_sincos(x)
        elif self.pos_embed == 'coord':
            x = append_coords(x)
        qkv = self.qkv(x)
        if qkv.dim() == 3:
            qkv = qkv.unsqueeze(2)
        q, k, v = qkv.split([self.dk, self.dk, self.dv], dim=1)
        q = self._split(q)
        if self.q_const is not None:
            q = q + self.q_const.to(q.dtype).unsqueeze(1).unsqueeze(1)
        return q, self._split(k), self._split(v)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, [self.num_heads, -1]).permute(0, 1, 3, 4, 2)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Weigh the values; all shapes as `heads` returns them."""
        raise NotImplementedError

    def weights(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """The weights that `attend` uses, in full: (B, num_heads, H * W, H * W), rows summing to 1."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H_in, W_in) -> (B, out_channels, H_out, W_out); sequences likewise."""
        if not torch.jit.is_scripting():  # noqa: SIM102, TorchScript would compile the rest of one condition
            if isinstance(x, fx.Proxy):
                return as_one_node(self, x)
        x = self.sample(x)
        q, k, v = self.heads(x)
        out = self.attend(q, k, v)
        if torch.jit.is_scripting():
            channels_last = x.is_contiguous(memory_format=torch.channels_last)
        elif torch.compiler.is_exporting():
            channels_last = True  # an exported program is to hold for every size, so it must not ask for strides
        else:  # inside vmap there is no answer
            channels_last = not is_transformed() and x.is_contiguous(memory_format=torch.channels_last)
        # the heads side by side, (B, dv, H, W), in the order of the input's strides
        if channels_last:
            out = out.permute(0, 2, 3, 1, 4).flatten(3).permute(0, 3, 1, 2)
        else:
            out = out.permute(0, 1, 4, 2, 3).flatten(1, 2)
        out = self.proj(out if x.dim() == 4 else out.squeeze(2))
        if self.attn_pool > 1:
            # a sequence as a map of one row, because on GPUs 'linear' has no deterministic gradient, 'bilinear' has
            if x.dim() == 3:
                out = F.interpolate(out.unsqueeze(2), size=(1, x.shape[2]), mode='bilinear').squeeze(2)
            else:
                out = F.interpolate(out, size=x.shape[2:], mode='bilinear')
        return out

    def attention_map(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights of an input, in full.

        Args:
            x: The layer's input (B, in_channels, H_in, W_in) or (B, in_channels, L_in).

        Returns:
            (B, num_heads, H * W, H * W), rows (queries) summing to 1; (H, W) is the attended map, pooled where
            `attn_pool` > 1, in row-major order.

        Raises:
            ValueError: `x` has the wrong rank or channels.
        """
        check_shape(x, self.in_channels, len(self.stride))
        q, k, _ = self.heads(self.sample(x))
        return self.weights(q, k)

    def map_size(self, x: torch.Tensor) -> tuple[int, int]:
        """Height and width of the attended map of an input as `attention_map` takes it; a sequence is one row."""
        size = self.pool(self.sample(x)).shape[2:]
        return (1 if len(size) == 1 else size[0]), size[-1]

    @torch.jit.unused
    def is_watched(self) -> bool:
        """Whether a hook on `attn_drop` waits for the weights, as those of `timm.utils.AttentionExtract` do.

        While one does, all weights pass through `attn_drop`, whichever implementation would run otherwise.
        """
        return bool(self.attn_drop._forward_hooks or self.attn_drop._forward_pre_hooks)

    def extra_repr(self) -> str:
        text = f'dk={self.dk}, dv={self.dv}, num_heads={self.num_heads}, pos_embed={self.pos_embed or None!r}'
        return text + (f', attn_pool={self.attn_pool}' if self.attn_pool > 1 else '')
