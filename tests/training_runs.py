"""Small training runs for the tests: generated pictures, a recipe of seconds, the commands as functions."""
import argparse
import csv
from pathlib import Path

import torch
import yaml
from PIL import Image

from aa_models.cli import train, validate

# nothing random but the order of the images, unless a test asks for it
RECIPE = dict(
    model='aa_simplecnn', model_kwargs=dict(img_size=16, channels=[8, 8, 16, 16, 16], dk=8, dv=8, num_heads=2),
    img_size=16, scale=[1.0, 1.0], ratio=[1.0, 1.0], hflip=0.0, color_jitter=0.0,
    batch_size=8, epochs=2, warmup_epochs=0, lr=0.05, workers=0, seed=3,
)


def make_pictures(
        folder: Path, classes: int = 3, each: int = 8, splits: tuple[str, ...] = ('train', 'validation')) -> Path:
    """Pictures of 20 × 18 px, each class a colour under noise, as folder/split/class/number.png."""
    generator = torch.Generator().manual_seed(0)
    for split in splits:
        for label in range(classes):
            (folder / split / f'class{label}').mkdir(parents=True)
            for number in range(each):
                pixels = torch.randint(0, 160, (18, 20, 3), generator=generator, dtype=torch.uint8)
                pixels[..., label % 3] += 40 + 15 * (label // 3)
                Image.fromarray(pixels.numpy()).save(folder / split / f'class{label}' / f'{number}.png')
    return folder


def run(module, *words: object) -> None:
    """Run a command as the command line does."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert module.run(parser.parse_args([str(word) for word in words])) == 0


def train_words(output: Path, data: Path | None, **values: object) -> list[object]:
    """What follows `aa-models train`; writes `RECIPE` with some of its values replaced beside the output directory."""
    recipe = output.parent / f'{output.name}.yaml'
    recipe.write_text(yaml.safe_dump({**RECIPE, **values}))
    return [recipe, '--output', output, *(('--data-dir', data) if data else ())]


def run_training(output: Path, data: Path | None, *options: object, **values: object) -> Path:
    """Train by `RECIPE` with some of its values replaced; returns the output directory."""
    run(train, *train_words(output, data, **values), *options)
    return output


def run_validation(*words: object) -> None:
    """Validate in this process."""
    run(validate, *words, '--workers', 0)


def checkpoint_of(output: Path, name: str = 'last') -> dict:
    """What a checkpoint holds."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(output / f'{name}.pth.tar', weights_only=True)


def log_of(output: Path) -> list[dict[str, str]]:
    """The rows of the log, without what the clock decides."""
    with open(output / 'log.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ('train_seconds', 'train_img_per_s')} for row in rows]


def assert_goes_on(output: Path, data: Path, unbroken: Path, **values: object) -> None:
    """The same command, undisturbed, ends as the run that was left alone, and leaves nothing behind."""
    run_training(output, data, '--tag', 'noise', **values)
    assert_same_run(output, unbroken)
    assert {p.name for p in output.iterdir()} == {p.name for p in unbroken.iterdir()}
    for path in unbroken.glob('*.pth.tar'):
        name = path.name.removesuffix('.pth.tar')
        assert checkpoint_of(output, name)['epoch'] == checkpoint_of(unbroken, name)['epoch']
    for name in ('aa_simplecnn.noise/model.safetensors', 'aa_simplecnn.noise/config.json'):
        assert (output / name).read_bytes() == (unbroken / name).read_bytes()


def assert_same_run(one: Path, other: Path) -> None:
    """The same figures and, bit for bit, the same weights and optimiser state."""
    assert log_of(one) == log_of(other)
    first, second = checkpoint_of(one), checkpoint_of(other)
    for output, known in ((one, first['saver']), (other, second['saver'])):  # the saver may list what it has deleted
        known['checkpoint_files'] = [file for file in known['checkpoint_files'] if (output / file[0]).exists()]
    assert first['saver'] == second['saver'] and first['epoch'] == second['epoch']
    for key in ('state_dict', 'state_dict_ema', 'optimizer'):
        assert (key in first) == (key in second)
        torch.testing.assert_close(first.get(key, {}), second.get(key, {}), rtol=0, atol=0)
