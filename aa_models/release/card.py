"""The model card of an exported folder: what the model is, its figures, how to use it, how it was made, its limits.

An accuracy comes into a card in one way only: `aa-models validate --card` measures the folder and writes what it
prints.
"""
import csv
import re
from pathlib import Path
from typing import cast

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn

from aa_models.analysis.macs import count_macs, in_giga
from aa_models.data.known_datasets import KnownDataset
from aa_models.data.labels import describe_synsets
from aa_models.layers import GridAttention
from aa_models.layers.linear_attention import LinearAttention
from aa_models.layers.softmax_attention import SoftmaxAttention
from aa_models.models.create import cfg_of, num_classes_of
from aa_models.training.loaders import size_text
from aa_models.training.recipe import Recipe

CARD = 'README.md'
ACCURACY = re.compile('(<!-- accuracy -->\n).*(<!-- end of accuracy -->)', re.DOTALL)

AUGMENTED = (
    'It has attention-augmented convolutions: a part of their output channels is {kind} attention over the whole map '
    '({heads} heads, {positions}), concatenated with those of a plain convolution.')
POSITIONS = {
    'rel': 'relative positions', 'sincos': 'sine/cosine positions', 'coord': 'coordinate channels', '': 'no positions'}
PAPERS: dict[type[GridAttention], tuple[str, str]] = {
    SoftmaxAttention: ('softmax', (
        '[Attention Augmented Convolutional Networks](https://arxiv.org/abs/1904.09925), Bello et al., 2019')),
    LinearAttention: ('linear', (
        '[Efficient Attention: Attention with Linear Complexities](https://arxiv.org/abs/1812.01243), Shen et al., '
        '2018')),
}

INTENDED = (
    'Meant for research and teaching on attention in convolutional networks, and as a start for fine-tuning. It knows '
    'nothing but the classes of {title}: a picture of anything else gets one of them all the same, and the '
    'probabilities are not calibrated. Do not let it decide about people.')

TEXT = '''
# {name}

{what}

| | |
|---|---|
| parameters | {parameters:.2f} M |
| multiply-accumulates of one image, attention counted in full | {gmacs} G |
| input | {size} px, normalised as `config.json` says |
| classes | {num_classes} |
| weights | float16 |

## Accuracy

<!-- accuracy -->
Not measured yet: `aa-models validate --model local-dir:{name} … --card` measures this very folder and writes it here.
<!-- end of accuracy -->

## Use

```python
{snippet}
```

As features (`features_only=True`), with another head (`num_classes=…`) or at another input size it works as every timm
model does.

## Training

{training}

All settings are in [recipe.yaml](recipe.yaml), the figures of every epoch in [log.csv](log.csv). The weights are those
after the last epoch{averaged}: no epoch was chosen by its accuracy on the validation images.

## Data, use and limits

{data}

{intended}

{classes}
'''

SNIPPET = '''
import timm
import torch
from PIL import Image
{registers}
model = timm.create_model('{source}', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
picture = Image.open('picture.jpg').convert('RGB')
with torch.inference_mode():
    probabilities = model(transform(picture)[None]).softmax(dim=-1)[0]
print(probabilities.topk({top}))  # the classes' names are in model.pretrained_cfg['label_names']
'''


def make_card(
        name: str,
        model: nn.Module,
        input_size: tuple[int, int, int],
        recipe: Recipe,
        log: Path,
        dataset: KnownDataset,
        labels: list[str] | None,
        machine: str | None,
        repo: str | None,
) -> ModelCard:
    """Write the card of a model, yet without an accuracy.

    Args:
        name: `<model>.<tag>`, also the folder's name.
        model: With its weights.
        input_size: (C, H, W) of the images that it was trained on.
        recipe: How it was trained.
        log: The run's `log.csv`.
        dataset: What it was trained on.
        labels: Names of the classes.
        machine: What it was trained on.
        repo: Repository on the Hub that the snippet loads; None for a local folder.
    """
    text = TEXT.format(
        name=name,
        what=_what(model, dataset.title),
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        gmacs=in_giga(count_macs(model, input_size)),
        size=' × '.join(map(str, input_size[1:])),
        num_classes=num_classes_of(model),
        snippet=_snippet(model, f'hf-hub:{repo}' if repo else f'local-dir:{name}'),
        training=_training(recipe, dataset.title, input_size, log, machine),
        averaged=', as their moving average' if recipe.ema else '',
        data=dataset.about,
        intended=INTENDED.format(title=dataset.title),
        classes=_classes(labels),
    )
    data = ModelCardData(
        license=cfg_of(model).get('license'),
        library_name='timm',
        pipeline_tag='image-classification',
        tags=['image-classification', 'timm', *(['attention-augmented-convolution'] if _attention(model) else [])],
        datasets=[dataset.hub_name] if dataset.hub_name else None,
        metrics=['accuracy'],
    )
    return ModelCard(f'---\n{data.to_yaml()}\n---\n{text.rstrip()}\n')


def load_card(folder: Path) -> ModelCard:
    """Read a folder's card.

    Raises:
        ValueError: There is none, or none with a place for the accuracy.
    """
    path = folder / CARD
    if not path.is_file():
        raise ValueError(f'{str(folder)!r} holds no {CARD} to write the accuracy into')
    card = ModelCard.load(path)
    if not ACCURACY.search(card.text):
        raise ValueError(f'{path} has no place for the accuracy, lines {ACCURACY.pattern.replace(".*", "…")!r}')
    return card


def write_accuracy(
        folder: Path,
        figures: dict[str, float],
        images: int,
        dataset: KnownDataset,
        name: str,
        split: str,
        how: str,
        speed: str,
) -> None:
    """Put a measurement into a folder's card: into the text and, as `model-index`, into its metadata.

    Args:
        folder: Where the measured weights are.
        figures: `top1` and `top5`, percent.
        images: How many were measured.
        dataset: What was measured on.
        name: Its name in timm's notation.
        split: Of the dataset.
        how: Precision, device and input.
        speed: Throughput, and of which machine.
    """
    card = load_card(folder)
    top1, top5 = (f'{figures[key]:.3f}' for key in ('top1', 'top5'))
    option = f' --dataset {name}' if name else ''
    text = (
        f'| {dataset.title}, {split}, {images} images | |\n|---|---|\n| top-1 | {top1} % |\n| top-5 | {top5} % |\n'
        f'| throughput | {speed} |\n\n'
        f'Printed by `aa-models validate --model local-dir:{folder.resolve().name}{option} --data-dir … '
        f'--split {split}` for this file of weights ({how}).\n')
    card.text = ACCURACY.sub(lambda found: found[1] + text + found[2], card.text)
    data = cast(ModelCardData, card.data)
    data.model_name = folder.resolve().name
    data.eval_results = [
        EvalResult(
            task_type='image-classification', dataset_type=dataset.hub_name or 'imagefolder',
            dataset_name=dataset.title, dataset_split=split, metric_type='accuracy', metric_name=figure,
            metric_value=float(value))
        for figure, value in (('top-1 accuracy', top1), ('top-5 accuracy', top5))
    ]
    card.save(folder / CARD)


def _attention(model: nn.Module) -> list[GridAttention]:
    return [module for module in model.modules() if isinstance(module, GridAttention)]


def _what(model: nn.Module, title: str) -> str:
    """One paragraph: the network, and what is special in it."""
    text = f'`{cfg_of(model)["architecture"]}` for images of {num_classes_of(model)} classes, trained on {title}.'
    attention = _attention(model)
    if not attention:
        return text
    layer = attention[0]
    kind, paper = PAPERS[type(layer)]
    augmented = AUGMENTED.format(kind=kind, heads=layer.num_heads, positions=POSITIONS[layer.pos_embed])
    return f'{text}\n{augmented}\n\nPaper: {paper}. Software: `aa_models`, a package of such networks for timm.'


def _classes(labels: list[str] | None) -> str:
    """One paragraph, or a list where the names need words."""
    if not labels:
        return ''
    descriptions = describe_synsets(labels)
    if not descriptions:
        return f'The classes, in the order of the outputs: {", ".join(labels)}.'
    lines = '\n'.join(f'{i}. `{label}` {descriptions[label]}' for i, label in enumerate(labels))
    return f'The classes by the number of their output:\n\n{lines}'


def _snippet(model: nn.Module, source: str) -> str:
    own = timm.model_entrypoint(cfg_of(model)['architecture']).__module__.startswith('aa_models')
    registers = '\nimport aa_models  # registers the model with timm\n' if own else ''
    return SNIPPET.format(registers=registers, source=source, top=min(5, num_classes_of(model))).strip()


def _training(recipe: Recipe, title: str, input_size: tuple[int, int, int], log: Path, machine: str | None) -> str:
    """One paragraph: from what, with what, how long."""
    with log.open(newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    hours = sum(float(row['train_seconds']) for row in rows) / 3600
    start = f'fine-tuned from the weights of `{recipe.model}`' if recipe.pretrained else 'trained from scratch'
    accumulation = f', {recipe.grad_accum_steps} of them an update' if recipe.grad_accum_steps > 1 else ''
    where = f' on {machine}' if machine else ''
    images = f'{recipe.train_images} images of {title}' if recipe.train_images else title
    return (
        f'By `aa-models train`, {start} on {images} at {size_text(input_size)} px: {recipe.epochs} epochs, batches of '
        f'{recipe.batch_size} images a device{accumulation}, {recipe.opt} with a learning rate of {recipe.lr:g}. '
        f'The epochs took {hours:.1f} hours{where}, validation not counted.')
