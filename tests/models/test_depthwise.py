"""Gradients of depthwise convolutions under bfloat16 autocast: those of float64, to bfloat16's rounding."""
import copy

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

import aa_models  # noqa: F401, registers the models
from aa_models.models import depthwise
from aa_models.models.cpu_training import speed_up_training
from amp_training import trained

WHERE = torch.device('cpu'), 'bfloat16'
ROUNDING = 2 ** -8


@pytest.mark.parametrize('kind', [nn.Conv2d, Conv2dSame])
@pytest.mark.parametrize('kernel, stride, padding', [
    (5, 1, 2), (3, 2, 1), (5, 2, 0), (7, 1, 3), ((3, 5), 1, (1, 2)), (4, (1, 2), 1), ((1, 6), 3, (0, 1)), (1, 2, 0)])
@pytest.mark.parametrize('multiplier, bias', [(1, False), (2, True)])
def test_gradients(kind, kernel, stride, padding, multiplier, bias):
    torch.manual_seed(0)
    conv = kind(6, 6 * multiplier, kernel, stride, padding, groups=6, bias=bias)
    conv.weight.data = conv.weight.data.bfloat16().float()  # rounded alike in both ways
    x = torch.randn(3, 6, 13, 11).bfloat16().float()
    gradient = torch.randn_like(conv(x)).bfloat16().float()
    exact = trained(copy.deepcopy(conv).double(), x.double(), gradient.double(), amp=False)
    speed_up_training(conv, *WHERE)
    assert 'forward' in vars(conv)
    found = trained(conv, x, gradient)
    assert found[0].dtype == torch.bfloat16
    for tensor, wanted in zip(found, exact, strict=True):
        assert (tensor - wanted).norm() < ROUNDING * wanted.norm()


def test_a_cpu_without_instructions(monkeypatch):
    """There PyTorch would round every sum to bfloat16."""
    monkeypatch.setattr(depthwise, 'multiplies', lambda dtype: False)
    test_gradients(nn.Conv2d, 5, 1, 2, 1, False)


def test_without_gradients_all_is_as_before():
    conv, x = nn.Conv2d(8, 8, 5, groups=8), torch.randn(2, 8, 9, 9)
    for amp in (False, True):
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=amp):
            alone = conv(x)
            speed_up_training(conv, *WHERE)
            torch.testing.assert_close(conv(x), alone, rtol=0, atol=0)


def test_what_is_fast_stays():
    fast = [
        nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 5, groups=2), nn.Conv2d(1, 8, 5),
        nn.Conv2d(8, 8, 5, groups=8, dilation=2), nn.Conv2d(8, 8, 5, groups=8, padding_mode='reflect'),
        nn.Conv2d(8, 8, 5, groups=8, padding='same')]
    speed_up_training(nn.Sequential(*fast), *WHERE)
    slow = nn.Conv2d(8, 8, 5, groups=8)
    speed_up_training(slow, torch.device('cpu'), 'float16')
    speed_up_training(slow, torch.device('cuda'), 'bfloat16')
    assert not any('forward' in vars(conv) for conv in (*fast, slow))


@pytest.mark.parametrize('name', ['tf_efficientnet_lite0', 'aa_efficientnet_lite0'])
def test_networks(name):
    """As before within the rounding, copies included; gradient checkpointing computes the layers again."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, drop_path_rate=0.).train()
    x, gradients = torch.randn(2, 3, 64, 64), []
    fast = copy.deepcopy(model)
    speed_up_training(fast, *WHERE)
    again = copy.deepcopy(fast)
    again.set_grad_checkpointing()
    for network in (model, fast, again):
        with torch.autocast('cpu', torch.bfloat16):
            loss = network(x).float().logsumexp(1).sum()
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    assert torch.nn.functional.cosine_similarity(*gradients[:2], dim=0) > .99
    torch.testing.assert_close(*gradients[1:])
