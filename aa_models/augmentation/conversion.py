"""Make chosen convolutions of a convnet attention-augmented.

The one piece of code that turns a plain network into an augmented one; every augmented model of the package is made by
it (Attention Augmented Convolutional Networks, arXiv 1904.09925, section 3.2).
"""
import fnmatch
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from timm.layers import to_2tuple
from torch import nn
from torch.func import functional_call

from aa_models.layers import AugmentedConv2d
from aa_models.layers.head_dims import is_int

from .warm_start import plain_to_augmented

_logger = logging.getLogger(__name__)

Where = str | Sequence[str] | Mapping[str, Mapping[str, Any]] | Callable[[str, nn.Conv2d], bool]


def _select(model: nn.Module, where: Where) -> dict[str, Mapping[str, Any]]:
    """The names of the convolutions that `where` chooses, each with the settings that `where` has for it."""
    if not (callable(where) or isinstance(where, (str, Mapping, Sequence))):
        raise TypeError(f'where must be a pattern, several, a mapping from patterns or a function, got {where!r}')
    convs = {name: m for name, m in model.named_modules() if type(m) is nn.Conv2d}
    larger = {name: m for name, m in convs.items() if max(m.kernel_size) > 1}
    chosen: dict[str, Mapping[str, Any]]
    missed: list[str] = []
    if callable(where):
        choices = ([name for name, m in some.items() if where(name, m)] for some in (larger, convs))
        chosen = {name: {} for name in next(filter(None, choices), [])}
    else:
        patterns = [where] if isinstance(where, str) else where
        settings: Mapping[str, Mapping[str, Any]] = (
            patterns if isinstance(patterns, Mapping) else {pattern: {} for pattern in patterns})
        found = {pattern: fnmatch.filter(larger, pattern) or fnmatch.filter(convs, pattern) for pattern in settings}
        # the first pattern has the last word
        chosen = {name: settings[pattern] for pattern in reversed(list(settings)) for name in found[pattern]}
        chosen = {name: chosen[name] for name in convs if name in chosen}
        missed = [pattern for pattern in settings if not found[pattern]]
    if missed or not chosen:
        raise ValueError(
            f'where={(missed or where)!r} chooses none of the {len(convs)} convolutions of {type(model).__name__}: '
            f'{", ".join(convs) or "it has none"}')
    return chosen


def trace_map_sizes(
        model: nn.Module,
        names: Iterable[str],
        in_chans: int,
        img_size: tuple[int, int],
) -> dict[str, tuple[int, int]]:
    """Find the output size (H, W) of submodules by one forward pass on the meta device, which computes nothing.

    Args:
        model: Any model of images; it is left as it is.
        names: Submodules to watch.
        in_chans: Channels of the model's input.
        img_size: Height and width of the model's input, pixels.
    """
    sizes: dict[str, tuple[int, int]] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: sizes.__setitem__(name, tuple(output.shape[-2:])))
        for name in names
    ]
    meta = {n: t.to('meta') for n, t in [*model.named_parameters(), *model.named_buffers()]}
    dtype = next((t.dtype for t in meta.values() if t.is_floating_point()), torch.get_default_dtype())
    # two images, because batch norm refuses to train on a single value
    image = torch.empty((2, in_chans, *img_size), device='meta', dtype=dtype)
    try:
        functional_call(model, meta, (image,))
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


def augment(
        model: nn.Module,
        *,
        dk: int | float = 0.2,
        dv: int | float = 0.1,
        num_heads: int = 8,
        where: Where = '*.*',
        attention: str = 'softmax',
        pos_embed: str | None = 'rel',
        attn_pool: int = 1,
        attn_drop: float = 0.,
        img_size: int | tuple[int, int] | None = None,
        warm_start: bool = True,
) -> nn.Module:
    """Replace chosen convolutions of a convnet by attention-augmented ones of the same shape, in place.

    The new layers keep the device, dtype and mode of those they replace and, by default, their filters but for those
    that give way to attention (`warm_start` says which). What was replaced is logged (INFO) and can be read off the
    model: its `AugmentedConv2d` modules.

    Args:
        model: A convnet, from timm or elsewhere.
        dk: Depth of the keys, see `AugmentedConv2d`.
        dv: Depth of the values, see `AugmentedConv2d`.
        num_heads: Number of heads.
        where: Which convolutions: a pattern of their module names (as in a shell), several of them, or a function of
            name and module that returns a bool. A mapping from patterns to arguments of this function
            (`{'layer2.*.conv1': dict(attn_pool=2)}`) gives them for those layers; the first pattern counts. A pattern
            or function chooses among the convolutions larger than 1×1 and, if it fits none of them, among the others.
            By default all but those at the top level, where networks keep their stem.
        attention: `'softmax'` or `'linear'`.
        pos_embed: `'rel'`, `'sincos'`, `'coord'` or None.
        attn_pool: Pooling of the attention branch.
        attn_drop: Dropout probability of the attention weights.
        img_size: Size of the input in pixels that the relative tables are made for; by default the model's
            `pretrained_cfg['input_size']`, else 224.
        warm_start: Keep what the model has learned: all filters but those whose loss is felt least, and their
            batch-norm statistics (`aa_models.augmentation.warm_start` has the rule). False draws the layers anew, to
            train from scratch.

    Returns:
        The same model.

    Raises:
        ValueError: `where` (or one of its patterns) chooses nothing, or a layer cannot be augmented so; the model is
            unchanged then.
    """
    chosen = _select(model, where)
    if img_size is None:
        img_size = (getattr(model, 'pretrained_cfg', None) or {}).get('input_size', (224, 224))[-2:]
    size = to_2tuple(img_size)
    if len(size) != 2 or not all(is_int(n) and n > 0 for n in size):
        raise ValueError(f'img_size must be an int or a pair of them, pixels, got {img_size!r}')
    in_chans = next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    sizes = trace_map_sizes(model, chosen, in_chans, size)

    common = dict(
        dk=dk, dv=dv, num_heads=num_heads, attention=attention, pos_embed=pos_embed, attn_pool=attn_pool,
        attn_drop=attn_drop)
    layers = {name: _augmented(name, cast(nn.Conv2d, model.get_submodule(name)), sizes[name], {**common, **own})
              for name, own in chosen.items()}
    learned = warm_start and not any(tensor.is_meta for tensor in model.state_dict().values())
    weights = plain_to_augmented(model.state_dict(), model, layers) if learned else None
    for name, layer in layers.items():
        model.set_submodule(name, layer)
        _logger.info('augmented %s: %d of %d channels, map %s', name, layer.dv, layer.out_channels, sizes[name])
    if weights is not None:
        model.load_state_dict(weights)
    return model


def _augmented(name: str, conv: nn.Conv2d, size: tuple[int, int], settings: dict[str, Any]) -> AugmentedConv2d:
    """The augmented layer in place of `conv`, whose output has that size."""
    if conv.padding_mode != 'zeros':
        raise ValueError(f'{name} cannot be augmented: its padding_mode is {conv.padding_mode!r}, possible is zeros')
    pool = settings['attn_pool']
    feat_size = tuple(-(-n // pool) for n in size) if is_int(pool) and pool > 0 else size
    try:
        return AugmentedConv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
            conv.groups, conv.bias is not None, feat_size=feat_size, device=conv.weight.device, dtype=conv.weight.dtype,
            **settings).train(conv.training)
    except (ValueError, TypeError) as e:
        raise type(e)(f'{name} cannot be augmented: {e}') from e
