"""Variances beyond float16's range: the network that is saved computes what the trained one does."""
import copy

import pytest
import timm
import torch
from torch import nn

import aa_models  # noqa: F401, registers the models
from aa_models.release.half_range import shrink_variances


def grown(name, factor):
    """A network whose convolutions have become as many times as large, with the statistics of their outputs."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).train()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.mul_(factor)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.
            nn.init.uniform_(module.weight, .5, 1.5)
    model(torch.randn(16, 3, 32, 32))
    return model.eval()


@pytest.mark.parametrize('name', [
    'resnet18', 'aa_resnet18_cifar', 'laa_resnet18', 'aa_efficientnet_lite0', 'wrn28_2', 'aa_wrn28_2',
    'mobilenetv2_050'])
@torch.no_grad()
def test_same_function_within_the_range(name):
    model, x = grown(name, 400.), torch.randn(4, 3, 32, 32)
    small = copy.deepcopy(model)
    shrink_variances(small)
    variances = {key: value for key, value in small.state_dict().items() if key.endswith('running_var')}
    large = [value.max() for key, value in model.state_dict().items() if key.endswith('running_var')]
    assert max(large) > 65504 and all(value.max() <= 2 ** 15 for value in variances.values())
    torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-3)
    # what is left comes of the norms' eps, which softmax over logits this large makes visible
    for network in (small, model):
        for norm in network.double().modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eps = 0.
    torch.testing.assert_close(small(x.double()), model(x.double()), rtol=1e-10, atol=1e-10)


def test_what_is_within_the_range_stays():
    model = grown('resnet18', 1.)
    before = copy.deepcopy(model.state_dict())
    shrink_variances(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


class ReadTwice(nn.Module):
    """A convolution that not the norm alone reads."""
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return self.bn(x) + x


class Shifted(ReadTwice):
    """A constant is added before the norm."""
    def forward(self, x):
        return self.bn(self.conv(x) + 1.)


class CalledTwice(ReadTwice):
    """The convolution writes to the norm and, in another call, past it."""
    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv(-x)


class TwoNorms(ReadTwice):
    """One of two norms behind the convolution has seen small variances, beside which eps is not nothing."""
    def __init__(self):
        super().__init__()
        self.other = nn.BatchNorm2d(4)
        self.other.running_var.fill_(1e-3)

    def forward(self, x):
        x = self.conv(x)
        return self.bn(x) + self.other(x)


@pytest.mark.parametrize('kind', [ReadTwice, Shifted, CalledTwice, TwoNorms])
def test_what_cannot_be_divided_stays(kind):
    """Its folder is refused, not wrong."""
    model = kind()
    model.bn.running_var.fill_(1e6)
    before = copy.deepcopy(model.state_dict())
    shrink_variances(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
