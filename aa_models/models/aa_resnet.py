"""Attention-augmented ResNets: timm's ResNet with augmented 3×3 convolutions in its last three stages.

Papers: `Attention Augmented Convolutional Networks` - https://arxiv.org/abs/1904.09925 (AA-ResNet),
`Efficient Attention: Attention with Linear Complexities` - https://arxiv.org/abs/1812.01243 (LAA-ResNet)
"""
from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from aa_models.augmentation.dataless import building_device
from aa_models.data.cifar10 import CIFAR10_LABELS, CIFAR10_MEAN, CIFAR10_STD
from aa_models.data.cifar100 import CIFAR100_LABELS, CIFAR100_MEAN, CIFAR100_STD
from aa_models.data.tiny_imagenet import TINY_IMAGENET_LABELS
from aa_models.errors import InputError
from aa_models.layers import AttentionArgs, GridAttention
from aa_models.zoo import weights_cfg

from ._augmented import augment_stages, checkpoint_filter_fn, materialize, rel_table_names, reset_parameters
from .pretrained import build

__all__ = ['AugmentedResNet']


class AugmentedResNet(ResNet):
    """timm's ResNet (7×7 stem, v1.5) whose blocks have attention-augmented 3×3 convolutions.

    Augmented is the first 3×3 of a basic block and the only one of a bottleneck, as in section 4 of the paper.

    Args:
        block: timm's `BasicBlock` or `Bottleneck`.
        layers: Number of blocks of each stage.
        attn_stages: For each of the four stages, whether it is augmented.
        attn_pool: For each of the four stages, the pooling of its attention branch.
        img_size: Height and width of the input that the relative tables are made for, pixels; any size can be fed.
        small_images: Begin with a 3×3 convolution of stride 1 and no max-pool, for pictures of 32 px or so.
        zero_init_last: Start every block as the identity, as timm's `ResNet` does.
        **kwargs: The attention's other arguments (`dk`, `dv`, …), see `AugmentedConv2d`, and those of
            `timm.models.resnet.ResNet`.
    """

    def __init__(
            self, block: type[nn.Module], layers: tuple[int, ...], *,
            attn_stages: Sequence[bool] = (False, True, True, True), attn_pool: Sequence[int] = (1, 2, 1, 1),
            img_size: int | tuple[int, int] = 224, small_images: bool = False, zero_init_last: bool = True,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None, **kwargs: Any,
    ) -> None:
        args = AttentionArgs.take(kwargs)
        if small_images and kwargs.get('output_stride', 32) != 32:
            raise InputError(f"output_stride = {kwargs['output_stride']} counts the two strides of the stem, which "
                             'small_images takes out: the maps have a stride of 8 at most, possible is 32')
        super().__init__(
            block,  # type: ignore[arg-type]  # timm means the classes, not blocks that are made
            layers, zero_init_last=zero_init_last, device=building_device(device), dtype=dtype, **kwargs)
        if small_images:
            self._begin_at_full_size()
        conv = 'conv1' if block is BasicBlock else 'conv2'
        augment_stages(
            self, [f'layer{stage}.*.{conv}' for stage in range(1, 5)], args, attn_stages=attn_stages,
            attn_pool=attn_pool, img_size=img_size)
        materialize(self, device, zero_init_last=zero_init_last)

    def _begin_at_full_size(self) -> None:
        """Take the two strides out of the stem."""
        stem = self.conv1
        if not isinstance(stem, nn.Conv2d):
            raise InputError('small_images replaces the 7×7 stem, it cannot be combined with a deep one')
        self.add_module('conv1', nn.Conv2d(
            stem.in_channels, stem.out_channels, 3, padding=1, bias=False, device=stem.weight.device,
            dtype=stem.weight.dtype))
        self.add_module('maxpool', nn.Identity())
        for stage in cast(list[dict[str, Any]], self.feature_info):
            stage['reduction'] = max(1, stage['reduction'] // 4)

    @torch.jit.ignore
    def init_weights(self, zero_init_last: bool = True) -> None:
        """Draw all weights anew, convolutions as timm's ResNet does; fills a model after `to_empty` too."""
        reset_parameters(self)
        super().init_weights(zero_init_last)
        reset_parameters(self, GridAttention)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that take no weight decay."""
        return rel_table_names(self)


def _create_aa_resnet(variant: str, pretrained: bool = False, **kwargs: Any) -> AugmentedResNet:
    return build(AugmentedResNet, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7), 'crop_pct': 0.875,
        'interpolation': 'bicubic', 'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'conv1', 'classifier': 'fc', 'license': 'apache-2.0', 'paper_ids': 'arXiv:1904.09925', **kwargs}


def _enlarged(name_tag: str, sha256: str, **kwargs: Any) -> dict[str, Any]:
    """Trained here on small pictures, enlarged."""
    return _cfg(
        input_size=(3, 128, 128), pool_size=(4, 4), crop_pct=1.0, **weights_cfg(name_tag, sha256), **kwargs)


def _tiny_in(name_tag: str, sha256: str, **kwargs: Any) -> dict[str, Any]:
    return _enlarged(
        name_tag, sha256, num_classes=200, label_names=tuple(TINY_IMAGENET_LABELS),
        label_descriptions=TINY_IMAGENET_LABELS, **kwargs)


def _cifar100(name_tag: str, sha256: str) -> dict[str, Any]:
    return _enlarged(
        name_tag, sha256, num_classes=100, mean=CIFAR100_MEAN, std=CIFAR100_STD, label_names=CIFAR100_LABELS)


def _from_a1_in1k(depth: int) -> dict[str, Any]:
    """timm's plain ResNet, trained on ImageNet (ResNet strikes back, A1); `checkpoint_filter_fn` converts it."""
    return _cfg(
        hf_hub_id=f'timm/resnet{depth}.a1_in1k', hf_hub_filename='model.safetensors', crop_pct=0.95,
        test_input_size=(3, 288, 288), test_crop_pct=1.0, paper_ids=('arXiv:1904.09925', 'arXiv:2110.00476'),
        origin_url='https://github.com/huggingface/pytorch-image-models')


def _cifar10(**kwargs: Any) -> dict[str, Any]:
    return _cfg(
        num_classes=10, input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0, mean=CIFAR10_MEAN, std=CIFAR10_STD,
        label_names=CIFAR10_LABELS, **kwargs)


default_cfgs = generate_default_cfgs({
    'aa_resnet18.muon_tiny_in': _tiny_in(
        'aa_resnet18.muon_tiny_in', 'e462b126dea88ec7773036fa1c16c64d20cea52869ad25b46cbb86c2f5c12b24'),
    'aa_resnet18.tiny_in': _tiny_in(
        'aa_resnet18.tiny_in', '64fd2ea29248cd1686e64d64ae923ca36ac65eefde0210e56bdb71c7092cda47'),
    'aa_resnet18.muon_cifar100': _cifar100(
        'aa_resnet18.muon_cifar100', '90a5e8838a120e43024f98066faff0961a23dbfa0ccd92f15f69fbc11b7afa78'),
    'aa_resnet18.cifar100': _cifar100(
        'aa_resnet18.cifar100', '733b5b97a8b25c0b88ff2aa52bdf48728408f76241218978f8065fdd57562f9d'),
    'aa_resnet18.from_a1_in1k': _from_a1_in1k(18),
    # Converted weights were never trained as a whole, so `pretrained=True` alone must not mean them: `*` makes the tag
    # without weights the default. timm wants such a tag last.
    **{f'aa_resnet{depth}.{tag}': cfg for depth in (34, 50, 101, 152)
       for tag, cfg in (('from_a1_in1k', _from_a1_in1k(depth)), ('untrained*', _cfg()))},
    'laa_resnet18.tiny_in': _tiny_in(
        'laa_resnet18.tiny_in', '1c94abd1d32e28d134d45483ba968a529d6172af7528825e2526385d04996a72',
        paper_ids='arXiv:1812.01243'),
    'laa_resnet50.untrained': _cfg(paper_ids='arXiv:1812.01243'),
    'resnet18_cifar.untrained': _cifar10(),
    'aa_resnet18_cifar.untrained': _cifar10(),
})


# the paper's shares: dk and dv of the output channels, by the kind of block
_BASIC = dict(block=BasicBlock, dk=0.25, dv=0.25)
_BOTTLENECK = dict(block=Bottleneck, dk=0.2, dv=0.1)
_LINEAR = dict(attention='linear', pos_embed='sincos')
# maps of 16, 8 and 4 px are small enough to attend on whole
_CIFAR = dict(_BASIC, layers=(2, 2, 2, 2), small_images=True, attn_pool=(1, 1, 1, 1))
_LINEAR_BASIC, _LINEAR_BOTTLENECK = dict(_BASIC, **_LINEAR), dict(_BOTTLENECK, **_LINEAR)


@register_model
def aa_resnet18(pretrained: bool = False, **kwargs: Any) -> AugmentedResNet:
    """AA-ResNet-18 (the paper's rule for ResNet-34 at 18 layers)."""
    return _create_aa_resnet('aa_resnet18', pretrained, **dict(_BASIC, layers=(2, 2, 2, 2)) | kwargs)


@register_model
def aa_resnet34(pretrained: bool = False, **kwargs: Any) -> AugmentedResNet:
    """AA-ResNet-34, κ = υ = 0.25."""
    return _create_aa_resnet('aa_resnet34', pretrained, **dict(_BASIC, layers=(3, 4, 6, 3)) | kwargs)


@register_model
def aa_resnet50(pretrained: bool = False, **kwargs: Any) -> AugmentedResNet:
    """AA-ResNet-50, κ = 2υ = 0.2."""
    return _create_aa_resnet('aa_resnet50', pretrained, **dict(_BOTTLENECK, layers=(3, 4, 6, 3)) | kwargs)


@register_model
def aa_resnet101(pretrained: bool = False, **kwargs: Any) -> AugmentedResNet:
    """AA-ResNet-101, κ = 2υ = 0.2."""
    return _create_aa_resnet('aa_resnet101', pretrained, **dict(_BOTTLENECK, layers=(3, 4, 23, 3)) | kwargs)


@register_model
def aa_resnet152(pretrained: bool = False, **kwargs: Any) -> AugmentedResNet:
    """AA-ResNet-152, κ = 2υ = 0.2."""
    return _create_aa_resnet('aa_resnet152', pretrained, **dict(_BOTTLENECK, layers=(3, 8, 36, 3)) | kwargs)


@register_model
def laa_resnet18(pretrained: bool = False, **kwargs: Any) -> AugmentedResNet:
    """ResNet-18 augmented with linear attention and sine/cosine positions."""
    return _create_aa_resnet('laa_resnet18', pretrained, **dict(_LINEAR_BASIC, layers=(2, 2, 2, 2)) | kwargs)


@register_model
def laa_resnet50(pretrained: bool = False, **kwargs: Any) -> AugmentedResNet:
    """ResNet-50 augmented with linear attention and sine/cosine positions."""
    return _create_aa_resnet('laa_resnet50', pretrained, **dict(_LINEAR_BOTTLENECK, layers=(3, 4, 6, 3)) | kwargs)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> AugmentedResNet:
    """ResNet-18 for pictures of 32 px (3×3 stem, no max-pool), the plain baseline."""
    return _create_aa_resnet('resnet18_cifar', pretrained, **dict(_CIFAR, attn_stages=(False,) * 4) | kwargs)


@register_model
def aa_resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> AugmentedResNet:
    """AA-ResNet-18 for pictures of 32 px (3×3 stem, no max-pool)."""
    return _create_aa_resnet('aa_resnet18_cifar', pretrained, **_CIFAR | kwargs)
