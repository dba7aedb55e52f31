"""Calibrate a converted network: what reads an augmented layer is fitted to what it computed in the plain network.

A converted layer lacks some of the plain one's channels and has attention's instead. The convolution that reads them
can make good for most of that, because channels of a trained network are correlated. Layer by layer, from the first to
the last, its weights are solved by ridge regression towards the old ones, so that on a few hundred pictures its output,
computed from what the converted network has by then, is that of the plain network. No label and no gradient is used.
"""
import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from aa_models.errors import InputError, InputTypeError

from .channel_paths import follow_channels, trace_calls

_logger = logging.getLogger(__name__)

_RIDGES = (1e-12, 1e-7, 1e-5, 1e-3, 1e-2, 1e-1, 1.)  # of the inputs' mean square; half of the images choose
LEAST = 16  # images
_SAMPLES = 30  # positions of the map for each weight of an output channel, at most


Images = torch.Tensor | Iterable[torch.Tensor | Sequence[torch.Tensor]]


class Calibrated(NamedTuple):
    """How far the output of a convolution is from the plain network's, relative to its standard deviation."""
    layer: str  # the augmented one
    reader: str  # the convolution fitted
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
def fit_readers(
        plain: nn.Module, model: nn.Module, layers: Iterable[str], batches: Sequence[torch.Tensor],
) -> list[Calibrated]:
    """Fit what reads the augmented layers, in place.

    Layers whose channels lead to no single convolution are left as they are, with a warning.

    Args:
        plain: The network before conversion.
        model: The converted one.
        layers: The augmented layers in the order in which they run.
        batches: Images (B, C, H, W), normalised as the network takes them.

    Returns:
        A row for each convolution that was fitted.
    """
    calls, rows = trace_calls(model), []
    modes = [(module, module.training) for net in (plain, model) for module in net.modules()]
    plain.eval()
    model.eval()
    try:
        for layer in layers:
            path = follow_channels(model, layer, calls)
            reader = model.get_submodule(path.reader) if path.reader else None
            # what pads by other rules than `unfold` is no plain one
            if path.reader is None or type(reader) is not nn.Conv2d or isinstance(reader.padding, str) or (
                    reader.padding_mode != 'zeros'):
                _logger.warning('%s is not calibrated: no plain convolution is known to be alone in reading it', layer)
                continue
            norm = follow_channels(model, path.reader, calls).norm
            rows.append(_fit(plain, model, layer, path.reader, norm, batches))
    finally:
        for module, training in modes:
            module.training = training
    return rows


class _Moments:
    """What the squared error of a linear map depends on, summed over samples."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.gram, self.cross = weight.new_zeros(len(weight), len(weight)), torch.zeros_like(weight)
        self.squares, self.sums, self.count = torch.zeros_like(weight[0]), torch.zeros_like(weight[0]), 0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Count samples x (N, inputs) and the outputs y (N, outputs) that they should give."""
        self.gram += x.T @ x
        self.cross += x.T @ y
        self.squares += y.square().sum(0)
        self.sums += y.sum(0)
        self.count += len(y)

    def solve(self, old: torch.Tensor, inputs: int, ridge: float) -> torch.Tensor:
        """The weights of least error, drawn to the old ones. What comes after the inputs, the constant, is free."""
        scale = max(float(self.gram.diagonal()[:inputs].mean()), 1e-30)  # 0 where no input is ever active
        penalty = torch.full_like(self.gram[0], ridge * scale)
        penalty[inputs:] = 0.
        return torch.linalg.solve(self.gram + penalty.diag(), self.cross + penalty.unsqueeze(1) * old)

    def error(self, weight: torch.Tensor) -> float:
        """Root mean squared error, relative to the standard deviation of the outputs."""
        left = self.squares.sum() - 2 * (weight * self.cross).sum() + (weight * (self.gram @ weight)).sum()
        spread = (self.squares - self.sums.square() / max(self.count, 1)).sum().clamp_min(1e-30)
        return math.sqrt(max(float(left), 0.) / float(spread))


def _fit(
        plain: nn.Module, model: nn.Module, layer: str, reader: str, norm: str | None, batches: Sequence[torch.Tensor],
) -> Calibrated:
    """Solve for the reader's weights, and for a constant where a bias or the batch norm behind it can take one."""
    conv = cast(nn.Conv2d, model.get_submodule(reader))
    mean = cast(torch.Tensor | None, getattr(model.get_submodule(norm), 'running_mean', None)) if norm else None
    old, inputs = conv.weight.flatten(1).double().T, conv.weight[0].numel()  # (inputs, outputs)
    if conv.bias is not None or mean is not None:
        old = torch.cat([old, torch.zeros_like(old[:1]) if conv.bias is None else conv.bias.double().unsqueeze(0)])
    halves, total, images = (_Moments(old), _Moments(old)), _Moments(old), sum(map(len, batches))
    seen = 0
    for batch in batches:
        batch = batch.to(conv.weight.device, conv.weight.dtype)
        x = F.unfold(
            _seen(model, reader, batch, 0), conv.kernel_size, conv.dilation, cast(Any, conv.padding), conv.stride)
        x, y = x.movedim(1, -1), _seen(plain, reader, batch, 1).flatten(2).movedim(1, -1)  # (B, positions, channels)
        most = -(-_SAMPLES * len(old) // images)
        chosen = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))[:most].to(x.device)
        for parity, half in enumerate(halves):  # by images: positions of one are too much alike to test each other
            inside, outside = (t[(seen + parity) % 2::2][:, chosen].flatten(0, 1).double() for t in (x, y))
            half.add(torch.cat([inside, inside.new_ones(len(inside), len(old) - inputs)], 1), outside)
        seen += len(batch)
    for half in halves:
        for name, value in vars(half).items():
            setattr(total, name, getattr(total, name) + value)
    ridge = min(_RIDGES, key=lambda ridge: halves[1].error(halves[0].solve(old, inputs, ridge)))
    new = total.solve(old, inputs, ridge)
    conv.weight.copy_(new[:inputs].T.reshape(conv.weight.shape))
    if conv.bias is not None:
        conv.bias.copy_(new[-1])
    elif mean is not None:
        mean -= new[-1].to(mean.dtype)
    row = Calibrated(layer, reader, total.error(old), total.error(new))
    _logger.info('%s: the output of %s is off by %.3f of its spread, calibrated by %.3f', *row)
    return row


def _seen(net: nn.Module, name: str, batch: torch.Tensor, side: int) -> torch.Tensor:
    """The input (side 0) or the output (1) of a module; what runs after it is not run."""
    found: list[torch.Tensor] = []

    def stop(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        found.append((inputs[0], output)[side])
        raise _Reached

    handle = net.get_submodule(name).register_forward_hook(stop)
    try:
        net(batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]
