"""Pruning with torch-pruning, which is told how an augmented convolution loses channels.

Its output channels are the convolution's, then the attention's, rows of the output projection; its input channels are
read by the convolution and by the projection to queries, keys and values. The heads keep their depth. No groups.

    python -m aa_models.examples.pruning
"""
from collections.abc import Sequence
from operator import attrgetter
from unittest import mock

import timm
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional as F

from aa_models.layers import AugmentedConv2d


class AugmentedConvPruner(tp.BasePruningFunc):
    """How torch-pruning takes channels out of an `AugmentedConv2d`."""
    TARGET_MODULES = AugmentedConv2d

    def prune_out_channels(self, layer: AugmentedConv2d, idxs: Sequence[int]) -> AugmentedConv2d:
        """Of the convolution and of the attention's projection; a part that would lose all goes as a whole."""
        split = layer.out_channels - layer.dv
        parts = {'conv': [i for i in idxs if i < split], 'attn.proj': [i - split for i in idxs if i >= split]}
        for name, pruned in parts.items():
            if pruned and len(pruned) == (split if name == 'conv' else layer.dv):
                setattr(layer, name.removesuffix('.proj'), None)
            elif pruned:
                tp.prune_conv_out_channels(layer.get_submodule(name), pruned)
        layer.out_channels -= len(idxs)
        layer.dv = layer.attn.proj.out_channels if layer.attn else 0
        return layer

    def prune_in_channels(self, layer: AugmentedConv2d, idxs: Sequence[int]) -> AugmentedConv2d:
        """Of both readers of the input. Channels of coordinates come after those of the input."""
        layer.in_channels -= len(idxs)
        if layer.conv:
            tp.prune_conv_in_channels(layer.conv, idxs)
        if layer.attn:
            tp.prune_conv_in_channels(layer.attn.qkv, idxs)
            layer.attn.in_channels = layer.in_channels
        return layer

    get_out_channels, get_in_channels = attrgetter('out_channels'), attrgetter('in_channels')


def as_plain(layer: AugmentedConv2d, x: torch.Tensor) -> torch.Tensor:
    """What the tracer is to see: one operator from input channels to output channels, without q, k and v."""
    weight = x.new_zeros(layer.out_channels, layer.in_channels, *layer.kernel_size)
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)


def prune(model: nn.Module, x: torch.Tensor, ratio: float, keep: Sequence[nn.Module]) -> None:
    """Take a share of the channels out of every layer but those to keep, in place; x is an input to trace with."""
    with mock.patch.object(AugmentedConv2d, 'forward', as_plain):
        tp.pruner.MagnitudePruner(
            model, x, tp.importance.MagnitudeImportance(), pruning_ratio=ratio, ignored_layers=list(keep),
            customized_pruners={AugmentedConv2d: AugmentedConvPruner()},
            root_module_types=[nn.Conv2d, nn.Linear, AugmentedConv2d]).step()


if __name__ == '__main__':
    torch.manual_seed(0)
    model = timm.create_model('aa_resnet18', pretrained=True).eval()
    x = torch.randn(8, 3, 128, 128)
    wanted = model(x).detach().softmax(1)  # what fine-tuning is to win back
    prune(model, x[:1], 0.3, keep=[model.get_submodule('fc')])
    print(f'{sum(p.numel() for p in model.parameters()):,} parameters are left')
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
    for step in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), wanted)
        loss.backward()
        optimizer.step()
        print(f'step {step}: loss {loss:.3f}')
