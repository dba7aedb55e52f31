"""Ridge regression towards given weights, its ridge chosen by how one half of the samples predicts the other."""
import math

import torch

_BLOCK = 512  # rows
_RIDGES = (1e-12, 1e-7, 1e-5, 1e-3, 1e-2, 1e-1, 1., 1e1, 1e2)  # of the inputs' mean square


def add_gram(gram: torch.Tensor, x: torch.Tensor) -> None:
    """Add xᵀx of samples x (N, inputs) to a symmetric matrix, its halves computed once."""
    for start in range(0, len(gram), _BLOCK):
        part = slice(start, start + _BLOCK)
        block = x[:, part].T @ x[:, start:]
        gram[part, start:] += block
        gram[start + _BLOCK:, part] += block[:, _BLOCK:].T


class Moments:
    """What the squared error of a linear map depends on, summed over samples."""

    def __init__(self, weight: torch.Tensor) -> None:
        """Of a map with weights (inputs, outputs)."""
        self.gram, self.cross = weight.new_zeros(len(weight), len(weight)), torch.zeros_like(weight)
        self.squares, self.sums, self.count = torch.zeros_like(weight[0]), torch.zeros_like(weight[0]), 0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Count samples x (N, inputs) and the outputs y (N, outputs) that they should give."""
        add_gram(self.gram, x)
        self.cross.addmm_(x.T, y)
        self.squares += y.square().sum(0)
        self.sums += y.sum(0)
        self.count += len(y)

    def __add__(self, other: 'Moments') -> 'Moments':
        both = Moments(self.cross)
        for name, value in vars(self).items():
            setattr(both, name, value + getattr(other, name))
        return both

    def solve(self, old: torch.Tensor, inputs: int, ridge: float) -> torch.Tensor:
        """The weights of least error, drawn to the old ones. What comes after the inputs, the constant, is free."""
        scale = max(float(self.gram.diagonal()[:inputs].mean()), 1e-30)  # 0 where no input is ever active
        penalty = torch.full_like(self.gram[0], ridge * scale)
        penalty[inputs:] = 0.
        left, right = self.gram + penalty.diag(), self.cross + penalty.unsqueeze(1) * old
        root, failed = torch.linalg.cholesky_ex(left)
        return torch.linalg.solve(left, right) if failed else torch.cholesky_solve(right, root)

    def error(self, weight: torch.Tensor) -> float:
        """Root mean squared error, relative to the standard deviation of the outputs."""
        left = self.squares.sum() - 2 * (weight * self.cross).sum() + (weight * (self.gram @ weight)).sum()
        spread = (self.squares - self.sums.square() / max(self.count, 1)).sum().clamp_min(1e-30)
        return math.sqrt(max(float(left), 0.) / float(spread))


def ridge_regression(some: Moments, others: Moments, old: torch.Tensor, inputs: int) -> torch.Tensor:
    """The weights (inputs, outputs) that samples ask for, as near to the old ones as predicts best.

    Args:
        some: Of a half of the samples, which the weights are fitted to with each ridge.
        others: Of the other half, which chooses the ridge.
        old: (inputs, outputs), with a row more for the constant where there is one.
        inputs: How many rows are drawn to the old ones.
    """
    errors: dict[int, float] = {}

    def error(i: int) -> float:
        if i not in errors:
            errors[i] = others.error(some.solve(old, inputs, _RIDGES[i])) if 0 <= i < len(_RIDGES) else math.inf
        return errors[i]

    best = len(_RIDGES) // 2
    while error(nearby := min((best - 1, best + 1), key=error)) < error(best):  # downhill: solving takes long
        best = nearby
    return (some + others).solve(old, inputs, _RIDGES[best])
