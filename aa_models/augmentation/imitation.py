"""Attention that starts as the filters it replaces.

A head whose attention rests on the pixel at one offset computes what one pixel of a convolution's kernel does: a linear
map of the channels there (On the Relationship between Self-Attention and Convolutional Layers, arXiv 1911.03584,
theorem 1). So each head takes over a pixel of the kernel, with as many dimensions as it has values: all of a 1×1
convolution, and of a larger kernel the part of least squared error that has this rank.
"""
from collections.abc import Mapping
from itertools import product
from typing import NamedTuple, cast

import torch

from aa_models.layers import AugmentedConv2d
from aa_models.layers.local_start import UNUSED, divided
from aa_models.layers.softmax_attention import SoftmaxAttention

STRENGTH = 4.  # β of the start: a head's own pixel has a weight of 0.93, one beside it 0.017
_SWEEPS = 3  # over the heads, each fitted to what the others leave
_RIDGE = 1e-2


def can_imitate(layer: AugmentedConv2d) -> bool:
    """Whether the heads of a layer can be made to rest on one pixel each: those that start locally on its own map."""
    return isinstance(layer.attn, SoftmaxAttention) and layer.attn.q_const is not None and layer.attn.attn_pool == 1


def kernel_offsets(layer: AugmentedConv2d) -> dict[int, tuple[int, int]]:
    """The pixels of the kernel that lie on the attended map: by their place in the kernel, the offset from its centre.

    With a stride the map has every second (third, …) pixel only.
    """
    found = {}
    for place, pixel in enumerate(product(*map(range, layer.kernel_size))):
        away = [d * p - d * (k - 1) // 2 for p, d, k in zip(pixel, layer.dilation, layer.kernel_size)]
        if all(distance % step == 0 for distance, step in zip(away, layer.stride)):
            found[place] = (away[0] // layer.stride[0], away[1] // layer.stride[1])
    return found


def lost_filters(weight: torch.Tensor, layer: AugmentedConv2d) -> torch.Tensor:
    """The last filters of a plain convolution, those that give way to attention, as a convolution without groups.

    Args:
        weight: (out_channels, in_channels / groups, kernel height, kernel width); of every group as many give way.
        layer: The layer to be.

    Returns:
        (dv, in_channels, kernel height, kernel width).
    """
    lost = weight[-layer.dv:].unflatten(0, (layer.groups, -1))
    dense = lost.new_zeros(*lost.shape[:2], layer.groups, *lost.shape[2:])
    for group, filters in enumerate(lost):
        dense[group, :, group] = filters
    return dense.flatten(2, 3).flatten(0, 1)


@torch.no_grad()
def imitate(layer: AugmentedConv2d, filters: torch.Tensor, covariance: torch.Tensor | None = None) -> torch.Tensor:
    """Have the attention of a layer start as the filters that gave way to it, in place.

    Args:
        layer: `can_imitate` says that it can.
        filters: (dv, C_in, kernel height, kernel width).
        covariance: Of the inputs of an output pixel as `unfold` lays them out, (C_in · pixels, C_in · pixels); without,
            each varies as much as the other and by itself.

    Returns:
        (dv, C_in, kernel height, kernel width): the filters that the attention is now.
    """
    attn = cast(SoftmaxAttention, layer.attn)
    target = filters.double().flatten(2)  # (dv, C_in, pixels)
    fit = _Fit(target, layer.dv // layer.num_heads, covariance)
    offsets = kernel_offsets(layer)
    heads: list[_Head] = []
    for _ in range(layer.num_heads):
        heads.append(fit.best(heads, offsets))
    for _ in range(0 if covariance is None else _SWEEPS):  # without them the pixels do not touch each other
        for head in range(layer.num_heads):
            others = heads[:head] + heads[head + 1:]
            heads[head] = fit.best(others, offsets)
    attn.look_at([offsets[head.place] for head in heads], STRENGTH)
    constant = cast(torch.Tensor, attn.q_const)
    unused = torch.where((constant == 0).all(0), UNUSED, 1.)
    attn.load_state_dict(divided(dict(attn.named_parameters(), q_const=constant), unused), strict=False)
    values = attn.qkv.weight.flatten(1)[2 * attn.dk:].unflatten(0, (layer.num_heads, -1))
    mix = attn.proj.weight.flatten(1).unflatten(1, (layer.num_heads, -1)).zero_()
    for i, (_, own, out) in enumerate(heads):  # dimensions beyond the rank of a small input stay as they were drawn
        values[i, :len(own)] = own.to(values.dtype)
        mix[:, i, :len(own)] = out.to(mix.dtype)
    return fit.sum(heads).unflatten(2, layer.kernel_size).to(filters)


class _Head(NamedTuple):
    place: int  # of the kernel
    values: torch.Tensor  # (dim_v, C_in)
    mix: torch.Tensor  # (dv, dim_v)


class _Fit:
    """Reduced-rank regression of filters on the inputs at single pixels of their kernel."""

    def __init__(self, target: torch.Tensor, rank: int, covariance: torch.Tensor | None) -> None:
        self.target, self.rank, self.covariance = target, rank, covariance
        self.roots: list[torch.Tensor] = []
        if covariance is not None:
            ridge = _RIDGE * covariance.diagonal().mean().clamp_min(1e-30)
            self.covariance = covariance + ridge * torch.eye(len(covariance), device=covariance.device)
            pixels = target.shape[2]
            self.roots = [torch.linalg.cholesky(self.covariance[p::pixels, p::pixels]) for p in range(pixels)]

    def sum(self, heads: list[_Head]) -> torch.Tensor:
        """The filters that heads are together."""
        total = torch.zeros_like(self.target)
        for head in heads:
            total[:, :, head.place] += head.mix @ head.values
        return total

    def best(self, others: list[_Head], places: Mapping[int, tuple[int, int]]) -> _Head:
        """The head that leaves the least error, together with others that stay as they are."""
        left = self.target - self.sum(others)
        if self.covariance is not None:
            left = (left.flatten(1) @ self.covariance).view_as(left)  # how it varies with each input
        best, most = None, -1.
        for place in places:
            gains, head = self._at(left, place)
            if gains > most:
                best, most = head, gains
        assert best
        return best

    def _at(self, left: torch.Tensor, place: int) -> tuple[float, _Head]:
        wanted = left[:, :, place]
        if self.covariance is not None:  # in coordinates in which the inputs vary alike and each by itself
            wanted = torch.linalg.solve_triangular(self.roots[place], wanted.T, upper=False).T
        U, S, V = torch.linalg.svd(wanted, full_matrices=False)
        part = slice(self.rank)
        values = V[part]
        if self.covariance is not None:
            values = torch.linalg.solve_triangular(self.roots[place], values, upper=False, left=False)
        return float(S[part].square().sum()), _Head(place, values, U[:, part] * S[part])
