"""Ridge regression towards given weights, against the stacked least-squares problem that it stands for."""
import pytest
import torch

from aa_models.augmentation.ridge import Moments, add_gram, ridge_regression


def samples(count, seed=0, noise=0.):
    """x (N, 6) with a constant at its end, and y (N, 3) that weights (6, 3) give."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=draw, dtype=torch.float64)
    x[:, -1] = 1.
    weight = torch.randn(6, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return x, x @ weight + noise * torch.randn(count, 3, generator=draw, dtype=torch.float64), weight


def moments(x, y):
    found = Moments(torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype))
    for part in zip(x.split(7), y.split(7)):
        found.add(*part)
    return found


@pytest.mark.parametrize('inputs', [7, 512, 700, 1100])  # below and beyond a block
def test_gram_matrix(inputs):
    x, start = torch.randn(30, inputs, dtype=torch.float64), torch.eye(inputs, dtype=torch.float64)
    gram = start.clone()
    add_gram(gram, x)
    torch.testing.assert_close(gram, start + x.T @ x)


@pytest.mark.parametrize('ridge', [1e-7, 1e-2, 10.])
@pytest.mark.parametrize('count', [4, 50])  # fewer and more samples than weights
def test_the_penalised_least_squares(count, ridge):
    x, y, _ = samples(count, noise=.3)
    old = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = moments(x, y)
    scale = (ridge * x[:, :5].square().sum(0).mean()).sqrt()
    penalty = scale * torch.eye(6, dtype=x.dtype)[:5]  # none of the constant
    expected = torch.linalg.lstsq(torch.cat([x, penalty]), torch.cat([y, penalty @ old])).solution
    torch.testing.assert_close(found.solve(old, 5, ridge), expected, rtol=1e-7, atol=1e-7)
    error = (x @ expected - y).square().sum() / (y - y.mean(0)).square().sum()
    assert found.error(expected) == pytest.approx(error.sqrt().item(), rel=1e-6, abs=1e-6)


def test_what_can_be_found_is():
    (x, y, weight), (x2, y2, _) = samples(40), samples(40, seed=1)
    found = ridge_regression(moments(x, y), moments(x2, y2), torch.zeros_like(weight), 5)
    torch.testing.assert_close(found, weight, rtol=1e-6, atol=1e-6)


def test_noise_alone_moves_the_weights_little():
    """A large ridge predicts best where there is nothing to learn."""
    (x, _, weight), (x2, _, _) = samples(8), samples(8, seed=1)
    noise = [torch.randn(8, 3, generator=torch.Generator().manual_seed(i), dtype=x.dtype) for i in (2, 3)]
    found = ridge_regression(moments(x, x @ weight + noise[0]), moments(x2, x2 @ weight + noise[1]), weight, 5)
    assert (found - weight)[:5].norm() < .1 * weight.norm()
