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
from torch import fx, nn

from aa_models.errors import InputError, InputTypeError

from .channel_paths import follow_channels, trace_calls
from .imitation import imitate
from .passes import Passes, evaluation_mode
from .patches import can_read_patches, input_patches, output_pixels
from .ridge import Moments, add_gram, ridge_regression

_logger = logging.getLogger(__name__)

LEAST = 16  # images


Images = torch.Tensor | Iterable[torch.Tensor | Sequence[torch.Tensor]]


class Calibrated(NamedTuple):
    """How far an output is from the plain network's, relative to its standard deviation."""
    layer: str  # the augmented one
    fitted: str  # its attention, or the convolution that reads it
    before: float
    after: float


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
def check_calibration(model: nn.Module, batches: Sequence[torch.Tensor]) -> None:
    """Refuse pictures that a network cannot run on, before anything of it is changed.

    Raises:
        InputError: It fails on one of them.
    """
    like = next(model.parameters())
    try:
        with evaluation_mode(model):
            model(batches[0][:1].to(like.device, like.dtype))
    except Exception as error:  # each network says this in its own way
        raise InputError(f'calibrate holds images that the model cannot run on: {error}') from error


@torch.no_grad()
def calibrate_layers(
        plain: nn.Module, model: nn.Module, layers: Mapping[str, torch.Tensor | None], batches: Sequence[torch.Tensor],
) -> Iterator[Calibrated]:
    """Fit augmented layers and what reads them, in place.

    Args:
        plain: The network before conversion.
        model: The converted one.
        layers: The augmented layers in any order, each with the filters (dv, C_in, height, width) that its attention
            imitates, None where it does not.
        batches: Images (B, C, H, W), normalised as the network takes them.

    Yields:
        A row for each fit, at most two for a layer.
    """
    like = next(model.parameters())
    batches = [batch.to(like.device, like.dtype) for batch in batches]
    with evaluation_mode(plain, model):
        calls = trace_calls(model)
        passes = Passes(model, batches, calls)
        imitators = {name: filters for name, filters in layers.items()
                     if filters is not None and can_read_patches(model.get_submodule(name))}
        readers = {reader: layer for layer in layers if (reader := _reader(model, layer, calls))}
        for layer in layers:
            if layer not in imitators and layer not in readers.values():
                _logger.warning('%s is not calibrated: no plain convolution is known to be alone in reading it', layer)
        outputs = _outputs(plain, readers, batches)
        for name in sorted([*imitators, *readers], key=passes.place):
            norm, inputs = follow_channels(model, name, calls).norm, passes.inputs(name)
            if name in readers:
                yield _fit_reader(model, readers[name], name, norm, inputs, outputs[name])
            else:
                yield _fit_attention(model, name, norm, inputs, imitators[name], sum(map(len, batches)))


def _reader(model: nn.Module, layer: str, calls: Mapping[str, list[fx.Node]] | None) -> str | None:
    """The name of the convolution that can make good what a layer misses, None where there is none."""
    reader = follow_channels(model, layer, calls).reader
    if reader and type(conv := model.get_submodule(reader)) is nn.Conv2d and can_read_patches(conv):
        return reader
    return None


def _fit_attention(
        model: nn.Module, layer: str, norm: str | None, inputs: Iterable[torch.Tensor], filters: torch.Tensor,
        images: int,
) -> Calibrated:
    """Have a layer's attention imitate the lost filters as well as it can on the inputs that it gets."""
    conv, target = cast(Any, model.get_submodule(layer)), filters.double().flatten(1)
    gram, total, count = target.new_zeros(target.shape[1], target.shape[1]), torch.zeros_like(target[0]), 0
    for x in inputs:
        x = input_patches(x, conv, images).flatten(0, 1).double()
        add_gram(gram, x)
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
    images = sum(map(len, batches))
    hooks = [
        plain.get_submodule(name).register_forward_hook(
            lambda conv, inputs, y, into=into: into.append(output_pixels(y, conv, images)))
        for name, into in found.items()]
    try:
        for batch in batches if found else ():
            plain(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _fit_reader(
        model: nn.Module, layer: str, reader: str, norm: str | None, inputs: Iterable[torch.Tensor],
        outputs: Sequence[torch.Tensor],
) -> Calibrated:
    """Solve for the reader's weights, and for a constant where a bias or the batch norm behind it can take one."""
    conv = cast(nn.Conv2d, model.get_submodule(reader))
    mean = cast(torch.Tensor | None, getattr(model.get_submodule(norm), 'running_mean', None)) if norm else None
    old, weights = conv.weight.flatten(1).double().T, conv.weight[0].numel()  # (inputs, outputs)
    if conv.bias is not None or mean is not None:
        old = torch.cat([old, torch.zeros_like(old[:1]) if conv.bias is None else conv.bias.double().unsqueeze(0)])
    halves, seen, images = (Moments(old), Moments(old)), 0, sum(map(len, outputs))
    for x, y in zip(inputs, outputs):
        x = input_patches(x, conv, images)
        for parity, half in enumerate(halves):  # by images: pixels of one are too much alike to test each other
            inside, outside = (t[(seen + parity) % 2::2].flatten(0, 1).double() for t in (x, y))
            half.add(torch.cat([inside, inside.new_ones(len(inside), len(old) - weights)], 1), outside)
        seen += len(x)
    total = halves[0] + halves[1]
    new = ridge_regression(*halves, old, weights)
    conv.weight.copy_(new[:weights].T.reshape(conv.weight.shape))
    if conv.bias is not None:
        conv.bias.copy_(new[-1])
    elif mean is not None:
        mean -= new[-1].to(mean.dtype)
    row = Calibrated(layer, reader, total.error(old), total.error(new))
    _logger.info('%s: the output of %s is off by %.3f of its spread, calibrated by %.3f', *row)
    return row
