"""Convolutions of small maps under bfloat16 autocast: results and gradients of float64, to bfloat16's rounding."""
import copy

import pytest
import timm
import torch
from torch import nn

from aa_models.models import small_maps
from aa_models.models.cpu_training import speed_up_training
from amp_training import trained

WHERE = torch.device('cpu'), 'bfloat16'
ROUNDING = 2 ** -7


@pytest.fixture(autouse=True)
def matrix_instructions(monkeypatch):
    """Products are right on any CPU, and are the faster way on one with AMX."""
    monkeypatch.setattr(small_maps, 'instruction_sets', lambda: ('avx512_bf16', 'amx_bf16'))


def small_map_calls(monkeypatch):
    calls = []
    apply = small_maps._SmallMap.apply
    monkeypatch.setattr(small_maps._SmallMap, 'apply', lambda *args: calls.append(args) or apply(*args))
    return calls


@pytest.mark.parametrize('kernel, stride, padding, size', [
    (3, 1, 1, (8, 8)), (3, 1, 1, (4, 4)), (3, 1, 1, (3, 3)), (3, 1, 1, (1, 2)), (3, 2, 1, (16, 15)), (3, 2, 1, (5, 8)),
    (3, 2, 1, (3, 2)), (5, 1, 0, (7, 7)), (2, 1, 0, (3, 4)), ((1, 3), (1, 2), (0, 1), (2, 7)), (3, 1, 3, (1, 1)),
    (1, 1, 0, (4, 4))])
@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize('bias', [True, False])
def test_results_and_gradients(kernel, stride, padding, size, channels_last, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 6, kernel, stride, padding, bias=bias)
    conv.weight.data = conv.weight.data.bfloat16().float()  # rounded alike in both ways
    x = torch.randn(3, 256, *size).bfloat16().float()
    if channels_last:
        x, conv = (t.to(memory_format=torch.channels_last) for t in (x, conv))
    gradient = torch.randn_like(conv(x)).bfloat16().float()
    exact = trained(copy.deepcopy(conv).double(), x.double(), gradient.double(), amp=False)
    speed_up_training(conv, *WHERE)
    assert ('forward' in vars(conv)) == (kernel != 1)
    found = trained(conv, x, gradient)
    assert found[0].dtype == torch.bfloat16
    for tensor, wanted in zip(found, exact, strict=True):
        assert tensor.shape == wanted.shape
        assert (tensor - wanted).norm() < ROUNDING * wanted.norm()


@pytest.mark.parametrize('size, small', [((8, 8), True), ((9, 8), False), ((2, 33), False)])
def test_the_size_of_the_map_decides(monkeypatch, size, small):
    calls = small_map_calls(monkeypatch)
    conv = nn.Conv2d(256, 2, 3, padding=1)
    speed_up_training(conv, *WHERE)
    with torch.autocast('cpu', torch.bfloat16):
        conv(torch.randn(1, 256, *size))
        with torch.no_grad():
            conv(torch.randn(1, 256, *size))
    conv(torch.randn(1, 256, *size))
    assert len(calls) == small


def test_a_map_smaller_than_the_kernel_is_refused_as_before():
    conv = nn.Conv2d(256, 2, 3)
    speed_up_training(conv, *WHERE)
    with torch.autocast('cpu', torch.bfloat16), pytest.raises(RuntimeError, match='Kernel size'):
        conv(torch.randn(1, 256, 1, 1))


def test_what_is_fast_stays(monkeypatch):
    fast = [
        nn.Conv2d(255, 8, 3), nn.Conv2d(256, 8, 1), nn.Conv2d(256, 8, 3, groups=2), nn.Conv2d(256, 8, 3, dilation=2),
        nn.Conv2d(256, 8, 3, padding_mode='reflect'), nn.Conv2d(256, 8, 3, padding='same'), nn.Conv1d(256, 8, 3)]
    speed_up_training(nn.Sequential(*fast), *WHERE)
    slow = nn.Conv2d(256, 8, 3)
    speed_up_training(slow, torch.device('cpu'), 'float16')
    speed_up_training(slow, torch.device('cuda'), 'bfloat16')
    monkeypatch.setattr(small_maps, 'instruction_sets', lambda: ('avx512_bf16',))
    speed_up_training(slow, *WHERE)
    assert not any('forward' in vars(conv) for conv in (*fast, slow))


@pytest.mark.parametrize('name', ['resnet18_cifar', 'aa_resnet18_cifar'])
def test_networks(monkeypatch, name):
    """As before within the rounding; gradient checkpointing computes the layers again."""
    torch.manual_seed(0)
    model = timm.create_model(name).train()
    x, gradients = torch.randn(4, 3, 16, 16), []
    fast = copy.deepcopy(model)
    speed_up_training(fast, *WHERE)
    again = copy.deepcopy(fast)
    again.set_grad_checkpointing()
    calls = small_map_calls(monkeypatch)
    for network in (model, fast, again):
        with torch.autocast('cpu', torch.bfloat16):
            loss = network(x).float().logsumexp(1).sum()
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    assert calls
    assert torch.nn.functional.cosine_similarity(*gradients[:2], dim=0) > .99
    torch.testing.assert_close(*gradients[1:])
