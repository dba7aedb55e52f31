"""The models of this package in a small form, for tests that are not about size.

A model that is registered later is found by itself; `SMALL` takes one line if it is large.
"""
from fnmatch import fnmatch

import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

import aa_models  # noqa: F401, registers the models
from aa_models.zoo import own_models

NAMES = own_models()
STAGED = [name for name in NAMES if name != 'augmented']  # all with arguments and rules of their own
SMALL = {  # the arguments that make a model small, by a pattern of its name
    '*resnet18_cifar': dict(layers=(1, 1, 1, 1), channels=(16, 32, 32, 32), img_size=16),
    '*resnet*': dict(layers=(1, 1, 1, 1), channels=(16, 32, 32, 32), img_size=64),
    '*wrn*': dict(depth=10, width=1, img_size=16),
    '*efficientnet*': dict(channel_multiplier=0.25, depth_multiplier=0.5, num_features=64, img_size=64),
    '*mnasnet*': dict(channel_multiplier=0.25, depth_multiplier=0.5, num_features=64, img_size=64),
    '*simplecnn': dict(channels=(8, 8, 16, 16, 16), img_size=16),
    'augmented': dict(where='layer[34].*.conv1', layers=(1, 1, 1, 1), channels=(16, 32, 32, 32), img_size=64),
}


def create(name, **kwargs):
    """The small form of a model; arguments override it."""
    small = next((args for pattern, args in SMALL.items() if fnmatch(name, pattern)), {})
    return timm.create_model(name, **{**dict(num_classes=7, dk=16, dv=8, num_heads=2), **small, **kwargs})


def uneven(model):
    """The model, with batch norms as if it had learned something; none starts at 0, where no gradient would pass."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def evaluating(name, **kwargs):
    """The small form in evaluation mode, its norms uneven."""
    return uneven(create(name, **kwargs).eval())


def images(name, batch=2, in_chans=3, **kwargs):
    """Noise of the size that the small form is made for."""
    size = next((args['img_size'] for pattern, args in SMALL.items() if fnmatch(name, pattern)), None)
    height, width = (size, size) if size else timm.get_pretrained_cfg(name).input_size[1:]
    return torch.randn(batch, in_chans, height, width, **kwargs)


def arguments(layer):
    """The attention's arguments as an augmented convolution has them."""
    attn = layer.attn
    return dict(
        dk=attn.dk, dv=attn.dv, num_heads=attn.num_heads, attn_pool=attn.attn_pool, attn_drop=attn.attn_drop.p,
        attention=type(attn).__name__.removesuffix('Attention').lower(), pos_embed=attn.pos_embed,
        attn_init=attn.attn_init)


def pads_by_size(model):
    """Whether it has TensorFlow's padding, so that a program of torch's is for one size of image only."""
    return any(isinstance(module, Conv2dSame) for module in model.modules())


def count(model):
    return sum(p.numel() for p in model.parameters())


def _networks():
    """A name for each different small network: `aa_resnet18` and `aa_resnet34` are the same at one block a stage."""
    found = {}
    for name in NAMES:
        model = create(name, device='meta')
        found.setdefault((repr(model), *((n, t.shape) for n, t in model.state_dict().items())), name)
    return list(found.values())


NETWORKS = _networks()
