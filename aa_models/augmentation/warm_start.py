"""The weights of a plain network for its augmented form.

An augmented convolution has fewer filters than the plain one: some output channels give way to attention. This keeps
the other filters and their batch-norm statistics, and changes the function of the network as little as it can:

- Where the channels lead through batch norm and the like to one convolution that reads them all, those give way whose
  loss changes its output least: the variance of the channel after the activation, times the squared norm of the weights
  that read it. (A batch norm's statistics are taken to be right: what it normalises has mean 0 and variance 1.)
  Attention's channels come last in the output, so everything on the way is reordered. Elsewhere the last channels give
  way.
- Heads that start locally imitate the filters that gave way (`imitation`). Any other attention begins with a tenth of
  the lost channel's scale: little enough to leave the function alone, and not 0, so that gradients reach it. Before a
  ReLU the shift becomes the mean of the lost channel after it.
"""
import logging
from collections.abc import Mapping

import torch
from torch import nn

from aa_models.layers import AugmentedConv2d

from .channel_paths import NORM_KEYS, ChannelPath, follow_channels, trace_calls
from .imitation import can_imitate, imitate, lost_filters

_logger = logging.getLogger(__name__)

StateDict = dict[str, torch.Tensor]

_SCALE = 0.1  # of attention, in parts of the lost channel's


def _moments(weight: torch.Tensor, bias: torch.Tensor, act: nn.Module | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of act(weight · z + bias), z being normal; (C,) each."""
    z = torch.linspace(-5, 5, 201, dtype=torch.float64, device=weight.device)
    density = torch.exp(-z ** 2 / 2)
    density /= density.sum()
    values = weight.double().unsqueeze(1) * z + bias.double().unsqueeze(1)
    values = act(values) if act is not None else values
    mean = values @ density
    return mean, (values - mean.unsqueeze(1)) ** 2 @ density


def _order(path: ChannelPath, layer: AugmentedConv2d, weights: StateDict) -> torch.Tensor:
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


def _start_attention(path: ChannelPath, name: str, dv: int, weights: StateDict) -> None:
    """Make the last `dv` channels, attention's, begin quietly."""
    if f'{path.norm}.weight' not in weights:
        weights[f'{name}.attn.proj.weight'] = weights[f'{name}.attn.proj.weight'] * _SCALE
        if f'{name}.bias' in weights:
            weights[f'{name}.attn.proj.bias'] = weights[f'{name}.bias'][-dv:].clone()
        return
    full = {key: f'{path.norm}.{key}' for key in NORM_KEYS}
    new = {key: weights[full[key]].clone() for key in NORM_KEYS if full[key] in weights}
    if isinstance(path.act, nn.ReLU):
        new['bias'][-dv:] = _moments(new['weight'][-dv:], new['bias'][-dv:], path.act)[0].to(new['bias'].dtype)
    new['weight'][-dv:] *= _SCALE
    for key, value in (('running_mean', 0.), ('running_var', 1.)):
        if key in new:
            new[key][-dv:] = value
    weights.update({full[key]: value for key, value in new.items()})


def _log(name: str, layer: AugmentedConv2d, path: ChannelPath, anew: bool) -> None:
    """Say which channels of a layer give way, and why those."""
    if anew:
        _logger.warning(
            '%s keeps none of its filters: of each group as many would have to give way, but what reads the channels '
            'cannot be reordered: %s', name, path.end)
        return
    _logger.info(
        '%s: %d of %d channels give way to attention, %s', name, layer.dv, layer.out_channels,
        f'those whose loss changes the output of {path.reader} least' if path.reader else
        f'the last ones, as no convolution is known to be alone in reading them ({path.end})')


def plain_to_augmented(
        state_dict: StateDict, model: nn.Module, layers: Mapping[str, AugmentedConv2d],
) -> tuple[StateDict, StateDict]:
    """Turn the weights of a plain network into those of its augmented form.

    Args:
        state_dict: Of the plain network; it is left as it is.
        model: Either network, on any device: only its structure counts.
        layers: By name the augmented convolutions to fill, with their fresh attention.

    Returns:
        The state dict of the augmented network; and by layer the filters that gave way, (dv, C_in, height, width), for
        those whose attention imitates them.
    """
    weights = dict(state_dict)
    calls = trace_calls(
        model, 'in all its augmented layers the last channels give way to attention, whatever they are worth')
    lost: StateDict = {}
    imitators: list[str] = []
    for name, layer in layers.items():
        if layer.attn is None:
            continue
        path = follow_channels(model, name, calls)
        if path.reader and f'{path.reader}.weight' not in weights:
            path = path._replace(reader=None, end=f'{path.reader} has no plain weights')
        anew = layer.groups > 1 and path.reader is None and layer.conv is not None
        _log(name, layer, path, anew)
        if anew and layer.conv is not None:
            weights[f'{name}.conv.weight'] = layer.conv.weight.detach()
        order = _order(path, layer, weights)
        weights.update({key: weights[key].index_select(axis, order) for key, axis in path.entries if key in weights})
        if can_imitate(layer) and not anew:
            imitators.append(name)
            continue
        weights.update({f'{name}.attn.{key}': tensor for key, tensor in layer.attn.state_dict().items()})
        _start_attention(path, name, layer.dv, weights)
    for name, layer in layers.items():  # readers were reordered above, under their plain names
        if name in imitators and layer.attn is not None:
            lost[name] = lost_filters(weights[f'{name}.weight'], layer)
            imitate(layer, lost[name])
            weights.update({f'{name}.attn.{key}': tensor for key, tensor in layer.attn.state_dict().items()})
            if f'{name}.bias' in weights:
                weights[f'{name}.attn.proj.bias'] = weights[f'{name}.bias'][-layer.dv:].clone()
        for key in ('weight', 'bias'):
            plain = weights.pop(f'{name}.{key}', None)
            if plain is not None and layer.conv is not None:
                weights.setdefault(f'{name}.conv.{key}', plain[:layer.out_channels - layer.dv].clone())
    return weights, lost
