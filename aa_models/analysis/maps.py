"""Read the attention weights of a whole network: what every position of every layer looks at.

The names of layers are those of the `GridAttention` modules, as `model.named_modules()` has them.
"""
import fnmatch
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn

from aa_models.layers import GridAttention

__all__ = ['attention_layers', 'attention_map_sizes', 'attention_maps', 'read_attention']

T = TypeVar('T')


def attention_maps(model: nn.Module, x: torch.Tensor, layers: str | Sequence[str] = '*') -> dict[str, torch.Tensor]:
    """The attention weights of every layer for an input, softmax attention or linear.

    The model runs once in eval mode, eagerly and without gradients, and is left as it was. A map holds (H * W)² weights
    for each head and image: on large maps choose `layers`, or give one image (`x[:1]`).

    `timm.utils.AttentionExtract(model, method='hook')(x)` gives the same under the names of the `attn_drop` modules.
    Its method `'fx'` sees nothing inside an augmented convolution.

    Args:
        model: Any network with attention of this package in it.
        x: What the model takes, for the usual ones images (B, C, H, W).
        layers: Pattern of the layers' names, as in a shell, or several.

    Returns:
        For the name of each layer chosen, in the order they run in, its weights (B, num_heads, H * W, H * W): rows are
        queries and sum to 1; positions are in row-major order. `attention_map_sizes` gives each (H, W), which need not
        be the input's.

    Raises:
        ValueError: The model has no attention, or a pattern chooses none of it.
        TypeError: `layers` is no pattern.
    """
    return read_attention(model, x, GridAttention.attention_map, layers)


def attention_map_sizes(
        model: nn.Module,
        x: torch.Tensor,
        layers: str | Sequence[str] = '*',
) -> dict[str, tuple[int, int]]:
    """Height and width of the map that each layer attends over; arguments and errors as in `attention_maps`.

    With these `maps[name].unflatten(3, size).unflatten(2, size)` is (B, num_heads, H, W, H, W): the query's row and
    column, then the key's.
    """
    return read_attention(model, x, GridAttention.map_size, layers)


def read_attention(
        model: nn.Module,
        x: torch.Tensor,
        read: Callable[[GridAttention, torch.Tensor], T],
        layers: str | Sequence[str] = '*',
) -> dict[str, T]:
    """Run a model and call `read(layer, input)` for each attention layer when it has run.

    What `read` makes of a map is all that stays in memory. See `attention_maps` for the other arguments and the errors.

    Returns:
        For the name of each layer what `read` returned, at its last call if the model runs it several times.
    """
    results: dict[str, T] = {}
    modes = [(module, module.training) for module in model.modules()]
    hooks = [
        layer.register_forward_hook(
            lambda layer, args, output, name=name: results.__setitem__(name, read(layer, args[0])))
        for name, layer in attention_layers(model, layers).items()
    ]
    try:
        model.eval()
        # a compiled program may have been made for a model without hooks, and calls none
        with torch.no_grad(), torch.compiler.set_stance('force_eager'):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:  # each its own: parts of a network may be frozen in eval mode
            module.training = training
    return results


def attention_layers(model: nn.Module, layers: str | Sequence[str] = '*') -> dict[str, GridAttention]:
    """The attention layers of a model whose names match.

    Args:
        model: Any network.
        layers: Pattern of the names, as in a shell, or several.

    Raises:
        ValueError: There is none, or one of the patterns matches none.
        TypeError: `layers` is no pattern.
    """
    patterns = [layers] if isinstance(layers, str) else layers
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f'layers must be a pattern of names or several, got {layers!r}')
    found = {name: module for name, module in model.named_modules() if isinstance(module, GridAttention)}
    if not found:
        raise ValueError(f'{type(model).__name__} has no attention layer of this package')
    chosen = {pattern: [name for name in found if fnmatch.fnmatchcase(name, pattern)] for pattern in patterns}
    missed = [pattern for pattern, names in chosen.items() if not names]
    if missed or not chosen:
        raise ValueError(f'layers={(missed or layers)!r} chooses none of: {", ".join(found)}')
    return {name: found[name] for name in found if any(name in names for names in chosen.values())}
