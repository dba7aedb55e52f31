"""Passes that wait before a module: what they find there, and that each module runs once."""
from collections import Counter

import pytest
import timm
import torch
from torch import nn

from aa_models.augmentation.channel_paths import trace_calls
from aa_models.augmentation.passes import Passes

STOPS = ['layer1.0.conv1', 'layer1.0.conv2', 'layer3.1.conv1', 'layer4.1.conv2']


class Untraceable(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) if float(x.sum()) > -1e9 else x


@pytest.fixture
def network():
    torch.manual_seed(0)
    return timm.create_model('resnet18', num_classes=5).eval()


def captured(model, name, x):
    found = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, inputs: found.append(inputs[0].clone()))
    model(x)
    handle.remove()
    return found[0]


@pytest.mark.parametrize('traced', [True, False])
@torch.no_grad()
def test_what_a_module_gets_after_changes_before_it(network, traced):
    model = network if traced else Untraceable(network)
    stops = STOPS if traced else [f'net.{name}' for name in STOPS]
    batches = torch.randn(6, 3, 48, 48).split(2)
    passes = Passes(model, batches, trace_calls(model))
    for name in stops:
        inputs = list(passes.inputs(name))
        expected = [captured(model, name, batch) for batch in batches]
        torch.testing.assert_close(inputs, expected, rtol=0, atol=0)
        model.get_submodule(name).weight.mul_(1.5)


@torch.no_grad()
def test_one_pass_in_all(network):
    ran = Counter()
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_hook(lambda module, inputs, y, name=name: ran.update([name]))
    batches = torch.randn(6, 3, 48, 48).split(2)
    passes = Passes(network, batches, trace_calls(network))
    for name in STOPS:
        assert len(list(passes.inputs(name))) == 3
        assert not ran[name]
    assert set(ran.values()) == {3} and not ran['layer4.1.conv2']
    kept = sum(value.numel() for run in passes.runs for value in run.env.values() if isinstance(value, torch.Tensor))
    assert kept == 2 * 6 * 512 * 2 * 2  # the input of the last convolution, and what its block adds to it


def test_places_are_in_the_order_of_the_run(network):
    passes = Passes(network, [], trace_calls(network))
    places = [passes.place(name) for name in STOPS]
    assert places == sorted(places) and len(set(places)) == len(STOPS)
