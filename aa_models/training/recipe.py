"""A recipe: every number that decides what a training run computes, as a dataclass and as YAML."""
import argparse
import dataclasses
import difflib
import os
import types
import typing
from pathlib import Path
from typing import Any

import yaml
from timm.optim import list_optimizers

from aa_models.models.create import ParseKeyValues

RECIPE_DIR = Path(__file__).parents[1] / 'recipes'
SCHEDULES = ('cosine', 'step', 'wsd', 'constant')  # all of them functions of the step alone, as exact resume needs
COMPILE_MODES = ('default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs')


def _option(default: Any, help: str, **limits: Any) -> Any:
    """A field with its help text and limits: `choices`, `least`, `above`, `most`, `below`, `length`."""
    factory = dict(default_factory=dict) if default == {} else dict(default=default)
    return dataclasses.field(**factory, metadata=dict(help=help, **limits))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Hyper-parameters under timm's names. Where a run is read from and written to is no part of it.

    Raises:
        ValueError: A value of the wrong type or an impossible one, named with its key and what is possible.
    """
    # model
    model: str = _option('aa_resnet18', 'name of the model, or hf-hub:… / local-dir:…')
    model_kwargs: dict[str, Any] = _option({}, 'further arguments of the model')  # noqa: RUF009, a field
    pretrained: bool = _option(False, 'start from pretrained weights')
    num_classes: int | None = _option(None, "number of classes; none: the dataset's, else the model's own", least=1)
    drop: float = _option(0.0, 'dropout before the classifier', least=0, below=1)
    drop_path: float = _option(0.0, 'stochastic depth', least=0, below=1)
    # data
    dataset: str = _option('', 'dataset in timm\'s notation: torch/…, hfds/…, wds/…; "" is a folder of class folders')
    train_split: str = _option('train', 'split to train on')
    val_split: str = _option('validation', 'split to validate on')
    holdout: int = _option(0, 'validate on that many training images, class-balanced, instead of val_split', least=0)
    train_images: int = _option(0, 'train on that many images only, class-balanced; 0: all', least=0)
    img_size: int | None = _option(None, "side of the network's input; none: the model's own", least=1)
    input_size: tuple[int, ...] | None = _option(
        None, 'channels, height and width of the input, where it is not square', length=3, least=1)
    mean: tuple[float, ...] | None = _option(None, "mean of each channel; none: the model's own", length=3)
    std: tuple[float, ...] | None = _option(None, "deviation of each channel; none: the model's own", length=3, above=0)
    interpolation: str | None = _option(
        None, "resizing filter; none: the model's own", choices=('bilinear', 'bicubic', 'nearest', 'lanczos'))
    crop_pct: float | None = _option(None, "centre crop in validation; none: the model's own", above=0)
    # augmentation
    crop_padding: int = _option(
        0, 'shift by up to that many source pixels, reflecting at the border, instead of cropping to scale and ratio',
        least=0)
    scale: tuple[float, float] = _option((0.08, 1.0), 'least and largest area of the random crop', length=2, above=0)
    ratio: tuple[float, float] = _option(
        (3 / 4, 4 / 3), "range of the crop's aspect ratio, in parts of the input's", length=2, above=0)
    hflip: float = _option(0.5, 'probability of a horizontal flip', least=0, most=1)
    color_jitter: float = _option(0.4, 'brightness, contrast and saturation jitter', least=0)
    auto_augment: str | None = _option(None, 'rand-m9-mstd0.5, augmix-…, original, v0 or ta_wide')
    re_prob: float = _option(0.0, 'probability of random erasing', least=0, most=1)
    mixup: float = _option(0.0, 'alpha of mixup', least=0)
    cutmix: float = _option(0.0, 'alpha of cutmix', least=0)
    mixup_prob: float = _option(1.0, 'probability of mixing a batch', least=0, most=1)
    mixup_off_epoch: int = _option(0, 'stop mixing at this epoch; 0: never', least=0)
    smoothing: float = _option(0.1, 'label smoothing', least=0, below=1)
    # optimisation
    batch_size: int = _option(128, 'images in a batch of one device', least=1)
    grad_accum_steps: int = _option(1, 'batches whose gradients make one update', least=1)
    opt: str = _option('sgd', 'optimiser, by timm\'s name')
    opt_kwargs: dict[str, Any] = _option({}, 'further arguments of the optimiser')  # noqa: RUF009, a field
    momentum: float = _option(0.9, 'momentum', least=0, below=1)
    weight_decay: float = _option(2e-5, 'weight decay (not on norms, biases and what the model exempts)', least=0)
    layer_decay: float | None = _option(None, 'factor on the learning rate for each layer below the head', above=0)
    lr: float = _option(0.1, 'largest learning rate, for the batch of all devices together', above=0)
    sched: str = _option('cosine', 'schedule of the learning rate', choices=SCHEDULES)
    sched_on_updates: bool = _option(True, 'change the learning rate at every update, not every epoch')
    epochs: int = _option(100, 'epochs in all, warm-up included', least=1)
    warmup_epochs: float = _option(5.0, 'epochs of linear warm-up', least=0)
    warmup_lr: float = _option(1e-5, 'learning rate at the start of the warm-up', least=0)
    min_lr: float = _option(0.0, 'learning rate at the end', least=0)
    decay_epochs: float | None = _option(None, 'epochs between drops (step) or of the final decay (wsd)', above=0)
    decay_rate: float = _option(0.1, 'factor of a drop (step)', above=0)
    clip_grad: float | None = _option(None, 'largest norm of the gradient', above=0)
    # averaging, precision, speed
    ema: bool = _option(False, 'keep a moving average of the weights and validate that')
    ema_decay: float = _option(0.9998, 'decay of the average at each update', least=0, below=1)
    ema_warmup: bool = _option(False, 'average over fewer updates at first')
    amp: bool = _option(False, 'automatic mixed precision')
    amp_dtype: str = _option('bfloat16', 'its low precision', choices=('bfloat16', 'float16'))
    channels_last: bool = _option(False, 'keep images and weights in channels_last order')
    compile: bool = _option(False, 'torch.compile the model')
    compile_mode: str | None = _option(None, 'mode of torch.compile', choices=COMPILE_MODES)
    # bookkeeping
    workers: int = _option(4, 'processes that load images, of one device', least=0)
    seed: int = _option(42, 'seed of weights, order of images and augmentation', least=0)
    val_interval: int = _option(1, 'validate every so many epochs, and after the last', least=1)
    checkpoint_hist: int = _option(2, 'checkpoints of the best epochs to keep', least=1)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _convert(field, getattr(self, field.name))
            _check(field, value)
            object.__setattr__(self, field.name, value)
        optimizers = [str(name) for name in list_optimizers()]
        if self.opt not in optimizers:
            raise ValueError(f'opt = {self.opt!r} is no optimiser of timm{_nearest(self.opt, optimizers)}')
        if self.img_size and self.input_size:
            raise ValueError(f'img_size = {self.img_size} and input_size = {list(self.input_size)}: give one of them')
        if self.crop_padding and self.input_size and len(set(self.input_size[1:])) > 1:
            raise ValueError(f'crop_padding = {self.crop_padding} needs a square input, not {list(self.input_size)}')
        if self.warmup_epochs >= self.epochs and self.sched != 'constant':
            raise ValueError(f'warmup_epochs = {self.warmup_epochs:g} leaves nothing of epochs = {self.epochs}')
        if self.mixing and self.batch_size % 2:
            raise ValueError(f'batch_size = {self.batch_size} must be even with mixup or cutmix, which pair images')

    @property
    def mixing(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mixup > 0 or self.cutmix > 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all values as YAML."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        replace_text(path, yaml.safe_dump(values, sort_keys=False))


def replace_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file in one step: a reader, or a run that was killed here, finds the old one or the whole new one."""
    part = Path(f'{path}.part')
    part.write_text(text, encoding='utf-8')
    os.replace(part, path)


def load_recipe(source: str | os.PathLike[str], **overrides: Any) -> Recipe:
    """Read a recipe.

    Args:
        source: Path of a YAML file, or the name of a recipe that comes with the package.
        **overrides: Values that replace those of the file.

    Raises:
        ValueError: No such recipe, no YAML mapping, an unknown key, a wrong type or an impossible value.
    """
    path = Path(source)
    if not path.is_file():
        path = RECIPE_DIR / f'{source}.yaml'
    if not path.is_file():
        names = ', '.join(recipe_names())
        raise ValueError(f'no recipe {str(source)!r}: it is neither a file nor one of the packaged ones ({names})')
    try:
        values = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is no YAML: {error}') from error
    if not isinstance(values, dict):
        raise ValueError(f'{path} must hold "key: value" lines, not a {type(values).__name__}')
    known = [field.name for field in dataclasses.fields(Recipe)]
    for key in (*values, *overrides):
        if key not in known:
            raise ValueError(f'{path}: unknown key {key!r}{_nearest(str(key), known)}')
    return Recipe(**{**values, **overrides})


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPE_DIR.glob('*.yaml'))


def add_recipe_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Give the parser one option for each field of `Recipe`; only those used end in the namespace."""
    for field in dataclasses.fields(Recipe):
        kind, optional = _kind(field)
        how: dict[str, Any] = dict(metavar=getattr(kind, '__name__', 'value').upper())
        if kind is bool:
            how = dict(action=argparse.BooleanOptionalAction)
        elif kind is dict:
            how = dict(action=ParseKeyValues, nargs='*', metavar='KEY=VALUE')
        elif kind is tuple:
            how = dict(nargs='+', metavar=_element(field).__name__.upper())
        default = field.default if field.default is not dataclasses.MISSING else None
        shown = ' '.join(f'{v:.4g}' for v in default) if isinstance(default, tuple) else default
        note = '' if shown in (None, '', {}) else f' (default: {shown})'
        parser.add_argument(
            f'--{field.name.replace("_", "-")}', default=argparse.SUPPRESS,
            help=(field.metadata['help'] + note).replace('%', '%%'), **how)


def recipe_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The values of recipe fields that stood on the command line."""
    return {
        field.name: _read(field, getattr(args, field.name))
        for field in dataclasses.fields(Recipe) if hasattr(args, field.name)
    }


def _read(field: dataclasses.Field[Any], text: Any) -> Any:
    """The value that a command-line word stands for."""
    kind, optional = _kind(field)
    if kind is tuple:
        return None if text == ['none'] else [yaml.safe_load(word) for word in text]
    if not isinstance(text, str):
        return text
    if optional and text.lower() == 'none':
        return None
    return text if kind is str else yaml.safe_load(text)


def _kind(field: dataclasses.Field[Any]) -> tuple[type, bool]:
    """(bool, int, float, str, tuple or dict; whether None is possible)."""
    kind: Any = field.type
    optional = False
    if isinstance(kind, types.UnionType):
        kind, optional = typing.get_args(kind)[0], True
    return typing.get_origin(kind) or kind, optional


def _element(field: dataclasses.Field[Any]) -> type:
    """int or float: what a tuple holds."""
    kind = field.type
    if isinstance(kind, types.UnionType):
        kind = typing.get_args(kind)[0]
    element: type = typing.get_args(kind)[0]
    return element


def _convert(field: dataclasses.Field[Any], value: Any) -> Any:
    kind, optional = _kind(field)
    if value is None and optional:
        return None
    number: Any
    if kind is float:
        number = _float(value)
    elif kind is tuple:
        number = tuple(map(_float, value)) if isinstance(value, (list, tuple)) else None
        number = None if number is None or None in number else number
        if number and _element(field) is int:
            number = tuple(map(int, number)) if all(n.is_integer() for n in number) else None
    else:
        number = value if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) else None
    if number is None:
        many = 'whole numbers' if kind is tuple and _element(field) is int else 'numbers'
        wanted = {tuple: f'a list of {many}', dict: 'a mapping', float: 'a number', int: 'a whole number',
                  bool: 'true or false', str: 'a text'}[kind] + (' or none' if optional else '')
        raise ValueError(f'{field.name} = {value!r} must be {wanted}')
    return number


def _float(value: Any) -> float | None:
    """YAML 1.1 reads `5e-4` as text, so text that is a number counts as one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    limits = field.metadata
    if value is None or value == {}:
        return
    if 'choices' in limits and value not in limits['choices']:
        raise ValueError(f'{field.name} = {value!r} must be one of {", ".join(limits["choices"])}')
    if 'length' in limits and len(value) != limits['length']:
        raise ValueError(f'{field.name} = {list(value)} must have {limits["length"]} numbers, not {len(value)}')
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not abs(number) < float('inf'):
            raise ValueError(f'{field.name} = {number} must be finite')
        for limit, holds, words in (
                ('least', lambda a, b: a >= b, 'at least'), ('above', lambda a, b: a > b, 'above'),
                ('most', lambda a, b: a <= b, 'at most'), ('below', lambda a, b: a < b, 'below')):
            if limit in limits and not holds(number, limits[limit]):
                raise ValueError(f'{field.name} = {number!r} must be {words} {limits[limit]}')


def _nearest(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1)
    return f'; did you mean {near[0]!r}?' if near else f'; possible are {", ".join(words)}'
