"""A recipe: every number that decides what a training run computes, as a dataclass and as YAML."""
import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, field_validator, model_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from aa_models.durable import replace_text
from aa_models.errors import InputError
from aa_models.schema import BoolOrAuto, Count, Float, Int, OrNone, Positive, Size, checked, nearest, parsed_yaml

RECIPE_DIR = Path(__file__).parents[1] / 'recipes'
RECIPE_FILE = 'recipe.yaml'  # in the folder of a run, and in what is made of it


# arguments of a network that a recipe has keys of its own for
_OWN_KEYS = dict(pretrained='pretrained', num_classes='num_classes', drop_rate='drop', drop_path_rate='drop_path')


@dataclass(frozen=True, config=ConfigDict(extra='forbid', allow_inf_nan=False))
class Recipe:
    """Hyper-parameters, named as timm's functions name them where these have them.

    Where a run is read from and written to is no part of it.
    """
    # model
    model: str = Field('aa_resnet18', description='name of the model, or hf-hub:… / local-dir:…')
    model_kwargs: dict[str, Any] = Field({}, description='further arguments of the model')
    augment: OrNone[tuple[str, ...]] = Field(
        None, description='patterns of the convolutions of `model` to augment; model_kwargs are those of `augmented`')
    pretrained: bool = Field(False, description='start from pretrained weights')
    known_classes: bool = Field(False, description='with pretrained: classes that these weights know by the same '
                                'name, or a word for it, start from them, the others from random ones')
    linear_probe: bool = Field(False, description='fit the classifier to the features as they are, before any other '
                               'layer learns, instead of known_classes')
    initial_checkpoint: OrNone[str] = Field(
        None, min_length=1, description="start from another run's weights: its output folder, a .pth.tar or "
        '.safetensors file, or local-dir:FOLDER')
    widen: bool = Field(False, description='the network of initial_checkpoint is a narrower one: begin with its '
                        'function, each channel being a copy of one of its channels')
    narrow: bool = Field(False, description='the network of initial_checkpoint is a wider one, which was widened from '
                         'this form: begin with the mean of its copies')
    num_classes: OrNone[Int] = Field(
        None, ge=1, description="number of classes; none: in training the dataset's, else the model's own")
    drop: Float = Field(0.0, ge=0, lt=1, description='probability of dropping a feature before the classifier')
    drop_path: Float = Field(0.0, ge=0, lt=1, description='probability of leaving a block out (stochastic depth)')
    # data
    dataset: str = Field(
        '', description='dataset in timm\'s notation: torch/…, hfds/…, wds/…; "" is a folder of class folders')
    train_split: str = Field('train', description='split to train on')
    val_split: str = Field('validation', description='split to validate on')
    holdout: Count = Field(0, description='validate on that many training images, class-balanced, instead of val_split')
    holdout_of: OrNone[str] = Field(
        None, description="noted by training: a fingerprint of the folder's pictures that holdout was drawn from")
    train_images: Count = Field(0, description='train on that many images only, class-balanced; 0: all')
    skip_broken: bool = Field(False, description='leave pictures out that cannot be read, where otherwise the work '
                              'stops; each picture is read once before')
    img_size: OrNone[Size] = Field(None, description="height and width of the network's input; none: the model's own")
    input_size: OrNone[tuple[Size, Size, Size]] = Field(
        None, description='channels, height and width of the input, where it is not square')
    train_img_size: dict[Count, Size] = Field(
        {}, description='other heights and widths of the training pictures, by the number of epochs before: '
        '{0: 16, 12: 24, 18: 32}; validation keeps img_size')
    mean: OrNone[tuple[Float, Float, Float]] = Field(None, description="mean of each channel; none: the model's own")
    std: OrNone[tuple[Positive, Positive, Positive]] = Field(
        None, description="standard deviation of each channel; none: the model's own")
    interpolation: OrNone[Literal['bilinear', 'bicubic', 'nearest', 'lanczos']] = Field(
        None, description="resizing filter; none: the model's own")
    crop_pct: OrNone[Float] = Field(None, gt=0, description="centre crop in validation; none: the model's own")
    device_cache: bool = Field(False, description='keep the training pictures decoded on the device and change them '
                               'there, with crop_padding and hflip alone: for small pictures of one size')
    # augmentation
    crop_padding: Count = Field(0, description='shift by up to that many source pixels, reflecting at the border, '
                                'instead of cropping to scale and ratio')
    scale: tuple[Positive, Positive] = Field((0.08, 1.0), description='least and largest area of the random crop')
    ratio: tuple[Positive, Positive] = Field(
        (3 / 4, 4 / 3), description="least and largest aspect ratio of the random crop, relative to the input's")
    hflip: Float = Field(0.5, ge=0, le=1, description='probability of a horizontal flip')
    color_jitter: Float = Field(0.4, ge=0, description='largest random change of brightness, contrast and '
                                'saturation, as a share')
    auto_augment: OrNone[str] = Field(
        None, description='random changes by a policy of timm: rand-m9-mstd0.5, augmix-…, original, v0 or ta_wide')
    re_prob: Float = Field(0.0, ge=0, le=1, description='probability of erasing a random rectangle')
    mixup: Float = Field(0.0, ge=0, description='alpha of mixup, weighted means of two pictures; 0: none')
    cutmix: Float = Field(0.0, ge=0, description='alpha of cutmix, a part of another picture put in; 0: none')
    mixup_prob: Float = Field(1.0, ge=0, le=1, description='probability of mixing a batch')
    mixup_off_epoch: Int = Field(0, ge=0, description='stop mixing at this epoch; 0: never')
    smoothing: Float = Field(0.1, ge=0, lt=1, description='label smoothing: share of the label given to all classes')
    # distillation
    teacher: OrNone[str] = Field(
        None, description='network with weights to learn from: a name, name and tag, hf-hub:… or local-dir:…')
    kd_distill_type: Literal['logit', 'feature'] = Field(
        'logit', description='what is learned of the teacher: its logits, the scores before they become probabilities, '
        'or the pooled features before its classifier')
    kd_temperature: Positive = Field(4.0, description='what logits are divided by before they are compared')
    task_loss_weight: OrNone[Float] = Field(
        None, ge=0, description="weight of the labels' loss; none: 1; 0: pictures need no labels, the classes are the "
        "teacher's, and top-1 in validation is agreement with it")
    distill_loss_weight: OrNone[Float] = Field(
        None, ge=0, description="weight of the teacher's loss; none: 1, or 1 - task_loss_weight where that is given")
    # optimisation
    batch_size: Int = Field(128, ge=1, description='images in a batch of one device')
    grad_accum_steps: Int = Field(1, ge=1, description='batches whose gradients make one update')
    opt: str = Field('sgd', description="optimiser, by timm's name")
    opt_kwargs: dict[str, Any] = Field({}, description='further arguments of the optimiser')
    momentum: Float = Field(0.9, ge=0, lt=1, description='momentum: share of an update that the next one repeats')
    weight_decay: Float = Field(
        2e-5, ge=0, description='weight decay, which draws weights towards 0 (not norms, biases and what the model '
        'exempts)')
    layer_decay: OrNone[Positive] = Field(None, description='factor on the learning rate for each layer below the head')
    lr: Float = Field(0.1, gt=0, description='largest learning rate, for the batch of all devices together')
    # all of these schedules are functions of the step alone, which exact resume needs
    sched: Literal['cosine', 'step', 'wsd', 'constant'] = Field(
        'cosine', description='schedule of the learning rate; wsd: warm-up, stable, decay')
    sched_on_updates: bool = Field(True, description='change the learning rate at every update, not every epoch')
    epochs: Int = Field(100, ge=1, description='epochs in all, warm-up included')
    warmup_epochs: Float = Field(5.0, ge=0, description='epochs of linear warm-up')
    warmup_lr: Float = Field(1e-5, ge=0, description='learning rate at the start of the warm-up')
    min_lr: Float = Field(0.0, ge=0, description='learning rate at the end')
    decay_epochs: OrNone[Positive] = Field(None, description='epochs between drops (step) or of the final decay (wsd)')
    decay_rate: Float = Field(0.1, gt=0, description='factor of a drop (step)')
    clip_grad: OrNone[Float] = Field(None, gt=0, description='largest norm of the gradient, a longer one is '
                                     'shortened; none: any')
    freeze_bn: bool = Field(False, description='normalise by the running statistics of batch norms, and leave them as '
                            'they are: for pretrained weights and pictures unlike those that they were trained on')
    # averaging, precision, speed
    ema: bool = Field(False, description='keep a moving average of the weights (EMA) and validate that')
    ema_decay: Float = Field(0.9998, ge=0, lt=1, description='decay of the average at each update')
    ema_warmup: bool = Field(False, description='average over fewer updates at first')
    amp: BoolOrAuto = Field(
        False, description='automatic mixed precision: what stands it is computed in amp_dtype; auto: on CUDA, and on '
        'a CPU that has instructions for amp_dtype; a run goes on as it began')
    amp_dtype: Literal['bfloat16', 'float16'] = Field('bfloat16', description='the 16-bit numbers of amp')
    channels_last: bool = Field(False, description='channels_last: the channels of a pixel lie side by side in memory')
    compile: bool = Field(False, description='compile the model by torch.compile')
    compile_mode: OrNone[Literal['default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs']] = Field(
        None, description='what torch.compile is to save, in its own words')
    deterministic: bool = Field(True, description='use deterministic algorithms on CUDA; without them an interrupted '
                                'run goes on with slightly different figures')
    # bookkeeping
    workers: Int = Field(4, ge=0, description='processes that load images, of one device')
    seed: Int = Field(42, ge=0, description='seed of weights, order of images and augmentation')
    val_interval: Int = Field(1, ge=1, description='validate every so many epochs, and after the last')
    checkpoint_hist: Int = Field(2, ge=1, description='checkpoints of the best epochs to keep')

    @field_validator('opt')
    @classmethod
    def _is_optimizer(cls, value: str) -> str:
        from timm.optim import list_optimizers  # options and help need no torch
        optimizers = [str(name) for name in list_optimizers()]
        if value not in optimizers:
            raise ValueError(f'opt = {value!r} is no optimiser of timm{nearest(value, optimizers)}')
        return value

    @field_validator('opt_kwargs')
    @classmethod
    def _has_lists(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, given in value.items():
            if name.endswith('_list') and isinstance(given, str):  # timm would take each character for a pattern
                raise ValueError(f"opt_kwargs: {name} = {given!r} is no list; possible is ['*attn.qkv.weight']")
        return value

    @field_validator('auto_augment')
    @classmethod
    def _is_policy(cls, value: str | None) -> str | None:
        from timm.data import create_transform
        try:
            create_transform(8, is_training=True, auto_augment=None if value == 'ta_wide' else value)
        except (AssertionError, ValueError, LookupError) as error:
            raise ValueError(f'auto_augment = {value!r} is no policy that timm knows: {error}') from error
        return value

    @model_validator(mode='after')
    def _fits_together(self) -> 'Recipe':
        if self.img_size and self.input_size:
            raise ValueError(f'img_size = {self.img_size} and input_size = {list(self.input_size)}: give one of them')
        if self.input_size and self.input_size[0] != 3:
            raise ValueError(f'input_size = {list(self.input_size)} must begin with 3: datasets are read in red, green '
                             'and blue')
        if self.crop_padding and self.input_size and len(set(self.input_size[1:])) > 1:
            raise ValueError(f'crop_padding = {self.crop_padding} needs a square input, not {list(self.input_size)}')
        if self.warmup_epochs >= self.epochs and self.sched != 'constant':
            raise ValueError(
                f'warmup_epochs = {self.warmup_epochs:g} must be less than epochs = {self.epochs}, which include them')
        warm = self.epochs - self.warmup_epochs
        if self.sched == 'wsd' and self.decay_epochs and self.decay_epochs > warm:
            raise ValueError(f'decay_epochs = {self.decay_epochs:g} must be at most {warm:g} with sched = wsd, the '
                             'epochs after the warm-up')
        if own := [name for name in self.model_kwargs if name in _OWN_KEYS]:
            raise ValueError(f'model_kwargs has {own[0]}, for which a recipe has the key {_OWN_KEYS[own[0]]}')
        if late := [epoch for epoch in self.train_img_size if epoch >= self.epochs]:
            raise ValueError(f'train_img_size changes after {late[0]} epochs, but epochs = {self.epochs}')
        if self.initial_checkpoint and self.pretrained:
            raise ValueError(f'initial_checkpoint = {self.initial_checkpoint!r} and pretrained: give one of them')
        if self.widen and not self.initial_checkpoint:
            raise ValueError('widen needs initial_checkpoint, the run of a narrower network')
        if self.narrow and not self.initial_checkpoint:
            raise ValueError('narrow needs initial_checkpoint, the run of a wider network')
        if self.narrow and self.widen:
            raise ValueError('widen and narrow: give one of them')
        if self.linear_probe and not (self.pretrained or self.initial_checkpoint):
            raise ValueError('linear_probe needs pretrained or initial_checkpoint: random features know nothing')
        if self.linear_probe and self.unlabelled:
            raise ValueError('linear_probe needs labels, and task_loss_weight = 0 is for pictures without')
        if self.device_cache:
            self._check_cache()
        self._check_distillation()
        if self.mixing and self.batch_size % 2:
            raise ValueError(f'batch_size = {self.batch_size} must be even with mixup or cutmix, which pair images')
        return self

    def _check_cache(self) -> None:
        for name, off in (('color_jitter', 0), ('auto_augment', None), ('re_prob', 0)):
            if (value := getattr(self, name)) != off:
                raise ValueError(f'device_cache shifts and flips only, and {name} = {value!r}: possible is '
                                 f'{"none" if off is None else off}')
        if not self.crop_padding and (self.scale, self.ratio) != ((1, 1), (1, 1)):
            raise ValueError('device_cache crops by crop_padding only: without it, scale and ratio must be 1 and 1')
        if self.input_size and len(set(self.input_size[1:])) > 1:
            raise ValueError(f'device_cache needs a square input, not {list(self.input_size)}')

    def _check_distillation(self) -> None:
        labels, teacher = self.task_loss_weight, self.distill_loss_weight
        if self.teacher is None:
            for name in ('task_loss_weight', 'distill_loss_weight'):
                if getattr(self, name) is not None:
                    raise ValueError(f'{name} = {getattr(self, name):g} needs a teacher')
        elif teacher is None and labels is not None and labels > 1:
            raise ValueError(f'task_loss_weight = {labels:g} leaves the teacher a negative weight: give '
                             'distill_loss_weight, too, or at most 1')
        elif teacher == 0 or (teacher is None and labels == 1):
            raise ValueError(f'teacher = {self.teacher!r} has weight 0 in the loss')
        elif self.unlabelled and self.kd_distill_type == 'feature':
            raise ValueError('task_loss_weight = 0 with kd_distill_type = feature would leave the classifier untrained')

    @property
    def unlabelled(self) -> bool:
        """Whether the teacher alone says what a picture shows."""
        return self.teacher is not None and self.task_loss_weight == 0

    @property
    def mixing(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def network(self) -> tuple[str, dict[str, Any]]:
        """Name and arguments of the model that is trained."""
        if self.augment is None:
            return self.model, self.model_kwargs
        size = self.img_size or (list(self.input_size[1:]) if self.input_size else None)
        of_tables = {} if size is None else {'img_size': size}
        return 'augmented', {'base': self.model, 'where': list(self.augment), **of_tables, **self.model_kwargs}

    def plain(self) -> dict[str, Any]:
        """All values as YAML has them: lists for tuples."""
        values = TypeAdapter(Recipe).dump_python(self, mode='json')
        return {**values, 'train_img_size': dict(self.train_img_size)}  # whose keys JSON would make texts of

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all values as YAML."""
        replace_text(path, yaml.safe_dump(self.plain(), sort_keys=False))


def recipe_fields() -> dict[str, FieldInfo]:
    """The keys of a recipe with type, default and description."""
    return getattr(Recipe, '__pydantic_fields__')  # noqa: B009, unknown to type checkers


def load_recipe(source: str | os.PathLike[str], **overrides: Any) -> Recipe:
    """Read a recipe.

    Args:
        source: Path of a YAML file, or the name of a recipe that comes with the package.
        **overrides: Values that replace those of the file. With `epochs` alone a warm-up and sizes by epoch that
            do not fit into it shrink, too.

    Raises:
        InputError: No such recipe, no YAML mapping, an unknown key, a wrong type or an impossible value.
    """
    path = Path(source) if Path(source).is_file() else RECIPE_DIR / f'{source}.yaml'
    if not path.is_file():
        raise InputError(f'no recipe {str(source)!r}: it is neither a file nor one of the packaged ones '
                         f'({", ".join(recipe_names())})')
    stored = parsed_yaml(path)
    shorter = _shortened(stored, overrides['epochs']) if 'epochs' in overrides else {}
    return checked(Recipe, {**stored, **shorter, **overrides}, f'recipe {source}')


def _shortened(stored: dict[str, Any], epochs: Any) -> dict[str, Any]:
    """What of a recipe does not fit into another number of epochs, in proportion: its warm-up, its sizes by epoch."""
    warmup, of_all, sizes = (
        stored.get(key, recipe_fields()[key].default) for key in ('warmup_epochs', 'epochs', 'train_img_size'))
    try:
        share = float(epochs) / float(of_all)
        changed: dict[str, Any] = {}
        if float(warmup) >= float(epochs):
            changed['warmup_epochs'] = float(warmup) * share
        if any(int(epoch) >= float(epochs) for epoch in sizes):
            changed['train_img_size'] = {int(int(epoch) * share): size for epoch, size in sorted(sizes.items())}
        return changed
    except (AttributeError, TypeError, ValueError, ArithmeticError):  # what is no number is an error of the recipe's
        return {}


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPE_DIR.glob('*.yaml'))
