"""torch.hub entry points: `torch.hub.load(REPOSITORY, 'aa_resnet18', pretrained=True)`.

Each function makes one model through `timm.create_model` and passes it every further argument: `num_classes`,
`in_chans`, `features_only`, `img_size`, `drop_path_rate`, `dk`, `dv`, `num_heads`, `pos_embed`, `attn_stages`, ….
A tag other than the model's first is named by `pretrained_cfg='<tag>'`.
"""
from typing import Any as _Any

import timm as _timm
from torch import nn as _nn

# Imported here and not in the functions: torch.hub has this folder in the path only during the call.
import aa_models as _aa_models  # noqa: F401, registers the models

dependencies = ['torch', 'timm']


def aa_resnet18(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
    """ResNet-18 with attention-augmented first 3x3 convolutions in stages 2 to 4 (Bello et al., 2019)."""
    return _timm.create_model('aa_resnet18', pretrained=pretrained, **kwargs)


def aa_resnet34(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
    """ResNet-34 with attention-augmented first 3x3 convolutions in stages 2 to 4 (Bello et al., 2019)."""
    return _timm.create_model('aa_resnet34', pretrained=pretrained, **kwargs)


def aa_resnet50(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
    """ResNet-50 with attention-augmented 3x3 convolutions in stages 2 to 4 (Bello et al., 2019)."""
    return _timm.create_model('aa_resnet50', pretrained=pretrained, **kwargs)


def aa_resnet101(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
    """ResNet-101 with attention-augmented 3x3 convolutions in stages 2 to 4 (Bello et al., 2019)."""
    return _timm.create_model('aa_resnet101', pretrained=pretrained, **kwargs)


def aa_resnet152(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
    """ResNet-152 with attention-augmented 3x3 convolutions in stages 2 to 4 (Bello et al., 2019)."""
    return _timm.create_model('aa_resnet152', pretrained=pretrained, **kwargs)


def laa_resnet18(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
    """ResNet-18 augmented with linear attention and sine/cosine positions (Shen et al., 2018)."""
    return _timm.create_model('laa_resnet18', pretrained=pretrained, **kwargs)


def laa_resnet50(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
    """ResNet-50 augmented with linear attention and sine/cosine positions (Shen et al., 2018)."""
    return _timm.create_model('laa_resnet50', pretrained=pretrained, **kwargs)


def wrn28_10(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
    """Plain pre-activation Wide ResNet-28-10 for 32 px pictures, the baseline."""
    return _timm.create_model('wrn28_10', pretrained=pretrained, **kwargs)


def aa_wrn28_10(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
    """Wide ResNet-28-10 with attention-augmented first convolutions in all blocks (Bello et al., 2019)."""
    return _timm.create_model('aa_wrn28_10', pretrained=pretrained, **kwargs)


def laa_wrn28_10(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
    """Wide ResNet-28-10 augmented with linear attention and sine/cosine positions."""
    return _timm.create_model('laa_wrn28_10', pretrained=pretrained, **kwargs)


def wrn16_8(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
    """Plain pre-activation Wide ResNet-16-8 for 32 px pictures, the baseline."""
    return _timm.create_model('wrn16_8', pretrained=pretrained, **kwargs)


def aa_wrn16_8(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
    """Wide ResNet-16-8 with attention-augmented first convolutions in all blocks."""
    return _timm.create_model('aa_wrn16_8', pretrained=pretrained, **kwargs)


def laa_wrn16_8(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
    """Wide ResNet-16-8 augmented with linear attention and sine/cosine positions."""
    return _timm.create_model('laa_wrn16_8', pretrained=pretrained, **kwargs)


def simplecnn(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
    """Five plain 3x3 convolutions, the baseline of the two nets below."""
    return _timm.create_model('simplecnn', pretrained=pretrained, **kwargs)


def aa_simplecnn(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
    """Five 3x3 convolutions, two of them attention-augmented."""
    return _timm.create_model('aa_simplecnn', pretrained=pretrained, **kwargs)


def laa_simplecnn(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
    """Five 3x3 convolutions, two of them augmented with linear attention."""
    return _timm.create_model('laa_simplecnn', pretrained=pretrained, **kwargs)
