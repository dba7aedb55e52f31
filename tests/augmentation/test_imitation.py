"""Attention that starts as the filters it replaces."""
import copy

import pytest
import torch
from torch import nn

import aa_models
from aa_models.augmentation import imitation
from aa_models.augmentation.imitation import can_imitate, imitate, kernel_offsets, lost_filters
from aa_models.layers import AugmentedConv2d


@pytest.fixture
def sharp(monkeypatch):
    """Heads that see nothing but their own pixel, to rounding."""
    monkeypatch.setattr(imitation, 'STRENGTH', 40.)


def layer_of(kernel=3, dv=8, num_heads=4, **kwargs):
    return AugmentedConv2d(
        6, 12, kernel, dk=4 * num_heads, dv=dv, num_heads=num_heads, dtype=torch.float64, **{'feat_size': 9, **kwargs})


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('bias', [True, False])
@torch.no_grad()
def test_nothing_of_a_1x1_convolution_is_lost(sharp, groups, bias):
    """Whoever reads the channels, or nobody: the converted network is the plain one."""
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 1, groups=groups, bias=bias),
        nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 4, 3)).double().eval()
    plain[4].running_mean.normal_()
    plain[4].running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    for where in ('3', '0') if groups == 1 else ('3',):
        net = aa_models.augment(copy.deepcopy(plain), where=where, dk=16, dv=4, num_heads=4, img_size=(9, 7))
        torch.testing.assert_close(net(x), plain(x), rtol=0, atol=1e-10)
    strided = nn.Sequential(nn.Conv2d(3, 8, 1, stride=2)).double()
    net = aa_models.augment(copy.deepcopy(strided), where='0', dk=8, dv=8, num_heads=2, img_size=(9, 7))
    assert net[0].conv is None
    torch.testing.assert_close(net(x), strided(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize('kernel, options', [
    (3, {}), ((1, 3), {}), (2, {}), (3, dict(dilation=2)), (3, dict(stride=2)), (5, dict(stride=2)),
    (3, dict(stride=2, dilation=2)), ((2, 3), dict(padding=0)), (3, dict(padding='same', dilation=2)),
])
@torch.no_grad()
def test_every_pixel_of_a_kernel_that_lies_on_the_map(sharp, kernel, options):
    """Filters of a single pixel: equal to the convolution wherever it looks at no padding."""
    layer = layer_of(kernel, **{'padding': 1, **options})
    places = kernel_offsets(layer)
    assert len(places) == {(3, 2): 9 if layer.dilation[0] == 2 else 1, (5, 2): 9}.get(
        (layer.kernel_size[0], layer.stride[0]), layer.kernel_size[0] * layer.kernel_size[1])
    x = torch.randn(1, 6, 15, 14, dtype=torch.float64)
    layer = layer_of(kernel, bias=False, feat_size=layer(x).shape[2:], **{'padding': 1, **options})
    for place in places:
        filters = torch.zeros(8, 6, *layer.kernel_size, dtype=torch.float64)
        filters.flatten(2)[:, :, place] = torch.randn(8, 2).double() @ torch.randn(2, 6).double()
        torch.testing.assert_close(imitate(layer, filters), filters)
        expected = nn.functional.conv2d(x, filters, None, layer.stride, layer.padding, layer.dilation)
        found = layer(x)[:, -8:]
        assert found.shape == expected.shape
        torch.testing.assert_close(found[:, :, 2:-2, 2:-2], expected[:, :, 2:-2, 2:-2])


def test_the_rank_that_heads_have_is_used_as_well_as_can_be():
    torch.manual_seed(0)
    layer, filters = layer_of(num_heads=4, dv=8), torch.randn(8, 6, 3, 3, dtype=torch.float64)
    energy = torch.linalg.svdvals(filters.flatten(2).movedim(2, 0)).square()  # (9 pixels, 6)
    blocks = energy.unflatten(1, (3, 2)).sum(2).flatten()  # two dimensions a head
    assert (filters - imitate(layer, filters)).square().sum().item() == pytest.approx(
        (blocks.sum() - blocks.topk(4).values.sum()).item())


def test_inputs_that_vary_together_are_used():
    torch.manual_seed(0)
    layer, filters = layer_of(num_heads=4, dv=8), torch.randn(8, 6, 3, 3, dtype=torch.float64)
    mix = torch.randn(54, 10, dtype=torch.float64)
    covariance = mix @ mix.T

    def error(now):
        left = (filters - now).flatten(1)
        return ((left @ covariance) * left).sum().item()

    assert error(imitate(layer, filters, covariance)) < 0.25 * error(imitate(layer, filters))


def test_filters_of_groups():
    weight = torch.randn(12, 2, 3, 3, dtype=torch.float64)
    x = torch.randn(1, 6, 5, 5, dtype=torch.float64)
    layer = layer_of(dv=6, num_heads=3, groups=3)
    # the last six as warm_start leaves them: two of every group
    expected = nn.functional.conv2d(x, weight[-6:], groups=3)
    torch.testing.assert_close(nn.functional.conv2d(x, lost_filters(weight, layer)), expected)


@pytest.mark.parametrize('options', [
    dict(attn_init='global'), dict(attention='linear', pos_embed='sincos'), dict(pos_embed=None), dict(attn_pool=2),
    dict(dv=0)])
def test_who_cannot(options):
    assert can_imitate(layer_of()) and not can_imitate(layer_of(**options))
