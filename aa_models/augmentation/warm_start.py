"""The weights of a plain network for its augmented form.

An augmented convolution has fewer filters than the plain one: some output channels give way to attention. This keeps
the other filters and their batch-norm statistics, and changes the function of the network as little as it can:

- Where the channels lead through batch norm and the like to one convolution that reads them all, those give way whose
  loss changes its output least: variance after the activation times the squared norm of the weights that read it, each
  batch norm taken at its word that what it normalises has mean 0 and variance 1. Attention has the last places, so
  everything on the way is reordered. Elsewhere the last channels give way.
- Attention begins with a tenth of the lost channel's scale: little enough to leave the function alone, and not 0, so
  that gradients reach it. Before a ReLU the shift becomes the mean of what the lost channel sent on.
"""
import logging
from collections.abc import Mapping
from typing import NamedTuple

import torch
from timm.layers import SEModule
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aa_models.layers import AugmentedConv2d

_logger = logging.getLogger(__name__)

StateDict = dict[str, torch.Tensor]

_SCALE = 0.1  # of attention, in parts of the lost channel's
_NORM_KEYS = ('weight', 'bias', 'running_mean', 'running_var')
# what treats every channel alike and by itself, so that a new order of channels passes through
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.ELU)
_OTHERS = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d)


class _Path(NamedTuple):
    """Where the output channels of a convolution lead.

    Attributes:
        norm: Name of the batch norm that follows at once, or None.
        act: The activation that follows that, or None.
        entries: Entries of the state dict and their axis that have the order of the channels, the convolution's first.
        reader: Name of the convolution that reads them, or None where they lead elsewhere.
    """
    norm: str | None
    act: nn.Module | None
    entries: list[tuple[str, int]]
    reader: str | None


class _Tracer(fx.Tracer):
    """Goes into what holds convolutions; timm's other layers, and squeeze-excitation, stay single steps."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, (AugmentedConv2d, SEModule)) or super().is_leaf_module(module, name):
            return True
        inner = isinstance(module, nn.Sequential) or any(isinstance(m, nn.Conv2d) for m in module.modules())
        return not inner and module.__module__.startswith('timm.layers')


def _trace(model: nn.Module) -> dict[str, fx.Node]:
    """The calls of modules by their names; none where the network cannot be traced."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # a network may do anything to a stand-in for its input
        _logger.debug('%s cannot be traced: %s', type(model).__name__, error)
        return {}
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == 'call_module':
            calls.setdefault(node.target, []).append(node)
    return {name: nodes[0] for name, nodes in calls.items() if len(nodes) == 1}


def _follow(model: nn.Module, name: str, calls: Mapping[str, fx.Node]) -> _Path:
    """Go from a convolution from module to module, as long as nothing else takes part."""
    norm, act, entries = None, None, [(f'{name}.weight', 0), (f'{name}.bias', 0)]
    node = calls.get(name)
    while node is not None and len(node.users) == 1:
        node = next(iter(node.users))
        if node.op != 'call_module' or node.target not in calls:
            break
        target = str(node.target)
        module = model.get_submodule(target)
        if isinstance(module, _BatchNorm):
            if len(entries) == 2:
                norm, act = target, _inner_act(module)
            entries += [(f'{target}.{key}', 0) for key in _NORM_KEYS]
        elif isinstance(module, _ACTIVATIONS):
            act = module if norm and act is None and len(entries) == 2 + len(_NORM_KEYS) else act
        elif isinstance(module, SEModule):
            entries += [(f'{target}.fc1.weight', 1), (f'{target}.fc2.weight', 0), (f'{target}.fc2.bias', 0)]
        elif isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1:
            entries += [(f'{target}.weight', 0), (f'{target}.bias', 0)]
        elif isinstance(module, (nn.Conv2d, AugmentedConv2d)) and module.groups == 1:
            return _Path(norm, act, entries + [(f'{target}.weight', 1)], target)
        elif not isinstance(module, _OTHERS):
            break
    return _Path(norm, act, entries, None)


def _inner_act(norm: nn.Module) -> nn.Module | None:
    """timm's batch norms have the activation inside."""
    act = getattr(norm, 'act', None)
    return None if isinstance(act, nn.Identity) else act


def _moments(weight: torch.Tensor, bias: torch.Tensor, act: nn.Module | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of act(weight · z + bias), z being normal; (C,) each."""
    z = torch.linspace(-5, 5, 201, dtype=torch.float64, device=weight.device)
    density = torch.exp(-z ** 2 / 2)
    density /= density.sum()
    values = weight.double().unsqueeze(1) * z + bias.double().unsqueeze(1)
    values = act(values) if act is not None else values
    mean = values @ density
    return mean, (values - mean.unsqueeze(1)) ** 2 @ density


def _order(path: _Path, layer: AugmentedConv2d, weights: StateDict) -> torch.Tensor:
    """The old channels (C,) in their new order: first the filters that stay, last those that give way."""
    channels = torch.arange(layer.out_channels, device=weights[path.entries[0][0]].device)
    if path.reader is None:
        return channels
    cost = weights[f'{path.reader}.weight'].double().transpose(0, 1).flatten(1).square().sum(1)
    if f'{path.norm}.weight' in weights:
        cost = cost * _moments(weights[f'{path.norm}.weight'], weights[f'{path.norm}.bias'], path.act)[1]
    # of every group as many, and the order within it as it was
    ranks = cost.view(layer.groups, -1).argsort(dim=1, descending=True).argsort(dim=1)
    stays = (ranks < (layer.out_channels - layer.dv) // layer.groups).flatten()
    return torch.cat([channels[stays], channels[~stays]])


def _start_attention(path: _Path, name: str, dv: int, weights: StateDict) -> None:
    """Make the last `dv` channels, attention's, begin quietly."""
    if f'{path.norm}.weight' not in weights:
        weights[f'{name}.attn.proj.weight'] = weights[f'{name}.attn.proj.weight'] * _SCALE
        if f'{name}.bias' in weights:
            weights[f'{name}.attn.proj.bias'] = weights[f'{name}.bias'][-dv:].clone()
        return
    full = {key: f'{path.norm}.{key}' for key in _NORM_KEYS}
    new = {key: weights[full[key]].clone() for key in _NORM_KEYS if full[key] in weights}
    if isinstance(path.act, nn.ReLU):
        new['bias'][-dv:] = _moments(new['weight'][-dv:], new['bias'][-dv:], path.act)[0].to(new['bias'].dtype)
    new['weight'][-dv:] *= _SCALE
    for key, value in (('running_mean', 0.), ('running_var', 1.)):
        if key in new:
            new[key][-dv:] = value
    weights.update({full[key]: value for key, value in new.items()})


def plain_to_augmented(state_dict: StateDict, model: nn.Module, layers: Mapping[str, AugmentedConv2d]) -> StateDict:
    """Turn the weights of a plain network into those of its augmented form.

    Args:
        state_dict: Of the plain network; it is left as it is.
        model: Either network, on any device: only its structure counts.
        layers: By name the augmented convolutions to fill, with their fresh attention.

    Returns:
        The state dict of the augmented network.
    """
    weights, calls = dict(state_dict), _trace(model)
    for name, layer in layers.items():
        if layer.attn is None:
            continue
        path = _follow(model, name, calls)
        if f'{path.reader}.weight' not in weights:  # an augmented one from the beginning, perhaps
            path = path._replace(reader=None)
        if layer.groups > 1 and path.reader is None and layer.conv is not None:
            _logger.warning('%s keeps none of its filters: what follows cannot take its groups in a new order', name)
            weights[f'{name}.conv.weight'] = layer.conv.weight.detach()
        order = _order(path, layer, weights)
        weights.update({key: weights[key].index_select(axis, order) for key, axis in path.entries if key in weights})
        weights.update({f'{name}.attn.{key}': tensor for key, tensor in layer.attn.state_dict().items()})
        _start_attention(path, name, layer.dv, weights)
    for name, layer in layers.items():  # readers were reordered above, under their plain names
        for key in ('weight', 'bias'):
            plain = weights.pop(f'{name}.{key}', None)
            if plain is not None and layer.conv is not None:
                weights.setdefault(f'{name}.conv.{key}', plain[:layer.out_channels - layer.dv].clone())
    return weights
