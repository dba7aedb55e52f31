"""Efficient attention: cost and memory grow with the number of positions, not with its square.

Efficient Attention: Attention with Linear Complexities (arXiv 1812.01243), section 3.2:
E(Q, K, V) = ρ_q(Q) (ρ_k(K)ᵀ V), ρ_q the softmax over the channels of each position, ρ_k the softmax over the positions
of each channel, each within a head.
"""
from typing import Any

import torch

from .grid_attention import GridAttention


class LinearAttention(GridAttention):
    """Multi-head efficient attention over a map or a sequence.

    See `GridAttention` for the arguments. There is no logit of two positions here, hence neither relative positions nor
    a causal mask, and `attn_drop` drops entries of ρ_k(K); only while a hook watches it (`is_watched`), those of the
    weights, which are made in full for it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reset_parameters()

    def _normalize(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # each (B, num_heads, dk / num_heads, H * W): along positions a CPU computes several at once, along the few
        # channels of a head it does not
        return q.flatten(2, 3).transpose(-2, -1).softmax(dim=-2), k.flatten(2, 3).transpose(-2, -1).softmax(dim=-1)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Weigh the values; shapes as in `GridAttention.attend`."""
        H, W = v.shape[2], v.shape[3]
        if not torch.jit.is_scripting() and self.is_watched():
            return (self.attn_drop(self.weights(q, k)) @ v.flatten(2, 3)).unflatten(2, [H, W])
        q, k = self._normalize(q, k)
        # (B, num_heads, dv / num_heads, dk / num_heads)
        context = v.flatten(2, 3).transpose(-2, -1) @ self.attn_drop(k).transpose(-2, -1)
        return (context @ q).transpose(-2, -1).unflatten(2, [H, W])

    def weights(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """All weights ρ_q(Q) ρ_k(K)ᵀ; shapes as in `GridAttention.weights`."""
        q, k = self._normalize(q, k)
        return q.transpose(-2, -1) @ k
