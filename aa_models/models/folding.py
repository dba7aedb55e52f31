"""Batch norms folded into the convolutions before them: fewer passes over memory, for inference.

torch folds one convolution and one norm, if told which (`torch.nn.utils.fusion`); timm folds those of a few networks of
its own. Here a pass of the network tells which norm reads which convolution, and augmented convolutions take part:
their channels are those of a convolution and those of the attention's output projection.
"""
import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from aa_models.augmentation.conversion import input_channels
from aa_models.errors import InputError
from aa_models.layers import AugmentedConv1d, AugmentedConv2d

from .aa_efficientnet import TraceableConv2dSame
from .create import cfg_of

# Of these very classes: a subclass may change its weights, or its output, on the way
_CONVS = (nn.Conv1d, nn.Conv2d, Conv2dSame, TraceableConv2dSame, AugmentedConv1d, AugmentedConv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d)


def fold_batch_norms(model: nn.Module, example: torch.Tensor | None = None) -> nn.Module:
    """Copy a network for inference, with batch norms folded into the convolutions that they normalise.

    A norm is folded where it alone reads the output of a convolution, plain or augmented; all others stay, such as the
    first ones of pre-activation blocks. Outputs are equal but for rounding. The copy has other parameters, so it cannot
    take the place of the network in training or in a checkpoint.

    Args:
        model: Any network; it stays as it is.
        example: An input that it takes, by default one picture of the size that a network of timm names.

    Returns:
        The copy, in evaluation mode.

    Raises:
        InputError: There is no example, and the network does not say what it takes.
    """
    folded = copy.deepcopy(model).eval()
    for conv, norm in _pairs(folded, _example_for(model) if example is None else example):
        _fold(conv, norm)
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        _replace(folded, norm, rest)
    return folded


def _example_for(model: nn.Module) -> torch.Tensor:
    if not hasattr(model, 'pretrained_cfg'):
        raise InputError(f'example: {type(model).__name__} does not say what it takes, give an input')
    weight = next(model.parameters())
    size = input_channels(model), *cfg_of(model)['input_size'][1:]
    return torch.zeros(1, *size, device=weight.device, dtype=weight.dtype)


class _Readers(TorchFunctionMode):
    """Counts the functions of torch that read the outputs of certain modules and put them into tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[nn.Module, torch.Tensor]] = {}  # with the tensor, whose id is unique so
        self.count: Counter[int] = Counter()

    def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # `x.shape` makes no tensor, `y[0] = x` writes into one
        if func is torch.Tensor.__setitem__ or any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(result)):
            self.see((args, kwargs))
        return result

    def see(self, args: Any) -> None:
        """Count a reader with these arguments."""
        self.count.update({id(leaf) for leaf in tree_leaves(args)} & self.outputs.keys())


def _pairs(model: nn.Module, example: torch.Tensor) -> list[tuple[nn.Module, nn.Module]]:
    """Convolutions with the norms that are their only readers, each called once."""
    readers, calls = _Readers(), Counter[nn.Module]()
    read: list[tuple[nn.Module, int]] = []

    def after_conv(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        calls[module] += 1
        readers.outputs[id(output)] = module, output

    def before_norm(module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        calls[module] += 1
        at = id([*args, *kwargs.values()][0])  # norms have one argument
        if at in readers.outputs:
            read.append((module, at))

    def before_any(module: nn.Module, args: Any) -> None:
        if isinstance(module, torch.jit.ScriptModule):  # it runs in C++, of which the mode hears nothing
            readers.see(args)

    free = [module for module in model.modules() if not _is_watched(module)]
    hooks = [module.register_forward_hook(after_conv) for module in free if _is_plain_conv(module)]
    hooks += [
        module.register_forward_pre_hook(before_norm, with_kwargs=True) for module in free if _is_plain_norm(module)]
    hooks.append(register_module_forward_pre_hook(before_any))  # scripts take no hooks of their own
    try:
        with torch.inference_mode(), readers:
            results = model(example)
    finally:
        for hook in hooks:
            hook.remove()
    readers.count.update(id(leaf) for leaf in tree_leaves(results))
    found = [(readers.outputs[at][0], norm) for norm, at in read if readers.count[at] == 1]
    return [pair for pair in found if all(calls[module] == 1 for module in pair)]


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks) or is_parametrized(module)


def _is_plain_conv(module: nn.Module) -> bool:
    inner = cast(Iterable[nn.Module], module.modules())
    return type(module) in _CONVS and not any(_is_watched(part) for part in inner)


def _is_plain_norm(module: nn.Module) -> bool:
    return type(module) in _NORMS and getattr(module, 'running_mean', None) is not None


def _fold(conv: nn.Module, norm: Any) -> None:
    if isinstance(conv, AugmentedConv1d | AugmentedConv2d):
        middle = conv.out_channels - conv.dv  # attention's channels are the last ones
        if conv.conv is not None:
            _fold_part(conv.conv, norm, slice(0, middle))
        if conv.attn is not None:  # where it is pooled, bilinear weights sum to 1: the shift may come before
            _fold_part(conv.attn.proj, norm, slice(middle, None))
    else:
        _fold_part(conv, norm, slice(None))


def _fold_part(conv: Any, norm: Any, channels: slice) -> None:
    """Fold some channels of a norm into the convolution that makes them."""
    weight, bias = (None if tensor is None else tensor[channels] for tensor in (norm.weight, norm.bias))
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean[channels], norm.running_var[channels], norm.eps, weight, bias)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child is old:
                setattr(module, name, new)
