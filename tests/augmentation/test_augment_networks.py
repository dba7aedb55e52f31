"""`augment` on networks of other families: all that timm and torch do with the plain ones works on."""
import pytest
import timm
import torch

import aa_models
from daily import daily
from found import augmented
from our_models import uneven

IMG_SIZE = 64
# pattern, depth of the values, and how many convolutions the pattern chooses, on maps of 2 × 2
NETWORKS = {
    'resnext50_32x4d': ('layer4.*.conv2', 64, 3),  # in 32 groups, the first with stride 2
    'wide_resnet50_2': ('layer4.*.conv2', 64, 3),
    'regnety_008': ('s4.*.conv2.conv', 48, 2),  # in 48 groups, squeeze-excitation behind it
    'mnasnet_100': ('blocks.6.*.conv_pw', 16, 1),  # the 1×1 before a depthwise convolution
    'efficientnet_b0': ('blocks.6.*.conv_pw', 16, 1),
    'convnext_atto': ('stages?3.*.mlp.fc1', 16, 2),  # named `stages_3` by features_only
    'densenet121': ('features?denseblock4.*.conv2', 8, 16),
}
DK, HEADS = 32, 4
SMALLER = NETWORKS.keys() - {'wide_resnet50_2', 'densenet121'}
every_network = pytest.mark.parametrize('name', daily(NETWORKS, *SMALLER))


def make(name, **kwargs):
    where, dv, _ = NETWORKS[name]
    model = uneven(timm.create_model(name, **kwargs))
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    return aa_models.augment(model, where=where, dk=DK, dv=dv, num_heads=HEADS, img_size=IMG_SIZE), sizes


def expected_parameters(model, plain, dv):
    """The count from the plain network's: fewer filters, and what section 3 of the paper adds for each layer."""
    total = sum(plain.values())
    for name, layer in augmented(model).items():
        total -= plain[f'{name}.weight'] * dv // layer.out_channels
        total += layer.in_channels * (2 * DK + dv) + dv * dv + 2 * (2 * 2 - 1) * DK // HEADS
        if f'{name}.bias' in plain:  # the filters' go with them, as many come with the projection
            total += 2 * DK + dv
    return total


@every_network
def test_augmented_network(name):
    _, dv, count = NETWORKS[name]
    model, plain = make(name, num_classes=3)
    assert len(augmented(model)) == count
    assert sum(p.numel() for p in model.parameters()) == expected_parameters(model, plain, dv)

    model.train()(torch.randn(2, 3, IMG_SIZE, IMG_SIZE)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []

    model.eval()
    x = torch.randn(1, 3, 96, IMG_SIZE)
    with torch.no_grad():
        expected = model(x)
        other, _ = make(name, num_classes=3)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.eval()(x), expected) and expected.shape == (1, 3)

        model.reset_classifier(7)
        assert model(x).shape == (1, 7)
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x))
        assert len(maps) == len(model.feature_info)


@every_network
@torch.no_grad()
def test_features_and_export(name):
    x = torch.randn(2, 3, IMG_SIZE, IMG_SIZE)
    features, _ = make(name, features_only=True)
    features.eval()
    maps = features(x)
    assert [m.shape[1] for m in maps] == features.feature_info.channels()
    assert [IMG_SIZE // m.shape[2] for m in maps] == features.feature_info.reduction()
    exported = torch.export.export(features, (x,)).module()
    for got, expected in zip(exported(x), maps):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
