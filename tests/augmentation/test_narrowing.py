"""Wide networks that become narrow ones: what was widened comes back, and the mean of copies is the nearest."""
import pytest
import timm
import torch
from torch import nn

from aa_models.augmentation.narrowing import narrow
from aa_models.augmentation.widening import widen
from resized_models import ANY, RESNET, WHOLE, WRN, make


def with_equal_tables(name, few, many):
    """Tables of another size are interpolated, which cannot be undone."""
    return name, few, many | {'img_size': few['img_size']} if 'img_size' in few else many


@pytest.mark.parametrize('name, few, many', [with_equal_tables(*case) for case in (*WHOLE, *ANY)])
@torch.no_grad()
def test_what_was_widened_comes_back(name, few, many):
    torch.manual_seed(0)
    first, wide, again = make(name, **few), make(name, **many), make(name, **few)
    widen(first, wide)
    before = {key: tensor.clone() for key, tensor in wide.state_dict().items()}
    assert narrow(wide, again) is again
    for key, tensor in first.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], tensor, msg=lambda text, key=key: f'{key}: {text}')
    assert all(torch.equal(before[key], tensor) for key, tensor in wide.state_dict().items())
    assert again.state_dict().keys() == first.state_dict().keys()


@torch.no_grad()
def test_no_narrow_network_is_nearer():
    """Against a general solver, given the linear function as a matrix."""
    torch.manual_seed(0)
    few, many = dict(channels=(2, 2, 3, 3, 3), num_heads=1, dk=20, dv=1), dict(
        channels=(3, 4, 5, 6, 5), num_heads=1, dk=30, dv=2)
    small, wide = (make('aa_simplecnn', **kwargs, img_size=8).double() for kwargs in (few, many))
    names = [name for name, tensor in small.state_dict().items() if tensor.is_floating_point()]
    shapes = [small.state_dict()[name].shape for name in names]

    def flat(model):
        return torch.cat([model.state_dict()[name].flatten() for name in names])

    target, columns = flat(wide), []
    probe, image = make('aa_simplecnn', **few, img_size=8).double(), make('aa_simplecnn', **many, img_size=8).double()
    for one in torch.eye(len(flat(small)), dtype=torch.float64):
        parts = one.split([shape.numel() for shape in shapes])
        probe.load_state_dict(
            {name: part.view(shape) for name, part, shape in zip(names, parts, shapes)}, strict=False)
        columns.append(flat(widen(probe, image, noise=0)))
    expected = torch.linalg.lstsq(torch.stack(columns, 1), target).solution
    torch.testing.assert_close(flat(narrow(wide, small)), expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_constant_queries_are_those_of_the_wide_network():
    few, many = (dict(RESNET, channels=channels, num_heads=2, attn_init=init) for channels, init in (
        ((16, 16, 32, 32), 'global'), ((32, 32, 64, 64), 'local')))
    small, wide = make('aa_resnet18', **few), make('aa_resnet18', **many)
    constants = [name for name in wide.state_dict() if name.endswith('q_const')]
    assert constants and not any(name.endswith('q_const') for name in small.state_dict())
    narrow(wide, small)
    assert all(small.state_dict()[name].abs().max() > 0 for name in constants)
    plain = make('aa_resnet18', **few | {'attn_init': 'local'})
    narrow(make('aa_resnet18', **many | {'attn_init': 'global'}), plain)
    assert not any(plain.state_dict()[name].any() for name in constants)


@pytest.mark.parametrize('many, few, message', [
    (('wrn28_2', dict(WRN, width=2)), ('wrn28_2', dict(WRN, width=4)), 'would become fewer: 32 in .*, 64 in'),
    (('wrn28_2', dict(depth=16)), ('wrn28_2', WRN), 'different forms: only one has stages.0.1'),
    (('wrn28_2', dict(WRN, num_classes=8)), ('wrn28_2', WRN), 'head.fc has 7 outputs in the narrow network, 8 in the'),
    (('test_vit', {}), ('test_vit', {}), 'cannot be widened'),
    (('aa_wrn28_2', dict(WRN, width=2)), ('aa_wrn28_2', dict(WRN, img_size=64)), 'rel_. cannot be narrowed'),
])
def test_what_cannot_be_narrowed_is_refused(many, few, message):
    wide, small = (timm.create_model(name, **{'num_classes': 7, **kwargs}) for name, kwargs in (many, few))
    before = {key: tensor.clone() for key, tensor in small.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        narrow(wide, small)
    assert all(torch.equal(before[key], tensor) for key, tensor in small.state_dict().items())


def test_depthwise_convolutions_and_integers():
    """Each channel by itself; counters are the wide network's."""
    def make_net(channels):
        return nn.Sequential(
            nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, groups=channels),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)).eval()
    first, wide = make_net(4), make_net(10)
    first[1].num_batches_tracked.fill_(17)
    again = narrow(widen(first, wide), make_net(4))
    for one, other in zip(first.state_dict().values(), again.state_dict().values()):
        torch.testing.assert_close(one, other)
