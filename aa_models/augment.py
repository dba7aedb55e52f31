"""Make chosen convolutions of a convnet attention-augmented.

The one piece of code that turns a plain network into an augmented one; every augmented model of the package is made by
it (Attention Augmented Convolutional Networks, arXiv 1904.09925, section 3.2).
"""
import fnmatch
import logging
from typing import Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import nn
from torch.func import functional_call

from .layers import AugmentedConv2d

_logger = logging.getLogger(__name__)

Where = Union[str, Sequence[str], Callable[[str, nn.Conv2d], bool]]


def _select(model: nn.Module, where: Where) -> List[str]:
    """Names of the convolutions that `where` chooses, in the order of the model's modules."""
    convs = {name: m for name, m in model.named_modules() if type(m) is nn.Conv2d and max(m.kernel_size) > 1}
    if callable(where):
        names = [name for name, conv in convs.items() if where(name, conv)]
    else:
        patterns = [where] if isinstance(where, str) else list(where)
        names = [name for name in convs if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    if not names:
        raise ValueError(
            f'where={where!r} chooses none of the {len(convs)} convolutions of {type(model).__name__} '
            f'that are larger than 1×1: {", ".join(convs) or "it has none"}')
    return names


def trace_map_sizes(
        model: nn.Module,
        names: Sequence[str],
        in_chans: int,
        img_size: Tuple[int, int],
) -> Dict[str, Tuple[int, int]]:
    """Find the output size (H, W) of submodules by one forward pass on the meta device, which computes nothing.

    Args:
        model: Any model of images; it is left as it is.
        names: Submodules to watch.
        in_chans: Channels of the model's input.
        img_size: Height and width of the model's input, pixels.
    """
    sizes: Dict[str, Tuple[int, int]] = {}
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
        dk: Union[int, float] = 0.2,
        dv: Union[int, float] = 0.1,
        num_heads: int = 8,
        where: Where = '*.*',
        attention: str = 'softmax',
        pos_embed: Optional[str] = 'rel',
        attn_pool: int = 1,
        attn_drop: float = 0.,
        img_size: Union[int, Tuple[int, int], None] = None,
) -> nn.Module:
    """Replace chosen convolutions of a convnet by attention-augmented ones of the same shape, in place.

    The new layers have fresh weights; they keep the device, dtype and mode of those they replace. What was replaced
    is logged (INFO) and can be read off the model: its `AugmentedConv2d` modules.

    Args:
        model: A convnet, from timm or elsewhere.
        dk: Depth of the keys, see `AugmentedConv2d`.
        dv: Depth of the values, see `AugmentedConv2d`.
        num_heads: Number of heads.
        where: Which of the convolutions larger than 1×1: a pattern of their module names (as in a shell), several of
            them, or a function of name and module that returns a bool. By default all but those at the top level,
            where networks keep their stem.
        attention: `'softmax'` or `'linear'`.
        pos_embed: `'rel'`, `'sincos'`, `'coord'` or None.
        attn_pool: Pooling of the attention branch.
        attn_drop: Dropout probability of the attention weights.
        img_size: Size of the input in pixels that the relative tables are made for; by default the model's
            `pretrained_cfg['input_size']`, else 224.

    Returns:
        The same model.

    Raises:
        ValueError: `where` chooses nothing, or a layer cannot be augmented so; the model is unchanged then.
    """
    names = _select(model, where)
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    height, width = (img_size, img_size) if isinstance(img_size, int) else (img_size or cfg.get('input_size', (224, 224))[-2:])
    in_chans = getattr(model, 'in_chans', None) or next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    sizes = trace_map_sizes(model, names, in_chans, (height, width))

    layers: Dict[str, AugmentedConv2d] = {}
    for name in names:
        conv = model.get_submodule(name)
        try:
            layers[name] = AugmentedConv2d(
                conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
                conv.groups, conv.bias is not None, dk=dk, dv=dv, num_heads=num_heads, attention=attention,
                pos_embed=pos_embed, feat_size=tuple(-(-n // attn_pool) for n in sizes[name]), attn_pool=attn_pool,
                attn_drop=attn_drop, device=conv.weight.device, dtype=conv.weight.dtype).train(conv.training)
        except ValueError as e:
            raise ValueError(f'{name} cannot be augmented: {e}') from e
    for name, layer in layers.items():
        model.set_submodule(name, layer)
        _logger.info('augmented %s: %d of %d channels, map %s', name, layer.dv, layer.out_channels, sizes[name])
    return model
