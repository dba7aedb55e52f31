"""Measure models under the fifteen common corruptions of pictures, each at five strengths.

All models see the same pictures. Printed are the top-1, the share of right first guesses, without corruption and the
mean over the 75 corrupted forms; the table has each of them. The package that makes them comes with
`pip install 'aa-models[corruptions]'`.

Example:
  aa-models corruptions simplecnn.cifar100 aa_simplecnn.cifar100 --dataset torch/cifar100 --data-dir data -o table.csv
"""
import argparse

from aa_models.durable import check_file

from .options import add_device, model_name, path
from .recipe_options import add_data, add_recipe_options, recipe_values
from .terminal import start_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('models', nargs='+', type=model_name, metavar='MODEL',
                        help='model with its weights: a name, path of a folder or hf-hub:OWNER/NAME')
    add_data(parser)
    parser.add_argument('--split', dest='val_split', default='validation', metavar='NAME',
                        help='split of the dataset (default: %(default)s)')
    parser.add_argument('--images', type=int, default=0, metavar='N',
                        help='number of pictures, the same of all classes (default: all)')
    add_recipe_options(parser, ('dataset', 'batch_size', 'amp', 'amp_dtype', 'channels_last', 'skip_broken'))
    parser.add_argument('-o', '--output', type=path, required=True, metavar='CSV', help='the table')
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    from aa_models.training.corruptions import mean_corrupted, measure_corruptions, write_corruptions
    from aa_models.training.validation import validation_recipe

    check_file(args.output, 'output')
    start_logging()
    recipes = [validation_recipe(model=model, workers=0, **recipe_values(args)) for model in args.models]
    rows = list(measure_corruptions(
        recipes, images=args.images, data_dir=args.data_dir, download=args.dataset_download, device=args.device))
    write_corruptions(args.output, rows)
    for row in rows[:len(recipes)]:
        mean = mean_corrupted(rows, row['model'])
        print(f'{row["model"]}: top-1 {row["top1"]:.2f} % of {row["images"]} images, corrupted {mean:.2f} %')
    return 0
