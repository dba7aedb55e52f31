"""Publish a checkpoint: check its folder and upload it to the Hub, huggingface.co.

What goes is exactly the folder: weights, config, card, recipe and log. Before anything is sent it must be whole: the
weights load, are finite and in float16, and have the SHA-256 that the source code expects of that tag; the card has its
licence, its limits and an accuracy, the same as in the table of results beside the folder.

You log in with `hf auth login`, or set HF_TOKEN.

Examples:
  aa-models publish aa_resnet18.cifar100 --repo-id aa-models/aa_resnet18.cifar100 --dry-run
  aa-models publish output/mine/aa_resnet18.mine --repo-id me/aa_resnet18.mine --private
"""
import argparse

from .options import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('name', metavar='NAME', help='tag of a checkpoint of this package, or a folder MODEL.TAG')
    parser.add_argument('--repo-id', required=True, metavar='OWNER/NAME', help='repository on the Hub')
    parser.add_argument('--private', action='store_true', help='make the repository private if it is created')
    parser.add_argument('--create-pr', action='store_true', help='open a pull request instead of a commit')
    parser.add_argument('--results-file', type=path, metavar='CSV',
                        help='table with the accuracy of the card (default: results-TAG.csv beside the folder)')
    parser.add_argument('--dry-run', action='store_true', help='check, and show what would go')


def run(args: argparse.Namespace) -> int:
    from aa_models.release.publication import publish_folder
    files, url = publish_folder(
        args.name, args.repo_id, private=args.private, create_pr=args.create_pr, results=args.results_file,
        dry_run=args.dry_run)
    for file in files:
        print(f'{file} ({file.stat().st_size / 1e6:.2f} MB)')
    print(f'published: {url}' if url else f'would go to {args.repo_id}; nothing was sent')
    return 0
