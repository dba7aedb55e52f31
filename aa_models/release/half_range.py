"""Batch norms within the range of float16.

How large a convolution's weights are makes no difference before a batch norm, and optimisers whose steps do not depend
on it (Muon) let them grow: the variances of their outputs can pass 65504, where float16 ends.
"""
from collections.abc import Mapping
from typing import cast

import torch
from timm.layers import DropPath
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aa_models.augmentation.channel_paths import SUMS, trace_calls
from aa_models.layers import AugmentedConv2d

_MOST = 2. ** 15
_LEAST = 2. ** -6  # beside which the usual eps, 1e-5, is less than the rounding to float16
_Conv = nn.Conv2d | AugmentedConv2d


@torch.no_grad()
def shrink_variances(model: nn.Module) -> None:
    """Divide filters by powers of two where the variance behind them comes near the end of float16, in place.

    The statistics of the batch norm are divided accordingly, so the network computes what it did: its `eps` is nothing
    beside such variances. What is summed before it is read (the stream of a network with norms before the
    convolutions) is divided alike in all its terms. All stay as they are where something else than batch norms reads
    it, or where one of these has seen small variances.
    """
    norms = {name: norm for name, norm in model.named_modules()
             if isinstance(norm, _BatchNorm) and norm.running_var is not None and (norm.running_var > _MOST).any()}
    calls = trace_calls(model, 'its variances beyond float16 stay') if norms else None
    if calls is None:
        return
    once = {nodes[0]: model.get_submodule(name) for name, nodes in calls.items() if len(nodes) == 1}
    for name, norm in norms.items():
        if len(calls.get(name, ())) == 1 and (cast(torch.Tensor, norm.running_var) > _MOST).any():
            _shrink(*_written_and_read(calls[name][0].all_input_nodes[0], once))


def _written_and_read(tensor: fx.Node, modules: Mapping[fx.Node, nn.Module]) -> tuple[list[_Conv], list[_BatchNorm]]:
    """Find the convolutions that write a tensor or what is summed with it, and the batch norms that read them.

    Two empty lists where others than these take part.

    Args:
        tensor: Of a traced network.
        modules: Of the nodes that call them, where there is one for a module.
    """
    convs: list[_Conv] = []
    norms: list[_BatchNorm] = []
    met, ahead = {tensor}, [tensor]
    while ahead:
        node = ahead.pop()
        module = modules.get(node)
        near = [user for user in node.users if not isinstance(modules.get(user), _BatchNorm)]
        norms += [reader for reader in map(modules.get, node.users) if isinstance(reader, _BatchNorm)]
        if isinstance(module, (nn.Conv2d, AugmentedConv2d)):
            convs.append(module)
        elif isinstance(module, (DropPath, nn.Identity)) or _sums_tensors(node):
            near += node.all_input_nodes
        else:
            return [], []
        near = [other for other in dict.fromkeys(near) if other not in met]
        ahead += near
        met.update(near)
    return convs, norms


def _sums_tensors(node: fx.Node) -> bool:
    return node.target in SUMS and all(isinstance(term, fx.Node) for term in node.args)


def _shrink(convs: list[_Conv], norms: list[_BatchNorm]) -> None:
    """Divide what the convolutions write, channel by channel, by what brings all variances within the range."""
    if not norms or any(norm.running_var is None for norm in norms):
        return
    variances = torch.stack([cast(torch.Tensor, norm.running_var) for norm in norms])
    scales = (variances.amax(0) / _MOST).clamp_min(1.).log2().div(2).ceil().exp2()
    if (variances / scales.square() < _LEAST)[:, scales > 1].any():
        return
    for norm in norms:
        cast(torch.Tensor, norm.running_mean).div_(scales)
        cast(torch.Tensor, norm.running_var).div_(scales.square())
    for conv in convs:
        parts = [conv.conv, conv.attn and conv.attn.proj] if isinstance(conv, AugmentedConv2d) else [conv]
        ahead = scales
        for part in (cast(nn.Conv2d, part) for part in parts if part is not None):
            own, ahead = ahead[:part.out_channels], ahead[part.out_channels:]
            part.weight.div_(own.view(-1, 1, 1, 1))
            if part.bias is not None:
                part.bias.div_(own)
