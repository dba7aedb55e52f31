"""What rebuilds an augmented network: the arguments that `timm.create_model('augmented', …)` takes.

timm writes the arguments of a model's constructor into `config.json` and hands them back on loading. A network that
was augmented in place is described likewise, as this package's model `augmented`.
"""
import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import timm
from timm.models import get_model_traits
from torch import nn

from aa_models.layers import AttentionArgs, AugmentedConv2d

ARCHITECTURE = 'augmented'
ARGUMENTS = tuple(field.name for field in dataclasses.fields(AttentionArgs))
OF_AUGMENTED = (*ARGUMENTS, 'where', 'img_size', 'warm_start')


def layer_args(args: AttentionArgs, feat_size: tuple[int, ...]) -> dict[str, Any]:
    """What `where` has to hold for a layer, in values that JSON knows."""
    return {**dataclasses.asdict(args), 'pos_embed': args.pos_embed or 'none', 'feat_size': list(feat_size)}


def describe(model: nn.Module, layers: Mapping[str, dict[str, Any]]) -> None:
    """Have `timm.models.save_for_hf` describe a model by its base and by what was augmented in it, earlier ones too.

    A model that timm did not make is left alone, and so are networks of features: their layers have other names.

    Args:
        model: The network, augmented.
        layers: For each layer augmented just now its `layer_args`.
    """
    net = cast(Any, model)
    args = dict(getattr(model, '_model_args', {}))  # where timm keeps what it writes into the config
    if not getattr(model, 'pretrained_cfg', None) or args.get('features_only'):
        return
    net.augmented_layers = {**getattr(model, 'augmented_layers', {}), **layers}
    if net.pretrained_cfg['architecture'] != ARCHITECTURE:
        cfg = net.pretrained_cfg
        args['base'] = _name(cfg['architecture'], cfg.get('tag'))
        own = {key: value for key, value in args.items() if key in OF_AUGMENTED}
        if _has_own_attention(model, layers) and (size := get_model_traits(model).get('img_size')):
            own.setdefault('img_size', size)  # of its tables, which may come from a cfg that is not the registered one
        if own:
            args['base_args'] = own
        net.pretrained_cfg = net.default_cfg = {**cfg, 'architecture': ARCHITECTURE, 'tag': ''}
    # what all layers have in common stands once
    first, *others = net.augmented_layers.values()
    common = {key: first[key] for key in ARGUMENTS if all(other[key] == first[key] for other in others)}
    if not {'attention', 'pos_embed'} <= common.keys():  # one of them need not fit the other's default
        common = {key: value for key, value in common.items() if key not in ('attention', 'pos_embed')}
    where = {
        name: {key: value for key, value in own.items() if key not in common}
        for name, own in net.augmented_layers.items()}
    kept = {key: value for key, value in args.items() if key not in OF_AUGMENTED}
    net._model_args = {**kept, **common, 'where': where}


def _has_own_attention(model: nn.Module, layers: Mapping[str, Any]) -> bool:
    """Whether a network had attention before it was augmented."""
    return any(isinstance(m, AugmentedConv2d) and name not in layers for name, m in model.named_modules())


def _name(architecture: str, tag: str | None) -> str:
    """The name of a network with its tag, where timm knows that: a folder may have a tag of its own."""
    name = f'{architecture}.{tag}' if tag else architecture
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:  # so timm says that there is no such tag
        return architecture
    return name
