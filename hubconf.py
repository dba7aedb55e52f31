"""torch.hub entry points: `torch.hub.load(REPOSITORY, 'aa_resnet18', pretrained=True)`.

There is one for each model of this package. It makes the model through `timm.create_model` and passes on all other
arguments: `num_classes`, `in_chans`, `features_only`, `img_size`, `drop_path_rate`, `dk`, `dv`, `num_heads`,
`pos_embed`, `attn_stages`, …. A tag other than the model's first is named by `pretrained_cfg='<tag>'`.
"""
from collections.abc import Callable as _Callable
from typing import Any as _Any

import timm as _timm
from torch import nn as _nn

# Imported here and not in the functions: torch.hub has this folder in the path only during the call.
import aa_models as _aa_models  # noqa: F401, registers the models
from aa_models.zoo import own_models as _own_models

dependencies = ['torch', 'timm', 'pydantic']


def _entry_point(name: str) -> _Callable[..., _nn.Module]:
    def entry_point(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
        return _timm.create_model(name, pretrained=pretrained, **kwargs)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = _timm.model_entrypoint(name).__doc__  # what torch.hub.help shows
    return entry_point


globals().update({name: _entry_point(name) for name in _own_models()})  # torch.hub lists the public callables
