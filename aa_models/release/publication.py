"""Publish a checkpoint: check its folder and upload it to the Hub.

What goes is exactly the folder: weights, config, card, recipe and log. Before anything is sent it must be whole: the
weights load, are finite and in float16, and have the SHA-256 that the source code expects of that tag; the card has its
licence, its limits and an accuracy, the same as in the table of results beside the folder.

You log in with `hf auth login`, or set HF_TOKEN.

Examples:
  aa-models publish aa_resnet18.cifar100 --repo-id aa-models/aa_resnet18.cifar100 --dry-run
  aa-models publish output/mine/aa_resnet18.mine --repo-id me/aa_resnet18.mine --private
"""
import argparse
import hashlib
import re
from pathlib import Path

import timm
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors import SafetensorError
from safetensors.torch import load_file

from aa_models import __version__
from aa_models.models.create import cfg_of
from aa_models.models.pretrained import local_folders
from aa_models.zoo import expected_sha256, own_checkpoints, registered_cfg

from .card import ACCURACY, CARD
from .folder import CONFIG, FILES, WEIGHTS
from .results import read_results

__all__ = ['add_arguments', 'faults_of', 'run']

SECTIONS = ('Accuracy', 'Use', 'Training', 'Data, use and limits')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument('name', metavar='NAME', help='tag of a checkpoint of this package, or a folder MODEL.TAG')
    parser.add_argument('--repo-id', required=True, metavar='OWNER/NAME', help='repository on the Hub')
    parser.add_argument('--private', action='store_true', help='make the repository private where it is made')
    parser.add_argument('--create-pr', action='store_true', help='open a pull request instead of a commit')
    parser.add_argument('--results-file', metavar='CSV',
                        help='table with the accuracy of the card (default: results-TAG.csv beside the folder)')
    parser.add_argument('--dry-run', action='store_true', help='check, and show what would go')


def run(args: argparse.Namespace) -> int:
    """Check and upload.

    Raises:
        ValueError: No such folder, or one that is not fit to be published; the message lists all that is wrong.
        RuntimeError: The Hub refused or was not reached.
    """
    folder = _folder(args.name)
    results = Path(args.results_file) if args.results_file else folder.with_name(
        f'results-{folder.name.partition(".")[2]}.csv')
    if faults := faults_of(folder, results, args.repo_id):
        raise ValueError(f'{folder} is not fit to be published:\n' + '\n'.join(f'  {fault}' for fault in faults))
    for file in sorted(FILES):
        print(f'{folder / file} ({(folder / file).stat().st_size / 1e6:.2f} MB)')
    if args.dry_run:
        print(f'would go to {args.repo_id}; nothing was sent')
        return 0
    try:
        api = HfApi(library_name='aa_models', library_version=__version__)
        api.create_repo(args.repo_id, private=args.private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=args.repo_id, folder_path=folder, allow_patterns=sorted(FILES), create_pr=args.create_pr,
            commit_message=f'{folder.name}, aa_models {__version__}')
    except Exception as error:  # the client's HTTP library has changed before, its errors have no base in common
        raise RuntimeError(f'publishing to {args.repo_id} failed: {type(error).__name__}: {error}') from error
    print(f'published: {commit.pr_url or commit.commit_url}')
    return 0


def _folder(name: str) -> Path:
    """The folder of that path, or of a tag of this package."""
    places = [Path(name), *(place / name for place in local_folders().values() if place)]
    for place in places:
        if place.is_dir() and place.resolve().name.count('.'):
            return place.resolve()
    raise ValueError(
        f'NAME = {name!r} is neither a folder MODEL.TAG nor a checkpoint that is here ({", ".join(own_checkpoints())})')


def faults_of(folder: Path, results: Path, repo_id: str) -> list[str]:
    """Say all that is wrong with a folder that is to be published as `repo_id`; the accuracy is that of `results`."""
    there = {path.name for path in folder.iterdir()}
    faults = [f'{name} is missing' for name in sorted(FILES - there)]
    faults += [f'{name} does not belong there' for name in sorted(there - FILES)]
    if there >= FILES:
        faults += [*_weights_faults(folder), *_card_faults(folder / CARD, results, repo_id)]
    return faults


def _weights_faults(folder: Path) -> list[str]:
    file, faults = folder / WEIGHTS, []
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        return [f'{WEIGHTS} cannot be read: {error}']
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if wide := [name for name, tensor in floats.items() if tensor.dtype != torch.float16]:
        faults.append(f'{WEIGHTS}: not in float16: {", ".join(wide[:3])}')
    if wrong := [name for name, tensor in floats.items() if not tensor.isfinite().all()]:
        faults.append(f'{WEIGHTS}: not finite: {", ".join(wrong[:3])}')
    if folder.name in own_checkpoints():
        found, wanted = hashlib.sha256(file.read_bytes()).hexdigest(), expected_sha256(
            registered_cfg(folder.name))
        if found != wanted:
            faults.append(f'{WEIGHTS} has the SHA-256 {found}, but {folder.name} is to have {wanted}')
    try:
        model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    except Exception as error:  # timm raises what it comes across
        return [*faults, f'{CONFIG} and {WEIGHTS} do not load: {type(error).__name__}: {error}']
    name = f'{cfg_of(model)["architecture"]}.{cfg_of(model).get("tag") or ""}'
    return faults if name == folder.name else [*faults, f'{CONFIG} is of {name}, not of {folder.name}']


def _card_faults(path: Path, results: Path, repo_id: str) -> list[str]:
    card = ModelCard.load(path)
    faults = [f'{CARD} has no licence'] if not card.data.to_dict().get('license') else []
    faults += [f'{CARD} has no section {title!r}' for title in SECTIONS if f'\n## {title}\n' not in card.text]
    if f'hf-hub:{repo_id}' not in card.text:
        faults.append(f'{CARD} does not say how to load hf-hub:{repo_id}: make the folder with --repo {repo_id}')
    measured = ACCURACY.search(card.text)
    top1, top5 = (re.search(rf'\| {figure} \| ([\d.]+) % \|', measured[0] if measured else '')
                  for figure in ('top-1', 'top-5'))
    if not (top1 and top5):
        return [*faults, f'{CARD} has no accuracy: `aa-models validate --card` measures and writes it']
    rows = [row for row in read_results(results) if row['model'] == path.parent.name]
    if not rows:
        return [*faults, f'{results} has no row of {path.parent.name}: `aa-models validate --results-file` writes it']
    stated, known = (float(top1[1]), float(top5[1])), (float(rows[0]['top1']), float(rows[0]['top5']))
    return faults if stated == known else [*faults, f'{CARD} says {stated} %, {results} {known} % (top-1, top-5)']
