"""Train a recipe with several settings, and write a row of a table for each run.

SWEEP is a YAML file: the recipe, values that all runs share, and the runs, each with its own values. `each` makes a run
for every combination of the values listed. Runs that have a row are not made again, an interrupted one goes on, and
one that diverges has a row without figures. Several of these commands may share the work. Choose settings on `holdout`
images, not on the test set:

  recipe: cifar100_simplecnn
  values: {holdout: 5000, epochs: 4, warmup_epochs: 1}
  runs:
  - {model: simplecnn, each: {lr: [0.1, 0.2, 0.4], seed: [42, 43]}}
  - {model: aa_simplecnn, model_kwargs: {attn_init: local}}

Example:
  aa-models sweep my_sweep.yaml --data-dir data --output runs --results-file my_sweep.csv
"""
import argparse
import logging

from .options import add_device, path
from .recipe_options import add_data
from .terminal import start_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('sweep', type=path, metavar='SWEEP', help='the YAML file')
    parser.add_argument('--output', type=path, required=True, metavar='DIR',
                        help='where runs have their folders while they last')
    parser.add_argument('--results-file', type=path, required=True, metavar='CSV', help='table that rows are added to')
    add_data(parser)
    add_device(parser)
    parser.add_argument('--log-seconds', type=float, default=30.0, metavar='S',
                        help='time between lines of the log where there is no terminal (default: 30)')


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, or 128 and the number of the signal that stopped a run."""
    from aa_models.training.stopping import Stopped
    from aa_models.training.sweep import run_sweep

    start_logging()
    try:
        run_sweep(
            args.sweep, args.output, args.results_file, data_dir=args.data_dir, download=args.dataset_download,
            device=args.device, log_seconds=args.log_seconds)
    except Stopped as stopped:
        logging.getLogger(__name__).warning(str(stopped))
        return stopped.status
    return 0
