"""Attention-augmented EfficientNet-Lites and MnasNet: timm's EfficientNet with attention in its inverted bottlenecks.

Augmented are the 1×1 convolutions that expand the channels of a block, the place that section 4.3 of the first paper
names for mobile networks.

Papers: `Attention Augmented Convolutional Networks` - https://arxiv.org/abs/1904.09925 (AA),
`Efficient Attention: Attention with Linear Complexities` - https://arxiv.org/abs/1812.01243 (LAA),
`EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks` - https://arxiv.org/abs/1905.11946,
`MnasNet: Platform-Aware Neural Architecture Search for Mobile` - https://arxiv.org/abs/1807.11626
"""
import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Conv2dSame, conv2d_same
from timm.models import generate_default_cfgs, register_model

# from the module of the networks, where timm's own variants take them
from timm.models.efficientnet import (
    BN_EPS_TF_DEFAULT,
    EfficientNet,
    decode_arch_def,
    efficientnet_init_weights,
    resolve_act_layer,
    resolve_bn_args,
    round_channels,
)
from torch import fx, nn

from aa_models.augmentation.dataless import building_device
from aa_models.data.imagenet import IMAGENET_LABELS
from aa_models.data.tiny_imagenet import TINY_IMAGENET_LABELS
from aa_models.layers import AttentionArgs, GridAttention
from aa_models.layers.tracing import as_one_node
from aa_models.zoo import weights_cfg

from ._augmented import augment_stages, checkpoint_filter_fn, materialize, rel_table_names, reset_parameters
from .pretrained import build

__all__ = ['AugmentedEfficientNet']

_EXPANSIONS = tuple(f'blocks.{stage}.*.conv_pw' for stage in range(3, 7))


class TraceableConv2dSame(Conv2dSame):
    """timm's convolution with TensorFlow's padding, which depends on the size of the input: one node to torch.fx."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102, TorchScript would compile the rest of one condition
            if isinstance(x, fx.Proxy):
                return as_one_node(self, x)
        return conv2d_same(  # torch types these for any number of axes, and TorchScript takes nothing after an ignore
            x, self.weight, self.bias,
            self.stride, self.padding, self.dilation,  # type: ignore[arg-type]
            self.groups)


class AugmentedEfficientNet(EfficientNet):
    """timm's EfficientNet whose inverted bottlenecks expand by attention-augmented 1×1 convolutions.

    Args:
        block_args: The blocks of each stage, as timm's `decode_arch_def` makes them.
        attn_convs: For each stage that can attend, the pattern of its convolutions' names.
        attn_stages: For each of these stages, whether it is augmented.
        attn_pool: For each of these stages, the pooling of its attention branch.
        img_size: Height and width of the input that the relative tables are made for, pixels; any size can be fed.
        **kwargs: The attention's other arguments (`dk`, `dv`, …), see `AugmentedConv2d`, and those of
            `timm.models.efficientnet.EfficientNet`.
    """

    def __init__(
            self, block_args: list[list[dict[str, Any]]], *,
            attn_convs: Sequence[str] = _EXPANSIONS,
            attn_stages: Sequence[bool] = (False, False, True, True), attn_pool: Sequence[int] = (1, 1, 1, 1),
            img_size: int | tuple[int, int] = 224, device: torch.device | str | None = None,
            dtype: torch.dtype | None = None, **kwargs: Any,
    ) -> None:
        args = AttentionArgs.take(kwargs)
        # a copy: timm's builder takes the dicts apart
        super().__init__(copy.deepcopy(block_args), device=building_device(device), dtype=dtype, **kwargs)
        for module in self.modules():
            if type(module) is Conv2dSame:
                module.__class__ = TraceableConv2dSame
        augment_stages(self, attn_convs, args, attn_stages=attn_stages, attn_pool=attn_pool, img_size=img_size)
        materialize(self, device)

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Draw all weights anew, convolutions as timm's EfficientNet does; fills a model after `to_empty` too."""
        reset_parameters(self)
        efficientnet_init_weights(self)
        reset_parameters(self, GridAttention)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that take no weight decay."""
        return rel_table_names(self)


def _create_aa_efficientnet(
        variant: str, pretrained: bool = False, *, stages: Sequence[str], channel_multiplier: float = 1.,
        depth_multiplier: float = 1., act_layer: str = 'relu', norm_layer: Any = None, **kwargs: Any,
) -> AugmentedEfficientNet:
    """Scale the stages and build.

    Args:
        stages: Each stage in timm's notation: kind and number of blocks, kernel, stride, expansion, output channels.
        channel_multiplier, depth_multiplier: Widths and numbers of blocks, stem, head and first and last stage aside.
    """
    batch_norm = partial(nn.BatchNorm2d, **resolve_bn_args(kwargs))
    return build(
        AugmentedEfficientNet, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(flatten_sequential=True),
        block_args=decode_arch_def([[stage] for stage in stages], depth_multiplier, fix_first_last=True),
        round_chs_fn=partial(round_channels, multiplier=channel_multiplier), fix_stem=True,
        norm_layer=norm_layer or batch_norm, act_layer=resolve_act_layer(dict(act_layer=act_layer)), **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7), 'crop_pct': 0.875,
        'interpolation': 'bicubic', 'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'conv_stem', 'classifier': 'classifier', 'license': 'apache-2.0', **kwargs}


def _lite_cfg(paper: str = 'arXiv:1904.09925', **kwargs: Any) -> dict[str, Any]:
    return _cfg(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), paper_ids=(paper, 'arXiv:1905.11946'), **kwargs)


default_cfgs = generate_default_cfgs({
    'aa_efficientnet_lite0.in1k': _lite_cfg(
        label_names=tuple(IMAGENET_LABELS), label_descriptions=IMAGENET_LABELS, **weights_cfg(
            'aa_efficientnet_lite0.in1k', '62247f11369c57950c23627f252bb8baf396797ac3e54503091e41469f78f000')),
    'aa_efficientnet_lite0.tiny_in': _lite_cfg(
        num_classes=200, input_size=(3, 128, 128), pool_size=(4, 4), crop_pct=1.0,
        label_names=tuple(TINY_IMAGENET_LABELS), label_descriptions=TINY_IMAGENET_LABELS, **weights_cfg(
            'aa_efficientnet_lite0.tiny_in', '3bb107eeff0ad0a2af0d5e385039937a7fbfdbcebb1b5a8bd31369fc11a6f0b5')),
    'aa_efficientnet_lite1.untrained': _lite_cfg(input_size=(3, 240, 240), pool_size=(8, 8), crop_pct=0.882),
    'aa_efficientnet_lite2.untrained': _lite_cfg(input_size=(3, 260, 260), pool_size=(9, 9), crop_pct=0.89),
    'laa_efficientnet_lite0.untrained': _lite_cfg('arXiv:1812.01243'),
    'aa_mnasnet_100.untrained': _cfg(paper_ids=('arXiv:1904.09925', 'arXiv:1807.11626')),
})

# Padding and epsilon are TensorFlow's: with them the published weights of the Lites were trained. dk and dv are counts,
# the same in every layer: a share of these widths would not reach the 20 channels of keys that a head has at least.
_LITE: dict[str, Any] = dict(
    stages=('ds_r1_k3_s1_e1_c16', 'ir_r2_k3_s2_e6_c24', 'ir_r2_k5_s2_e6_c40', 'ir_r3_k3_s2_e6_c80',
            'ir_r3_k5_s1_e6_c112', 'ir_r4_k5_s2_e6_c192', 'ir_r1_k3_s1_e6_c320'),
    act_layer='relu6', bn_eps=BN_EPS_TF_DEFAULT, pad_type='same', dk=160, dv=96)
_LINEAR = dict(_LITE, attention='linear', pos_embed='sincos')
# The paper augments from the 28 px map on and pools the first stage that attends. That stage's first block still
# expands the map of 56 px, to so few channels that υ leaves less than one for each head.
_MNASNET: dict[str, Any] = dict(
    stages=('ds_r1_k3_s1_c16_noskip', 'ir_r3_k3_s2_e3_c24', 'ir_r3_k5_s2_e3_c40', 'ir_r3_k5_s2_e6_c80',
            'ir_r2_k3_s1_e6_c96', 'ir_r4_k5_s2_e6_c192', 'ir_r1_k3_s1_e6_c320_noskip'),
    attn_convs=('blocks.2.[!0].conv_pw', *_EXPANSIONS), attn_stages=(True,) * 5, attn_pool=(2, 1, 1, 1, 1),
    dk=0.1, dv=0.05, num_heads=4)


@register_model
def aa_efficientnet_lite0(pretrained: bool = False, **kwargs: Any) -> AugmentedEfficientNet:
    """EfficientNet-Lite0, augmented in the two stages on the 14 and 7 px maps that come last."""
    return _create_aa_efficientnet('aa_efficientnet_lite0', pretrained, **_LITE | kwargs)


@register_model
def aa_efficientnet_lite1(pretrained: bool = False, **kwargs: Any) -> AugmentedEfficientNet:
    """EfficientNet-Lite1, augmented in its last two stages."""
    return _create_aa_efficientnet('aa_efficientnet_lite1', pretrained, **dict(_LITE, depth_multiplier=1.1) | kwargs)


@register_model
def aa_efficientnet_lite2(pretrained: bool = False, **kwargs: Any) -> AugmentedEfficientNet:
    """EfficientNet-Lite2, augmented in its last two stages."""
    scale: dict[str, Any] = dict(channel_multiplier=1.1, depth_multiplier=1.2)
    return _create_aa_efficientnet('aa_efficientnet_lite2', pretrained, **dict(_LITE, **scale) | kwargs)


@register_model
def laa_efficientnet_lite0(pretrained: bool = False, **kwargs: Any) -> AugmentedEfficientNet:
    """EfficientNet-Lite0 augmented with linear attention and sine/cosine positions."""
    return _create_aa_efficientnet('laa_efficientnet_lite0', pretrained, **_LINEAR | kwargs)


@register_model
def aa_mnasnet_100(pretrained: bool = False, **kwargs: Any) -> AugmentedEfficientNet:
    """AA-MnasNet, κ = 2υ = 0.1 with 4 heads, in the stages from the 28 px map on (here without squeeze-excitation)."""
    return _create_aa_efficientnet('aa_mnasnet_100', pretrained, **_MNASNET | kwargs)
