"""Top-1 and top-5 of a model on a dataset, by one process or by several that share the images."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import load_checkpoint
from timm.task import ClassificationEvaluator, evaluation_sample_limit
from timm.utils import load_checkpoint_metadata
from torch import nn

from aa_models.data.labels import outputs_of
from aa_models.data.strict_datasets import leave_out_broken
from aa_models.device import Process, autocast, process_on
from aa_models.errors import InputError, NoSuchFileError
from aa_models.models._augmented import checkpoint_filter_fn
from aa_models.models.create import build_model, cfg_of, check_image_size, num_classes_of, parsed_name
from aa_models.models.fit import check_finite
from aa_models.schema import checked, parsed_yaml

from .datasets import check_labels, class_names, open_dataset, say_overlooked
from .facts import facts_of
from .loaders import DATA_KEYS, check_batch, data_config_of, make_eval_loader
from .precision import precision_of, with_precision
from .progress import Progress
from .recipe import RECIPE_FILE, Recipe
from .splits import held_out

HOLDOUT_KEYS = 'train_split', 'holdout', 'holdout_of', 'seed', 'skip_broken'  # decide which pictures a run held out


@dataclass(frozen=True)
class Validation:
    """What `validate` measured, the same in every process, and how."""
    top1: float  # percent
    top5: float
    images: int
    seconds: float
    model: nn.Module
    data_config: dict[str, Any]
    class_names: list[str] | None
    process: Process
    left_out: list[str]  # what is wrong with each picture that was not counted
    precision: str


def validation_recipe(checkpoint: Path | None = None, **values: Any) -> Recipe:
    """What to validate and how, in terms of a recipe: values, then those that a checkpoint was trained with.

    Args:
        checkpoint: A training checkpoint. Model, classes and input are as it was trained; which pictures that held out
            is known from it, or from the recipe in the folder that `model` names.
        **values: Of the recipe, which replace those of the checkpoint.

    Raises:
        InputError: No model, or an impossible value.
    """
    if checkpoint is None:
        recipe = _recipe_beside(values.get('model', ''))
        trained = {key: recipe.get(key) for key in HOLDOUT_KEYS}
    else:
        args = _content_of(checkpoint).get('args')
        keys = {'model', 'model_kwargs', 'augment', 'num_classes', *DATA_KEYS, *HOLDOUT_KEYS}
        sizes = ('img_size', 'input_size')
        keys -= set(sizes) if any(map(values.get, sizes)) else set()
        trained = {key: getattr(args, key, None) for key in keys}
    values = {**{key: value for key, value in trained.items() if value is not None}, **values}
    if not values.get('model'):
        raise InputError('--model is missing: give a name, local-dir:… or hf-hub:…')
    return checked(Recipe, values, 'validation')


def _recipe_beside(model: str) -> Mapping[str, Any]:
    """The values of the recipe in the folder that a `local-dir:` name is of, none where it has no recipe."""
    source, folder = parsed_name(model)
    path = Path(folder) / RECIPE_FILE
    return parsed_yaml(path) if source == 'local-dir' and path.is_file() else {}


def validate(
        recipe: Recipe, *, checkpoint: Path | None = None, use_ema: bool = False, data_dir: str | None = None,
        download: bool = False, device: str | None = None,
) -> Validation:
    """Measure a model on the recipe's `val_split`.

    Of a folder without splits those pictures are measured that training by the recipe holds out.
    Classes are matched by their names. Where the dataset has not all of the model's, its own ones are measured, among
    all answers that the model can give.

    Args:
        recipe: Says which model, data, input, batches and precision, as `validation_recipe` makes it.
        checkpoint: Where the weights are from, by default the pretrained ones of the model.
        use_ema: Take the averaged weights of the checkpoint.
        data_dir, download, device: As `run.train` takes them.

    Raises:
        InputError: A model, checkpoint or dataset that cannot be used, or classes that the model does not have.
        BrokenPictureError: A picture cannot be read, and the recipe does not have `skip_broken`.
    """
    if use_ema and (checkpoint is None or 'state_dict_ema' not in _content_of(checkpoint)):
        what = f'checkpoint = {str(checkpoint)!r} holds no averaged weights (--use-ema)'
        raise InputError(what if checkpoint else '--use-ema needs a --checkpoint')
    with process_on(device) as process:
        recipe = with_precision(recipe, process)
        model = load_model(recipe, checkpoint, use_ema).to(process.device)
        model.to(memory_format=torch.channels_last if recipe.channels_last else torch.preserve_format)
        config = data_config_of(model, recipe)
        check_batch(model, config['input_size'], recipe)
        check_image_size(model, config['input_size'])
        with process.one_first(download):
            dataset = open_dataset(
                recipe.dataset, data_dir, recipe.val_split, download=download, batch_size=recipe.batch_size)
        if process.rank == 0:
            say_overlooked(dataset)
        outputs = match_classes(dataset, model, None if checkpoint is None else facts_of(checkpoint.parent))
        left_out = leave_out_broken(dataset) if recipe.skip_broken else []
        dataset = held_out(dataset, recipe, data_dir)
        loader = make_eval_loader(dataset, recipe, config, process.device, process.distributed)
        figures, images, seconds = evaluate(model, loader, recipe, process, outputs=outputs)
        return Validation(
            figures['top1'], figures['top5'], images, seconds, model, config, class_names(dataset), process, left_out,
            precision_of(recipe))


def match_classes(dataset: Any, model: nn.Module, facts: Mapping[str, Any] | None = None) -> list[int] | None:
    """The model's output for each label of a dataset, None where they are the same.

    Args:
        dataset: Has labels that the model has outputs for.
        model: Made by timm.
        facts: Of the run that trained the model, whose cfg then has the names of other classes.

    Raises:
        InputError: There are classes or labels that the model does not have.
    """
    cfg = cfg_of(model) if facts is None else {'label_names': facts.get('classes')}
    outputs = outputs_of(class_names(dataset), cfg, num_classes_of(model))
    if outputs is None:
        check_labels(dataset, num_classes_of(model))
    return outputs


@torch.inference_mode()
def evaluate(
        model: nn.Module, loader: Any, recipe: Recipe, process: Process, label: str = 'validation', every: float = 30.0,
        outputs: Sequence[int] | None = None, labels_of: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[dict[str, float], int, float]:
    """Measure a model in one pass over a validation set.

    Args:
        model: Takes (B, 3, H, W), gives logits (B, num_classes).
        loader: Of several processes each has a share; images that a sampler repeats to make them equal do not count.
        recipe: Says precision and memory format.
        process: One of those whose figures are summed.
        label, every: As `Progress` takes them.
        outputs: The model's output for each label, where they are not the same.
        labels_of: Says the labels of images in place of the loader.

    Returns:
        The figures `loss`, `top1` and `top5` (percent), the number of images, and the seconds it took.
    """
    model.eval()
    progress = Progress(label, len(loader), every=every, show=process.rank == 0)
    index = None if outputs is None else torch.tensor(outputs, device=process.device)
    evaluator = ClassificationEvaluator(process.device, max_samples=evaluation_sample_limit(loader))
    for images, labels in loader:
        if recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(process.device, recipe.amp is True, recipe.amp_dtype):
            logits = model(images)
            labels = labels if labels_of is None else labels_of(images)
        evaluator.update(logits, labels if index is None else index[labels])
        progress.step(len(images))
    count = evaluator.counts[0].clone()
    if process.distributed:
        torch.distributed.all_reduce(count)
    figures = evaluator.compute(distributed=process.distributed)
    progress.bar.close()
    return figures, int(count), progress.seconds


def _content_of(checkpoint: Path) -> Mapping[str, Any]:
    """What a checkpoint holds beside tensors."""
    if not checkpoint.is_file():
        raise NoSuchFileError(f'checkpoint = {str(checkpoint)!r} is no file')
    try:
        content = load_checkpoint_metadata(checkpoint)
    except Exception as error:  # a broken or foreign file fails in many ways
        raise InputError(f'checkpoint = {str(checkpoint)!r} is no training checkpoint: {error}') from error
    return content if isinstance(content, Mapping) else {}


def load_model(recipe: Recipe, checkpoint: Path | None = None, use_ema: bool = False) -> nn.Module:
    """Build the recipe's model with its pretrained weights, or those of a checkpoint.

    Raises:
        InputError: No such model, weights that do not fit it, or with pretrained weights another number of classes,
            whose classifier would be untrained.
    """
    name, arguments = recipe.network
    model = build_model(name, pretrained=checkpoint is None, num_classes=recipe.num_classes, **arguments)
    if checkpoint is None:
        wanted, trained = num_classes_of(model), cfg_of(model)['num_classes']
        if wanted != trained:
            raise InputError(f'num_classes = {wanted}, but the weights of {recipe.model!r} are for {trained}')
    else:
        try:
            load_checkpoint(model, str(checkpoint), use_ema=use_ema, filter_fn=checkpoint_filter_fn)
        except RuntimeError as error:  # torch's word for weights of other names or shapes
            raise InputError(f'checkpoint = {str(checkpoint)!r} does not fit {recipe.model!r}: {error}') from error
        check_finite(model.state_dict(), f'checkpoint = {str(checkpoint)!r}')
    return model
