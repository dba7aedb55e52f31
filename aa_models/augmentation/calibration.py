"""Calibrate a converted network on pictures, so that it computes what the plain one did.

Layer by layer, from the first to the last, on what the converted network has produced by then:

- The heads that imitate the lost filters (`imitation`) are fitted to how their inputs vary.
- What they miss, the convolution that reads the layer makes good for the most part, because the channels of a trained
  network are correlated. Its weights are solved by ridge regression towards the old ones, so that its output is that of
  the plain network.

No label and no gradient is used. Constants go into the batch norm that follows, or into the bias.
"""
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from aa_models.errors import InputError, InputTypeError

from .channel_paths import follow_channels, trace_calls
from .imitation import imitate
from .ridge import Moments, ridge_regression

_logger = logging.getLogger(__name__)

LEAST = 16  # images
_SAMPLES = 10  # positions of the map for each weight of an output channel, at most


Images = torch.Tensor | Iterable[torch.Tensor | Sequence[torch.Tensor]]


class Calibrated(NamedTuple):
    """How far an output is from the plain network's, relative to its standard deviation."""
    layer: str  # the augmented one
    fitted: str  # its attention, or the convolution that reads it
    before: float
    after: float


class _Reached(Exception):
    """A forward pass came to the module that was waited for."""


def read_images(images: Images, in_chans: int) -> list[torch.Tensor]:
    """Batches (B, C, H, W) of a tensor, of batches, or of a loader whose batches begin with the images.

    Raises:
        InputTypeError: It is none of these.
        InputError: There are too few images, or their number of channels is another one.
    """
    if isinstance(images, torch.Tensor):
        images = images.split(32) if images.dim() == 4 else [images]
    if not isinstance(images, Iterable):
        raise InputTypeError(f'calibrate must be images (B, C, H, W), batches of them or a loader, got {images!r}')
    batches: list[Any] = [batch[0] if isinstance(batch, (tuple, list)) else batch for batch in images]
    for batch in batches:
        if not isinstance(batch, torch.Tensor) or batch.dim() != 4:
            what: Any = tuple(batch.shape) if isinstance(batch, torch.Tensor) else type(batch).__name__
            raise InputTypeError(f'calibrate must be images (B, C, H, W), batches of them or a loader, got {what}')
        if batch.shape[1] != in_chans:
            raise InputError(f'calibrate holds images of {batch.shape[1]} channels, the model takes {in_chans}')
    if (count := sum(map(len, batches))) < LEAST:
        raise InputError(f'calibrate holds {count} images, at least {LEAST} are needed and some hundreds do well')
    return batches


@torch.no_grad()
def calibrate_layers(
        plain: nn.Module, model: nn.Module, layers: Mapping[str, torch.Tensor | None], batches: Sequence[torch.Tensor],
) -> Iterator[Calibrated]:
    """Fit augmented layers and what reads them, in place.

    Args:
        plain: The network before conversion.
        model: The converted one.
        layers: The augmented layers in the order in which they run, each with the filters (dv, C_in, height, width)
            that its attention imitates, None where it does not.
        batches: Images (B, C, H, W), normalised as the network takes them.

    Yields:
        A row for each fit, at most two for a layer.
    """
    calls = trace_calls(model)
    modes = [(module, module.training) for net in (plain, model) for module in net.modules()]
    plain.eval()
    model.eval()
    try:
        readers = {layer: reader for layer in layers if (reader := _reader(model, layer, calls))}
        outputs = _outputs(plain, set(readers.values()), batches)
        for layer, filters in layers.items():
            if filters is not None and _can_unfold(model.get_submodule(layer)):
                yield _fit_attention(model, layer, follow_channels(model, layer, calls).norm, filters, batches)
            if reader := readers.get(layer):
                norm = follow_channels(model, reader, calls).norm
                yield _fit_reader(model, layer, reader, norm, batches, outputs[reader])
            elif filters is None:
                _logger.warning('%s is not calibrated: no plain convolution is known to be alone in reading it', layer)
    finally:
        for module, training in modes:
            module.training = training


def _reader(model: nn.Module, layer: str, calls: Mapping[str, list[fx.Node]] | None) -> str | None:
    """The name of the convolution that can make good what a layer misses, None where there is none."""
    reader = follow_channels(model, layer, calls).reader
    if reader and type(conv := model.get_submodule(reader)) is nn.Conv2d and _can_unfold(conv):
        return reader
    return None


def _can_unfold(conv: nn.Module) -> bool:
    """Whether a convolution's inputs are laid out by `unfold`: it pads with as many zeros on either side, or not."""
    return not isinstance(conv.padding, str) and getattr(conv, 'padding_mode', 'zeros') == 'zeros'


def _fit_attention(
        model: nn.Module, layer: str, norm: str | None, filters: torch.Tensor, batches: Sequence[torch.Tensor],
) -> Calibrated:
    """Have a layer's attention imitate the lost filters as well as it can on the inputs that it gets."""
    conv, target = cast(Any, model.get_submodule(layer)), filters.double().flatten(1)
    gram, total, count = target.new_zeros(target.shape[1], target.shape[1]), torch.zeros_like(target[0]), 0
    for batch in batches:
        x = _seen(model, layer, batch.to(filters.device, filters.dtype))
        x = _patches(x, conv, batches).flatten(0, 1).double()
        gram += x.T @ x
        total += x.sum(0)
        count += len(x)
    mean = total / count
    covariance = gram / count - mean.outer(mean)

    def spread(weight: torch.Tensor) -> float:
        return max(float(((weight @ covariance) * weight).sum()), 0.)

    before, left = (target - imitate(conv, filters, known).double().flatten(1) for known in (None, covariance))
    running = cast(torch.Tensor | None, getattr(model.get_submodule(norm), 'running_mean', None)) if norm else None
    if running is not None:
        running[-conv.dv:] -= (left @ mean).to(running.dtype)
    elif conv.attn.proj.bias is not None:
        conv.attn.proj.bias += (left @ mean).to(filters.dtype)
    errors = (math.sqrt(spread(missed) / max(spread(target), 1e-30)) for missed in (before, left))
    row = Calibrated(layer, f'{layer}.attn', *errors)
    _logger.info('%s: %s misses %.3f of the spread of the lost filters, calibrated %.3f', *row)
    return row


def _outputs(
        plain: nn.Module, readers: Iterable[str], batches: Sequence[torch.Tensor],
) -> dict[str, list[torch.Tensor]]:
    """What the readers give in the plain network, batch by batch, (B, pixels, C) of the pixels that are looked at."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in readers}

    def keep(conv: nn.Module, name: str, y: torch.Tensor) -> None:
        y = y.flatten(2).movedim(1, -1)
        found[name].append(y[:, _places(y.shape[1], cast(nn.Conv2d, conv), batches).to(y.device)])

    hooks = [
        plain.get_submodule(name).register_forward_hook(lambda conv, inputs, y, name=name: keep(conv, name, y))
        for name in found]
    try:
        like = next(plain.parameters())
        for batch in batches if found else ():
            plain(batch.to(like.device, like.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _fit_reader(
        model: nn.Module, layer: str, reader: str, norm: str | None, batches: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
) -> Calibrated:
    """Solve for the reader's weights, and for a constant where a bias or the batch norm behind it can take one."""
    conv = cast(nn.Conv2d, model.get_submodule(reader))
    mean = cast(torch.Tensor | None, getattr(model.get_submodule(norm), 'running_mean', None)) if norm else None
    old, inputs = conv.weight.flatten(1).double().T, conv.weight[0].numel()  # (inputs, outputs)
    if conv.bias is not None or mean is not None:
        old = torch.cat([old, torch.zeros_like(old[:1]) if conv.bias is None else conv.bias.double().unsqueeze(0)])
    halves, seen = (Moments(old), Moments(old)), 0
    for batch, y in zip(batches, outputs):
        x = _patches(_seen(model, reader, batch.to(conv.weight.device, conv.weight.dtype)), conv, batches)
        for parity, half in enumerate(halves):  # by images: pixels of one are too much alike to test each other
            inside, outside = (t[(seen + parity) % 2::2].flatten(0, 1).double() for t in (x, y))
            half.add(torch.cat([inside, inside.new_ones(len(inside), len(old) - inputs)], 1), outside)
        seen += len(batch)
    total = halves[0] + halves[1]
    new = ridge_regression(*halves, old, inputs)
    conv.weight.copy_(new[:inputs].T.reshape(conv.weight.shape))
    if conv.bias is not None:
        conv.bias.copy_(new[-1])
    elif mean is not None:
        mean -= new[-1].to(mean.dtype)
    row = Calibrated(layer, reader, total.error(old), total.error(new))
    _logger.info('%s: the output of %s is off by %.3f of its spread, calibrated by %.3f', *row)
    return row


def _patches(x: torch.Tensor, conv: nn.Module, batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """The inputs (B, pixels, I) of some output pixels of a convolution, the same of every map."""
    like = cast(nn.Conv2d, conv)
    x = F.unfold(x, like.kernel_size, like.dilation, cast(Any, like.padding), like.stride).movedim(1, -1)
    return x[:, _places(x.shape[1], like, batches).to(x.device)]


def _places(pixels: int, conv: nn.Conv2d, batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Which of the pixels of a convolution's output map are looked at."""
    inputs = conv.in_channels * math.prod(conv.kernel_size)
    most = -(-_SAMPLES * inputs // sum(map(len, batches)))
    return torch.randperm(pixels, generator=torch.Generator().manual_seed(0))[:most]


def _seen(net: nn.Module, name: str, batch: torch.Tensor) -> torch.Tensor:
    """The input of a module; neither it nor what comes after it is run."""
    found: list[torch.Tensor] = []

    def stop(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append(inputs[0])
        raise _Reached

    handle = net.get_submodule(name).register_forward_pre_hook(stop)
    try:
        net(batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]
