"""Files of the Hub, asked for once: where nobody answers its client would go on asking for half a minute."""
import contextlib
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from aa_models.errors import HubError, HubWeightsError, InputError
from aa_models.schema import parsed_json
from aa_models.zoo import WEIGHTS_FILE, expected_sha256

_WEIGHTS_FILES = (WEIGHTS_FILE, 'pytorch_model.bin')  # as timm looks for them


def fetch(repository: str, file: str, cache_dir: str | Path | None = None, **options: Any) -> Path:
    """`hf_hub_download`, whose arguments it takes, but for a Hub that is not reached.

    Raises:
        HubError: The file is not in the cache, and nobody answers.
    """
    check_reached(repository, file, cache_dir=cache_dir, revision=options.get('revision'))
    return Path(hf_hub_download(repository, file, cache_dir=cache_dir, **options))


def check_weights_reached(name: str, cache_dir: str | Path | None = None) -> None:
    """Refuse to wait for weights of a registered model that timm is to fetch.

    Raises:
        HubWeightsError: They are not in the cache, and nobody answers.
    """
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id or cfg.file or cfg.state_dict or expected_sha256(cfg):
        return  # those of this package may lie elsewhere
    files = [cfg.hf_hub_filename] if cfg.hf_hub_filename else _WEIGHTS_FILES
    try:
        check_reached(cfg.hf_hub_id, *files, cache_dir=cache_dir)
    except HubError as error:
        raise HubWeightsError(f'no weights for {name}: {error}') from error


def check_repository_reached(
        repository: str, config: str, cache_dir: str | Path | None = None, revision: str | None = None) -> None:
    """As `check_weights_reached`, for a repository that the user names; its config may say what the weights are called.

    Raises:
        HubError: They are not in the cache, and nobody answers.
    """
    files: tuple[str, ...] = _WEIGHTS_FILES
    kept = try_to_load_from_cache(repository, config, cache_dir, revision)
    if isinstance(kept, str):
        with contextlib.suppress(InputError):  # which is said where the config is read
            cfg = parsed_json(Path(kept)).get('pretrained_cfg')
            named = cfg.get('hf_hub_filename') if isinstance(cfg, dict) else None
            files = (named,) if isinstance(named, str) else files
    check_reached(repository, *files, cache_dir=cache_dir, revision=revision)


def check_reached(
        repository: str, *files: str, cache_dir: str | Path | None = None, revision: str | None = None) -> None:
    """Ask for one of the files of which none is in the cache; error as in `fetch`. Any answer will do."""
    if any(isinstance(try_to_load_from_cache(repository, file, cache_dir, revision), str) for file in files):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, files[0], revision=revision))
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled):
        return  # the download is to say that, and to try again where that may help
    except Exception as error:  # the client's HTTP library has changed before, its errors have no base in common
        reason = ' '.join(str(error).split())
        raise HubError(f'{files[0]} of {repository} is not on this machine, and the Hub was not reached: '
                       f'{type(error).__name__}: {reason}') from error
