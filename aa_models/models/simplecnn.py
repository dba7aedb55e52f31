"""Shallow networks of five 3×3 convolutions, plain and with two of them attention-augmented.

They ask whether attention sees more than convolution where there is no depth to make up for a small field of view.

Papers: `Attention Augmented Convolutional Networks` - https://arxiv.org/abs/1904.09925,
`Efficient Attention: Attention with Linear Complexities` - https://arxiv.org/abs/1812.01243
"""
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ConvNormAct
from timm.models import generate_default_cfgs, register_model
from torch import nn

from aa_models.augmentation.dataless import building_device
from aa_models.data.cifar100 import CIFAR100_LABELS
from aa_models.layers import AttentionArgs
from aa_models.zoo import weights_cfg

from ._augmented import augment_stages, checkpoint_filter_fn, materialize
from ._staged import StagedNet, cifar_cfg
from .pretrained import build

__all__ = ['SimpleCNN']


class SimpleCNN(StagedNet):
    """Five 3×3 convolutions, each with batch norm and ReLU: a stem and two stages of a strided and a plain one.

    With attention the plain convolution of each stage is augmented.

    Args:
        channels: Output channels of the five convolutions.
        num_classes: Number of classes, 0 for none.
        in_chans: Channels of the input.
        global_pool: Pooling before the classifier.
        attn_stages: For each of the two stages, whether it is augmented.
        attn_pool: For each of the two stages, the pooling of its attention branch.
        img_size: Height and width of the input that the relative tables are made for, pixels; any size can be fed.
        drop_rate: Dropout probability before the classifier.
        **attn_args: The attention's other arguments (`dk`, `dv`, …), see `AugmentedConv2d`.
    """

    def __init__(
            self, channels: tuple[int, int, int, int, int] = (32, 64, 128, 128, 128), num_classes: int = 100,
            in_chans: int = 3, global_pool: str = 'avg', attn_stages: Sequence[bool] = (False, False),
            attn_pool: Sequence[int] = (1, 1), img_size: int | tuple[int, int] = 32, drop_rate: float = 0.,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None, **attn_args: Any,
    ) -> None:
        args = AttentionArgs(dk=0.5, dv=0.5).replace(**attn_args)
        dd: dict[str, Any] = {'device': building_device(device), 'dtype': dtype}
        ins, strides = (in_chans, *channels[:-1]), (1, 2, 1, 2, 1)
        stem, *convs = [
            ConvNormAct(i, o, 3, stride=s, **dd) for i, o, s in zip(ins, channels, strides)]
        super().__init__(
            stem, (convs[:2], convs[2:]), channels[::2], (1, 2, 4), norm=nn.Identity(),
            num_classes=num_classes, in_chans=in_chans, global_pool=global_pool, drop_rate=drop_rate, **dd)
        augment_stages(
            self, ['stages.0.1.conv', 'stages.1.1.conv'], args, attn_stages=attn_stages, attn_pool=attn_pool,
            img_size=img_size)
        materialize(self, device)


def _create_simplecnn(variant: str, pretrained: bool = False, **kwargs: Any) -> SimpleCNN:
    return build(
        SimpleCNN, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=(0, 1, 2), flatten_sequential=True), **kwargs)


def _cifar100(name_tag: str, sha256: str, **kwargs: Any) -> dict[str, Any]:
    return cifar_cfg(first_conv='stem.conv', label_names=CIFAR100_LABELS, **weights_cfg(name_tag, sha256), **kwargs)


_PAPERS = {'': {}, 'aa_': dict(paper_ids='arXiv:1904.09925'), 'laa_': dict(paper_ids='arXiv:1812.01243')}
_SHA256 = {  # of each network the default tag first
    'simplecnn.muon_cifar100': '3f1cfb5f15d44cb9dcf906d38f508fafd9802253c978806da69d2ef4a9c04284',
    'simplecnn.cifar100': '1b8b2696166ffc0de2cde2ce3c2e4c8763b274946d7c9d10e7d4d71e68ae4bde',
    'aa_simplecnn.muon_cifar100': 'af056b320c386bc43632c022b833678b5e443182e1fa356bb89579b30156e78e',
    'aa_simplecnn.cifar100': '36a42da3a64942cf4328d6e1fc0ff362fbf0aea7bf122619d6320c824acab1c8',
    'laa_simplecnn.muon_cifar100': '666b0427fec862f23ac591fe24874b0450cc02e20241c391c27571cf04d3e83a',
    'laa_simplecnn.cifar100': 'd8269cd43713f187a98db133d0aab772e0e6eafdd29d191c4d9fb4599745cb38',
}

default_cfgs = generate_default_cfgs({
    name_tag: _cifar100(name_tag, sha256, **_PAPERS[name_tag.partition('simplecnn')[0]])
    for name_tag, sha256 in _SHA256.items()
})

# half of the 128 channels, in ints: a share would raise the keys to 20 a head
_AUGMENTED = dict(attn_stages=(True, True), dk=64, dv=64)
_LINEAR = dict(_AUGMENTED, attention='linear', pos_embed='sincos')


@register_model
def simplecnn(pretrained: bool = False, **kwargs: Any) -> SimpleCNN:
    """Five plain convolutions, the baseline."""
    return _create_simplecnn('simplecnn', pretrained, **kwargs)


@register_model
def aa_simplecnn(pretrained: bool = False, **kwargs: Any) -> SimpleCNN:
    """Five convolutions, the third and the fifth attention-augmented (dk = dv = F / 2)."""
    return _create_simplecnn('aa_simplecnn', pretrained, **dict(_AUGMENTED, **kwargs))


@register_model
def laa_simplecnn(pretrained: bool = False, **kwargs: Any) -> SimpleCNN:
    """As `aa_simplecnn`, with linear attention and sine/cosine positions."""
    return _create_simplecnn('laa_simplecnn', pretrained, **dict(_LINEAR, **kwargs))
