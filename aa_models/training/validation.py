"""Measure top-1 and top-5 of a model on a dataset.

Size, crop, filter and colour statistics are those that the model was trained with, unless an option says otherwise.

Examples:
  aa-models validate --model aa_resnet18.cifar100 --dataset torch/cifar100 --data-dir data --dataset-download
  aa-models validate --model local-dir:runs/mine/aa_resnet18.mine --data-dir my_pictures --card
  aa-models validate --checkpoint runs/mine/model_best.pth.tar --data-dir my_pictures --results-file results.csv
  aa-models validate --model hf-hub:timm/resnet50.a1_in1k --data-dir imagenet --amp --channels-last
"""
import argparse
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models import load_checkpoint, parse_model_name
from timm.task import ClassificationEvaluator
from timm.utils import load_checkpoint_metadata, setup_default_logging
from torch import nn

from aa_models.data.known_datasets import known_dataset
from aa_models.device import autocast, machine_name, start_device
from aa_models.models.create import ParseKeyValues, build_model, num_classes_of
from aa_models.release.card import load_card, write_accuracy
from aa_models.release.results import read_results, update_results

from .evaluate import evaluate
from .loaders import DATA_KEYS, check_labels, class_names, data_config_of, make_eval_loader, open_dataset, size_text
from .progress import Progress

FROM_RECIPE = ('model', 'model_kwargs', 'num_classes', *DATA_KEYS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument('--model', metavar='NAME', help='model with its weights: a name, hf-hub:… or local-dir:…')
    parser.add_argument('--checkpoint', metavar='FILE', help='a training checkpoint, in place of pretrained weights; '
                        'what it was trained with is the default of the options below')
    parser.add_argument('--use-ema', action='store_true', help='take the averaged weights of the checkpoint')
    parser.add_argument('--num-classes', type=int, metavar='N', help="classes of the model (default: its own)")
    parser.add_argument('--model-kwargs', nargs='*', action=ParseKeyValues, metavar='KEY=VALUE',
                        help='further arguments of the model')
    parser.add_argument('--dataset', default='', metavar='NAME',
                        help="dataset in timm's notation, e.g. torch/cifar100 (default: a folder of class folders)")
    parser.add_argument('--data-dir', metavar='DIR', help='where the dataset is')
    parser.add_argument('--dataset-download', action='store_true', help='fetch the dataset if it is not there')
    parser.add_argument('--split', default='validation', help='split of the dataset (default: validation)')
    parser.add_argument('--batch-size', type=int, default=128, metavar='N', help='images in a batch (default: 128)')
    parser.add_argument('--workers', type=int, default=2, metavar='N', help='processes that load images (default: 2)')
    parser.add_argument('--img-size', type=int, metavar='PX', help="side of the input (default: the model's)")
    parser.add_argument('--input-size', type=int, nargs=3, metavar=('C', 'H', 'W'),
                        help="the same, where it is not square")
    parser.add_argument('--interpolation', metavar='NAME', help="resizing filter (default: the model's)")
    parser.add_argument('--crop-pct', type=float, metavar='SHARE', help="centre crop (default: the model's)")
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--amp-dtype', default='bfloat16', choices=('bfloat16', 'float16'), help='its low precision')
    parser.add_argument('--channels-last', action='store_true', help='keep images and weights in channels_last order')
    parser.add_argument('--device', help='cuda, cpu, … (default: cuda where there is one)')
    parser.add_argument('--card', action='store_true',
                        help='write the result into the model card of the folder that --model local-dir:… names')
    parser.add_argument('--results-file', metavar='CSV',
                        help="put the result into a table in timm's columns, in the place of the model's own row")


def run(args: argparse.Namespace) -> int:
    """Validate, print, and write the result where asked to.

    Raises:
        ValueError: A model, checkpoint or dataset that cannot be used.
    """
    if not logging.root.handlers:
        setup_default_logging(logging.WARNING)
    for name, least in (('batch_size', 1), ('workers', 0), ('img_size', 1), ('num_classes', 1)):
        if (value := getattr(args, name)) is not None and value < least:
            raise ValueError(f'{name} = {value} must be at least {least}')
    if args.results_file:
        read_results(args.results_file)  # refused before the work
    if args.input_size and (args.img_size or min(args.input_size) < 1):
        raise ValueError(f'input_size = {args.input_size} must be at least 1 each, and without img_size')
    settings = _settings(args)
    folder = _card_folder(args)
    process = start_device(args.device)
    model = _load_model(args, settings).to(process.device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    config = data_config_of(model, settings)
    dataset = open_dataset(
        args.dataset, args.data_dir, args.split, download=args.dataset_download, batch_size=args.batch_size)
    check_labels(dataset, num_classes_of(model))
    loader = make_eval_loader(dataset, config, args.batch_size, args.workers, process.device)
    progress = Progress('validation', len(loader))
    figures = evaluate(
        model, loader, partial(ClassificationEvaluator, process.device),
        autocast(process.device, args.amp, args.amp_dtype), progress, args.channels_last)
    name = settings['model']
    print(f'{name}: top-1 {figures["top1"]:.3f} % top-5 {figures["top5"]:.3f} % of {progress.images} images '
          f'in {progress.seconds:.1f} s')
    if args.results_file:
        update_results(args.results_file, _row(name, figures, model, config))
    if folder is not None:
        precision = f'{args.amp_dtype} autocast' if args.amp else 'float32'
        write_accuracy(
            folder, figures, progress.images, known_dataset(args.dataset, class_names(dataset)), args.dataset,
            args.split,
            f'{precision} on {process.device.type}, input {size_text(config["input_size"])} px, '
            f'crop {config["crop_pct"]:g}',
            f'{progress.speed:.0f} images a second on {machine_name(process)}, loading included')
    return 0


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What is measured and how: the command line, then the recipe in the checkpoint, then (None) the model's own."""
    stored = None
    if args.checkpoint:
        if not Path(args.checkpoint).is_file():
            raise ValueError(f'checkpoint = {args.checkpoint!r} is no file')
        try:
            content = load_checkpoint_metadata(args.checkpoint)
        except Exception as error:  # a broken or foreign file fails in many ways
            raise ValueError(f'checkpoint = {args.checkpoint!r} is no training checkpoint: {error}') from error
        stored = content.get('args') if isinstance(content, dict) else None
        if args.use_ema and (not isinstance(content, dict) or 'state_dict_ema' not in content):
            raise ValueError(f'checkpoint = {args.checkpoint!r} holds no averaged weights (--use-ema)')
    elif args.use_ema:
        raise ValueError('--use-ema needs a --checkpoint')
    settings = {key: getattr(args, key, None) or getattr(stored, key, None) for key in FROM_RECIPE}
    if args.img_size:
        settings['input_size'] = None  # the recipe's, which would go before it
    if not settings['model']:
        raise ValueError('--model is missing: give a name, local-dir:… or hf-hub:…')
    return settings


def _card_folder(args: argparse.Namespace) -> Path | None:
    """The folder whose card takes the result, checked before the work."""
    if not args.card:
        return None
    source, folder = parse_model_name(args.model or '')
    if source != 'local-dir' or args.checkpoint:
        raise ValueError(f'--card needs --model local-dir:… and no --checkpoint, not {args.model or args.checkpoint!r}')
    load_card(Path(folder))
    return Path(folder)


def _load_model(args: argparse.Namespace, settings: dict[str, Any]) -> nn.Module:
    model = build_model(
        settings['model'], pretrained=not args.checkpoint, num_classes=settings['num_classes'],
        **(settings['model_kwargs'] or {}))
    if args.checkpoint:
        try:
            load_checkpoint(model, args.checkpoint, use_ema=args.use_ema)
        except RuntimeError as error:
            raise ValueError(f'checkpoint = {args.checkpoint!r} does not fit {settings["model"]!r}: {error}') from error
    return model


def _row(name: str, figures: dict[str, float], model: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """A row of the results table; a folder stands in it by its name alone, `<model>.<tag>`."""
    source, path = parse_model_name(name)
    return dict(
        model=Path(path).resolve().name if source == 'local-dir' else name,
        top1=round(figures['top1'], 4),
        top1_err=round(100 - figures['top1'], 4),
        top5=round(figures['top5'], 4),
        top5_err=round(100 - figures['top5'], 4),
        param_count=round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
        img_size=config['input_size'][-1],
        crop_pct=config['crop_pct'],
        interpolation=config['interpolation'],
    )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
