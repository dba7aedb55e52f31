"""Heads that start as the convolution they replace: each looks at one neighbour, and learns where else to look.

ConViT (arXiv 2103.10697), section 4: logits that fall with the squared distance to a head's own offset Δ. Here

    logit(δ) = -β (‖δ - Δ‖² - ‖Δ‖²) = β Σ_axis (2 Δ · δ - δ²),    δ = position of the key - position of the query,

is the product of a constant part of the query, one for each head, and two dimensions of each axis's relative table:
rel[δ] = (δ / a, δ² / a²) and q = β (2 a Δ, -a²) / scale. The constant is a buffer, no parameter, and meets the keys
too, so that a head soon learns which of the pixels around its own it prefers.

How a product is divided makes no difference to what a head computes, but to how it learns: the logits move by one
factor times whatever the other moves by. An optimiser like Adam moves all weights alike, however little the loss
depends on them. So beside a large constant, or beside large keys that hardly any query has met yet, its steps throw the
head to other pixels. They do so least where both factors are of one size.
"""
import math
from collections.abc import Mapping, Sequence
from itertools import product

import torch

STRENGTH = 0.5  # β: on a map, far from its border, the neighbour has a weight of 0.16, a pixel beside it 0.10
_CONSTANT = 2.  # of the constant times scale, β a², at most
_LARGE = 10.  # beyond any start beside a kernel of 5 × 5; a checkpoint's constant above it is brought below 2
UNUSED = 16.  # by what keys are divided that no query has met yet; those of a checkpoint at most
_UNMET = 8.  # how much larger such keys are than the queries; trained from random weights both come to one size
_REACH = 64.  # of the distances in pixels: what lies further has no weight anyway, and its square no place in float16
_REST = 0.1  # of the tables' usual scale, for the dimensions that hold no distance


def head_offsets(num_heads: int, ndim: int, causal: bool = False) -> list[tuple[int, ...]]:
    """The pixel that each head starts at: the nearest ones, opposite ones in turn; the convolution has the centre.

    Eight heads on a map have the eight neighbours, four those that share a side. A causal sequence looks back from the
    present: 0, -1, -2 …

    Args:
        num_heads: Number of heads.
        ndim: Axes of the map, 2 (rows, columns) or 1.
        causal: No head may look ahead.
    """
    if causal:
        return [(-head,) for head in range(num_heads)]
    reach = math.ceil(num_heads ** (1 / ndim)) + 1  # more pixels than heads are no further than that
    offsets = [o for o in product(range(-reach, reach + 1), repeat=ndim) if any(o)]
    # of one distance: first the one, then the opposite one
    return sorted(offsets, key=lambda o: (sum(d * d for d in o), max(o, tuple(-d for d in o)), o))[:num_heads]


def _unit(strength: float) -> float:
    """a for a given β, a power of two, by which nothing is rounded."""
    return 2. ** math.floor(math.log2(_CONSTANT / strength) / 2)


def local_query(offsets: Sequence[Sequence[int]], dim: int, scale: float, strength: float = STRENGTH) -> torch.Tensor:
    """The constant part of the queries, before they are scaled.

    Args:
        offsets: For each head its offset along each axis.
        dim: Key channels of a head, at least two for each axis.
        scale: Factor of the queries.
        strength: β, how fast the logits fall.

    Returns:
        (num_heads, dim), zero but for the first two dimensions of each axis.
    """
    constant, unit = torch.zeros(len(offsets), dim, dtype=torch.float64), _unit(strength)
    for axis, along in enumerate(zip(*offsets)):
        constant[:, 2 * axis] = 2 * strength * unit / scale * torch.tensor(along)
        constant[:, 2 * axis + 1] = -strength * unit ** 2 / scale
    return constant


@torch.no_grad()
def start_locally(tables: Sequence[torch.Tensor], strength: float = STRENGTH) -> None:
    """Write (δ / a, δ² / a²) into freshly drawn relative tables, in place.

    Args:
        tables: For each axis its table (2 * L - 1, dim), the first axis first.
        strength: β, that of the queries.
    """
    for axis, table in enumerate(tables):
        reach = table.shape[0] // 2
        offset = torch.arange(-reach, reach + 1, device=table.device).clamp(-_REACH, _REACH) / _unit(strength)
        table.mul_(_REST)
        table[:, :2 * len(tables)] = 0
        table[:, 2 * axis] = offset
        table[:, 2 * axis + 1] = offset.square()


@torch.no_grad()
def balanced(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of an attention with queries and what they meet of like size: the same function, to learn.

    Args:
        weights: `q_const` (num_heads, dim), `qkv.weight` and `qkv.bias`, `rel_h` and `rel_w`, as far as there are any.

    Returns:
        Those of them that change, in float32 at least; none where they are of like size already.
    """
    constant = weights['q_const']
    num_heads, dim = constant.shape
    size = constant.abs().amax(0).double() * dim ** -0.5
    rows = weights['qkv.weight'].double().flatten(1)[:2 * num_heads * dim].unflatten(0, [2, num_heads, dim])
    queries, keys = rows[:, :, size == 0].square().sum((1, 2, 3)).sqrt().tolist()
    large = torch.where(size > _LARGE, size, 1.).log2().floor()
    # a start from random weights, without any queries, stays what it is
    content = round(math.log2(min(keys / queries, UNUSED ** 2)) / 2) if keys > _UNMET * queries > 0 else 0
    return divided(weights, 2. ** torch.where(size > 0, -large, content))


@torch.no_grad()
def divided(weights: Mapping[str, torch.Tensor], factor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Multiply the queries of an attention by a factor, and divide by it the keys and the tables that they meet.

    Args:
        weights: As `balanced` takes them.
        factor: (dim,), of each dimension of a head: powers of two, by which every logit stays what it is, to the last
            digit.

    Returns:
        Those that change, in float32 at least.
    """
    constant = weights['q_const']
    num_heads = len(constant)
    if (factor == 1).all():
        return {}
    queries, changed = factor.repeat(num_heads), {'q_const': constant * factor.to(constant)}
    for name, tensor in weights.items():
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        if name.startswith('qkv.'):
            rows = torch.cat([queries, 1 / queries, queries.new_ones(len(tensor) - 2 * len(queries))])
            changed[name] = wide * rows.to(wide).view(-1, *[1] * (tensor.dim() - 1))
        elif name.startswith('rel_'):
            changed[name] = wide / factor.to(wide)
    return changed
