"""Build every model of this package, with weights from wherever they are.

`build` hands timm the file that `locate` finds, so that the loading itself (another classifier, other input channels,
`features_only`) stays timm's.
"""
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from timm.models import PretrainedCfg, build_model_with_cfg, resolve_pretrained_cfg
from torch import nn

from aa_models.augmentation.conversion import image_size
from aa_models.augmentation.dataless import memory_at_once
from aa_models.errors import WeightsError
from aa_models.zoo import HUB_ORGANISATION, WEIGHTS_FILE, own_models

from ._augmented import NeedsMemoryError
from .fit import FilterFn, checked_filter
from .memory import bounded_build, check_arguments
from .weight_files import format_fault, is_lfs_pointer, locate

ModelT = TypeVar('ModelT', bound=nn.Module)


def build(
        model_cls: Callable[..., ModelT], variant: str, pretrained: bool = False, *,
        pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        pretrained_filter_fn: FilterFn | None = None,
        cache_dir: str | Path | None = None, on_meta: bool = True, **kwargs: Any,
) -> ModelT:
    """Build a model as timm's `build_model_with_cfg` does, with weights from wherever this package keeps them.

    Three things are added. For a tag of this package `pretrained=True` searches wherever its weights may be (`locate`);
    files, state dicts, folders and repositories that the user names are loaded by timm. And `img_size` is by default
    the input size of the cfg in force, whether weights are wanted or not. What no machine can hold is refused before
    any memory is taken.

    Args:
        model_cls: Makes the model; takes `img_size`.
        variant: Model name without a tag.
        pretrained: Load weights.
        pretrained_cfg: Tag, or a cfg in place of the registered one.
        pretrained_cfg_overlay: Entries that override those of the cfg.
        pretrained_filter_fn: Brings a checkpoint into the shape of the model at hand.
        cache_dir: The Hub client's cache.
        on_meta: The model is built on the meta device before it gets memory; one that is not bounds that itself.
        **kwargs: For `build_model_with_cfg` and the model.

    Raises:
        TooLargeError: There is no memory for the weights that the arguments ask for; none was taken.
        WeightsError: The model has no weights, they are nowhere to be found, or they do not fit.
    """
    # timm takes a tag and a `PretrainedCfg` in both places, whatever it says
    named = cast(Any, pretrained_cfg)
    cfg = resolve_pretrained_cfg(variant, named, pretrained_cfg_overlay)
    kwargs['img_size'] = image_size(kwargs.get('img_size', cfg.input_size[1:]))
    check_arguments(kwargs)
    if pretrained:
        if _has_own_weights(cfg):
            pretrained_cfg_overlay = dict(pretrained_cfg_overlay or {}, file=str(locate(cfg, cache_dir)))
        else:
            _check_source(variant, cfg)
        if kwargs.get('pretrained_strict', True):
            new_head = kwargs.get('num_classes', cfg.num_classes) != cfg.num_classes
            new_stem = kwargs.get('in_chans', cfg.input_size[0]) != cfg.input_size[0]
            pretrained_filter_fn = checked_filter(pretrained_filter_fn, cfg, new_head, new_stem)
    make = partial(
        build_model_with_cfg, model_cls, variant, pretrained, pretrained_cfg=named,
        pretrained_cfg_overlay=pretrained_cfg_overlay, pretrained_filter_fn=pretrained_filter_fn, cache_dir=cache_dir,
        **kwargs)
    if not on_meta:
        return make()
    try:
        with bounded_build(f'the weights of {variant}'):
            return make()
    except NeedsMemoryError:  # all of it was built, and found to be small enough
        with memory_at_once():
            return make()


def _has_own_weights(cfg: PretrainedCfg) -> bool:
    """Tell whether the cfg still points at this package's repository: then nobody has named another source in it."""
    named = cfg.source or cfg.file or cfg.state_dict or cfg.url
    return not named and cfg.hf_hub_id == f'{HUB_ORGANISATION}/{cfg.architecture}.{cfg.tag}'


def _check_source(variant: str, cfg: PretrainedCfg) -> None:
    """Refuse what timm has no clear error for: nothing to load, no such file, a file that is no weights."""
    if cfg.source == 'hf-hub' or cfg.state_dict:
        return
    if not cfg.has_weights:
        raise WeightsError(
            f'{variant} has no pretrained weights, use pretrained=False; there are weights for: '
            f'{", ".join(own_models(pretrained=True)) or "no model yet"}')
    if not cfg.file:
        return
    file = Path(cfg.file)
    if cfg.source == 'local-dir':
        file /= WEIGHTS_FILE  # timm's first choice in a folder; it looks for other files by itself
    elif not file.is_file():
        raise WeightsError(f'the weights of {variant} were to come from file={str(file)!r}, which does not exist')
    # a pickle that the user names is left to timm, which unpickles nothing but tensors
    if not file.is_file() or not (file.suffix == '.safetensors' or is_lfs_pointer(file)):
        return
    if fault := format_fault(file):
        raise WeightsError(f'the weights of {variant} cannot be read: {file} is {fault}')
