"""Make chosen convolutions of a convnet attention-augmented.

Every augmented model of the package is made by this function (Attention Augmented Convolutional Networks, arXiv
1904.09925, section 3.2).
"""
import copy
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import torch
from timm.layers import to_2tuple
from timm.models import get_model_input_config
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from aa_models.errors import InputError, InputTypeError, UserError
from aa_models.layers import AttentionArgs, AugmentedConv2d
from aa_models.layers.attention_args import names_attention_args
from aa_models.layers.head_dims import is_int

from .calibration import Calibrated, Images, calibrate_layers, check_calibration, read_images
from .channel_paths import has_computed_weights
from .dataless import is_dataless
from .description import describe, layer_args
from .selection import Where, select
from .warm_start import plain_to_augmented

_logger = logging.getLogger(__name__)


def trace_map_sizes(
        model: nn.Module, names: Collection[str], in_chans: int, img_size: tuple[int, int],
) -> dict[str, tuple[int, int]]:
    """Find the output size (H, W) of submodules by one forward pass on the meta device, which computes nothing.

    What fails behind the last of them does not matter, such as a classifier that gets maps where nothing pools them.

    Args:
        model: Any model of images; it is left as it is.
        names: Submodules to watch.
        in_chans: Channels of the model's input.
        img_size: Height and width of the model's input, pixels.
    """
    sizes: dict[str, tuple[int, int]] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: sizes.__setitem__(name, tuple(output.shape[-2:])))
        for name in names]
    # every module once, also where it has two names: given both, torch leaves its tensors on the meta device
    meta = {
        f'{prefix}.{name}'.lstrip('.'): tensor.to('meta') for prefix, module in model.named_modules()
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]}
    # tensors that are neither take part, too: a mean to subtract, the product that an old weight norm leaves behind
    loose = [(vars(m), name, t) for m in model.modules() for name, t in vars(m).items() if isinstance(t, torch.Tensor)]
    averaging = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.momentum is None]
    dtype = next((t.dtype for t in meta.values() if t.is_floating_point()), torch.get_default_dtype())
    try:
        for attributes, name, tensor in loose:
            attributes[name] = tensor.to('meta')
        for norm in averaging:
            norm.eval()  # in training these divide by the number of batches, which the meta device does not know
        # two images, because batch norm refuses to train on a single value
        image = torch.empty((2, in_chans, *img_size), device='meta', dtype=dtype)
        functional_call(model, meta, (image,), tie_weights=False)
    except Exception as error:
        if 'overflow' in str(error):  # torch's word for more bytes than it can count
            raise InputError(f'img_size = {img_size} is larger than any memory') from error
        if sizes.keys() < set(names):
            raise
    finally:
        for hook in hooks:
            hook.remove()
        for attributes, name, tensor in loose:
            attributes[name] = tensor
        for norm in averaging:
            norm.train()
    return sizes


def image_size(img_size: Any) -> tuple[int, int]:
    """Height and width in pixels; `img_size` is one number for both, or a pair.

    Raises:
        InputError: It is neither.
    """
    size = to_2tuple(img_size)
    if len(size) != 2 or not all(is_int(n) and n > 0 for n in size):
        raise InputError(f'img_size must be an int or a pair of them, pixels, got {img_size!r}')
    return int(size[0]), int(size[1])  # of any library's integers


def input_channels(model: nn.Module) -> int:
    """Channels of a network's pictures: timm's say it, of others it is what the first convolution reads."""
    first = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    return getattr(model, 'in_chans', None) or first  # a stem may rearrange pixels before its convolution


def is_compiled(model: nn.Module) -> bool:
    """Whether a network, or a part of it, went through `torch.compile`."""
    return any(hasattr(m, '_orig_mod') or m._compiled_call_impl is not None for m in model.modules())


@names_attention_args
def augment(
        model: nn.Module, *, where: Where = '*.*', img_size: int | tuple[int, int] | None = None,
        warm_start: bool = True, calibrate: Images | None = None, report: Callable[[Calibrated], object] | None = None,
        **attn_args: Any,
) -> nn.Module:
    """Replace chosen convolutions of a convnet by attention-augmented ones of the same shape, in place.

    The new layers keep the device, dtype and mode of those they replace and, by default, their filters but for those
    that give way to attention; filters that were frozen stay so, and the attention learns. What was replaced, and which
    filters gave way and why, is logged (INFO) for each layer; in the model, the new layers are its `AugmentedConv2d`
    modules. `timm.models.save_for_hf` saves a network that timm made so that timm loads it again.

    Args:
        model: A convnet, from timm or elsewhere.
        where: Which convolutions: a pattern of their module names (as in a shell), several of them, or a function of
            name and module that returns a bool. A mapping from patterns to the attention's arguments
            (`{'layer2.*.conv1': dict(attn_pool=2)}`) sets them for those layers; the first pattern counts. A pattern
            or function chooses among the convolutions larger than 1×1 and, if it fits none of them, among the others.
            By default all but those at the top level, where networks keep their stem. What is augmented already stays
            as it is. A mapping may hold `feat_size`, too.
        img_size: Size of the input in pixels that the relative tables are made for; by default the model's, as
            `timm.models.get_model_input_config` has it: what it was resized to, else that of its cfg, else 224.
        warm_start: Keep what the model has learned: all filters but those whose loss changes the network least
            (`aa_models.augmentation.warm_start` says how they are found), which the attention imitates as far as it can
            (`aa_models.augmentation.imitation`). False draws the layers anew, to train from scratch.
        calibrate: A few hundred pictures, normalised as the model takes them: (B, C, H, W), batches of them or a
            loader. The new layers, and the convolutions that read them, are fitted to what the plain network computes
            (`aa_models.augmentation.calibration`). No labels are needed.
        report: Called with each fit of the calibration as soon as it is made: layer, what was fitted, error before and
            after.
        **attn_args: The attention's arguments: `dk`, `dv`, `num_heads`, `attention`, `pos_embed`, …, see
            `AugmentedConv2d`.

    Returns:
        The same model.

    Raises:
        ValueError: `where` (or one of its patterns) chooses nothing, or a layer cannot be augmented so; the model is
            unchanged then.
        TypeError: There is no such argument, or one is of the wrong kind.
    """
    if not isinstance(model, nn.Module):
        raise InputTypeError(f'model must be a torch.nn.Module, got {model!r}')
    if is_compiled(model):
        raise InputError('the model is compiled: augment it before torch.compile')
    args = AttentionArgs().replace(**attn_args)
    chosen = select(model, where)
    if img_size is None:
        img_size = get_model_input_config(model)['input_size'][-2:]
    size = image_size(img_size)
    in_chans = input_channels(model)
    batches = [] if calibrate is None else read_images(calibrate, in_chans)
    sizes = trace_map_sizes(model, chosen, in_chans, size)
    if idle := [name for name in chosen if name not in sizes]:
        if len(idle) == len(chosen):
            raise InputError(f'where={where!r} chooses {", ".join(idle)}, which a forward pass does not run')
        _logger.warning('%s: not augmented, because a forward pass does not run them', ', '.join(idle))
        chosen = {name: own for name, own in chosen.items() if name in sizes}
    all_args = {name: layer_args(*_own_args(name, sizes[name], args, own)) for name, own in chosen.items()}
    layers = {name: _augmented(model, name, own) for name, own in all_args.items()}
    learned = warm_start and not any(map(is_dataless, [*model.parameters(), *model.buffers()]))
    if batches and not learned:
        raise InputError('calibrate needs warm_start=True and a model with weights: what they compute is to be kept')
    if batches:
        check_calibration(model, batches)
    plain = copy.deepcopy(model) if batches else None
    weights, lost = plain_to_augmented(model.state_dict(), model, layers) if learned else (None, {})
    for name, layer in layers.items():
        if learned and layer.conv is not None:
            for kept, old in zip(layer.conv.parameters(), model.get_submodule(name).parameters()):
                kept.requires_grad_(old.requires_grad)
        model.set_submodule(name, layer)
        _logger.info(
            'augmented %s: %d of %d channels, map %s%s', name, layer.dv, layer.out_channels, sizes[name],
            '' if learned else ', drawn anew')
    if weights is not None:
        model.load_state_dict(weights)
    if plain is not None:
        for row in calibrate_layers(plain, model, {name: lost.get(name) for name in layers}, batches):
            if report:
                report(row)
    describe(model, all_args)
    return model


def _own_args(
        name: str, size: tuple[int, int], args: AttentionArgs, own: Mapping[str, Any],
) -> tuple[AttentionArgs, tuple[int, ...]]:
    """The arguments of a layer and the size of the map that its tables are made for, with what `where` has for it."""
    own = dict(own)
    feat_size = own.pop('feat_size', None)
    try:
        args = args.replace(**own)
    except UserError as error:
        raise type(error)(f'{name} cannot be augmented: {error}') from error
    return args, tuple(-(-n // args.attn_pool) for n in size) if feat_size is None else to_2tuple(feat_size)


def _augmented(model: nn.Module, name: str, args: Mapping[str, Any]) -> AugmentedConv2d:
    """The augmented layer in place of a convolution."""
    conv = cast(nn.Conv2d, model.get_submodule(name))
    if has_computed_weights(conv):
        raise InputError(f'{name} cannot be augmented: its weights are computed from others (pruned, normed, …)')
    if conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks or conv._backward_pre_hooks:
        raise InputError(f'{name} cannot be augmented: it has hooks, which would be lost; augment it before they are '
                         'registered')
    if conv.padding_mode != 'zeros':
        raise InputError(f'{name} cannot be augmented: its padding_mode is {conv.padding_mode!r}, possible is zeros')
    try:
        return AugmentedConv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
            conv.groups, conv.bias is not None, device=conv.weight.device, dtype=conv.weight.dtype,
            **args).train(conv.training)
    except UserError as error:
        raise type(error)(f'{name} cannot be augmented: {error}') from error
