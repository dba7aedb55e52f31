"""What augmented networks share: augmentation by stages, initialisation, weights for another size."""
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from aa_models.augmentation.conversion import augment
from aa_models.augmentation.warm_start import plain_to_augmented
from aa_models.errors import InputError
from aa_models.layers import AttentionArgs, AugmentedConv2d, GridAttention
from aa_models.layers.local_start import balanced
from aa_models.layers.position import resize_rel_table
from aa_models.layers.softmax_attention import SoftmaxAttention


def augment_stages(
        model: nn.Module, patterns: Sequence[str], args: AttentionArgs, *, attn_stages: Sequence[bool],
        attn_pool: Sequence[int], img_size: int | tuple[int, int],
) -> None:
    """Augment the convolutions of the stages chosen.

    Args:
        model: Network to change in place.
        patterns: For each stage, the names of its convolutions that can be augmented.
        args: The attention's arguments but for its pooling.
        attn_stages: For each stage, whether it is augmented.
        attn_pool: For each stage, the pooling of its attention branch.
        img_size: Height and width of the input that the relative tables are made for, pixels.
    """
    for name, values in (('attn_stages', attn_stages), ('attn_pool', attn_pool)):
        if isinstance(values, (str, int)) or len(values) != len(patterns):
            raise InputError(f'{name} must have one value for each of the {len(patterns)} stages, got {values!r}')
    if not all(chosen in (False, True) for chosen in attn_stages):
        raise InputError(f'attn_stages must hold bools, got {attn_stages!r}')
    where = {p: dict(attn_pool=pool) for p, chosen, pool in zip(patterns, attn_stages, attn_pool) if chosen}
    if where:
        augment(model, where=where, img_size=img_size, **dataclasses.asdict(args))


class NeedsMemoryError(InputError):
    """A network has a layer that cannot set its first values a second time: it is to be built with memory at once."""


def materialize(model: nn.Module, device: str | torch.device | None, **init_args: Any) -> None:
    """Give a network built on the `building_device` its memory and its initial weights.

    Usually that is the meta device, because layers that augmentation replaces need neither.

    Args:
        model: Network with an `init_weights` that sets every parameter and buffer.
        device: Where it shall live; None for torch's default device.
        **init_args: For `init_weights`.

    Raises:
        NeedsMemoryError: It was built without memory, and a layer of the caller's choice (`act_layer`, `norm_layer`, …)
            has weights, or statistics, and no `reset_parameters`.
    """
    device = torch.device(torch.get_default_device() if device is None else device)
    if device.type != 'meta':
        if next(model.parameters()).is_meta:
            for name, module in model.named_modules():
                own = itertools.chain(module.parameters(recurse=False), module.buffers(recurse=False))
                if next(own, None) is not None and not hasattr(module, 'reset_parameters'):
                    raise NeedsMemoryError(f'{name}, a {type(module).__name__}, has weights and no reset_parameters: '
                                           'timm.create_model builds such a network')
            model.to_empty(device=device)
        cast(Any, model).init_weights(**init_args)


def reset_parameters(model: nn.Module, kind: type[nn.Module] = nn.Module) -> None:
    """Call every module's own `reset_parameters`, so that no parameter or buffer keeps an old value.

    After its own rule for convolutions a network calls it again, for `GridAttention` alone: to that rule the two
    projections were convolutions too.
    """
    found = [m for m in model.modules() if isinstance(m, kind) and hasattr(m, 'reset_parameters')]
    for module in found:
        cast(Any, module).reset_parameters()
    # layers of timm that start their own parts in some other way (non-local, lambda), the inner ones first
    for module in reversed(found):
        own = isinstance(module, AugmentedConv2d | GridAttention)
        if not own and any(hasattr(part, 'reset_parameters') for part in module.children()):
            cast(Any, module).reset_parameters()


def rel_table_names(model: nn.Module) -> set[str]:
    """Names of the relative tables, which take no weight decay."""
    return {name for name, _ in model.named_parameters() if name.endswith(('.rel_h', '.rel_w'))}


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Bring a checkpoint into the model's shape; what fits already is untouched.

    Convolutions that are plain in the checkpoint and augmented in the model keep the filters that stay. Relative tables
    are interpolated to the model's sizes. Attention whose queries are far from the size of what they meet would learn
    badly; it is divided anew, and computes what it did.
    """
    plain = {
        name: module for name, module in model.named_modules()
        if isinstance(module, AugmentedConv2d) and f'{name}.weight' in state_dict}
    # never the caller's own: from a table resized in there, the next model of another size would get one resized twice
    state_dict = plain_to_augmented(state_dict, model, plain)[0] if plain else dict(state_dict)
    for name in rel_table_names(model):
        table, own = state_dict.get(name), model.get_parameter(name)
        if table is not None and table.shape[0] != own.shape[0] and table.shape[1] == own.shape[1]:
            size = (own.shape[0] + 1) // 2
            state_dict[name] = resize_rel_table(table.float(), size).to(table.dtype)
    for prefix, module in model.named_modules():
        if isinstance(module, SoftmaxAttention) and f'{prefix}.q_const' in state_dict:
            state_dict.update(_balance(prefix, module, state_dict))
    return state_dict


def _balance(prefix: str, attn: SoftmaxAttention, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `balanced` changes of an attention's weights, nothing where they are not all there in their shapes."""
    shapes = {name: parameter.shape for name, parameter in attn.named_parameters() if not name.startswith('proj.')}
    shapes['q_const'] = torch.Size([attn.num_heads, attn.dk // attn.num_heads])
    found = {name: state_dict[f'{prefix}.{name}'] for name in shapes if f'{prefix}.{name}' in state_dict}
    if {name: tensor.shape for name, tensor in found.items()} != shapes:
        return {}
    return {f'{prefix}.{name}': tensor for name, tensor in balanced(found).items()}
