"""An optimiser's products of bfloat16 matrices, in float32 where the CPU has no instructions for them."""
import contextlib

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.overrides import TorchFunctionMode

from aa_models.training import products
from aa_models.training.products import fast_products
from training_runs import run_training

CPU = torch.device('cpu')


class Seen(TorchFunctionMode):
    """The kinds of numbers that are multiplied inside."""

    def __init__(self):
        super().__init__()
        self.kinds = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.addmm, torch.baddbmm):
            self.kinds |= {factor.dtype for factor in args}
        return func(*args, **kwargs or {})


class Exact(TorchFunctionMode):
    """Newton and Schulz's steps as timm writes them, in float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to and kwargs.get('dtype') is torch.bfloat16:
            kwargs['dtype'] = torch.float64
        return func(*args, **kwargs)


@pytest.fixture(params=[True, False], ids=['instructions', 'none'])
def there(request, monkeypatch):
    monkeypatch.setattr(products, 'multiplies', lambda dtype: request.param)
    return request.param


@pytest.mark.parametrize('conv_mode', ['flatten', 'batched'])
def test_muon_multiplies_what_the_cpu_is_fast_in(there, conv_mode):
    """And its step is that of exact products but for what bfloat16 rounds."""
    steps = []
    for context in (fast_products(CPU), Exact()):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 24, 1), nn.Flatten(), nn.Linear(24, 12))
        optimizer = create_optimizer_v2(net, 'muon', lr=0.1, weight_decay=0., conv_mode=conv_mode)
        before = [weight.detach().clone() for weight in net.parameters()]
        for weight in net.parameters():
            weight.grad = torch.randn_like(weight)
        with Seen() as seen, context:
            optimizer.step()
        steps.append([weight.detach() - old for weight, old in zip(net.parameters(), before)])
        if len(steps) == 1:
            assert seen.kinds == {torch.bfloat16 if there else torch.float32}
    for step, exact in zip(*steps):
        assert exact.abs().max() > 0
        torch.testing.assert_close(step, exact, rtol=0, atol=0.05 * float(exact.abs().max()))


@pytest.mark.parametrize('product', [
    lambda a, b: a @ b, torch.mm, torch.matmul, lambda a, b: a.mm(b), lambda a, b: torch.addmm(a, a, b, beta=0.5),
    lambda a, b: torch.bmm(a[None], b[None])[0], lambda a, b: torch.mm(a, b, out=torch.empty_like(a))])
def test_results_are_bfloat16(monkeypatch, product):
    monkeypatch.setattr(products, 'multiplies', lambda dtype: False)
    torch.manual_seed(0)
    a, b = torch.randn(2, 9, 9).bfloat16()
    with fast_products(CPU):
        found = product(a, b)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, product(a.double(), b.double()).bfloat16(), rtol=2 ** -7, atol=1e-6)


def test_other_devices_and_numbers_are_left_alone(monkeypatch):
    monkeypatch.setattr(products, 'multiplies', lambda dtype: False)
    assert isinstance(fast_products(torch.device('cuda')), contextlib.nullcontext)
    a = torch.randn(3, 3, dtype=torch.float64)
    with fast_products(CPU):
        assert torch.equal(a @ a, torch.matmul(a, a)) and (a @ a).dtype == torch.float64


def test_training_goes_that_way(there, tmp_path, data, monkeypatch):
    """Whatever precision the network is in."""
    seen = Seen()
    monkeypatch.setattr('aa_models.training.loop.fast_products', lambda device: _both(seen, fast_products(device)))
    run_training(tmp_path / 'run', data, epochs=1, opt='muon', opt_kwargs={}, lr=0.01)
    assert seen.kinds == {torch.bfloat16 if there else torch.float32}


@contextlib.contextmanager
def _both(outer, inner):
    with outer, inner:
        yield
