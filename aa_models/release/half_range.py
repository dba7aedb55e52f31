"""Batch norms within the range of float16.

How large a convolution's weights are makes no difference before a batch norm, and optimisers whose steps do not depend
on it (Muon) let them grow: the variances of their outputs can pass 65504, where float16 ends.
"""
from typing import cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from aa_models.augmentation.channel_paths import follow_channels, trace_calls
from aa_models.layers import AugmentedConv2d

_MOST = 2. ** 15


@torch.no_grad()
def shrink_variances(model: nn.Module) -> None:
    """Divide filters by powers of two where the variance behind them comes near the end of float16, in place.

    The statistics of the batch norm are divided accordingly, so the network computes what it did: its `eps` is nothing
    beside such variances. Where it is not known that the norm alone reads a convolution, both stay as they are.
    """
    norms = {name: norm for name, norm in model.named_modules()
             if isinstance(norm, _BatchNorm) and norm.running_var is not None and (norm.running_var > _MOST).any()}
    if not norms:
        return
    calls = trace_calls(model)
    for name, conv in model.named_modules():
        if isinstance(conv, (nn.Conv2d, AugmentedConv2d)):
            norm = norms.get(follow_channels(model, name, calls).norm or '')
            if norm is not None:
                _shrink(conv, norm)


def _shrink(conv: nn.Conv2d | AugmentedConv2d, norm: _BatchNorm) -> None:
    mean, variance = cast(torch.Tensor, norm.running_mean), cast(torch.Tensor, norm.running_var)
    scales = (variance / _MOST).clamp_min(1.).log2().div(2).ceil().exp2()
    mean.div_(scales)
    variance.div_(scales.square())
    parts = [conv.conv, conv.attn and conv.attn.proj] if isinstance(conv, AugmentedConv2d) else [conv]
    for part in (cast(nn.Conv2d, part) for part in parts if part is not None):
        own, scales = scales[:part.out_channels], scales[part.out_channels:]
        part.weight.div_(own.view(-1, 1, 1, 1))
        if part.bias is not None:
            part.bias.div_(own)
