"""Pack a finished run: make the folder MODEL.TAG of it, ready for `--model local-dir:…` and for the Hub.

The folder holds the weights after the last epoch in float16, averaged where the recipe keeps an average, the config, a
model card, the recipe and the log. `aa-models train` makes one at its end; this makes it again, with another tag, with
the repository on the Hub (huggingface.co) that its card is to name, or elsewhere.

Examples:
  aa-models pack output/mine --repo me/aa_resnet18.mine
  aa-models pack output/mine --tag birds --to weights
"""
import argparse

from .options import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'run_dir', type=path, metavar='RUN_DIR', help='the output directory of a finished `aa-models train`')
    parser.add_argument(
        '--tag', help="second half of the folder's name MODEL.TAG (default: the dataset's name; for a folder of "
        "pictures, RUN_DIR's name)")
    parser.add_argument('--to', type=path, metavar='DIR', help='where the folder is made (default: in RUN_DIR)')
    parser.add_argument('--repo', metavar='OWNER/NAME',
                        help='its repository on the Hub, named in the card (default: none)')
    parser.add_argument('--machine', metavar='TEXT', help='hardware of the run (default: what the run noted)')


def run(args: argparse.Namespace) -> int:
    from aa_models.release.folder import pack_run
    print(pack_run(args.run_dir, args.tag, to=args.to, repo=args.repo, machine=args.machine))
    return 0
