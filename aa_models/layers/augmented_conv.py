"""Attention-augmented convolution: Concat[Conv(x), Attention(x)], a drop-in for `nn.Conv2d` and `nn.Conv1d`.

Attention Augmented Convolutional Networks (arXiv 1904.09925), section 3.2.
"""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module, to_ntuple
from torch import fx, nn

from aa_models.errors import InputError, InputTypeError

from .attention_args import AttentionArgs
from .grid_attention import CONV, GridAttention, check_shape
from .head_dims import is_int, resolve_depths
from .linear_attention import LinearAttention
from .softmax_attention import SoftmaxAttention

_DEFAULT_FEAT_SIZE = 32


def centre_pad(kernel_size: Sequence[int], padding: str | Sequence[int], dilation: Sequence[int]) -> list[int]:
    """How to pad a map so that its every stride-th pixel lies under the centre of an output pixel's kernel.

    Args:
        kernel_size: One for each axis; the centre of an even kernel is the pixel before its middle.
        padding: Zeros on both sides of each axis, or 'same' or 'valid'.
        dilation: One for each axis.

    Returns:
        Zeros to add as `torch.nn.functional.pad` takes them (last axis first); negative ones crop.
    """
    pad: list[int] = []
    for axis in reversed(range(len(kernel_size))):
        reach = dilation[axis] * (kernel_size[axis] - 1)
        before = {'same': reach // 2, 'valid': 0}[padding] if isinstance(padding, str) else padding[axis]
        after = reach - before if padding == 'same' else before
        pad += [before - reach // 2, after - (reach - reach // 2)]
    return pad


class _AugmentedConv(nn.Module):
    """What the layers of one and two axes share."""
    ndim: int

    def __init__(
            self, in_channels: int, out_channels: int, kernel_size: int | Sequence[int],
            stride: int | Sequence[int] = 1, padding: str | int | Sequence[int] = 0, dilation: int | Sequence[int] = 1,
            groups: int = 1, bias: bool = True, *,
            dk: int | float = 0.2, dv: int | float = 0.1, num_heads: int = 8, attention: str = 'softmax',
            pos_embed: str | None = 'rel', feat_size: int | Sequence[int] | None = None, attn_pool: int = 1,
            attn_drop: float = 0., attn_init: str = 'local', causal: bool = False,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        if causal:
            self._check_causal(attention, pos_embed, attn_pool, padding)
        args = AttentionArgs(dk, dv, num_heads, attention, pos_embed, attn_pool, attn_drop, attn_init)
        for name, value in (('in_channels', in_channels), ('out_channels', out_channels), ('groups', groups)):
            if not is_int(value) or value < 1:
                raise InputError(f'{name} must be an int, at least 1, got {value!r}')
        if args.pos_embed == 'sincos' and in_channels < 2 * self.ndim:
            raise InputError(f"pos_embed='sincos' needs in_channels of at least {2 * self.ndim}, got {in_channels}")
        self.in_channels = int(in_channels)
        self.out_channels = int(out_channels)
        self.kernel_size = self._per_axis('kernel_size', kernel_size)
        self.stride = self._per_axis('stride', stride)
        self.padding: str | tuple[int, ...] = (
            padding if isinstance(padding, str) else self._per_axis('padding', padding, minimum=0))
        self.dilation = self._per_axis('dilation', dilation)
        self.groups = int(groups)
        self.dk, self.dv = resolve_depths(out_channels, dk, dv, num_heads)
        self.num_heads = args.num_heads
        lengths = self._per_axis('feat_size', _DEFAULT_FEAT_SIZE if feat_size is None else feat_size)
        self.left_pad = self.dilation[0] * (self.kernel_size[0] - 1) if causal else 0
        self.conv = self._make_conv(bias, dd)
        self.attn: GridAttention | None = None
        if self.dv == 0:
            return
        args = args.replace(dk=self.dk, dv=self.dv)
        # a causal kernel ends at the present, so q, k and v are read there
        sample_pad = [0, 0] if causal else centre_pad(self.kernel_size, self.padding, self.dilation)
        dd.update(stride=self.stride, sample_pad=sample_pad, bias=bias)
        self.attn = (
            LinearAttention(in_channels, args, **dd) if attention == 'linear' else
            SoftmaxAttention(in_channels, args, feat_size=lengths, causal=causal, **dd))

    def _make_conv(self, bias: bool, dd: dict[str, Any]) -> nn.Conv1d | nn.Conv2d | None:
        """The convolution, None where attention makes all channels."""
        channels = self.out_channels - self.dv
        if channels % self.groups:
            depthwise = self.groups == self.in_channels
            raise InputError(
                f'groups={self.groups} must divide the channels of the convolution, '
                f'out_channels - dv = {self.out_channels} - {self.dv} = {channels}'
                f'{" (a depthwise one cannot be split: augment the 1×1 before or after it)" if depthwise else ""}')
        try:
            # where no channel is left to it, it is made all the same, without memory, to have the arguments checked
            conv = CONV[self.ndim](
                self.in_channels, channels or self.groups, self.kernel_size, self.stride, self.padding, self.dilation,
                self.groups, bias, **(dd if channels else {'device': 'meta'}))
        except ValueError as error:
            raise InputError(str(error)) from error
        return conv if channels else None

    def _per_axis(self, name: str, value: int | Sequence[int], minimum: int = 1) -> tuple[int, ...]:
        values = to_ntuple(self.ndim)(value)
        if len(values) != self.ndim or not all(is_int(v) and v >= minimum for v in values):
            what = 'an int' if self.ndim == 1 else 'an int or a pair of them'
            raise InputError(f'{name} must be {what}, at least {minimum}, got {value!r}')
        return tuple(int(v) for v in values)

    def _check_causal(
            self, attention: str, pos_embed: str | None, attn_pool: int, padding: str | int | Sequence[int],
    ) -> None:
        if self.ndim > 1:
            raise InputTypeError('causal=True is for sequences: AugmentedConv1d has it')
        if attention == 'linear':
            raise InputError("causal=True needs attention='softmax': linear attention has no logits to mask")
        if pos_embed == 'coord':
            raise InputError(
                "causal=True needs pos_embed 'rel', 'sincos' or None: coordinates depend on the length, got 'coord'")
        if attn_pool != 1:
            raise InputError(f'causal=True needs attn_pool=1, got {attn_pool}: a pooled position sees later inputs')
        if padding not in (0, (0,), [0]):
            raise InputError(f'causal=True pads on the left by itself and needs padding=0, got {padding!r}')

    def _check_input(self, x: torch.Tensor) -> None:
        check_shape(x, self.in_channels, self.ndim)
        if self.padding == 'same' or self.left_pad or isinstance(x, fx.Proxy):
            return
        for axis, size in enumerate(x.shape[2:]):
            padding = 0 if isinstance(self.padding, str) else self.padding[axis]
            needed = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1 - 2 * padding
            if needed > 1 and size < needed:
                raise InputError(
                    f'{type(self).__name__} needs at least {needed} pixels along axis {axis + 2} for '
                    f'kernel_size={self.kernel_size}, padding={self.padding}, dilation={self.dilation}, '
                    f'got an input of shape {tuple(x.shape)}')

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for layer in (self.conv, self.attn):
            if layer is not None:
                layer.reset_parameters()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve and attend.

        Args:
            x: (B, in_channels, H, W) or (B, in_channels, L).

        Returns:
            (B, out_channels, H_out, W_out) as `nn.Conv2d` or (B, out_channels, L_out) as `nn.Conv1d` gives: the
            convolution's channels, then the attention's.
        """
        if not (torch.jit.is_scripting() or torch.jit.is_tracing()):
            self._check_input(x)
        outputs: list[torch.Tensor] = []
        if self.conv is not None:
            outputs.append(self.conv(F.pad(x, [self.left_pad, 0]) if self.left_pad > 0 else x))
        if self.attn is not None:
            outputs.append(self.attn(x))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


@register_notrace_module
class AugmentedConv2d(_AugmentedConv):
    """2-D convolution with attention-augmented output channels: Concat[Conv(x), Attention(x)].

    Takes `nn.Conv2d`'s first arguments and gives its output size for every stride, padding, dilation and group count.
    The queries, keys and values are read by a 1×1 convolution at the input position under the centre of each output
    pixel's kernel (zero where that is padding), so the attended map is the output map. Any input size works.

    `conv` holds the convolution (None where `dv` is `out_channels`), `attn` the attention (None where `dv` is 0);
    `attn.attention_map(x)` gives the weights, (B, num_heads, H * W, H * W).

    Source: Attention Augmented Convolutional Networks (arXiv 1904.09925); linear attention: arXiv 1812.01243.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, convolution and attention together.
        kernel_size: Size of the kernel.
        stride: Step of the kernel.
        padding: Zeros on both sides of each axis, or `'same'` or `'valid'`.
        dilation: Spacing of the kernel's elements.
        groups: Groups of the convolution; the attention has none.
        bias: Learn biases, in the attention's projections too.
        dk: Depth of the keys, all heads together: an int is that many channels, a float a share of `out_channels` by
            the paper's rule (a multiple of `num_heads`, at least 20 a head).
        dv: Depth of the values, likewise (without the minimum); these are the output channels that come from attention.
            0 gives a plain convolution, `out_channels` (or 1.0) attention alone. The default share needs 80 channels
            or more for 8 heads; below, it rounds to 0, which warns.
        num_heads: Number of heads.
        attention: `'softmax'`, or `'linear'` for efficient attention.
        pos_embed: Positions: `'rel'` (relative logits, for softmax attention only: linear attention needs another
            choice), `'sincos'`, `'coord'` or None (also `'none'`).
        feat_size: Height and width of the attended map that the relative tables are made for, by default 32; at any
            other size they are interpolated. With `attn_pool` that is the pooled map.
        attn_pool: Attend on the map averaged over (2p - 1)² windows at every p-th pixel, and bring the result back
            bilinearly; 1 for none.
        attn_drop: Dropout probability of the attention weights.
        attn_init: What the heads look at before they have learned anything: `'local'`, a neighbour each
            (`aa_models.layers.local_start` has the formula), or `'global'`, everything. Without relative positions, or
            with less than two key channels a head for each axis, it is always the latter.
        causal: For sequences only, see `AugmentedConv1d`.

    Raises:
        ValueError: An argument is impossible, or an input has the wrong rank or channels or is smaller than the kernel.
        TypeError: `dk`, `dv` or `num_heads` is no number of the right kind, or `causal` is asked for.
    """
    ndim = 2


@register_notrace_module
class AugmentedConv1d(_AugmentedConv):
    """1-D convolution with attention-augmented output channels: `AugmentedConv2d` for sequences (B, in_channels, L).

    Takes `nn.Conv1d`'s first arguments and gives its output length.

    Args:
        causal: No output depends on a later input, nor on how many there are: the convolution is padded on the left by
            dilation · (kernel_size - 1), the attention is masked, q, k and v are read at the kernel's last position,
            and the output has ⌈L / stride⌉ positions. Relative tables are not interpolated then; offsets beyond
            `feat_size` share its last row. Leave `padding` at 0.

    See `AugmentedConv2d` for the other arguments; `feat_size` is the length.

    Raises:
        ValueError: As `AugmentedConv2d`; or `causal` with linear attention, coordinates, pooling or padding.
        TypeError: `dk`, `dv` or `num_heads` is no number of the right kind.
    """
    ndim = 1
