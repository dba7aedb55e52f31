"""Accuracy under the fifteen common corruptions of pictures, each at five strengths.

Benchmarking Neural Network Robustness to Common Corruptions and Perturbations (arXiv 1903.12261). The package
`imagecorruptions-imaug` makes them.
"""
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import MaybeToTensor
from torch.utils.data import Dataset, IterableDataset
from torchvision.transforms import Compose, Normalize

from aa_models.csv_text import csv_text
from aa_models.device import check_alone, process_on
from aa_models.durable import replace_text
from aa_models.errors import InputError

from .datasets import labels_of, leave_out, open_dataset
from .loaders import data_config_of, make_eval_loader
from .precision import with_precision
from .recipe import Recipe
from .splits import choose_evenly, held_out
from .validation import evaluate, load_model, match_classes

STRENGTHS = (1, 2, 3, 4, 5)
COLUMNS = ('model', 'corruption', 'strength', 'top1', 'images')
_SEEDED = ('glass_blur', 'impulse_noise')  # these draw from a generator of their own


class _Pictures(Dataset[tuple[Any, int]]):
    """Pictures in memory with the attribute `transform`, which timm's loader sets."""
    transform: Any = None

    def __init__(self, pictures: Sequence[Image.Image], labels: Sequence[int]) -> None:
        self.pictures, self.labels = pictures, labels

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.pictures[index]), self.labels[index]


def corruption_names() -> list[str]:
    """The fifteen corruptions.

    Raises:
        InputError: The package that makes them is missing.
    """
    try:
        from imagecorruptions import get_corruption_names
    except ImportError as error:
        raise InputError(
            "corruptions need the package imagecorruptions-imaug: pip install 'aa-models[corruptions]'") from error
    return list(get_corruption_names('common'))


def corrupt_picture(picture: Image.Image, name: str, strength: int, seed: int) -> Image.Image:
    """Corrupt an RGB picture of at least 32 px; the same seed gives the same picture."""
    from imagecorruptions import corrupt

    np.random.seed(seed)
    own = {'seed': seed} if name in _SEEDED else {}
    return Image.fromarray(corrupt(np.asarray(picture), strength, corruption_name=name, **own))


def measure_corruptions(
        recipes: Sequence[Recipe], *, images: int = 0, data_dir: str | None = None, download: bool = False,
        device: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Measure models on the same corrupted pictures.

    As in the paper the pictures are corrupted after they were resized and cropped to the models' input.

    Args:
        recipes: One for each model, as `validation_recipe` makes them; dataset, split and the pictures that a run held
            out are the first one's.
        images: How many pictures, as evenly from all classes as can be; 0 for all.
        data_dir, download, device: As `run.train` takes them.

    Yields:
        Rows in `COLUMNS`: for every corruption and strength, first for none, one for each model.

    Raises:
        InputError: A model or dataset that cannot be used, models that take different pictures, an input below 32 px,
            or the package that makes corruptions is missing.
    """
    check_alone('measuring corruptions')
    if images < 0:
        raise InputError(f'images = {images} must be at least 0, which means all')
    names = corruption_names()
    with process_on(device) as process:
        decided = with_precision(recipes[0], process).amp  # of one command, so they have it in common
        recipes = [dataclasses.replace(recipe, amp=decided) for recipe in recipes]
        models = [load_model(recipe).to(process.device) for recipe in recipes]
        configs = [data_config_of(model, recipe) for model, recipe in zip(models, recipes)]
        crop = _crop_of(configs)
        dataset = open_dataset(recipes[0].dataset, data_dir, recipes[0].val_split, download=download)
        if isinstance(dataset, IterableDataset):
            raise InputError(f'corruptions need a dataset with random access, not {recipes[0].dataset!r}')
        if recipes[0].skip_broken:
            leave_out(dataset, recipes[0].val_split)
        dataset = held_out(dataset, recipes[0], data_dir)
        outputs = [match_classes(dataset, model) for model in models]
        indices = list(range(len(dataset)))
        if images and images < len(indices):
            indices = choose_evenly(indices, labels_of(dataset), images, seed=0)
        samples = [dataset[i] for i in indices]
        whole, labels = [crop(picture.convert('RGB')) for picture, _ in samples], [int(label) for _, label in samples]
        for name, strength in [('none', 0), *product(names, STRENGTHS)]:
            pictures = whole if not strength else [
                corrupt_picture(picture, name, strength, seed=i) for i, picture in zip(indices, whole)]
            for recipe, model, config, own in zip(recipes, models, configs, outputs):
                loader = make_eval_loader(
                    _Pictures(pictures, labels), recipe, {**config, 'crop_pct': 1.0}, process.device)
                figures, count, _ = evaluate(
                    model, loader, recipe, process, f'{recipe.model}, {name} {strength}', outputs=own)
                yield dict(model=recipe.model, corruption=name, strength=strength, top1=figures['top1'], images=count)


def _crop_of(configs: Sequence[dict[str, Any]]) -> Callable[[Image.Image], Image.Image]:
    """Resizing and cropping to the input that all of the models have."""
    keys = ('input_size', 'interpolation', 'crop_pct', 'crop_mode')
    options, *others = [{key: config[key] for key in keys} for config in configs]
    for other in others:
        if other != options:
            raise InputError(f'the models must take the same pictures, but {options} and {other} differ')
    if min(options['input_size'][1:]) < 32:
        raise InputError(f'corruptions need an input of at least 32 px, not {options["input_size"]}')
    steps = create_transform(**options).transforms
    return Compose([step for step in steps if not isinstance(step, (MaybeToTensor, Normalize))])


def mean_corrupted(rows: Sequence[dict[str, Any]], model: str) -> float:
    """Mean top-1 of a model over all corruptions and strengths, in percent."""
    top1 = [row['top1'] for row in rows if row['model'] == model and row['strength']]
    return sum(top1) / len(top1)


def write_corruptions(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows as CSV, replacing the file."""
    replace_text(path, csv_text(COLUMNS, ({**row, 'top1': f'{row["top1"]:.2f}'} for row in rows)))
