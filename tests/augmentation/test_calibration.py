"""Conversion with pictures: what reads an augmented layer computes what it did."""
import copy
import logging

import pytest
import timm
import torch
from torch import nn

import aa_models
from aa_models.augmentation.calibration import calibrate_layers

ARGS = dict(dk=16, dv=8, num_heads=2, img_size=16)


def network(rank=16, norm=True, act=nn.ReLU):
    """Conv, conv of that rank, conv; batch norms with statistics of their own."""
    torch.manual_seed(3)
    middle = nn.Conv2d(8, 16, 3, padding=1, bias=False)
    middle.weight.data = (torch.randn(16, rank) @ torch.randn(rank, 72) / rank ** 0.5 / 8).view(16, 8, 3, 3)
    norms = [nn.BatchNorm2d(channels) if norm else nn.Identity() for channels in (16, 12)]
    layers = nn.Conv2d(3, 8, 3, padding=1), middle, norms[0], act(), nn.Conv2d(16, 12, 3, bias=not norm), norms[1]
    net = nn.Sequential(nn.Sequential(*layers), nn.Conv2d(12, 5, 1)).train()
    net(torch.randn(64, 3, 16, 16))
    return net.eval()


def distance(net, other, x):
    with torch.no_grad():
        return ((net(x) - other(x)).norm() / other(x).std() / x[:, 0].numel() ** 0.5).item()


@pytest.mark.parametrize('norm', [True, False])
def test_what_can_be_reproduced_is(norm):
    """Where the lost filters are combinations of those that stay, nothing is lost."""
    plain = network(rank=8, norm=norm, act=nn.Identity).double()
    images, others = torch.randn(2, 48, 3, 16, 16, dtype=torch.float64)
    args = dict(where='0.1', **ARGS)
    converted = aa_models.augment(copy.deepcopy(plain), **args)
    assert distance(converted, plain, others) > 0.1
    calibrated = aa_models.augment(copy.deepcopy(plain), calibrate=images, **args)
    assert distance(calibrated, plain, others) < 1e-5


@pytest.mark.parametrize('norm', [True, False])
def test_closer_on_pictures_not_seen(norm, caplog):
    plain = network(norm=norm)
    images, others = torch.randn(2, 48, 3, 16, 16)
    plain[0][2].train(norm)  # the mode of every module stays
    before = copy.deepcopy(plain.state_dict())
    converted = aa_models.augment(copy.deepcopy(plain).eval(), where='0.1', **ARGS)
    with caplog.at_level(logging.INFO, 'aa_models.augmentation.calibration'):
        calibrated = aa_models.augment(copy.deepcopy(plain), where='0.1', calibrate=images, **ARGS)
    assert distance(calibrated.eval(), plain.eval(), others) < 0.7 * distance(converted, plain, others)
    assert len(caplog.records) == 2 and 'the output of 0.4 is off by' in caplog.text
    assert '0.1: 0.1.attn misses' in caplog.text
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())
    changed = {'0.4.weight', '0.5.running_mean' if norm else '0.4.bias'} | ({'0.2.running_mean'} if norm else set())
    fresh = converted.state_dict()
    assert changed == {
        name for name, tensor in calibrated.state_dict().items()
        if not torch.equal(tensor, fresh[name]) and '.attn.' not in name}


def test_row_and_modes():
    plain = network().train()
    net = aa_models.augment(copy.deepcopy(plain), where='0.1', **ARGS)
    lost = plain[0][1].weight[-8:].detach()  # not those that gave way: there is much to fit
    rows = list(calibrate_layers(plain, net, {'0.1': lost}, [torch.randn(32, 3, 16, 16)]))
    assert [row[:2] for row in rows] == [('0.1', '0.1.attn'), ('0.1', '0.4')] and plain.training and net[0].training
    assert all(0 < row.after < row.before for row in rows)


def test_layers_are_fitted_in_the_order_in_which_they_run():
    plain = timm.create_model('resnet18', num_classes=5).eval()
    names = ['layer1.0.conv1', 'layer1.1.conv1']
    args = dict(dk=16, dv=16, num_heads=2, img_size=48)
    models = [aa_models.augment(copy.deepcopy(plain), where=names, **args) for _ in names]
    lost = {name: plain.get_submodule(name).weight[-16:].detach() for name in names}
    images = [torch.randn(16, 3, 48, 48)]
    models[1].load_state_dict(models[0].state_dict())
    rows = list(calibrate_layers(plain, models[0], lost, images))
    assert [row.fitted for row in rows] == [part for n in names for part in (f'{n}.attn', n.replace('conv1', 'conv2'))]
    assert rows == list(calibrate_layers(plain, models[1], dict(reversed(lost.items())), images))


def test_inputs_that_are_never_active():
    plain = network()
    plain[0][2].bias.data.fill_(-100)
    net = aa_models.augment(copy.deepcopy(plain), where='0.1', calibrate=torch.randn(16, 3, 16, 16), **ARGS)
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())


def test_images_of_every_kind_give_the_same():
    plain, images = network(), torch.randn(40, 3, 16, 16)
    kinds = [images, list(images.split(32)), [(batch, torch.zeros(len(batch))) for batch in images.split(32)]]
    found = []
    for kind in kinds:
        torch.manual_seed(0)
        found.append(aa_models.augment(copy.deepcopy(plain), where='0.1', calibrate=kind, **ARGS).state_dict())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


def test_layers_that_nothing_reads_are_left(caplog):
    model = timm.create_model('simplecnn', channels=(8, 8, 16, 16, 16), num_classes=5)
    aa_models.augment(model, where='stages.1.1.conv', calibrate=torch.randn(16, 3, 32, 32), attn_init='global',
                      **{**ARGS, 'img_size': 32})
    assert 'stages.1.1.conv is not calibrated: no plain convolution is known' in caplog.text


def test_readers_that_pad_in_other_ways_are_left(caplog):
    for options in (dict(padding='same'), dict(padding=1, padding_mode='reflect')):
        plain = network()
        plain[0][4] = nn.Conv2d(16, 12, 3, **options)
        before = plain[0][4].weight.detach().clone()
        net = aa_models.augment(
            plain, where='0.1', calibrate=torch.randn(16, 3, 16, 16), attn_init='global', **ARGS)
        assert net[0][4].weight.norm().item() == pytest.approx(before.norm().item())  # in another order
        assert 'is not calibrated' in caplog.text
        caplog.clear()


@pytest.mark.parametrize('calibrate, error, message', [
    (torch.zeros(3, 16, 16), TypeError, r'calibrate must be images \(B, C, H, W\).* got \(3, 16, 16\)'),
    ([], ValueError, 'calibrate holds 0 images, at least 16 are needed'),
    (['a.png'], TypeError, 'calibrate must be images.* got str'),
    (3, TypeError, 'calibrate must be images.* got 3'),
    (torch.zeros(2, 4, 16, 16), ValueError, 'calibrate holds images of 4 channels, the model takes 3'),
])
def test_wrong_images_are_refused(calibrate, error, message):
    model = network()
    with pytest.raises(error, match=message):
        aa_models.augment(model, where='0.1', calibrate=calibrate, **ARGS)
    assert type(model[0][1]) is nn.Conv2d
    with pytest.raises(ValueError, match='calibrate needs warm_start=True'):
        aa_models.augment(model, where='0.1', calibrate=torch.zeros(16, 3, 16, 16), warm_start=False, **ARGS)


def test_a_network_that_cannot_run_is_left_as_it_is():
    model = timm.create_model('simplecnn', global_pool='')
    before = str(model)
    with pytest.raises(ValueError, match='calibrate holds images that the model cannot run on: '):
        aa_models.augment(model, calibrate=torch.zeros(16, 3, 32, 32), **ARGS)
    assert str(model) == before and model.training
