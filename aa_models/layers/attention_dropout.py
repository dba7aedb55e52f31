"""Dropout of attention weights, block by block, whose random numbers can be drawn again.

Nothing of size (H * W)² is kept between the forward and the backward pass: both draw from a seed. The numbers depend on
seed and sizes alone, not on how many threads share the work.
"""
import torch

from .block_layout import BlockLayout

_STEPS = 2 ** 16  # 16 random bits a weight; torch draws 64 at a time, in a fifth of the time of its own dropout


def dropout_layout(M: int, H: int, W: int, causal: bool) -> BlockLayout:
    """The blocks of an attention with dropout, the same for any number of threads."""
    return BlockLayout(M, H, W, causal, threads=1)


class AttentionDropout:
    """Draws which weights of the blocks of a `dropout_layout` are kept, one block after the other.

    Args:
        p: Probability of dropping a weight, rounded to 1/65536.
        seed: One integer; the same one gives the same numbers.
        largest: Weights of the largest block.
    """

    def __init__(self, p: float, seed: torch.Tensor, largest: int) -> None:
        kept = round((1 - p) * _STEPS)
        self.scale = _STEPS / kept if kept else 0.  # of what is kept, so that the sum stays the same on average
        self._last = max(kept - 1, 0) - _STEPS // 2  # of the numbers from -2¹⁵ on that stand for a weight kept
        self._generator = torch.Generator(seed.device).manual_seed(int(seed))
        self._bits = torch.empty((largest + 3) // 4, dtype=torch.int64, device=seed.device)

    def draw(self, out: torch.Tensor) -> torch.Tensor:
        """Fill a block (heads, queries, keys) with 1 for a weight that is kept and 0 for one that is not."""
        bits = self._bits[:(out.numel() + 3) // 4].random_(-2 ** 63, None, generator=self._generator)
        return torch.le(bits.view(torch.int16)[:out.numel()].view(out.shape), self._last, out=out)


def dropout_factors(v: torch.Tensor, causal: bool, p: float, seed: torch.Tensor) -> torch.Tensor:
    """What blockwise attention multiplies the weights by, in full.

    Args:
        v: Values (B, num_heads, H, W, dim_v).
        causal: Query i sees keys 0 … i only.
        p: As for `AttentionDropout`.
        seed: Likewise.

    Returns:
        (B, num_heads, H * W, H * W) in v's dtype.
    """
    B, num_heads, H, W, _ = v.shape
    layout = dropout_layout(B * num_heads, H, W, causal)
    dropout = AttentionDropout(p, seed, layout.logits)
    factors = v.new_zeros(B * num_heads, H * W, H * W)
    for block in layout:
        part = factors[block.heads, block.queries, block.keys]
        part.copy_(dropout.draw(torch.empty_like(part, memory_format=torch.contiguous_format)).mul_(dropout.scale))
    return factors.view(B, num_heads, H * W, H * W)
