"""Wide networks that begin as narrow ones: the same logits, in every family, and copies that do not stay alike."""
from functools import partial

import pytest
import timm
import torch
from torch import nn

from aa_models.augmentation.copies import Reading, sources
from aa_models.augmentation.widening import widen
from aa_models.layers import AugmentedConv2d, GridAttention
from our_models import uneven
from resized_models import ANY, FIVE, TEN, WHOLE, WRN, make


@pytest.mark.parametrize('name, few, many', [*WHOLE, *ANY])
@torch.no_grad()
def test_the_same_logits(name, few, many):
    torch.manual_seed(0)
    narrow, wide = make(name, **few), make(name, **many)
    assert any(isinstance(m, GridAttention) for m in narrow.modules()) == ('aa' in name)
    before = {key: tensor.clone() for key, tensor in narrow.state_dict().items()}
    assert widen(narrow, wide) is wide
    for size in ((16, 16), (24, 19)):
        if 'img_size' in few and few['img_size'] != many['img_size'] and 'rel' in str(few):
            continue
        x = torch.randn(2, 3, *size)
        expected = narrow(x)
        torch.testing.assert_close(wide(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        assert expected.std(0).max() > 1e-3  # it tells pictures apart
    assert all(torch.equal(before[key], tensor) for key, tensor in narrow.state_dict().items())


@pytest.mark.parametrize('rates', [(0., 0.1), (0.1, 0.)])
@pytest.mark.parametrize('name, few, many', [ANY[1], ANY[2]])
@torch.no_grad()
def test_stochastic_depth_makes_no_difference(name, few, many, rates):
    narrow, wide = (make(name, drop_path_rate=rate, **kwargs) for rate, kwargs in zip(rates, (few, many)))
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(widen(narrow, wide)(x), narrow(x), rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_depthwise_and_grouped_convolutions():
    """A depthwise one follows what it reads; the channels of groups cannot be copied so."""
    def make_net(channels, groups):
        return uneven(nn.Sequential(
            nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU6(),
            nn.Conv2d(channels, channels, 3, groups=groups or channels), nn.BatchNorm2d(channels), nn.SiLU(),
            nn.Conv2d(channels, 2 * channels, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * channels, 5)))
    narrow, wide = make_net(8, None).eval(), make_net(20, None).eval()
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(widen(narrow, wide)(x), narrow(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match='3 cannot be widened: its groups are 2 in the narrow network and 4'):
        widen(make_net(8, 2), make_net(20, 4))


@torch.no_grad()
def test_in_float64_nothing_is_lost():
    narrow, wide = (make('aa_wrn28_2', depth=10, width=width).double() for width in (2, 3))
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(widen(narrow, wide)(x), narrow(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize('noise', [0., 0.5])
def test_copies_part_only_with_noise(noise):
    """Copies of a filter have the same gradient, and stay copies, where all that reads them reads them alike."""
    torch.manual_seed(0)
    narrow, wide = make('simplecnn', channels=FIVE), make('simplecnn', channels=TEN)
    widen(narrow, wide, noise=noise, seed=3)
    first = wide.stem.conv
    assert torch.equal(first.weight[0], first.weight[2])
    wide(torch.randn(2, 3, 16, 16)).square().sum().backward()
    alike = torch.allclose(first.weight.grad[0], first.weight.grad[2], rtol=1e-4)
    assert alike == (noise == 0)
    again = make('simplecnn', channels=TEN)
    widen(narrow, again, noise=noise, seed=3)
    for one, other in zip(wide.state_dict().values(), again.state_dict().values()):
        assert torch.equal(one, other)


def test_sources_are_even_and_whole_factors_keep_pairs():
    for few, many in ((8, 8), (8, 24), (12, 60), (8, 13), (3, 12), (7, 9)):
        counts = sources(few, many, '').bincount(minlength=few)
        assert len(counts) == few and counts.max() - counts.min() <= 1
    assert sources(8, 16, '').tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7]


def test_shares_add_up():
    weight, source = torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 1, 2, 2, 2, 0])
    counted = torch.tensor([True, False, True, True, True, False, True])
    reading = Reading(0.7, torch.Generator().manual_seed(0))
    for read in (None, counted):
        divided = reading.divided(weight, source, read)
        total = torch.zeros_like(weight).index_add_(1, source, divided)
        torch.testing.assert_close(total, weight)
        if read is not None:
            assert not divided[:, ~read].any()
    assert divided[:, 3].sub(divided[:, 4]).abs().min() > 0


@pytest.mark.parametrize('few, many, message', [
    (('wrn28_2', dict(WRN, width=4)), ('wrn28_2', dict(WRN, width=2)), 'would become fewer: 32 in .*, 64 in'),
    (('wrn28_2', dict(WRN)), ('wrn28_2', dict(depth=16)), 'different forms: only one has stages.0.1'),
    (('wrn28_2', WRN), ('aa_wrn28_2', WRN), 'different forms: only one has stages.0.0.conv1.attn'),
    (('wrn28_2', WRN), ('wrn28_2', dict(WRN, num_classes=8)), 'head.fc has 7 outputs in the narrow network, 8 in the'),
    (('wrn28_2', WRN), ('wrn28_2', dict(WRN, in_chans=1)), 'images of 3 and 1 channels'),
    (('laa_wrn28_2', dict(WRN, width=2)), ('laa_wrn28_2', dict(WRN, width=3)), 'sine/cosine positions .* whole factor'),
    (('laa_wrn28_2', dict(WRN, dk=40)), ('laa_wrn28_2', dict(WRN, dk=50)), 'linear attention .* from 20 to 25'),
    (('aa_wrn28_2', dict(WRN, num_heads=2)), ('aa_wrn28_2', dict(WRN, num_heads=1, dv=2)), 'heads would become fewer'),
    (('aa_wrn28_2', WRN), ('aa_wrn28_2', dict(WRN, pos_embed='coord')), 'different forms'),
    (('aa_wrn28_2', dict(WRN, pos_embed='none')), ('aa_wrn28_2', dict(WRN, pos_embed='sincos')), 'other attention'),
    (('simplecnn', {}), ('simplecnn', dict(global_pool='max')), 'head.global_pool.* cannot be widened: .*avg.*max'),
    (('resnet18', {}), ('resnet18', dict(output_stride=16)), r"layer4.0.conv1 cannot be widened: .*'stride': \(2, 2\)"),
    (('resnet18', {}), ('resnet18', dict(norm_layer=partial(nn.BatchNorm2d, eps=1e-3))), 'bn1 .*=1e-05 .* eps=0.001'),
    (('test_efficientnet', {}), ('test_efficientnet', {}), 'mean cannot be widened: possible are convolutions'),
    (('test_vit', {}), ('test_vit', {}), 'cannot be widened'),
])
def test_what_cannot_be_widened_is_refused(few, many, message):
    narrow, wide = (
        timm.create_model(name, **{'num_classes': 7, **kwargs}) for name, kwargs in (few, many))
    before = {key: tensor.clone() for key, tensor in wide.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        widen(narrow, wide)
    assert all(torch.equal(before[key], tensor) for key, tensor in wide.state_dict().items())


def test_channels_of_attention_in_a_sum_are_refused():
    """Attention's channels stand behind the others, those of the shortcut do not."""
    narrow, wide = (
        timm.create_model('augmented', base='resnet18', where='layer4.*.conv2', channels=channels, num_heads=2, dv=4)
        for channels in ((8, 8, 8, 8), (16, 16, 16, 16)))
    assert any(isinstance(module, AugmentedConv2d) for module in narrow.modules())
    with pytest.raises(ValueError, match='adds channels that are copied in other ways'):
        widen(narrow, wide)


def test_negative_noise_is_refused():
    with pytest.raises(ValueError, match='noise = -1 must be at least 0'):
        widen(make('simplecnn'), make('simplecnn'), noise=-1)
