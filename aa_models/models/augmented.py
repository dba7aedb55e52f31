"""Any convnet that timm can build, augmented: one name, and everything else in its arguments.

`timm.create_model('augmented', base='resnext50_32x4d', where='layer4.*.conv2', dk=0.2, dv=0.25)`. The arguments go into
`config.json`, so such a network is saved and loaded like any other of timm's.
"""
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models import PretrainedCfg, generate_default_cfgs, register_model
from torch import nn

from aa_models.augmentation.conversion import augment
from aa_models.augmentation.description import ARCHITECTURE, ARGUMENTS
from aa_models.augmentation.selection import Where
from aa_models.errors import InputError

from ._augmented import checkpoint_filter_fn
from .create import build_model, cfg_of, check_name
from .memory import check_arguments, check_build
from .pretrained import build

_WEIGHTS = ('url', 'file', 'state_dict', 'hf_hub_id', 'source')  # of a cfg: where the weights are
_ABOUT_THEM = ('hf_hub_filename', 'notes', 'description', 'origin_url')

default_cfgs = generate_default_cfgs({ARCHITECTURE: dict(num_classes=1000, input_size=(3, 224, 224))})


@register_model
def augmented(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Any convnet of timm with attention-augmented convolutions.

    With `pretrained=True` it loads its own weights where a folder, a repository or a file holds them, otherwise the
    base's, as `aa_models.augment` converts them.

    Args:
        base: Name of a model, with or without a tag, `hf-hub:…` or `local-dir:…`.
        where: Which convolutions, as `aa_models.augment` takes it, and always by their names in the classifier, with
            `features_only` too.
        img_size: Size of the input in pixels that the relative tables are made for.
        warm_start: Keep the base's filters but for those that give way to attention.
        base_args: Arguments of the base that have the name of one of these, as those of a base with attention.
        **kwargs: The attention's arguments (`dk`, `dv`, `num_heads`, …), and all others of the base.
    """
    return _create_augmented(pretrained, **kwargs)


def _create_augmented(
        pretrained: bool, *, base: str = 'resnet18', where: Where = '*.*', warm_start: bool = True,
        base_args: dict[str, Any] | None = None,
        pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None, cache_dir: str | Path | None = None, **kwargs: Any,
) -> nn.Module:
    if not isinstance(base, str) or (check_name(base) == ARCHITECTURE and ':' not in base):
        raise InputError(f"base must name a model other than 'augmented', got {base!r}")
    if isinstance(pretrained_cfg, str) and pretrained_cfg:
        raise InputError(f"'augmented' has no tag {pretrained_cfg!r}: name it in base, as in "
                         f"base='{base.partition('.')[0]}.{pretrained_cfg}'")
    named = cast(Any, pretrained_cfg) if isinstance(pretrained_cfg, (dict, PretrainedCfg)) else None
    if named is None:
        others_own = dict.fromkeys((*_WEIGHTS, *_ABOUT_THEM))
        cfg = {**_cfg_of_base(base, cache_dir), **others_own, 'architecture': ARCHITECTURE, 'tag': ''}
    else:
        cfg = named if isinstance(named, dict) else named.to_dict()
    own = pretrained and any({**cfg, **(pretrained_cfg_overlay or {})}.get(key) for key in _WEIGHTS)
    check_arguments({**kwargs, 'base_args': base_args})
    attn_args = {key: kwargs.pop(key) for key in ARGUMENTS if key in kwargs}
    feature_cfg: dict[str, Any] = dict(feature_cls='getter')
    if kwargs.get('features_only') and 'out_indices' not in kwargs:
        base_kwargs = {key: value for key, value in kwargs.items() if key != 'img_size'} | (base_args or {})
        feature_cfg |= _default_levels(base, cache_dir=cache_dir, **base_kwargs)

    def make(img_size: Any, **others: Any) -> nn.Module:
        base_kwargs = others | (base_args or {})
        if cfg.get('fixed_input_size'):  # timm's word for a base that is made for one size itself
            base_kwargs['img_size'] = img_size

        def network(**options: Any) -> nn.Module:
            model = timm.create_model(base, cache_dir=cache_dir, **base_kwargs | options)
            return augment(model, where=where, img_size=img_size, warm_start=warm_start, **attn_args)

        check_build(lambda: network(device='meta'), 'its weights')  # not all bases are built on the meta device
        return network(pretrained=pretrained and not own)

    return build(
        make, ARCHITECTURE, own, pretrained_cfg=cfg, pretrained_cfg_overlay=pretrained_cfg_overlay,
        pretrained_filter_fn=checkpoint_filter_fn, cache_dir=cache_dir,
        feature_cfg=feature_cfg, on_meta=False, **kwargs)


def _default_levels(base: str, **kwargs: Any) -> dict[str, Any]:
    """The feature maps that a base gives where nobody names them, as its own code has it; {} for timm's first five."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device('meta'):
            model = cast(Any, timm.create_model(base, **kwargs))
        return dict(out_indices=tuple(model.feature_info.out_indices))
    except Exception:  # not all networks are built on the meta device, and not all give features by themselves
        return {}


def _cfg_of_base(base: str, cache_dir: str | Path | None) -> dict[str, Any]:
    """The cfg of a base: size, colour statistics and classes of its pictures, names of its first and last layer."""
    if ':' in base:  # timm reads the config of a folder or a repository only on the way to a model
        return cfg_of(build_model(base, cache_dir=cache_dir))
    return cast(PretrainedCfg, timm.get_pretrained_cfg(base)).to_dict()
