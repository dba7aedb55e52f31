"""Channels that are copies of others, and weights that read them (Net2WiderNet, arXiv 1511.05641, section 2.2)."""
from typing import NamedTuple

import torch

from aa_models.errors import InputError


def sources(few: int, many: int, what: str) -> torch.Tensor:
    """Which channel each of `many` is a copy of: (many,), each of the `few` being copied as evenly as can be.

    By a whole factor r the k-th pair of channels in each half becomes the pairs r · k, …, r · k + r - 1 of that half:
    the first of them has the same sine/cosine waves as before (`aa_models.layers.position.add_sincos`).

    Raises:
        InputError: `many` is less than `few`; `what` names the channels.
    """
    if many < few:
        raise InputError(f'{what} would become fewer: {many} in the wide network, {few} in the narrow one')
    wide = torch.arange(many)
    if many % few or few % 4:
        return wide * few // many
    half, inside = wide // (many // 2), wide % (many // 2)
    return half * (few // 2) + inside // 2 // (many // few) * 2 + inside % 2


class Reading(NamedTuple):
    """How weights that read channels are divided among the copies of these.

    Args:
        noise: How unevenly: 0 for all alike, in parts of an even share.
        generator: Of the noise.
    """
    noise: float
    generator: torch.Generator

    def divided(self, weight: torch.Tensor, source: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
        """Weights for copies of channels, which sum up to those of the channels themselves.

        Copies that get the same signal and are read alike get the same gradient and stay copies. So each reader has its
        own random shares of them, which changes no sum.

        Args:
            weight: (C_out, few, …), of the channels.
            source: (many,), the channel that each copy is of.
            counted: (many,), the copies to read; all by default.

        Returns:
            (C_out, many, …)
        """
        counted = torch.ones(len(source), dtype=torch.bool) if counted is None else counted
        few = weight.shape[1]
        copies = torch.zeros(few).index_add_(0, source, counted.float())
        shape = (1, -1) + (1,) * (weight.dim() - 2)
        spread = weight[:, source].double()
        varied = torch.randn(spread.shape, generator=self.generator, dtype=torch.float64) * counted.view(shape)
        mean = torch.zeros_like(weight, dtype=torch.float64).index_add_(1, source, varied) / copies.view(shape)
        uneven = 1 + self.noise * (varied - mean[:, source])
        return (spread * uneven * counted.view(shape) / copies[source].view(shape)).to(weight.dtype)
