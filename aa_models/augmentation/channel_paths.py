"""Where the output channels of a convolution lead: through which modules, to which convolution that reads them all.

The network is traced by torch.fx. A path ends where anything else takes part than what treats each channel by itself.
"""
import logging
import operator
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import torch
from timm.layers import SEModule
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from aa_models.layers import AugmentedConv2d

_logger = logging.getLogger(__name__)

NORM_KEYS = ('weight', 'bias', 'running_mean', 'running_var')
SUMS = (operator.add, operator.iadd, torch.add)
# what treats every channel alike and by itself, so that channels can be reordered on both sides of it
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.ELU)
CHANNELWISE = (*_ACTIVATIONS, nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d)


class ChannelPath(NamedTuple):
    """Where the output channels of a convolution lead."""
    norm: str | None  # name of the batch norm that follows at once
    act: nn.Module | None  # that follows the norm
    # of the state dict, with the axis that is in the order of the channels; the convolution's own come first
    entries: list[tuple[str, int]]
    reader: str | None  # name of the convolution that reads them, None where they lead elsewhere
    end: str  # why there is no reader, '' where there is one


class ChannelTracer(fx.Tracer):
    """Goes into what holds convolutions, not into them (timm's pad in Python), nor into timm's other layers."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, (AugmentedConv2d, SEModule, nn.Conv2d)) or super().is_leaf_module(module, name):
            return True
        inner = isinstance(module, nn.Sequential) or any(isinstance(m, nn.Conv2d) for m in module.modules())
        return not inner and module.__module__.startswith('timm.layers')


def trace_calls(
        model: nn.Module, consequence: str = 'nobody knows where its channels lead',
) -> dict[str, list[fx.Node]] | None:
    """Find the calls of each module, by its name; None, with a warning, where the network cannot be traced.

    Args:
        model: The network.
        consequence: What the warning says of that.
    """
    try:
        graph = ChannelTracer().trace(model)
    except Exception as error:  # a network may do anything to the stand-in for its input
        _logger.warning(
            '%s cannot be traced (%s: %s): %s', type(model).__name__, type(error).__name__, error, consequence)
        return None
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == 'call_module':
            calls.setdefault(str(node.target), []).append(node)
    return calls


def follow_channels(model: nn.Module, name: str, calls: Mapping[str, list[fx.Node]] | None) -> ChannelPath:
    """Go from a convolution from module to module to the one that reads its channels.

    Args:
        model: The network.
        name: Name of the convolution.
        calls: Of `trace_calls`.
    """
    norm, act, entries = None, None, [(f'{name}.weight', 0), (f'{name}.bias', 0)]
    held = Counter(id(tensor) for other in model.modules() for tensor in _tensors(other))
    here, end = _next_module(name, calls)
    while here:
        module = model.get_submodule(here)
        if has_computed_weights(module):
            end = f'the weights of {here} are computed from others'
            break
        if any(held[id(tensor)] > 1 for part in module.modules() for tensor in _tensors(part)):
            end = f'{here} shares weights with another layer'
            break
        if isinstance(module, _BatchNorm):
            if len(entries) == 2:
                norm, act = here, getattr(module, 'act', None)  # timm's have one inside
                act = None if isinstance(act, nn.Identity) else act
            entries += [(f'{here}.{key}', 0) for key in NORM_KEYS]
        elif isinstance(module, _ACTIVATIONS):
            act = module if norm and act is None and len(entries) == 2 + len(NORM_KEYS) else act
        elif isinstance(module, SEModule):
            entries += [(f'{here}.fc1.weight', 1), (f'{here}.fc2.weight', 0), (f'{here}.fc2.bias', 0)]
        elif isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1:
            entries += [(f'{here}.weight', 0), (f'{here}.bias', 0)]
        elif isinstance(module, (nn.Conv2d, AugmentedConv2d)) and module.groups == 1:
            return ChannelPath(norm, act, entries + [(f'{here}.weight', 1)], here, '')
        elif not isinstance(module, CHANNELWISE):
            end = f'they lead to {here}, a {type(module).__name__}'
            break
        here, end = _next_module(here, calls)
    return ChannelPath(norm, act, entries, None, end)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers of a module itself."""
    own = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in own if tensor is not None]


def has_computed_weights(module: nn.Module) -> bool:
    """Whether a weight in a module is made of other tensors at each call: pruned, normed, parametrized."""
    return any(
        is_parametrized(part) or (isinstance(getattr(part, 'weight', None), torch.Tensor)
                                  and 'weight' not in part._parameters)
        for part in module.modules())


def _next_module(name: str, calls: Mapping[str, list[fx.Node]] | None) -> tuple[str, str]:
    """Find the one module that reads a module's output; its name, or '' and the reason why there is none."""
    if calls is None:
        return '', 'the network cannot be traced'
    if len(calls.get(name, ())) != 1:
        return '', f'{name} is called {len(calls.get(name, ()))} times'
    users = list(calls[name][0].users)
    if len(users) != 1:
        return '', f'{name} is read by {", ".join(user.name for user in users) or "nothing"}'
    reader = str(users[0].target)
    if users[0].op != 'call_module' or len(calls[reader]) != 1:
        return '', f'{name} leads to {users[0].name}'
    return reader, ''
