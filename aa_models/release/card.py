"""The model card of a folder: what the model is, its figures, how to use it, how it was made, its limits.

`card_template.md` holds the text, `make_card` fills in what is known of a run. An accuracy comes into a card in one way
only: `aa-models validate --card` measures the folder and writes what it prints.
"""
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any, cast

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn

from aa_models.analysis.macs import count_macs, in_giga
from aa_models.data.known_datasets import KnownDataset
from aa_models.data.labels import describe_synsets
from aa_models.durable import check_file, replace_text
from aa_models.errors import InputError
from aa_models.layers import GridAttention
from aa_models.layers.linear_attention import LinearAttention
from aa_models.layers.softmax_attention import SoftmaxAttention
from aa_models.models.create import cfg_of, num_classes_of
from aa_models.training.checkpoints import read_log
from aa_models.training.loaders import training_size_text
from aa_models.training.precision import precision_of
from aa_models.training.recipe import Recipe
from aa_models.zoo import own_models

CARD = 'README.md'
SECTIONS = ('Accuracy', 'Use', 'Training', 'Data, use and limits')
ACCURACY = re.compile('(<!-- accuracy -->\n).*(<!-- end of accuracy -->)', re.DOTALL)

POSITIONS = {'rel': 'relative positions', 'sincos': 'sine/cosine positions', 'coord': 'coordinate channels'}
PAPERS: dict[type[GridAttention], tuple[str, str]] = {
    SoftmaxAttention: ('softmax', '[Attention Augmented Convolutional Networks]'
                                  '(https://arxiv.org/abs/1904.09925), Bello et al., 2019'),
    LinearAttention: ('linear', '[Efficient Attention: Attention with Linear Complexities]'
                                '(https://arxiv.org/abs/1812.01243), Shen et al., 2018'),
}


def make_card(
        name: str, model: nn.Module, input_size: tuple[int, int, int], recipe: Recipe, log: Path, dataset: KnownDataset,
        labels: list[str] | None, machine: str | None, repo: str | None,
) -> ModelCard:
    """Write the card of a model whose accuracy has not been measured yet.

    Args:
        name: `<model>.<tag>`, also the folder's name.
        model: With its weights.
        input_size: (C, H, W) of the images that it was trained on.
        recipe, dataset, machine: How, on which images and by which hardware it was trained.
        log: The run's `log.csv`.
        labels: Names of the classes.
        repo: Repository on the Hub that the snippet loads; None for a local folder.
    """
    own = cfg_of(model)['architecture'] in own_models()
    text = Template(Path(__file__).with_name('card_template.md').read_text(encoding='utf-8')).substitute(
        _training(recipe, dataset.title, log), name=name, what=_what(model, dataset.title), data=dataset.about,
        dataset=dataset.title, parameters=f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f}',
        gmacs=in_giga(count_macs(model, input_size)), size=' × '.join(map(str, input_size[1:])),
        train_size=training_size_text(recipe, input_size), num_classes=num_classes_of(model),
        top=min(5, num_classes_of(model)),
        registers='\nimport aa_models  # registers the model with timm\n' if own else '',
        source=f'hf-hub:{repo}' if repo else f'local-dir:{name}', machine=f' on {machine}' if machine else '',
        classes=_classes(labels))
    return card_of(
        text, model, datasets=[dataset.hub_name] if dataset.hub_name else None, metrics=['accuracy'])


def card_of(text: str, model: nn.Module, **metadata: Any) -> ModelCard:
    """Put above the text of a card what the Hub is to know of a model, and further `metadata`."""
    tags = ['image-classification', 'timm', *(['attention-augmented-convolution'] if _attention(model) else [])]
    data = ModelCardData(
        license=cfg_of(model).get('license'), library_name='timm', pipeline_tag='image-classification', tags=tags,
        **metadata)
    return ModelCard(f'---\n{data.to_yaml()}\n---\n\n{text.rstrip()}\n')


def load_card(folder: Path) -> ModelCard:
    """Read a folder's card.

    Raises:
        InputError: There is none, a broken one, none with a place for the accuracy, or one that cannot be written.
    """
    path = folder / CARD
    if not path.is_file():
        raise InputError(f'{str(folder)!r} holds no {CARD} to write the accuracy into')
    check_file(path, 'card')
    card = read_card(path)
    if not ACCURACY.search(card.text):
        raise InputError(f'{path} has no place for the accuracy, lines {ACCURACY.pattern.replace(".*", "…")!r}')
    return card


def read_card(path: Path) -> ModelCard:
    """Read a model card.

    Raises:
        InputError: It cannot be read, or its metadata are not those of a card.
    """
    try:
        return ModelCard(path.read_text(encoding='utf-8'))  # unlike `ModelCard.load` with line ends of any system
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f'{path} cannot be read: {" ".join(str(error).split())}') from error


def write_accuracy(
        folder: Path, figures: dict[str, float], images: int, dataset: KnownDataset, options: Sequence[str], split: str,
        how: str, speed: str,
) -> None:
    """Put a measurement into a folder's card: into the text and, as `model-index`, into its metadata.

    Args:
        folder: Where the measured weights are.
        figures: `top1` and `top5`, percent.
        images: How many were measured.
        dataset, split: What was measured on.
        options: Of the command that measured, but for folders and split.
        how: Precision, device and input.
        speed: Throughput, and of which machine.
    """
    card = load_card(folder)
    top1, top5 = (f'{figures[key]:.3f}' for key in ('top1', 'top5'))
    name = folder.resolve().name
    command = ' '.join([f'aa-models validate --model local-dir:{name}', *options, f'--data-dir … --split {split}'])
    text = (
        f'| {dataset.title}, {split}, {images} images | |\n|---|---|\n| top-1 | {top1} % |\n| top-5 | {top5} % |\n'
        f'| throughput | {speed} |\n\nPrinted by `{command}` for this file of weights ({how}).\n')
    card.text = ACCURACY.sub(lambda found: found[1] + text + found[2], card.text)
    data = cast(ModelCardData, card.data)
    data.model_name = name
    data.eval_results = [EvalResult(
        'image-classification', dataset_type=dataset.hub_name or 'imagefolder', dataset_name=dataset.title,
        dataset_split=split, metric_type='accuracy', metric_name=figure, metric_value=float(value))
        for figure, value in (('top-1 accuracy', top1), ('top-5 accuracy', top5))]
    replace_text(folder / CARD, str(card))


def stated_accuracy(card: ModelCard) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Top-1 and top-5 as the card's text states them, then as its metadata do; empty where they do not."""
    block = ACCURACY.search(card.text)
    figures = re.findall(r'^\| top-[15] \| ([\d.]+) % \|$', block[0] if block else '', re.MULTILINE)
    results = cast(ModelCardData, card.data).eval_results or ()
    return (tuple(figures) if len(figures) == 2 else ()), tuple(_figure(result.metric_value) for result in results)


def _figure(value: Any) -> str:
    """As the text has it; metadata that were written by hand may hold anything."""
    return f'{value:.3f}' if isinstance(value, (int, float)) else str(value)


def _attention(model: nn.Module) -> list[GridAttention]:
    return [module for module in model.modules() if isinstance(module, GridAttention)]


def _what(model: nn.Module, title: str) -> str:
    """One or two paragraphs: the network and its attention."""
    text = f'`{cfg_of(model)["architecture"]}` for images of {num_classes_of(model)} classes, trained on {title}.'
    attention = _attention(model)
    if not attention:
        return text
    kind, paper = PAPERS[type(attention[0])]
    positions = POSITIONS.get(attention[0].pos_embed, 'no positions')
    return (
        f'{text}\nIt has attention-augmented convolutions: a part of their output channels is {kind} attention over '
        f'the whole map ({attention[0].num_heads} heads, {positions}), concatenated with those of a plain convolution.'
        f'\n\nPaper: {paper}. Software: `aa_models`, a package of such networks for timm.')


def _classes(labels: list[str] | None) -> str:
    """One paragraph of names, or a list where WordNet identifiers have to be explained."""
    if not labels:
        return ''
    descriptions = describe_synsets(labels)
    if not descriptions:
        return f'The classes, in the order of the outputs: {", ".join(labels)}.'
    lines = '\n'.join(f'{i}. `{label}` {descriptions[label]}' for i, label in enumerate(labels))
    return f'The classes by the number of their output:\n\n{lines}'


def _start(recipe: Recipe) -> str:
    """From which weights training started, and who taught."""
    text = f'fine-tuned from the weights of `{recipe.model}`' if recipe.pretrained else 'trained from scratch'
    if recipe.initial_checkpoint is not None:
        other = ('a narrower network, which were widened' if recipe.widen
                 else 'a wider network, which were narrowed' if recipe.narrow else 'another run')
        text = f'trained from the weights of {other}, `{recipe.initial_checkpoint}`'
    if recipe.teacher is None:
        return text
    what = 'logits' if recipe.kd_distill_type == 'logit' else 'features'
    labels = ', without labels,' if recipe.unlabelled else ''
    return f'{text} towards the {what} of `{recipe.teacher}`{labels}'


def _training(recipe: Recipe, title: str, log: Path) -> dict[str, Any]:
    """What the section on training says of the recipe and of the hours it took."""
    seconds = sum(float(row['train_seconds']) for row in read_log(log))
    accumulated = recipe.grad_accum_steps > 1
    return dict(
        start=_start(recipe),
        images=f'{recipe.train_images} images of {title}' if recipe.train_images else title,
        accumulation=f', gradients of {recipe.grad_accum_steps} batches added for an update' if accumulated else '',
        averaged=', as their moving average' if recipe.ema else '', hours=f'{seconds / 3600:.1f}',
        precision=precision_of(recipe),
        epochs=recipe.epochs, batch_size=recipe.batch_size, opt=recipe.opt, lr=f'{recipe.lr:g}')
