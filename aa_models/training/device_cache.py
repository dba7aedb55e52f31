"""Training pictures kept on the device: small ones are decoded once, and shifted and flipped there in batches."""
import logging
from collections.abc import Iterator
from typing import Any

import torch
from timm.data.transforms import str_to_interp_mode
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler
from torchvision.transforms import Compose, PILToTensor
from torchvision.transforms.functional import center_crop, resize

from aa_models.data.pictures import in_rgb
from aa_models.errors import InputError
from aa_models.models.memory import check_memory

from .image_sizes import InputSize, training_sizes
from .recipe import Recipe

_logger = logging.getLogger(__name__)
_READ_AT_ONCE = 256  # pictures


class CachedLoader:
    """Batches of shifted, flipped and normalised pictures, which lie on the device as they were decoded (uint8).

    What is done to a picture is what the ordinary loader does with `crop_padding` and `hflip`: a shift that reflects at
    the border, the resizing to the input's size, a flip. The random numbers are drawn on the CPU, as functions of the
    state that an epoch begins with.

    Args:
        dataset: Pictures of one size, with random access.
        recipe: Without changes of other kinds (the recipe refuses them).
        config: `input_size`, `interpolation`, `mean` and `std` of the pictures.
        device: Where they are kept.
        distributed: Whether each process takes a part of them.

    Raises:
        InputError: The pictures differ in size, are too many for the memory allowed, or have no random access.
    """

    def __init__(
            self, dataset: Any, recipe: Recipe, config: dict[str, Any], device: torch.device, distributed: bool,
    ) -> None:
        self.dataset, self.recipe, self.device = dataset, recipe, device
        if isinstance(dataset, IterableDataset):
            raise InputError(f'device_cache needs a dataset with random access, not {recipe.dataset!r}')
        if config['interpolation'] == 'lanczos':
            raise InputError("device_cache resizes by 'bilinear', 'bicubic' or 'nearest' interpolation, not 'lanczos'")
        self.interpolation = str_to_interp_mode(config['interpolation'])
        self.sizes = training_sizes(recipe, config['input_size'])
        self.size: InputSize = config['input_size']
        self.images, self.labels = _read(dataset, recipe.workers, config['input_size'][0], device)
        height, width = self.images.shape[1:3]
        if not recipe.crop_padding and height != width:  # the ordinary loader crops these before it resizes them
            raise InputError(f'device_cache without crop_padding needs square pictures, not of {width} × {height} px')
        if recipe.crop_padding >= min(height, width):
            raise InputError(
                f'crop_padding = {recipe.crop_padding} needs pictures larger than that, not {(width, height)}')
        self.mean, self.std = (
            255 * torch.tensor(config[key], device=device).view(1, -1, 1, 1) for key in ('mean', 'std'))
        self.sampler: Any = (
            DistributedSampler(dataset, seed=recipe.seed) if distributed else RandomSampler(dataset))
        self.batches = BatchSampler(self.sampler, recipe.batch_size, drop_last=True)

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int) -> None:
        """Take the size of an epoch."""
        self.size = [size for start, size in self.sizes.items() if start <= epoch][-1]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for indices in self.batches:
            chosen = torch.tensor(indices, device=self.device)
            yield self._changed(chosen), self.labels[chosen]

    def _changed(self, chosen: torch.Tensor) -> torch.Tensor:
        """The pictures (B,) of the cache as the network gets them, (B, C, H, W)."""
        count, most = len(chosen), self.recipe.crop_padding
        rows, columns = (
            _reflected(size, torch.randint(-most, most + 1, (count, 1))) for size in self.images.shape[1:3])
        flips = torch.rand(count, 1) < self.recipe.hflip
        x = self._at(chosen, rows, columns)
        size = self.size[1]
        if x.shape[2:] != (size, size):
            x = center_crop(resize(x, [size], self.interpolation, antialias=True), [size, size])
        column = torch.arange(size).expand(count, size)
        column = torch.where(flips, size - 1 - column, column).to(self.device)
        x = x.gather(3, column.view(count, 1, 1, size).expand(x.shape))
        return (x.float() - self.mean) / self.std

    def _at(self, chosen: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Pixels (B, C, H, W) of the pictures chosen, by the row (B, H) and the column (B, W) that each shows."""
        rows, columns = rows.to(self.device), columns.to(self.device)
        return self.images[chosen[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reflected(size: int, shift: torch.Tensor) -> torch.Tensor:
    """The pixels of a source that are seen after a shift (B, 1), along an axis of `size` pixels: (B, size)."""
    index = (torch.arange(size) + shift).abs()
    return size - 1 - (size - 1 - index).abs()


def _read(dataset: Any, workers: int, channels: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """All pictures (N, H, W, C), as bytes, and their labels (N,), on a device."""
    dataset.transform = Compose([in_rgb, PILToTensor()])
    images, labels, done = None, torch.empty(len(dataset), dtype=torch.long), 0
    for part in DataLoader(dataset, _READ_AT_ONCE, num_workers=workers, collate_fn=list):
        for picture, label in part:
            if images is None:
                depth, height, width = picture.shape
                what = f'device_cache of {len(dataset)} pictures of {width} × {height} px'
                check_memory(picture.numel() * len(dataset), what)
                images = torch.empty(len(dataset), height, width, depth, dtype=torch.uint8)
            if picture.shape != (channels, *images.shape[1:3]):
                seen = ' × '.join(map(str, reversed(picture.shape[1:])))
                raise InputError(
                    f'device_cache needs pictures of {channels} channels and one size: there are {width} × {height} px '
                    f'and, with {len(picture)} channels, {seen} px')
            images[done], labels[done] = picture.permute(1, 2, 0), label
            done += 1
    if images is None:
        raise InputError('device_cache: there are no pictures')
    _logger.info(f'{done} pictures are kept on {device}, {images.numel() / 2**20:.0f} MiB')
    return images.to(device), labels.to(device)
