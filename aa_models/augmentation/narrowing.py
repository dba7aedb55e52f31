"""A narrow network begins with the mean of the copies that a wide one has of it: widening, undone.

A network that was widened (`aa_models.augmentation.widening`) and trained on has learned more than the narrow one that
it came from, and its copies of a channel have parted, but not altogether. Their mean is a narrow network that knows
most of it.
"""
import torch
from torch import nn

from aa_models.errors import InputError
from aa_models.layers import GridAttention

from .copies import Reading
from .widening import StateDict, Widening


def narrow(wide: nn.Module, small: nn.Module) -> nn.Module:
    """Fill a narrow network with what a wide one, which came from its form by `widen`, has become.

    Widening is linear in the weights, and this is its inverse by least squares: of all narrow networks the one that,
    widened, is nearest to the wide one. Weights that read a channel are summed over its copies, all others averaged.
    A network that was only widened becomes what it was, whatever the noise.

    Args:
        wide: The network to copy; it is left as it is.
        small: Of the same form, as for `widen`, with at most as many channels in each layer; its weights are replaced.

    Returns:
        `small`.

    Raises:
        InputError: The networks are of different forms, one of their layers cannot be widened, or `small` has tables of
            relative positions for far larger maps; it is unchanged.
    """
    device, found = next(small.parameters()).device, {name: t.cpu() for name, t in wide.state_dict().items()}
    start = _ones(small, found)
    numbers = {name: tensor.double() for name, tensor in start.items() if tensor.is_floating_point()}
    for tensor in numbers.values():
        tensor.requires_grad_()
    with torch.enable_grad():
        copies = Widening(small, wide, start | numbers, Reading(0, torch.Generator())).run()
        counted = {name: tensor for name, tensor in copies.items() if name in numbers}
        # by the transpose of the linear function, first of the wide network, then of what the ones became
        sums, shares = (
            torch.autograd.grad(
                torch.stack([(tensor * of[name].detach()).sum() for name, tensor in counted.items()]).sum(),
                list(numbers.values()), retain_graph=True)
            for of in (found, counted))
    if unread := [name for name, share in zip(numbers, shares) if not share.all()]:
        raise InputError(f'{unread[0]} cannot be narrowed: its table is so much larger than that of the wide network '
                         'that not all of it would be known; make both for the same img_size')
    means = {name: total / share for name, total, share in zip(numbers, sums, shares)}
    whole = {name: found[name] for name in start if name not in numbers}
    small.load_state_dict({name: tensor.to(device) for name, tensor in (whole | means).items()})
    return small


def _ones(small: nn.Module, found: StateDict) -> StateDict:
    """The state dict of a narrow network, all ones, with the constant queries that the wide one has."""
    ones = {name: torch.ones_like(tensor, device='cpu') for name, tensor in small.state_dict().items()}
    for prefix, attn in small.named_modules():
        if isinstance(attn, GridAttention):
            ones.pop(name := f'{prefix}.q_const', None)
            if name in found:
                ones[name] = torch.ones(attn.num_heads, attn.dk // attn.num_heads)
    return ones
