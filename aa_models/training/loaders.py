"""From a dataset to the loaders of training and validation, all of them timm's."""
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_loader, resolve_data_config
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from torch import nn
from torchvision import transforms

from aa_models.augmentation.conversion import input_channels
from aa_models.data.pictures import in_rgb
from aa_models.errors import InputError
from aa_models.models.memory import check_pass

from .datasets import AnyDataset
from .device_cache import CachedLoader
from .image_sizes import ByEpoch, InputSize, training_sizes
from .recipe import Recipe

Config = dict[str, Any]
DATA_KEYS = ('img_size', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct')


def data_config_of(model: nn.Module, recipe: Recipe) -> Config:
    """Size, mean, std, filter and crop of the pictures: the recipe's, or those of the model's cfg where it has None.

    Raises:
        InputError: The model takes pictures of other channels than red, green and blue.
    """
    if (channels := input_channels(model)) != 3:
        raise InputError(f'the model reads {channels} channels, and datasets are read in 3, red, green and blue')
    return resolve_data_config({key: getattr(recipe, key) for key in DATA_KEYS}, model=model)


def size_text(input_size: Sequence[int]) -> str:
    """(C, H, W) for a reader: `'128'` where it is square, else `'96 × 160'`."""
    height, width = input_size[1:]
    return f'{height}' if height == width else f'{height} × {width}'


def check_batch(model: nn.Module, input_size: Sequence[int], recipe: Recipe) -> None:
    """Refuse batches of pictures (C, H, W) for which there is no memory, as `check_pass` does."""
    what = f'batch_size = {recipe.batch_size} with {size_text(input_size)} px'
    check_pass(model, (recipe.batch_size, *input_size), what)


def training_size_text(recipe: Recipe, input_size: InputSize) -> str:
    """The sizes of the training pictures for a reader: `'64, after 8 epochs at 96'`."""
    first, *later = training_sizes(recipe, input_size).items()
    return ''.join([size_text(first[1]), *(f', after {epoch} epochs at {size_text(size)}' for epoch, size in later)])


class RandomShift:
    """Shift a picture by up to `most` pixels in each direction, reflecting it at the border.

    The result is that of reflective padding and a random crop to the original size, without the padded copy.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, picture: Image.Image) -> Image.Image:
        pixels = np.asarray(picture)  # (H, W) or (H, W, channels)
        if min(pixels.shape[:2]) <= self.most:
            raise InputError(f'crop_padding = {self.most} needs pictures larger than that, not {picture.size}')
        rows, columns = map(self._source, pixels.shape[:2])
        return Image.fromarray(pixels[rows][:, columns])

    def _source(self, size: int) -> np.ndarray:
        """Along one axis of `size` pixels, the pixel of the source that each pixel of the result shows."""
        index = np.abs(np.arange(size) + random.randint(-self.most, self.most))
        return size - 1 - np.abs(size - 1 - index)


def make_train_loader(
        dataset: AnyDataset, recipe: Recipe, config: Config, device: torch.device, distributed: bool,
) -> Any:
    """Batches of augmented images, normalised and on the device; in the sizes that the recipe has for each epoch."""
    if recipe.device_cache:
        return _filled(CachedLoader(dataset, recipe, config, device, distributed), dataset, recipe)
    transforms: dict[int, Any] = {}
    for epoch, input_size in training_sizes(recipe, config['input_size']).items():
        loader = _train_loader(dataset, recipe, config | dict(input_size=input_size), device, distributed)
        transforms[epoch] = dataset.transform
    if len(transforms) > 1:
        dataset.transform = ByEpoch(transforms)
    if distributed and hasattr(loader.sampler, 'seed'):
        loader.sampler.seed = recipe.seed
    return _filled(loader, dataset, recipe)


def _filled(loader: Any, dataset: AnyDataset, recipe: Recipe) -> Any:
    """The loader, if it has a batch."""
    if len(loader) == 0:
        raise InputError(f'{len(dataset)} training images do not fill one batch (batch_size = {recipe.batch_size})')
    return loader


def _train_loader(dataset: AnyDataset, recipe: Recipe, config: Config, device: torch.device, distributed: bool) -> Any:
    """timm's loader of one size, which gives the dataset its transform."""
    trivial = recipe.auto_augment == 'ta_wide'
    height, width = config['input_size'][1:]
    ratio = tuple(ratio * width / height for ratio in recipe.ratio)  # validation does not stretch pictures either
    options = _loader_options(recipe, config, device, distributed) | dict(
        scale=recipe.scale, ratio=ratio, hflip=recipe.hflip, re_prob=recipe.re_prob,
        color_jitter=None if trivial or not recipe.color_jitter else recipe.color_jitter,
        auto_augment=None if trivial else recipe.auto_augment)
    loader = create_loader(dataset, is_training=True, **options)
    steps = dataset.transform.transforms
    if recipe.crop_padding:
        if not isinstance(steps[0], RandomResizedCropAndInterpolation):
            raise RuntimeError(f"timm's training transform starts with {steps[0]}, not with the random crop")
        resize = transforms.Resize(width, interpolation=str_to_interp_mode(config['interpolation']))
        steps[:1] = [RandomShift(recipe.crop_padding), resize, transforms.CenterCrop(width)]
    if trivial:
        steps.insert(len(steps) - 1, transforms.TrivialAugmentWide())  # the last step makes the tensor
    steps.insert(0, in_rgb)
    return loader


def make_eval_loader(
        dataset: AnyDataset, recipe: Recipe, config: Config, device: torch.device, distributed: bool = False,
) -> Any:
    """Batches of centre-cropped images, normalised and on the device."""
    loader = create_loader(dataset, crop_pct=config['crop_pct'], crop_mode=config['crop_mode'],
                           **_loader_options(recipe, config, device, distributed))
    dataset.transform.transforms.insert(0, in_rgb)
    return loader


def _loader_options(recipe: Recipe, config: Config, device: torch.device, distributed: bool) -> dict[str, Any]:
    # new workers take their seeds from the epoch's: no state outlives an epoch
    return {key: config[key] for key in ('input_size', 'interpolation', 'mean', 'std')} | dict(
        batch_size=recipe.batch_size, num_workers=recipe.workers, distributed=distributed, device=device,
        pin_memory=device.type == 'cuda', worker_seeding='all', persistent_workers=False)
