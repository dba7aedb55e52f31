"""The layers that are compared: ours, and what it is compared with."""
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import get_attn
from torch import nn

from aa_models.layers import AttentionArgs, AugmentedConv2d
from aa_models.layers.softmax_attention import SoftmaxAttention

LAYERS = ('aa', 'laa', 'conv', 'bottleneck', 'naive', 'sdpa')


def make_layer(
        name: str, channels: int, dk: int, dv: int, num_heads: int, size: tuple[int, int], **dd: Any,
) -> nn.Module:
    """Make a layer of `LAYERS`. All but 'conv' are an augmented convolution and differ in its attention alone."""
    if name == 'conv':
        return nn.Conv2d(channels, channels, 3, padding=1, bias=False, **dd)
    kind = dict(attention='linear', pos_embed='sincos') if name == 'laa' else dict(feat_size=size)
    layer = AugmentedConv2d(
        channels, channels, 3, padding=1, bias=False, dk=dk, dv=dv, num_heads=num_heads, **kind, **dd)
    if name == 'bottleneck':
        layer.register_module('attn', get_attn(name)(
            channels, dv, feat_size=size, num_heads=num_heads, dim_head=dk // num_heads, **dd))
    elif name in ('naive', 'sdpa'):
        layer.attn = make_attention(name, channels, dk, dv, num_heads, size, **dd)
    return layer


def make_attention(
        name: str, in_channels: int, dk: int, dv: int, num_heads: int, size: tuple[int, int], **dd: Any,
) -> SoftmaxAttention:
    """Make the attention of 'aa', 'naive' or 'sdpa' alone."""
    kind = {'aa': SoftmaxAttention, 'naive': ListingAttention, 'sdpa': PlainAttention}[name]
    args = AttentionArgs(dk, dv, num_heads, pos_embed=None if name == 'sdpa' else 'rel')
    return kind(in_channels, args, feat_size=size, bias=False, **dd)


class ListingAttention(SoftmaxAttention):
    """Attention as the appendix of Attention Augmented Convolutional Networks (arXiv 1904.09925) lists it.

    All logits of content, columns and rows are made in full, (H * W)² a head each; those of positions by padding and
    reshaping the products with the tables, which fit the map of `feat_size` only.
    """

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Weigh the values; shapes as in `GridAttention.attend`."""
        assert self.rel_h is not None and self.rel_w is not None
        B, N, H, W, _ = q.shape
        q = q * self.scale
        logits = q.flatten(2, 3) @ k.flatten(2, 3).transpose(-2, -1)  # (B, num_heads, H * W, H * W)
        columns = offsets_to_keys(q @ self.rel_w.t())  # (B, num_heads, H, W, W)
        logits += columns.unsqueeze(-2).expand(B, N, H, W, H, W).reshape(logits.shape)
        rows = offsets_to_keys(q.transpose(2, 3) @ self.rel_h.t())  # (B, num_heads, W, H, H)
        logits += rows.transpose(2, 3).unsqueeze(-1).expand(B, N, H, W, H, W).reshape(logits.shape)
        return (logits.softmax(-1) @ v.flatten(2, 3)).view_as(v)


def offsets_to_keys(logits: torch.Tensor) -> torch.Tensor:
    """Turn logits by offset into logits by key along one axis.

    (…, L, 2 * L - 1), entry [i, L - 1 + o] for the query i and the offset o, becomes (…, L, L), entry [i, j] for the
    key j. One zero behind each row and L - 1 behind the last make rows that are one longer than before line up so that,
    cut at the old length, each begins one offset further left.
    """
    length = logits.shape[-2]
    flat = F.pad(F.pad(logits, [0, 1]).flatten(-2), [0, length - 1])
    return flat.unflatten(-1, [length + 1, 2 * length - 1])[..., :length, length - 1:]


class PlainAttention(SoftmaxAttention):
    """Fused attention without positions: attention that has them cannot be faster."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Weigh the values; shapes as in `GridAttention.attend`."""
        H, W = v.shape[2:4]
        q, k, v = (t.flatten(2, 3) for t in (q, k, v))
        # the kernels that keep no logits take neither other strides nor, on the CPU, a narrower v
        q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
        dim_v, missing = v.shape[-1], q.shape[-1] - v.shape[-1]
        if missing > 0:
            v = F.pad(v, [0, missing])
        return F.scaled_dot_product_attention(q, k, v)[..., :dim_v].unflatten(2, [H, W])
