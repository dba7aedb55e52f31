"""Measure the share of right answers of a model on a dataset: top-1 and top-5.

Top-1 is the share of pictures whose most probable class is the right one, top-5 of those where it is among the five
most probable.
Size, crop, filter and colour statistics are those that the model was trained with, unless an option says otherwise.
Classes are matched by their names. Pictures of only some of the model's classes are measured among all answers that it
can give; a class that it does not have is an error, and so is a picture that cannot be read.
Of a folder without splits, from which training held pictures out to validate on, these are measured (--split train:
all).
Several processes, started by torchrun, share the images; the first one prints and writes the result.

Examples:
  aa-models validate --model aa_resnet18.cifar100 --dataset torch/cifar100 --data-dir data --dataset-download
  aa-models validate --model local-dir:runs/mine/aa_resnet18.mine --data-dir my_pictures --card
  aa-models validate --checkpoint runs/mine/model_best.pth.tar --data-dir my_pictures --results-file results.csv
  aa-models validate --model hf-hub:timm/resnet50.a1_in1k --data-dir imagenet --amp --channels-last
  torchrun --nproc-per-node 4 -m aa_models validate --model aa_resnet50.from_a1_in1k --data-dir imagenet
"""
import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aa_models.errors import InputError

from .options import add_device, model_name, path, path_text
from .recipe_options import add_data, add_recipe_options, recipe_values
from .terminal import start_logging

if TYPE_CHECKING:
    from aa_models.training.recipe import Recipe
    from aa_models.training.validation import Validation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model', type=model_name, default=argparse.SUPPRESS, metavar='NAME',
                        help='model with its weights: a name, hf-hub:… or local-dir:… (default: the checkpoint\'s)')
    parser.add_argument('--checkpoint', type=path, metavar='FILE', help='a training checkpoint, instead of pretrained '
                        'weights; its model, classes and input are the default of the options below (default: none)')
    parser.add_argument('--use-ema', action='store_true', help='take the averaged weights of the checkpoint')
    add_data(parser)
    parser.add_argument('--split', dest='val_split', default='validation', metavar='NAME',
                        help='split of the dataset (default: %(default)s)')
    add_recipe_options(parser, (
        'model_kwargs', 'num_classes', 'dataset', 'img_size', 'input_size', 'interpolation', 'crop_pct', 'batch_size',
        'amp', 'amp_dtype', 'channels_last', 'skip_broken'))
    parser.add_argument('--workers', default=2, metavar='N', help='processes that load images (default: %(default)s)')
    add_device(parser)
    parser.add_argument('--card', action='store_true',
                        help='write the result into the model card of the folder that --model local-dir:… names')
    parser.add_argument('--results-file', type=path_text, metavar='CSV',
                        help="put the result into a table in timm's columns, replacing the model's row (default: none)")


def run(args: argparse.Namespace) -> int:
    from aa_models.durable import check_file
    from aa_models.models.create import parsed_name
    from aa_models.release.card import load_card
    from aa_models.release.results import read_results, update_results
    from aa_models.training.validation import validate, validation_recipe

    start_logging(logging.WARNING)
    if args.results_file:  # refused before the work
        check_file(args.results_file, 'results_file')
        read_results(args.results_file)
    recipe = validation_recipe(args.checkpoint, **recipe_values(args))
    if args.card:
        source, folder = parsed_name(recipe.model)
        if source != 'local-dir' or args.checkpoint:
            given = args.checkpoint or recipe.model
            raise InputError(f'--card needs --model local-dir:… and no --checkpoint, not {given}')
        if recipe.model_kwargs:
            raise InputError('--card is for the network as its folder has it, without --model-kwargs')
        load_card(Path(folder))
    result = validate(recipe, checkpoint=args.checkpoint, use_ema=args.use_ema, data_dir=args.data_dir,
                      download=args.dataset_download, device=args.device)
    if result.process.rank != 0:
        return 0
    for fault in result.left_out:
        print(fault)
    left_out = f' ({len(result.left_out)} broken ones left out)' if result.left_out else ''
    print(f'{recipe.model}: top-1 {result.top1:.3f} % top-5 {result.top5:.3f} % of {result.images} images{left_out} '
          f'in {result.seconds:.1f} s, {result.precision}')
    if args.results_file:
        update_results(args.results_file, _row(_name_of(recipe.model, args.checkpoint), result))
    if args.card:
        _write_card(Path(folder), recipe, result)
    return 0


def _write_card(folder: Path, recipe: 'Recipe', result: 'Validation') -> None:
    from aa_models.data.known_datasets import known_dataset
    from aa_models.device import machine_name
    from aa_models.release.card import write_accuracy
    from aa_models.training.loaders import size_text
    options = {key: getattr(recipe, key) for key in ('dataset', 'img_size', 'input_size', 'interpolation', 'crop_pct')}
    if isinstance(options['input_size'], tuple):
        options['input_size'] = ' '.join(map(str, options['input_size']))
    write_accuracy(
        folder, dict(top1=result.top1, top5=result.top5), result.images,
        known_dataset(recipe.dataset, result.class_names),
        [f'--{key.replace("_", "-")} {value}' for key, value in options.items() if value], recipe.val_split,
        f'{result.precision} on {result.process.device.type}, input {size_text(result.data_config["input_size"])} px, '
        f'crop {result.data_config["crop_pct"]:g}',
        f'{result.images / result.seconds:.0f} images a second on {machine_name(result.process)}, loading included')


def _name_of(model: str, checkpoint: Path | None) -> str:
    """What a row of the results table is called: a checkpoint by its path, a folder by its last part."""
    from aa_models.models.create import parsed_name
    if checkpoint:
        return str(checkpoint)
    source, folder = parsed_name(model)
    return Path(folder).resolve().name if source == 'local-dir' else model


def _row(name: str, result: 'Validation') -> dict[str, Any]:
    from aa_models.training.loaders import size_text
    return dict(
        model=name,
        top1=round(result.top1, 4), top1_err=round(100 - result.top1, 4),
        top5=round(result.top5, 4), top5_err=round(100 - result.top5, 4),
        param_count=round(sum(p.numel() for p in result.model.parameters()) / 1e6, 2),
        img_size=size_text(result.data_config['input_size']), crop_pct=result.data_config['crop_pct'],
        interpolation=result.data_config['interpolation'])
