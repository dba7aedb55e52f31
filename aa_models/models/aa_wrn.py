"""Wide ResNets for CIFAR, plain and attention-augmented.

Papers: `Wide Residual Networks` - https://arxiv.org/abs/1605.07146 (WRN),
`Attention Augmented Convolutional Networks` - https://arxiv.org/abs/1904.09925 (AA-WRN),
`Efficient Attention: Attention with Linear Complexities` - https://arxiv.org/abs/1812.01243 (LAA-WRN)
"""
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, DropPath
from timm.models import generate_default_cfgs, register_model
from torch import nn

from aa_models.augmentation.dataless import building_device
from aa_models.data.cifar100 import CIFAR100_LABELS
from aa_models.errors import InputError
from aa_models.layers import AttentionArgs
from aa_models.zoo import weights_cfg

from ._augmented import augment_stages, checkpoint_filter_fn, materialize
from ._staged import StagedNet, cifar_cfg
from .pretrained import build

__all__ = ['WideResNet']


class PreActBlock(nn.Module):
    """Pre-activation block of two 3×3 convolutions; a 1×1 shortcut where the shape changes."""

    def __init__(
            self, in_chs: int, out_chs: int, stride: int = 1, drop_path: float = 0.,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.bn1 = BatchNormAct2d(in_chs, **dd)
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False, **dd)
        self.bn2 = BatchNormAct2d(out_chs, **dd)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0. else nn.Identity()
        changes = stride != 1 or in_chs != out_chs
        self.shortcut = nn.Conv2d(in_chs, out_chs, 1, stride, bias=False, **dd) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = self.bn1(x)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return shortcut + self.drop_path(self.conv2(self.bn2(self.conv1(activated))))


class WideResNet(StagedNet):
    """Wide ResNet (pre-activation, stride on the first 3×3 of a stage, no biases in convolutions).

    With attention the first 3×3 of every block is augmented (arXiv 1904.09925, section 4.1).

    Args:
        depth: Number of convolutions, 6n + 4.
        width: Factor k of the widths 16k, 32k, 64k.
        num_classes: Number of classes, 0 for none.
        in_chans: Channels of the input.
        global_pool: Pooling before the classifier.
        attn_stages: For each of the three stages, whether it is augmented.
        attn_pool: For each of the three stages, the pooling of its attention branch.
        img_size: Height and width of the input that the relative tables are made for, pixels; any size can be fed.
        drop_rate: Dropout probability before the classifier.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
        **attn_args: The attention's other arguments (`dk`, `dv`, …), see `AugmentedConv2d`.
    """

    def __init__(
            self, depth: int = 28, width: int = 10, num_classes: int = 100, in_chans: int = 3, global_pool: str = 'avg',
            attn_stages: Sequence[bool] = (False, False, False), attn_pool: Sequence[int] = (1, 1, 1),
            img_size: int | tuple[int, int] = 32, drop_rate: float = 0., drop_path_rate: float = 0.,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None, **attn_args: Any,
    ) -> None:
        args = AttentionArgs().replace(**attn_args)
        if depth < 10 or (depth - 4) % 6:
            raise InputError(f'depth must be 6n + 4 for blocks of two convolutions, got {depth}')
        dd: dict[str, Any] = {'device': building_device(device), 'dtype': dtype}
        num_blocks = (depth - 4) // 6
        channels = (16, 16 * width, 32 * width, 64 * width)
        stages = []
        for i in range(3):
            in_out = [(channels[i], channels[i + 1])] + [(channels[i + 1], channels[i + 1])] * (num_blocks - 1)
            strides = [1 if i == 0 else 2] + [1] * (num_blocks - 1)
            # by hand: timm's function reads the rates off a tensor, which in FakeTensorMode holds none
            rates = [drop_path_rate * (i * num_blocks + j) / (3 * num_blocks - 1) for j in range(num_blocks)]
            stages.append([PreActBlock(*chs, s, r, **dd) for chs, s, r in zip(in_out, strides, rates)])
        super().__init__(
            nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False, **dd), stages, channels, (1, 1, 2, 4),
            norm=BatchNormAct2d(channels[-1], **dd), num_classes=num_classes, in_chans=in_chans,
            global_pool=global_pool, drop_rate=drop_rate, **dd)
        augment_stages(
            self, [f'stages.{i}.*.conv1' for i in range(3)], args, attn_stages=attn_stages, attn_pool=attn_pool,
            img_size=img_size)
        materialize(self, device)


def _create_wrn(variant: str, pretrained: bool = False, **kwargs: Any) -> WideResNet:
    return build(
        WideResNet, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=(0, 1, 2, 3), flatten_sequential=True), **kwargs)


_PAPERS = {'': 'arXiv:1605.07146', 'aa_': 'arXiv:1904.09925', 'laa_': 'arXiv:1812.01243'}

_SHA256 = {
    'wrn28_10.cifar100': '68524731ed94c699376c636074b43d6147f04b47ceff6f3e21e9b120791dc279',
    'aa_wrn28_10.cifar100': 'c590c9eb3506d132a5348f926d6e6f2df641e4427fe9b7d749995c9eb36f4bdc',
    'laa_wrn28_10.cifar100': '6a448c849a62c7f466549ef5233947f952f8551bfb5fc42d2068a111bf610684',
    'wrn28_2.cifar100': 'cf6050917eeb6e7b519ec4558eaefc98233c199a852d223462baf18e3b9db6ca',
    'aa_wrn28_2.cifar100': 'fd953e19ff114a72b613cca61580d87ad61a58b7dc4c81a91ec231c1839cd4dd',
    'laa_wrn28_2.cifar100': '66f5252afddae1c2d9780a603e6b0d61cef86d014e6cbf8584ed6b646e4c3959',
}


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
    return cifar_cfg(first_conv='stem', paper_ids=_PAPERS[name.partition('wrn')[0]], **kwargs)


default_cfgs = generate_default_cfgs({
    **{name_tag: _cfg(name_tag, label_names=CIFAR100_LABELS, **weights_cfg(name_tag, sha256))
       for name_tag, sha256 in _SHA256.items()},
    **{f'{kind}wrn16_8.untrained': _cfg(f'{kind}wrn16_8') for kind in _PAPERS},
})

_AUGMENTED = dict(attn_stages=(True, True, True))
_LINEAR = dict(_AUGMENTED, attention='linear', pos_embed='sincos')
_NARROW = dict(depth=28, width=2)
_FEW_HEADS = dict(num_heads=2)  # a tenth of 32 channels are values for no more


@register_model
def wrn28_10(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-28-10, the plain baseline."""
    return _create_wrn('wrn28_10', pretrained, **dict(depth=28, width=10) | kwargs)


@register_model
def aa_wrn28_10(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """AA-WRN-28-10, κ = 2υ = 0.2, in all twelve blocks."""
    return _create_wrn('aa_wrn28_10', pretrained, **dict(_AUGMENTED, depth=28, width=10) | kwargs)


@register_model
def laa_wrn28_10(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-28-10 augmented with linear attention and sine/cosine positions."""
    return _create_wrn('laa_wrn28_10', pretrained, **dict(_LINEAR, depth=28, width=10) | kwargs)


@register_model
def wrn28_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-28-2, the plain baseline."""
    return _create_wrn('wrn28_2', pretrained, **_NARROW | kwargs)


@register_model
def aa_wrn28_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """AA-WRN-28-2, κ = 2υ = 0.2 in two heads, in all twelve blocks."""
    return _create_wrn('aa_wrn28_2', pretrained, **_AUGMENTED | _NARROW | _FEW_HEADS | kwargs)


@register_model
def laa_wrn28_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-28-2 augmented with two heads of linear attention and sine/cosine positions."""
    return _create_wrn('laa_wrn28_2', pretrained, **_LINEAR | _NARROW | _FEW_HEADS | kwargs)


@register_model
def wrn16_8(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-16-8, the plain baseline."""
    return _create_wrn('wrn16_8', pretrained, **dict(depth=16, width=8) | kwargs)


@register_model
def aa_wrn16_8(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """AA-WRN-16-8, κ = 2υ = 0.2, in all six blocks."""
    return _create_wrn('aa_wrn16_8', pretrained, **dict(_AUGMENTED, depth=16, width=8) | kwargs)


@register_model
def laa_wrn16_8(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-16-8 augmented with linear attention and sine/cosine positions."""
    return _create_wrn('laa_wrn16_8', pretrained, **dict(_LINEAR, depth=16, width=8) | kwargs)
