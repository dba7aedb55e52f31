"""Sizes of the training pictures by epoch: small ones first make an epoch cheaper (progressive resizing)."""
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from aa_models.errors import InputError
from aa_models.models.create import check_image_size

from .recipe import Recipe

InputSize = tuple[int, int, int]  # channels, height and width


def training_sizes(recipe: Recipe, input_size: InputSize) -> dict[int, InputSize]:
    """The size that training pictures have from an epoch on, by that epoch, in rising order.

    Args:
        recipe: Its `train_img_size` names them; before the first one named, and without any, it is `input_size`.
        input_size: What validation has.

    Raises:
        InputError: There are such sizes, and the network's input is not square.
    """
    if recipe.train_img_size and input_size[1] != input_size[2]:
        size = ' × '.join(map(str, input_size[1:]))
        raise InputError(f'train_img_size = {recipe.train_img_size} needs a square input, not {size}')
    return {0: input_size} | {
        epoch: (input_size[0], size, size) for epoch, size in sorted(recipe.train_img_size.items())}


def check_sizes(model: nn.Module, sizes: Iterable[InputSize]) -> None:
    """Refuse sizes that a network does not take.

    Raises:
        InputError: It is made for one size alone.
    """
    for size in set(sizes):
        try:
            check_image_size(model, size)
        except InputError as error:
            raise InputError(f'train_img_size: {error}') from error


class ByEpoch:
    """A transform that is another one from some epochs on.

    Args:
        transforms: By the epoch from which each counts; one of them from epoch 0.
    """

    def __init__(self, transforms: Mapping[int, Any]) -> None:
        self.transforms = dict(sorted(transforms.items()))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Take the transform of an epoch; a loader's workers, which start anew for each, get it with the dataset."""
        self.current = [transform for start, transform in self.transforms.items() if start <= epoch][-1]

    def __call__(self, picture: Any) -> Any:
        return self.current(picture)
