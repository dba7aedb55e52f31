"""The most probable classes of pictures."""
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_input_data_config
from torch import nn

from aa_models.data.labels import class_description, class_name, with_names
from aa_models.data.pictures import picture_mode, read_picture
from aa_models.errors import InputError
from aa_models.models.create import cfg_of, num_classes_of
from aa_models.models.memory import check_memory

Read = Callable[[str | Path, str], Image.Image]


@torch.inference_mode()
def predict(
        model: nn.Module, paths: Iterable[str | Path], top: int = 5, *, batch_size: int = 1, read: Read = read_picture,
        report: Callable[[InputError], object] | None = None, done: Callable[[], object] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """Classify pictures, each read once.

    Args:
        model: Classifier made by timm, in eval mode.
        paths: Picture files.
        top: Number of classes in an answer.
        batch_size: Pictures at once. One at a time no answer depends on which other pictures there are; in batches
            the last digits may.
        read: Reads one of `paths` in a mode of Pillow.
        report: Told of each file that cannot be read; by default the first one ends the work.
        done: Called after each picture.

    Yields:
        `dict(file=, predictions=[dict(index=, label=, probability=), ...])`, the most probable class first. A class
        without a name has its index as label; one that is described in words has a `description` too.

    Raises:
        InputError: A model without classes or for other input than pictures, or a file that is no picture.
    """
    mode = picture_mode(resolve_input_data_config(model)['input_size'][0])
    if not num_classes_of(model):
        raise InputError('the model has no classes: it computes features only')
    transform, cfg, parameter = make_transform(model), with_names(cfg_of(model)), next(model.parameters())

    def image_of(path: str | Path) -> torch.Tensor:  # (C, H, W)
        picture = read(path, mode)
        try:
            return transform(picture)
        except InputError as error:
            raise InputError(f'{path}: {error}') from error

    def pictures() -> Iterator[tuple[str | Path, torch.Tensor]]:
        for path in paths:
            try:
                yield path, image_of(path)
            except InputError as error:
                if report is None:
                    raise
                report(error)
            done()

    found = pictures()
    while batch := list(itertools.islice(found, batch_size)):
        images = torch.stack([picture for _, picture in batch]).to(parameter.device, parameter.dtype)
        for (path, _), logits in zip(batch, model(images)):  # (num_classes,)
            best = logits.float().softmax(0).topk(min(top, len(logits)))
            yield dict(file=str(path), predictions=[
                dict(index=i, **_named(cfg, i), probability=p)
                for p, i in zip(best.values.tolist(), best.indices.tolist())])


def make_transform(model: nn.Module, **changes: Any) -> Callable[[Image.Image], torch.Tensor]:
    """Make the preprocessing that a model was evaluated with: a picture in, (C, H, W) out.

    Args:
        model: Made by timm.
        **changes: What replaces values of its config, see `timm.data.create_transform`.

    Raises:
        InputError: The config holds values that are not possible. From the result, a `TooLargeError` for a picture
            so long and thin that it would not fit into memory, resized.
    """
    config = {**resolve_input_data_config(model), **changes}
    try:
        transform = create_transform(**config)
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f'no preprocessing can be made of {config}: {type(error).__name__}: {error}') from error
    side = max(config['input_size'][1:]) / config['crop_pct']

    def bounded(picture: Image.Image) -> torch.Tensor:
        long, short = max(picture.size), max(1, min(picture.size))
        what = f'{picture.width} × {picture.height} pixels, resized for the network,'
        check_memory(4 * side ** 2 * long / short, what)
        return transform(picture)

    return bounded


def _named(cfg: Mapping[str, Any], index: int) -> dict[str, str]:
    description = class_description(cfg, index)
    return dict(label=class_name(cfg, index), **({} if description is None else dict(description=description)))
