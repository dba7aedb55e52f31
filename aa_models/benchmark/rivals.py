"""Attention that `aa_models.layers` is compared with: the paper's listing, and fused attention without positions.

Both name their parameters as the layers do, so weights can be exchanged.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class Concat(nn.Module):
    """Concat[Conv(x), Attention(x)] of any two modules.

    Args:
        conv: Convolution, or None where attention makes all channels.
        attn: Attention with an output of the convolution's size.
    """

    def __init__(self, conv: nn.Module | None, attn: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.attn = attn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, channels of both, H, W)."""
        return self.attn(x) if self.conv is None else torch.cat([self.conv(x), self.attn(x)], dim=1)


class _Attention(nn.Module):
    """Projections around `attend`, without biases.

    Args:
        in_channels: Channels of the input.
        dk: Channels of the queries (and of the keys), all heads together.
        dv: Channels of the values and of the output.
        num_heads: Number of heads; divides `dk` and `dv`.
    """

    def __init__(
            self,
            in_channels: int,
            dk: int,
            dv: int,
            num_heads: int,
            *,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.depths, self.num_heads, self.scale = [dk, dk, dv], num_heads, (dk // num_heads) ** -0.5
        self.qkv = nn.Conv2d(in_channels, sum(self.depths), 1, bias=False, device=device, dtype=dtype)
        self.proj = nn.Conv2d(dv, dv, 1, bias=False, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) -> (B, dv, H, W)."""
        heads = [t.unflatten(1, [self.num_heads, -1]).permute(0, 1, 3, 4, 2) for t in self.qkv(x).split(self.depths, 1)]
        out = self.attend(*heads).permute(0, 1, 4, 2, 3)  # (B, num_heads, dv / num_heads, H, W)
        return self.proj(out.flatten(1, 2))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Weigh the values.

        Args:
            q: (B, num_heads, H, W, dk / num_heads)
            k: Likewise.
            v: (B, num_heads, H, W, dv / num_heads)

        Returns:
            (B, num_heads, H, W, dv / num_heads)
        """
        raise NotImplementedError


class ListingAttention(_Attention):
    """Attention Augmented Convolutional Networks (arXiv 1904.09925) the way its appendix lists it.

    All logits of content, columns and rows are made in full, (H * W)² a head each; those of positions by padding and
    reshaping the products with the tables.

    Args:
        feat_size: Height and width of the map, the only one that fits.

    See `_Attention` for the other arguments.
    """

    def __init__(
            self,
            *args: int,
            feat_size: Sequence[int],
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(*args, device=device, dtype=dtype)
        dim_head = self.depths[0] // self.num_heads
        self.rel_h, self.rel_w = (
            nn.Parameter(self.scale * torch.randn(2 * n - 1, dim_head, device=device, dtype=dtype)) for n in feat_size)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
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

    One zero behind each query's row and L - 1 behind the last make rows that are one longer than before line up so
    that, cut at the old length, each begins one offset further left: column L - 1 + j then holds the key j.

    Args:
        logits: (…, L, 2 * L - 1), entry [i, L - 1 + o] for the query i and the offset o.

    Returns:
        (…, L, L), entry [i, j] for the query i and the key j.
    """
    length = logits.shape[-2]
    flat = F.pad(F.pad(logits, [0, 1]).flatten(-2), [0, length - 1])
    return flat.unflatten(-1, [length + 1, 2 * length - 1])[..., :length, length - 1:]


class PlainAttention(_Attention):
    """Fused attention without positions: the floor under the time of attention that has them."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        H, W = v.shape[2:4]
        q, k, v = (t.flatten(2, 3) for t in (q, k, v))
        # the kernels that keep no logits take neither other strides nor, on the CPU, a narrower v
        q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
        dim_v, missing = v.shape[-1], q.shape[-1] - v.shape[-1]
        if missing > 0:
            v = F.pad(v, [0, missing])
        return F.scaled_dot_product_attention(q, k, v)[..., :dim_v].unflatten(2, [H, W])
