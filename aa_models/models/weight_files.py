"""Find the file that holds the weights of a tag.

timm knows one file and one Hub repository for a tag and takes the first that is set. Here the weights of a tag may lie
in the folder `$AA_MODELS_WEIGHTS`, in `weights/` of the current folder or of the checkout that this package is imported
from, inside the installed package or on the Hub; they are searched in that order. Wherever a file is, the SHA-256 in
the cfg decides whether it is the right one.
"""
import hashlib
import logging
import os
from pathlib import Path

from huggingface_hub.errors import OfflineModeIsEnabled, RemoteEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from timm.models import PretrainedCfg

from aa_models.errors import HubWeightsError, WeightsError
from aa_models.zoo import WEIGHTS_FILE, expected_sha256

from .hub import fetch

WEIGHTS_VARIABLE = 'AA_MODELS_WEIGHTS'

_PACKAGE = Path(__file__).resolve().parents[1]
_logger = logging.getLogger(__name__)


def locate(cfg: PretrainedCfg, cache_dir: str | Path | None = None) -> Path:
    """Find the file that holds the weights of one of this package's tags.

    Args:
        cfg: Cfg of a tag that has weights, with its `architecture` and `tag`.
        cache_dir: Where the Hub's client keeps its files instead of its usual cache.

    Returns:
        Path of a safetensors file with the SHA-256 that the cfg asks for.

    Raises:
        WeightsError: The file is nowhere. The message lists where it was looked for, each with the reason.
    """
    name_tag, sha256 = f'{cfg.architecture}.{cfg.tag}', expected_sha256(cfg)
    tried, cause = [], None
    for place, folder in local_folders().items():
        if folder is None:
            tried.append(f'{place}: not in use')
            continue
        file = folder / name_tag / WEIGHTS_FILE
        if not (fault := _fault(file, sha256)):
            return file
        tried.append(f'{place}: {file}: {fault}')
        if fault != 'absent':
            _logger.warning('%s is passed over: %s', file, fault)
    for past_the_cache in (False, True):  # the cache may hold a file that an earlier transfer damaged
        try:
            file = fetch(
                cfg.hf_hub_id or '', cfg.hf_hub_filename or WEIGHTS_FILE, cache_dir=cache_dir, library_name='aa_models',
                force_download=past_the_cache)
        except Exception as error:  # the client's HTTP library has changed before, its errors have no base in common
            # the client often hides the cause one level down
            words = [f'{type(e).__name__}: {" ".join(str(e).split())}' for e in (error, error.__cause__) if e]
            tried.append(f'Hub: {cfg.hf_hub_id}: {" / ".join(words)}')
            cause = error
            break
        if not (fault := _fault(file, sha256)):
            return file
        tried.append(f'Hub: {cfg.hf_hub_id}, {"fetched again" if past_the_cache else "kept"} as {file}: {fault}')
    places = '\n'.join(f'  {place}' for place in tried)
    raise (HubWeightsError if cause and not is_final(cause) else WeightsError)(
        f'the weights of {name_tag} were not found. Tried, in this order:\n{places}\n'
        f'Either let this machine reach the Hub once, or copy the folder {name_tag}/ with its {WEIGHTS_FILE} into a '
        f'folder that {WEIGHTS_VARIABLE} names, or use pretrained=False.') from cause


def is_final(error: BaseException) -> bool:
    """Whether the Hub has answered, or is not to be asked, so that another try would end as this one did."""
    answers = (RepositoryNotFoundError, RemoteEntryNotFoundError, OfflineModeIsEnabled)
    return any(isinstance(e, answers) for e in (error, error.__cause__))  # the client often hides it one level down


def local_folders() -> dict[str, Path | None]:
    """Folders that hold `<name>.<tag>/` folders, in the order of search; None for one that this machine lacks."""
    chosen = os.environ.get(WEIGHTS_VARIABLE)
    checkout = _PACKAGE.parent
    return {
        f'${WEIGHTS_VARIABLE}': Path(os.path.expanduser(chosen)) if chosen else None,
        'current folder': here if (here := Path('weights').absolute()).is_dir() else None,
        'checkout': checkout / 'weights' if (checkout / 'pyproject.toml').is_file() else None,
        'installed package': _PACKAGE / 'weights',
    }


def _fault(file: Path, sha256: str | None) -> str:
    """Say why a file is not the one with this SHA-256; '' if it is."""
    if not file.is_file():
        return 'absent'
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        return f'unreadable ({error.strerror})'
    if found == sha256:
        return ''
    return f'wrong SHA-256: {found}, expected {sha256}; it is {format_fault(file) or "another safetensors file"}'


def format_fault(file: Path) -> str:
    """Say what a file is if it is no whole safetensors file; '' if it is one. Nothing in it is ever unpickled."""
    try:
        with safe_open(file, framework='pt'):
            return ''
    except SafetensorError as error:
        damage = error
    if is_lfs_pointer(file):
        return 'a Git LFS pointer, not the file itself (`git lfs pull` fetches it)'
    if _head(file).startswith((b'PK\x03\x04', b'\x80')):
        return 'a pickle, and only safetensors files are read'
    return f'truncated or no safetensors file ({damage})'


def is_lfs_pointer(file: Path) -> bool:
    """Whether a file is what Git LFS keeps in its place until it is fetched."""
    return _head(file).startswith(b'version https://git-lfs')


def _head(file: Path) -> bytes:
    with file.open('rb') as stream:
        return stream.read(64)
