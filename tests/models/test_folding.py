"""Batch norms folded into convolutions: the same answers, and nothing folded that something else reads."""
import pytest
import timm
import torch
from torch import nn

from aa_models import fold_batch_norms
from aa_models.errors import InputError
from aa_models.layers import AugmentedConv2d
from our_models import evaluating, images, uneven

NAMES = (  # of every family, with softmax, linear and no attention
    'aa_resnet18', 'aa_resnet50', 'laa_resnet18', 'aa_efficientnet_lite0', 'laa_efficientnet_lite0', 'aa_mnasnet_100',
    'wrn16_8', 'aa_wrn28_10', 'laa_wrn16_8', 'aa_simplecnn', 'augmented')


def norms(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def error(model, folded, x):
    """Largest difference, relative to the largest output."""
    with torch.inference_mode():
        expected, found = model(x), folded(x)
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize('name', NAMES)
def test_every_family(name):
    model, x = evaluating(name), images(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_batch_norms(model.train(), x)
    assert not folded.training and error(model.eval(), folded, x) < 1e-5
    left, there = norms(folded), norms(model)
    if 'wrn' in name:  # pre-activation: the norm in the middle of a block alone follows a convolution
        assert left == [norm for norm in there if not norm.endswith('bn2')]
    else:
        assert not left and (there or 'simplecnn' in name)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items() if 'batches' not in key)


@pytest.mark.parametrize('options', [{}, dict(attn_pool=2), dict(dv=16), dict(dv=0), dict(
    attention='linear', pos_embed='sincos'), dict(bias=False), dict(stride=2)], ids=str)
@pytest.mark.parametrize('norm', [nn.BatchNorm2d, timm.layers.BatchNormAct2d])
def test_augmented_layer(norm, options):
    layer = AugmentedConv2d(8, 16, 3, padding=1, **{**dict(dk=8, dv=8, num_heads=2, feat_size=6), **options})
    model = uneven(nn.Sequential(layer, norm(16)).double().eval())
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    folded = fold_batch_norms(model, x)
    assert not norms(folded) and error(model, folded, x) < 1e-10


class Reader(nn.Module):
    """A convolution and its norm, with something else done to them."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.conv, self.norm = kind, nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        if kind == 'batch statistics':
            self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        if kind == 'weights that are computed':
            nn.utils.parametrizations.weight_norm(self.conv)
        if kind == 'a hook':
            self.conv.register_forward_hook(lambda module, args, output: output + 1)
        if kind == 'read by a script':
            self.script = torch.jit.script(nn.ReLU())
        if kind == 'weights of its own kind':
            self.conv = timm.layers.StdConv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x)
        z = self.norm(input=y) if self.kind == 'nothing else, by keyword' else self.norm(y)
        if self.kind == 'two readers':
            return z + y
        if self.kind == 'read in place':
            return self.norm(y.relu_())
        if self.kind == 'an output':
            return torch.cat([z.flatten(), y.flatten()])[None] if not self.training else (z, y)
        if self.kind == 'used twice':
            return z + self.norm(self.conv(x.flip(3)))
        if self.kind == 'written into another':
            both = z.new_zeros(2, *z.shape)
            both[0], both[1] = y, z
            return both
        if self.kind == 'read by a script':
            return z + self.script(y)
        return z if y.shape[2] > 1 else y


@pytest.mark.parametrize('kind', [
    'two readers', 'written into another', 'read in place', 'an output', 'used twice', 'batch statistics',
    'weights that are computed', 'a hook', 'weights of its own kind', 'read by a script', 'nothing else',
    'nothing else, by keyword'])
def test_norms_that_stay(kind):
    model, x = Reader(kind).eval(), torch.randn(2, 3, 6, 6)
    if kind != 'batch statistics':
        uneven(model)
    folded = fold_batch_norms(model, x)
    assert error(model, folded, x) < 1e-5 and len(norms(folded)) == (not kind.startswith('nothing else'))


@pytest.mark.parametrize('name', ['resnet18', 'mobilenetv3_small_050', 'densenet121', 'regnetx_002'])
def test_networks_of_timm(name):
    model, x = uneven(timm.create_model(name, num_classes=5).eval()), torch.randn(1, 3, 64, 64)
    folded = fold_batch_norms(model, x)
    assert error(model, folded, x) < 1e-5 and len(norms(folded)) < len(norms(model))


def test_example_is_the_networks_own_or_given():
    model = uneven(timm.create_model('resnet18', num_classes=5).eval())
    assert not norms(fold_batch_norms(model))
    assert not norms(fold_batch_norms(timm.create_model('resnet18', in_chans=1)))  # though its cfg says three channels
    with pytest.raises(InputError, match='example: Sequential does not say what it takes'):
        fold_batch_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))


def test_a_pass_that_fails_leaves_no_hooks():
    hooks = nn.modules.module._global_forward_pre_hooks
    model = timm.create_model('simplecnn').eval()
    with pytest.raises(RuntimeError):
        fold_batch_norms(model, torch.zeros(1, 5, 32, 32))
    assert not hooks and not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
