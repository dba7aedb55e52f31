"""A plain network's weights in its augmented form: what stays, what gives way, and that the function stays put."""
import copy
import logging
import math
import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import aa_models
from aa_models.augmentation import channel_paths, warm_start
from found import augmented
from hub_server import HubServer, send_client_to
from our_models import uneven

SETTINGS = dict(dk=16, dv=0.25, num_heads=4, img_size=64)
# networks whose augmented convolutions lead to one reader; a basic block, groups, squeeze-excitation, a depthwise
# convolution in between, batch norm before the convolution
READ = {
    'resnet10t': 'layer[34].*.conv1',
    'resnext26ts': 'stages.[23].0.conv2_kxk.conv',
    'regnety_002': 's4.*.conv2.conv',
    'mnasnet_050': 'blocks.6.*.conv_pw',
    'wrn16_8': 'stages.2.*.conv1',
}


def trained(name, num_classes=5):
    return uneven(timm.create_model(name, num_classes=num_classes).eval())


@torch.no_grad()
def kill(model, names):
    """Make a quarter of the channels of some convolutions send nothing on; returns them by name."""
    calls = channel_paths.trace_calls(model)
    for name in names:
        conv, path = model.get_submodule(name), channel_paths.follow_channels(model, name, calls)
        assert path.norm and path.reader, name
        per_group = conv.out_channels // conv.groups
        dead = torch.cat([
            group * per_group + torch.randperm(per_group)[:per_group // 4] for group in range(conv.groups)])
        for tensor in (model.get_submodule(path.norm).weight, model.get_submodule(path.norm).bias):
            tensor[dead] = 0


@pytest.mark.parametrize('name', READ)
@torch.no_grad()
def test_channels_that_send_nothing_give_way_and_the_function_stays(name):
    model = trained(name)
    names = list(augmented(aa_models.augment(copy.deepcopy(model), where=READ[name], **SETTINGS)))
    kill(model, names)
    x = torch.randn(2, 3, 64, 48)
    expected = model(x)
    aa_models.augment(model, where=READ[name], **SETTINGS)
    assert all(layer.dv == layer.out_channels // 4 for layer in augmented(model).values())
    assert expected.std() > 1e-3
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize('attn_init', ['local', 'global'])
@torch.no_grad()
def test_surviving_filters_and_their_statistics_are_kept(attn_init):
    """The rule, written out: variance after the activation times the squared norm of what reads the channel."""
    model = trained('resnet10t')
    block = model.layer3[0]
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    cost = []
    for c in range(256):
        y = (before['bn1.weight'][c] * torch.randn(100_000) + before['bn1.bias'][c]).relu()
        cost.append(y.var() * before['conv2.weight'][:, c].square().sum())
    aa_models.augment(model, where='layer3.0.conv1', attn_init=attn_init, **SETTINGS)
    stays = [
        next(c for c in range(256) if torch.equal(before['conv1.weight'][c], row)) for row in block.conv1.conv.weight]
    assert stays == sorted(stays) and len(stays) == 192
    gone = sorted(set(range(256)) - set(stays))
    cost = torch.stack(cost)
    assert cost[gone].max() < 1.05 * cost[stays].min()  # the reference draws, so near ties may go either way
    for key in ('weight', 'bias', 'running_mean', 'running_var'):
        assert torch.equal(getattr(block.bn1, key)[:192], before[f'bn1.{key}'][stays]), key
    assert torch.equal(block.conv2.weight, before['conv2.weight'][:, stays + gone])
    scale = 0.1 if attn_init == 'global' else 1.  # heads that imitate the lost filters take their statistics over
    assert torch.allclose(block.bn1.weight[192:], scale * before['bn1.weight'][gone])
    for key in ('conv3.weight', 'bn2.weight', 'downsample.1.weight'):
        assert key not in before or torch.equal(block.state_dict()[key], before[key])


def test_moments_of_relu_and_of_none():
    weight, bias = torch.tensor([1., 0.5, 2., 0., 0.]), torch.tensor([0., 1., -3., 0.7, -0.7])
    for act, act_moments in ((None, lambda w, b: (b, w ** 2)), (nn.ReLU(), _rectified)):
        mean, variance = warm_start._moments(weight, bias, act)
        expected = torch.tensor([act_moments(w, b) for w, b in zip(weight.tolist(), bias.tolist())])
        torch.testing.assert_close(torch.stack([mean, variance], 1).float(), expected, rtol=2e-3, atol=2e-4)


def _rectified(w, b):
    """Mean and variance of max(0, y), y normal with mean b and deviation w."""
    if not w:
        return max(b, 0.), 0.
    density, below = math.exp(-(b / w) ** 2 / 2) / math.sqrt(2 * math.pi), (1 + math.erf(b / w / math.sqrt(2))) / 2
    mean = b * below + w * density
    return mean, (b ** 2 + w ** 2) * below + b * w * density - mean ** 2


class Untraceable(nn.Sequential):
    """Its forward pass asks a tensor for a number."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))

    def forward(self, x):
        return super().forward(x if x.numel() > 0 else -x)


class Twice(nn.Sequential):
    """One convolution called twice, and read by it."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3))

    def forward(self, x):
        return self[1](super().forward(x))


LAST = 'channels give way to attention, the last ones, as no convolution is known to be alone in reading them'


@pytest.mark.parametrize('make, name, words', [
    (lambda: trained('resnet10t'), 'layer3.0.conv1',
     '8 of 256 channels give way to attention, those whose loss changes the output of layer3.0.conv2 least'),
    (lambda: trained('resnet10t'), 'layer3.0.conv2', f'8 of 256 {LAST} (layer3.0.bn2 leads to add'),
    (lambda: trained('densenet121'), 'features.denseblock4.denselayer1.conv2',
     f'8 of 32 {LAST} (features.denseblock4.denselayer1.conv2 is read by cat'),
    (Untraceable, '0', f'8 of 16 {LAST} (the network cannot be traced)'),
    (Twice, '1', f'8 of 16 {LAST} (1 is called 2 times)'),
    (Twice, '0', f'8 of 16 {LAST} (0 leads to _1)'),
    (lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(1024, 2)), '0',
     f'8 of 16 {LAST} (they lead to 1, a Flatten)'),
    (lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), '0', f'8 of 16 {LAST} (1 leads to output)'),
], ids=['read', 'added', 'dense', 'untraceable', 'twice', 'read twice', 'flattened', 'last'])
@torch.no_grad()
def test_which_channels_give_way_and_what_the_log_says_of_it(caplog, make, name, words):
    model = make()
    before = model.get_submodule(name).weight.clone()
    with caplog.at_level(logging.INFO, 'aa_models.augmentation'):
        img_size = 64 if hasattr(model, 'pretrained_cfg') else 10
        aa_models.augment(model, where=name, dk=8, dv=8, num_heads=4, img_size=img_size)
    assert f'{name}: {words}' in caplog.text
    assert ('cannot be traced' in caplog.text) == isinstance(model, Untraceable)
    assert torch.equal(model.get_submodule(name).conv.weight, before[:-8]) == (LAST in words)


@torch.no_grad()
def test_a_network_that_cannot_be_traced_is_a_warning(caplog):
    """Once for the network, and the last channels give way: the filters kept are the first, in their order."""
    model = Untraceable()
    before = model[0].weight.clone(), model[2].weight.clone()
    aa_models.augment(model, where=['0', '2'], dk=4, dv=4, num_heads=2, img_size=10)
    warning, = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert re.match(r'Untraceable cannot be traced \(TraceError: .*\): in all its augmented layers the last', warning)
    assert torch.equal(model[0].conv.weight, before[0][:12]) and torch.equal(model[2].conv.weight, before[1][:4])


@torch.no_grad()
def test_without_a_norm():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3))
    dead = [1, 5, 6, 15]
    model[2].weight[:, dead] = 0
    x = torch.randn(2, 3, 12, 9)
    expected, weight, bias = model(x), model[0].weight.clone(), model[0].bias.clone()
    aa_models.augment(model, where='0', dk=8, dv=4, num_heads=2, img_size=(12, 9))
    torch.testing.assert_close(model(x), expected)
    stays = [c for c in range(16) if c not in dead]
    assert torch.equal(model[0].conv.weight, weight[stays]) and torch.equal(model[0].conv.bias, bias[stays])
    assert torch.equal(model[0].attn.proj.bias, bias[dead])


class Tied(nn.Module):
    """Two convolutions with one weight: what reads the first one's channels reads the second one's, too."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.c.weight = self.b.weight

    def forward(self, x):
        return self.c(self.b(self.a(self.stem(x))).relu())


@torch.no_grad()
def test_channels_are_not_followed_into_shared_weights():
    model, x = Tied(), torch.randn(2, 3, 8, 8)
    model.b.weight[:, 4:] = 0
    expected, shared = model(x), model.b.weight.clone()
    aa_models.augment(model, where='a', img_size=8, dk=8, dv=4, num_heads=2)
    assert model.c.weight is model.b.weight and torch.equal(model.b.weight, shared)
    torch.testing.assert_close(model(x), expected)


@torch.no_grad()
def test_on_request_the_layers_are_drawn_anew():
    model = trained('resnet10t')
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    aa_models.augment(model, where='layer3.0.conv1', warm_start=False, **SETTINGS)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name in after)
    assert not torch.isin(after['layer3.0.conv1.conv.weight'], before['layer3.0.conv1.weight']).all(dim=(1, 2, 3)).any()


@torch.no_grad()
def test_groups_whose_channels_cannot_be_reordered_start_anew(caplog):
    model = nn.Sequential(nn.Conv2d(8, 16, 3, groups=4), nn.Conv2d(16, 16, 3, groups=4))
    before = model[0].weight.clone()
    aa_models.augment(model, where='0', dk=8, dv=8, num_heads=2, img_size=12)
    assert '0 keeps none of its filters' in caplog.text
    assert model[0].conv.weight.shape == (8, 2, 3, 3) and not torch.isin(model[0].conv.weight, before).any()


# --- timm's own weights for our models


@torch.no_grad()
def test_from_a1_in1k(tmp_path, monkeypatch):
    """timm's ResNet-18 lies where `aa_resnet18.from_a1_in1k` looks for its weights."""
    plain = trained('resnet18', num_classes=1000)
    # every convolution that is augmented has a quarter of channels that send nothing, so nothing may change
    kill(plain, [f'layer{stage}.{i}.conv1' for stage in (2, 3, 4) for i in (0, 1)])
    folder = tmp_path / 'timm' / 'resnet18.a1_in1k'
    folder.mkdir(parents=True)
    save_file(plain.state_dict(), folder / 'model.safetensors')
    with HubServer(tmp_path) as hub:
        send_client_to(hub, tmp_path / 'cache', monkeypatch)
        model, features, adapted = (
            timm.create_model('aa_resnet18.from_a1_in1k', pretrained=True, **kwargs).eval()
            for kwargs in ({}, dict(features_only=True, img_size=96), dict(num_classes=3, in_chans=1)))
    assert 'GET /timm/resnet18.a1_in1k/resolve/main/model.safetensors' in hub.requests
    assert not any(request.endswith('.bin') for request in hub.requests)  # a pickle is not even asked for
    x = torch.randn(1, 3, 224, 160)
    expected = plain(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    torch.testing.assert_close(features(x)[-1], plain.forward_features(x), rtol=1e-3, atol=1e-3)
    assert adapted(x[:, :1]).shape == (1, 3)
    assert torch.equal(adapted.layer1[0].conv1.weight, plain.layer1[0].conv1.weight)


@pytest.mark.parametrize('depth', [18, 34, 50, 101, 152])
def test_tags_of_plain_weights(depth):
    own, theirs = map(timm.get_pretrained_cfg, (f'aa_resnet{depth}.from_a1_in1k', f'resnet{depth}.a1_in1k'))
    assert own.hf_hub_id == f'timm/resnet{depth}.a1_in1k' and own.hf_hub_filename == 'model.safetensors'
    for key in (
            'input_size', 'test_input_size', 'crop_pct', 'test_crop_pct', 'mean', 'std', 'interpolation',
            'num_classes', 'first_conv', 'classifier'):
        assert getattr(own, key) == getattr(theirs, key), key
    if depth > 18:  # no accident: what was never trained as a whole is not what `pretrained=True` alone gives
        assert not timm.get_pretrained_cfg(f'aa_resnet{depth}').has_weights
    plain, model = (timm.create_model(f'{prefix}resnet{depth}', device='meta') for prefix in ('', 'aa_'))
    calls = channel_paths.trace_calls(model)
    assert all(channel_paths.follow_channels(model, name, calls).reader for name in augmented(model))
    kept = {name.replace('.conv.weight', '.weight') for name in model.state_dict() if '.attn.' not in name}
    assert kept == set(plain.state_dict())
