"""The way to the Hub: a folder is checked in full and then uploaded as it is."""
import hashlib
from pathlib import Path

import timm
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors import SafetensorError
from safetensors.torch import load_file

from aa_models import __version__
from aa_models.errors import HubError, InputError
from aa_models.models.create import cfg_of
from aa_models.models.weight_files import local_folders
from aa_models.zoo import CONFIG, WEIGHTS_FILE, expected_sha256, own_checkpoints, registered_cfg

from .card import CARD, SECTIONS, read_card, stated_accuracy
from .folder import FILES
from .results import read_results


def publish_folder(
        name: str, repo_id: str, *, private: bool = False, create_pr: bool = False, results: Path | None = None,
        dry_run: bool = False,
) -> tuple[list[Path], str | None]:
    """Check the folder of a checkpoint and upload it.

    Args:
        name: Tag of a checkpoint of this package, or a folder MODEL.TAG.
        repo_id: Repository on the Hub, `OWNER/NAME`; it is created where there is none.
        private: Make the repository private if it is created.
        create_pr: Open a pull request instead of a commit.
        results: Table with the accuracy of the card, by default `results-TAG.csv` beside the folder.
        dry_run: Only check.

    Returns:
        The files, and the URL of the commit or pull request; None after a dry run.

    Raises:
        InputError: No such folder, or one that is not fit to be published; the message lists all that is wrong.
        HubError: The Hub refused or was not reached.
    """
    folder = find_folder(name)
    results = results or folder.with_name(f'results-{folder.name.partition(".")[2]}.csv')
    if faults := faults_of(folder, results, repo_id):
        raise InputError(f'{folder} is not fit to be published:\n' + '\n'.join(f'  {fault}' for fault in faults))
    files = [folder / file for file in sorted(FILES)]
    if dry_run:
        return files, None
    # `timm.models.push_to_hf_hub` saves the model anew, in the precision it was loaded in: other bytes than the file
    # whose SHA-256 and accuracy were checked, without recipe and log, and a card of its own where there is none yet
    try:
        api = HfApi(library_name='aa_models', library_version=__version__)
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, allow_patterns=sorted(FILES), create_pr=create_pr,
            commit_message=f'{folder.name}, aa_models {__version__}')
    except Exception as error:  # the client's HTTP library has changed before, its errors have no base in common
        raise HubError(f'publishing to {repo_id} failed: {type(error).__name__}: {error}') from error
    return files, commit.pr_url or commit.commit_url


def find_folder(name: str) -> Path:
    """The folder of that path, or of a tag of this package.

    Raises:
        InputError: There is none.
    """
    for path in (Path(name), *(parent / name for parent in local_folders().values() if parent)):
        if path.is_dir() and path.resolve().name.count('.'):
            return path.resolve()
    raise InputError(
        f'name = {name!r} is neither a folder MODEL.TAG nor a checkpoint that is here ({", ".join(own_checkpoints())})')


def faults_of(folder: Path, results: Path, repo_id: str) -> list[str]:
    """Say all that is wrong with a folder that is to be published as `repo_id`; the accuracy is that of `results`."""
    found = {path.name for path in folder.iterdir()}
    faults = [f'{name} is missing' for name in sorted(FILES - found)]
    faults += [f'{name} does not belong there' for name in sorted(found - FILES)]
    if found >= FILES:
        faults += _weights_faults(folder)
        try:
            card = read_card(folder / CARD)
        except InputError as error:
            return [*faults, str(error)]
        faults += _card_faults(card, repo_id) + _accuracy_faults(card, folder.name, results)
    return faults


def _weights_faults(folder: Path) -> list[str]:
    """What is wrong with the weights: how they are stored, which they are, whether they load."""
    file = folder / WEIGHTS_FILE
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        return [f'{WEIGHTS_FILE} cannot be read: {error}']
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    faults = []
    if wide := [name for name, tensor in floats.items() if tensor.dtype != torch.float16]:
        faults.append(f'{WEIGHTS_FILE}: not in float16: {", ".join(wide[:3])}')
    if wrong := [name for name, tensor in floats.items() if not tensor.isfinite().all()]:
        faults.append(f'{WEIGHTS_FILE}: not finite: {", ".join(wrong[:3])}')
    if folder.name in own_checkpoints():
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != (wanted := expected_sha256(registered_cfg(folder.name))):
            faults.append(f'{WEIGHTS_FILE} has the SHA-256 {found}, but {folder.name} is to have {wanted}')
    try:
        cfg = cfg_of(timm.create_model(f'local-dir:{folder}', pretrained=True))
    except Exception as error:  # a config and weights that do not fit fail in many ways inside timm
        return [*faults, f'{CONFIG} and {WEIGHTS_FILE} do not load: {type(error).__name__}: {error}']
    if (name := f'{cfg["architecture"]}.{cfg.get("tag") or ""}') != folder.name:
        faults.append(f'{CONFIG} is of {name}, not of {folder.name}')
    return faults


def _card_faults(card: ModelCard, repo_id: str) -> list[str]:
    faults = [] if card.data.to_dict().get('license') else [f'{CARD} has no licence']
    faults += [f'{CARD} has no section {title!r}' for title in SECTIONS if f'\n## {title}\n' not in card.text]
    if f'hf-hub:{repo_id}' not in card.text:
        faults.append(f'{CARD} does not say how to load hf-hub:{repo_id}: `aa-models pack --repo {repo_id}` does')
    return faults


def _accuracy_faults(card: ModelCard, name: str, results: Path) -> list[str]:
    """Whether text and metadata of the card state the accuracy that the table of results has for `name`."""
    text, metadata = stated_accuracy(card)
    if not text:
        return [f'{CARD} has no accuracy: `aa-models validate --card` measures and writes it']
    row = next((row for row in read_results(results) if row['model'] == name), None)
    if row is None:
        return [f'{results} has no row of {name}: `aa-models validate --results-file` writes it']
    known = tuple(f'{float(row[column]):.3f}' for column in ('top1', 'top5'))
    return [
        f'{where} says {" and ".join(stated) or "nothing"}, {results} {" and ".join(known)} (top-1 and top-5, percent)'
        for where, stated in ((CARD, text), (f'model-index of {CARD}', metadata)) if stated != known]
