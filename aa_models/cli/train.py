"""Train a model by a recipe, and go on where an interrupted run stopped.

RECIPE is a YAML file or the name of one that comes with the package; the options below, from the heading `model` on,
replace its values. Checkpoints, log.csv and the recipe go to the output directory. The same command with the same
directory goes on with an interrupted run and ends with the very figures of an unbroken one. SIGTERM and Ctrl-C complete
the checkpoint that is being written, if any, and stop the run; the epoch they cut short is made again. After the last
epoch MODEL.TAG in that directory is a folder ready for `--model local-dir:…` and for the Hub: weights, config, model
card, recipe and log.

Examples:
  aa-models train cifar100_resnet --data-dir data --dataset-download --output runs/cifar100
  aa-models train finetune --model aa_resnet18 --data-dir my_pictures --output runs/mine
  aa-models train my_recipe.yaml --lr 0.05 --ema --data-dir data --output runs/ema
  aa-models train finetune --model aa_resnet18 --teacher resnet50 --task-loss-weight 0 --data-dir data --output runs/kd
  torchrun --nproc-per-node 4 -m aa_models train my_recipe.yaml --data-dir data --output runs/four
"""
import argparse
import logging

from .options import add_device, path
from .recipe_options import add_data, add_recipe_options, recipe_values
from .terminal import start_logging

_logger = logging.getLogger(__name__)
USAGE = '%(prog)s RECIPE --output DIR [options]'  # argparse would print every value of a recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from aa_models.training.recipe import recipe_names
    parser.add_argument(
        'recipe', metavar='RECIPE',
        help=f'a YAML file or the name of a packaged recipe: {", ".join(recipe_names())}')
    parser.add_argument('--output', type=path, required=True, metavar='DIR',
                        help='where checkpoints, log and recipe go; the same command with the same directory goes on '
                        'with an interrupted run')
    add_data(parser)
    parser.add_argument('--overwrite', action='store_true', help='start again, losing the run that is in the directory')
    add_device(parser)
    parser.add_argument('--log-seconds', type=float, default=30.0, metavar='S',
                        help='time between lines of the log where there is no terminal (default: 30)')
    parser.add_argument('--tag', help='second half of the name MODEL.TAG of the exported folder (default: the '
                        "dataset's name; for a folder of pictures, the output directory's name)")
    add_recipe_options(parser)


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, or 128 and the number of the signal that stopped the run."""
    from aa_models.release.folder import checked_tag, pack_run
    from aa_models.training.recipe import load_recipe
    from aa_models.training.run import train
    from aa_models.training.stopping import Stopped

    output = args.output
    recipe = load_recipe(args.recipe, **recipe_values(args))
    tag = checked_tag(args.tag, recipe, output)
    start_logging()
    try:
        train(
            recipe, output, data_dir=args.data_dir, download=args.dataset_download, overwrite=args.overwrite,
            device=args.device, log_seconds=args.log_seconds, finish=lambda: _logger.info(
                f'done: aa-models predict PICTURE --model local-dir:{pack_run(output, tag, reuse=True)}'))
    except Stopped as stopped:
        _logger.warning(str(stopped))
        return stopped.status
    return 0
