"""A wide network begins as the function that a narrow one has learned (Net2WiderNet, arXiv 1511.05641).

Every channel of the wide network is a copy of one of the narrow network's, and what reads the copies has their weight
divided among them. So a narrow network, whose training is cheap, is the start of a wide one.
"""
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import ClassifierHead, DropPath, SelectAdaptivePool2d
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from aa_models.errors import InputError
from aa_models.layers import AugmentedConv2d, GridAttention
from aa_models.layers.linear_attention import LinearAttention
from aa_models.layers.position import add_sincos, resize_rel_table

from .channel_paths import CHANNELWISE, NORM_KEYS, SUMS, ChannelTracer
from .copies import Reading, sources

StateDict = dict[str, torch.Tensor]

NOISE = 0.5
_CHANNELWISE = (*CHANNELWISE, DropPath, SelectAdaptivePool2d, nn.AdaptiveAvgPool2d, nn.Flatten)
_CONV_FORM = 'kernel_size', 'stride', 'padding', 'dilation', 'padding_mode'
_IDLE = nn.Dropout, nn.Dropout2d, DropPath, nn.Identity  # which make no difference outside training
_PASSING = (F.relu, F.relu_, torch.relu, F.dropout, F.avg_pool2d, F.adaptive_avg_pool2d, torch.flatten)


class _Tracer(ChannelTracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return not isinstance(module, ClassifierHead) and super().is_leaf_module(module, name)


@torch.no_grad()
def widen(narrow: nn.Module, wide: nn.Module, *, noise: float = NOISE, seed: int = 0) -> nn.Module:
    """Fill a wide network so that it computes what a narrow one of the same form does.

    The form is that of the Wide ResNets, ResNets and simple nets, plain or augmented, and of other networks of
    convolutions, batch norms, activations, pooling, sums and a classifier. Heads may become more, and keys and values
    deeper. By what is no whole factor, sine/cosine positions and linear attention cannot be kept, nor do they become
    anything else.

    Args:
        narrow: The network to copy, in evaluation mode or not; it is left as it is.
        wide: With as many layers and classes, and at least as many channels in each; its weights are replaced.
        noise: How unevenly copies are read, in parts of an even share. The function is the same for any; with 0,
            copies would have the same gradients and stay copies.
        seed: Of the noise.

    Returns:
        `wide`.

    Raises:
        InputError: The networks are of different forms, or one of their layers cannot be widened; `wide` is unchanged.
    """
    if noise < 0:
        raise InputError(f'noise = {noise} must be at least 0')
    device = next(wide.parameters()).device
    old = {name: tensor.detach().cpu() for name, tensor in narrow.state_dict().items()}
    weights = Widening(narrow, wide, old, Reading(noise, torch.Generator().manual_seed(seed))).run()
    wide.load_state_dict({name: tensor.to(device) for name, tensor in weights.items()})
    return wide


class Widening:
    """Goes through the graph of both networks, with the channel that each copy is of for every tensor on the way.

    Args:
        narrow, wide: The networks, whose own weights are not looked at.
        old: The weights of the narrow one, of which those of the wide one are a linear function.
        reading: How they are divided among copies.
    """

    def __init__(self, narrow: nn.Module, wide: nn.Module, old: StateDict, reading: Reading) -> None:
        self.narrow, self.wide, self.old, self.reading = narrow, wide, old, reading
        self.shapes = {name: tensor.shape for name, tensor in wide.state_dict().items()}
        self.new: StateDict = {}
        differing = sorted(name for name in self.old.keys() ^ self.shapes.keys() if not name.endswith('.q_const'))
        if differing:
            more = ', …' if len(differing) > 3 else ''
            raise InputError(f'the networks are of different forms: only one has {", ".join(differing[:3])}{more}')

    def run(self) -> StateDict:
        """The state dict of the wide network."""
        found: dict[fx.Node, torch.Tensor] = {}
        for node in self._graph().nodes:
            if node.op == 'placeholder':
                found[node] = torch.arange(self._in_channels())
            elif node.op != 'output':
                inputs = [found[other] for other in node.all_input_nodes if other in found]
                found[node] = self._call(node, inputs)
        if missing := [name for name in self.shapes if name not in self.new and not name.endswith('.q_const')]:
            raise InputError(f'{missing[0]} cannot be widened: it takes no part in what the network computes')
        return self.new

    def _graph(self) -> fx.Graph:
        try:
            return _Tracer().trace(self.wide)
        except Exception as error:  # a network may do anything to the stand-in for its input
            name = type(self.wide).__name__
            raise InputError(f'{name} cannot be widened: torch.fx cannot trace it ({error})') from error

    def _in_channels(self) -> int:
        first = [next(m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d | AugmentedConv2d))
                 for net in (self.narrow, self.wide)]
        if first[0] != first[1]:
            raise InputError(f'the networks take images of {first[0]} and {first[1]} channels')
        return first[0]

    def _call(self, node: fx.Node, inputs: list[torch.Tensor]) -> torch.Tensor:
        what = str(getattr(node.target, '__name__', node.target))
        if node.op == 'call_module':
            return self._module(str(node.target), inputs[0])
        if node.target in SUMS and len(inputs) == 2:
            if not torch.equal(*inputs):
                raise InputError(f'{node.name} cannot be widened: it adds channels that are copied in other ways')
            return inputs[0]
        if (node.target in _PASSING or what == 'flatten') and len(inputs) == 1:
            return inputs[0]
        raise InputError(f'{what} cannot be widened: possible are convolutions, batch norms, activations, pooling, '
                         'sums and a classifier')

    def _module(self, name: str, source: torch.Tensor) -> torch.Tensor:
        few, many = dict(self.narrow.named_modules()).get(name), self.wide.get_submodule(name)
        if isinstance(many, _IDLE) and (few is None or isinstance(few, _IDLE)):
            return source
        kinds: list[tuple[Any, Callable[[str, Any, Any, torch.Tensor], torch.Tensor]]] = [
            (AugmentedConv2d, self._augmented), (nn.Conv2d, self._conv), (_BatchNorm, self._norm),
            (nn.Linear, self._linear)]
        if type(few) is not type(many):
            raise InputError(
                f'{name} is a {type(few).__name__} in the narrow network, a {type(many).__name__} in the wide one')
        for kind, function in kinds:
            if isinstance(many, kind):
                return function(name, few, many, source)
        mixes = isinstance(many, SelectAdaptivePool2d) and many.feat_mult() > 1
        if mixes or not isinstance(many, _CHANNELWISE):
            raise InputError(f'{name} cannot be widened: it is a {type(many).__name__}')
        self._check_form(name, few, many)
        return source

    def _check_form(self, name: str, few: object, many: object) -> None:
        """Of what a layer does beside its weights, from which their shapes do not tell."""
        if str(few) != str(many):
            raise InputError(f'{name} cannot be widened: it has {few} in the narrow network, {many} in the wide one')

    def _put(self, name: str, weight: torch.Tensor) -> None:
        if weight.shape != self.shapes[name]:
            raise InputError(f'{name} cannot be widened from {tuple(self.old[name].shape)} to '
                             f'{tuple(self.shapes[name])}')
        self.new[name] = weight

    def _bias(self, name: str, source: torch.Tensor) -> None:
        if f'{name}.bias' in self.old:
            self._put(f'{name}.bias', self.old[f'{name}.bias'][source])

    def _norm(self, name: str, few: _BatchNorm, many: _BatchNorm, source: torch.Tensor) -> torch.Tensor:
        self._check_form(name, f'eps={few.eps}', f'eps={many.eps}')
        for key in NORM_KEYS:
            if f'{name}.{key}' in self.old:
                self._put(f'{name}.{key}', self.old[f'{name}.{key}'][source])
        if (counter := f'{name}.num_batches_tracked') in self.old:
            self._put(counter, self.old[counter])
        return source

    def _linear(self, name: str, few: nn.Linear, many: nn.Linear, source: torch.Tensor) -> torch.Tensor:
        if few.out_features != many.out_features:
            raise InputError(f'{name} has {few.out_features} outputs in the narrow network, {many.out_features} in the '
                             'wide one: classes stay as they are')
        self._put(f'{name}.weight', self.reading.divided(self.old[f'{name}.weight'], source))
        out = torch.arange(few.out_features)
        self._bias(name, out)
        return out

    def _conv(
            self, name: str, few: nn.Conv1d | nn.Conv2d, many: nn.Conv1d | nn.Conv2d, source: torch.Tensor,
    ) -> torch.Tensor:
        self._check_form(name, *({key: getattr(net, key) for key in _CONV_FORM} for net in (few, many)))
        weight = self.old[f'{name}.weight']
        if few.groups == few.in_channels == few.out_channels > 1 and many.groups == many.in_channels:
            out, weight = source, weight[source]  # each channel by itself
        elif few.groups == many.groups == 1:
            out = sources(few.out_channels, many.out_channels, f'{name}: channels')
            weight = self.reading.divided(weight[out], source)
        else:
            raise InputError(f'{name} cannot be widened: its groups are {few.groups} in the narrow network and '
                             f'{many.groups} in the wide one, possible are 1 and depthwise')
        self._put(f'{name}.weight', weight)
        self._bias(name, out)
        return out

    def _augmented(self, name: str, few: AugmentedConv2d, many: AugmentedConv2d, source: torch.Tensor) -> torch.Tensor:
        if few.groups != 1 or many.groups != 1:
            raise InputError(f'{name} cannot be widened: an augmented convolution with groups')
        parts = []
        if few.conv is not None and many.conv is not None:
            parts.append(self._conv(f'{name}.conv', few.conv, many.conv, source))
        if few.attn is not None and many.attn is not None:
            parts.append(few.out_channels - few.dv + self._attention(f'{name}.attn', few.attn, many.attn, source))
        return torch.cat(parts)

    def _attention(self, name: str, few: GridAttention, many: GridAttention, source: torch.Tensor) -> torch.Tensor:
        same = [(type(net), net.pos_embed, net.attn_pool, net.stride, net.sample_pad) for net in (few, many)]
        if same[0] != same[1]:
            raise InputError(f'{name} is other attention in the wide network: {same[1]}, in the narrow one {same[0]}')
        heads = sources(few.num_heads, many.num_heads, f'{name}: heads')
        keys, factor = self._keys(name, few, many)
        keys_of_all = (heads.unsqueeze(1) * (few.dk // few.num_heads) + keys).flatten()
        values = _value_sources(name, few, many, heads)
        read = self._readable(name, few, many, source)
        weight = self.old[f'{name}.qkv.weight']
        extra = weight.shape[1] - few.in_channels  # coordinates, which come behind the channels
        source = torch.cat([source, few.in_channels + torch.arange(extra)])
        read = torch.cat([read, torch.ones(extra, dtype=torch.bool)])
        rows = torch.cat([keys_of_all, few.dk + keys_of_all, 2 * few.dk + values])
        scales = torch.ones(len(rows), dtype=weight.dtype)
        scales[:many.dk] = factor.repeat(many.num_heads).to(weight.dtype)
        divided = self.reading.divided(weight[rows], source, read)
        self._put(f'{name}.qkv.weight', divided * scales.view(-1, *[1] * (weight.dim() - 1)))
        if (bias := f'{name}.qkv.bias') in self.old:
            self._put(bias, self.old[bias][rows] * scales)
        if (constant := f'{name}.q_const') in self.old:
            self.new[constant] = self.old[constant][heads][:, keys] * factor.to(weight.dtype)
        for table in (f'{name}.rel_h', f'{name}.rel_w'):
            if table in self.old:
                lengths = (self.shapes[table][0] + 1) // 2
                self._put(table, resize_rel_table(self.old[table], lengths)[:, keys])
        out = sources(few.dv, many.dv, f'{name}: values')
        self._put(f'{name}.proj.weight', self.reading.divided(self.old[f'{name}.proj.weight'][out], values))
        self._bias(f'{name}.proj', out)
        return out

    def _keys(self, name: str, few: GridAttention, many: GridAttention) -> tuple[torch.Tensor, torch.Tensor]:
        """For a head's key channels what each is a copy of, and a factor of its queries.

        Softmax attention divides the product of q and k by the root of their depth. In linear attention the queries are
        a softmax over the channels, which copies share if there are as many of each.
        """
        depths = few.dk // few.num_heads, many.dk // many.num_heads
        keys = sources(*depths, f'{name}: key channels of a head')
        copies = keys.bincount(minlength=depths[0])
        if isinstance(many, LinearAttention):
            if depths[1] % depths[0]:
                raise InputError(f'{name} cannot be widened: linear attention keeps its function where the key '
                                 f'channels of a head grow by a whole factor, not from {depths[0]} to {depths[1]}')
            return keys, torch.ones(depths[1])
        return keys, (depths[1] / depths[0]) ** 0.5 / copies[keys]

    def _readable(self, name: str, few: GridAttention, many: GridAttention, source: torch.Tensor) -> torch.Tensor:
        """Which copies hold the same position as what they are copies of, (many,)."""
        if few.pos_embed != 'sincos':
            return torch.ones(len(source), dtype=torch.bool)
        axes = len(few.stride)
        old, new = (
            add_sincos(torch.zeros(1, channels, *(7,) * axes, dtype=torch.float64))[0].flatten(1)
            for channels in (few.in_channels, many.in_channels))
        same = (new - old[source]).abs().amax(1) < 1e-6
        if len(source[same].unique()) < few.in_channels:
            raise InputError(f'{name} cannot be widened: sine/cosine positions are kept where the channels grow by a '
                             f'whole factor and are a multiple of 4, not from {few.in_channels} to {many.in_channels}')
        return same


def _value_sources(name: str, few: GridAttention, many: GridAttention, heads: torch.Tensor) -> torch.Tensor:
    """Which value each of the wide network's is a copy of, (dv,): one of those of the head that its head copies."""
    depths = few.dv // few.num_heads, many.dv // many.num_heads
    values = torch.empty(many.num_heads, depths[1], dtype=torch.long)
    for head in range(few.num_heads):
        copies = heads == head
        found = sources(depths[0], int(copies.sum()) * depths[1], f'{name}: values')
        values[copies] = head * depths[0] + found.view(-1, depths[1])
    return values.flatten()
