"""Read the attention weights of every attention layer of a network.

The names of layers are those of the `GridAttention` modules, as `model.named_modules()` has them.
"""
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import nn

from aa_models.augmentation.conversion import is_compiled
from aa_models.augmentation.passes import evaluation_mode
from aa_models.augmentation.selection import matching
from aa_models.errors import InputError, InputTypeError
from aa_models.layers import GridAttention

ATTENTION = '.attn'  # what the attention of an augmented convolution is called in it

T = TypeVar('T')
_one_at_a_time = threading.RLock()  # hooks and modes belong to the model, whichever thread set them
Names = str | Sequence[str]  # a pattern of the layers' names, as in a shell, or several


def attention_maps(model: nn.Module, x: torch.Tensor, layers: Names = '*') -> dict[str, torch.Tensor]:
    """The attention weights of every layer for an input, softmax attention or linear.

    The model runs once in eval mode, eagerly and without gradients; its state is restored. Each head and image needs
    (H * W)² weights: on large maps choose `layers`, or give one image (`x[:1]`).

    `timm.utils.AttentionExtract(model, method='hook')(x)` gives the same under the names of the `attn_drop` modules.
    Its method `'fx'` does not find what is inside an augmented convolution.

    Args:
        model: Any network with attention layers of this package.
        x: Input of the model, usually images (B, C, H, W).
        layers: Pattern of the layers' names, as in a shell, or several.

    Returns:
        For the name of each layer chosen, in the order in which they run, its weights (B, num_heads, H * W, H * W):
        rows are queries and sum to 1; positions are in row-major order. `attention_map_sizes` gives the (H, W) of each,
        which may be smaller than the input's.

    Raises:
        InputError: The model has no attention layer, or a pattern matches none.
        InputTypeError: `layers` is no pattern, `model` no network or `x` no tensor.
    """
    return read_attention(model, x, GridAttention.attention_map, layers)


def attention_map_sizes(model: nn.Module, x: torch.Tensor, layers: Names = '*') -> dict[str, tuple[int, int]]:
    """Height and width of the map on which each layer computes attention; arguments and errors as in `attention_maps`.

    With these `maps[name].unflatten(3, size).unflatten(2, size)` is (B, num_heads, H, W, H, W): query's, then key's.
    """
    return read_attention(model, x, GridAttention.map_size, layers)


def read_attention(
        model: nn.Module, x: torch.Tensor, read: Callable[[GridAttention, torch.Tensor], T], layers: Names = '*',
) -> dict[str, T]:
    """Run a model and call `read(layer, input)` for each attention layer after its forward pass.

    Only what `read` returns stays in memory. See `attention_maps` for the other arguments and the errors.

    Returns:
        For the name of each layer what `read` returned, at its last call if the model runs it several times.
    """
    results: dict[str, T] = {}
    chosen = attention_layers(model, layers)
    if not isinstance(x, torch.Tensor):
        raise InputTypeError(f'x must be a tensor, the input of the model, got {type(x).__name__}')
    thread = threading.get_ident()

    def hear(layer: GridAttention, x: torch.Tensor, name: str) -> None:
        if threading.get_ident() == thread:  # another thread may use the model meanwhile
            results[name] = read(layer, x)

    with _one_at_a_time:
        hooks = [layer.register_forward_hook(lambda layer, args, output, name=name: hear(layer, args[0], name))
                 for name, layer in chosen.items()]
        try:
            with torch.no_grad(), evaluation_mode(model), _eagerly(model) as eager:
                eager(x)
        finally:
            for hook in hooks:
                hook.remove()
    return results


@contextlib.contextmanager
def _eagerly(model: nn.Module) -> Iterator[nn.Module]:
    """The model as it was before it was compiled: a program made without hooks would not call them."""
    model = getattr(model, '_orig_mod', model)  # of `torch.compile(model)`
    if is_compiled(model):
        with torch.compiler.set_stance('force_eager'):  # for the whole process: only where parts are compiled
            yield model
    else:
        yield model


def attention_layers(model: nn.Module, layers: Names = '*') -> dict[str, GridAttention]:
    """The attention layers of a model whose names match.

    Args:
        model: Any network.
        layers: Pattern of the names, as in a shell, or several.

    Raises:
        InputError: There is none, or one of the patterns matches none.
        InputTypeError: `layers` is no pattern or `model` no network.
    """
    if not isinstance(model, nn.Module):
        raise InputTypeError(f'model must be a torch.nn.Module, got {model!r}')
    patterns = [layers] if isinstance(layers, str) else layers
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        raise InputTypeError(f'layers must be a pattern of names or several, got {layers!r}')
    found = {name: module for name, module in model.named_modules() if isinstance(module, GridAttention)}
    if not found:
        raise InputError(f'{type(model).__name__} has no attention layer of this package')
    chosen = {pattern: matching(found, pattern) for pattern in patterns}
    missed = [pattern for pattern, names in chosen.items() if not names]
    if missed or not chosen:
        raise InputError(f'layers={(missed or layers)!r} chooses none of: {", ".join(found)}')
    return {name: found[name] for name in found if any(name in names for names in chosen.values())}
