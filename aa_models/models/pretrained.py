"""Find the weights of a model, and build every model of this package.

timm knows one file and one Hub repository for a tag and takes the first that is set. Here the weights of a tag may lie
in the folder `$AA_MODELS_WEIGHTS`, in `weights/` of the current folder or of the checkout that this package is imported
from, inside the installed package or on the Hub. `build`
searches in that order and hands timm the file found, so that the loading itself (another classifier, other input
channels, `features_only`) stays timm's. Wherever a file is, the SHA-256 in the cfg decides whether it is the right one.
"""
import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub.errors import OfflineModeIsEnabled, RemoteEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from timm.models import PretrainedCfg, build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor, nn

from aa_models.augmentation.conversion import image_size
from aa_models.errors import HubWeightsError, WeightsError
from aa_models.zoo import HUB_ORGANISATION, WEIGHTS_FILE, expected_sha256, own_models

from .hub import fetch
from .memory import bounded_build, check_arguments

WEIGHTS_VARIABLE = 'AA_MODELS_WEIGHTS'
_LFS_POINTER = b'version https://git-lfs'

_PACKAGE = Path(__file__).resolve().parents[1]
_logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]
ModelT = TypeVar('ModelT', bound=nn.Module)


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


def build(
        model_cls: Callable[..., ModelT], variant: str, pretrained: bool = False, *,
        pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        pretrained_filter_fn: Callable[[StateDict, nn.Module], StateDict] | None = None,
        cache_dir: str | Path | None = None, on_meta: bool = True, **kwargs: Any,
) -> ModelT:
    """Build a model as timm's `build_model_with_cfg` does, with weights from wherever this package keeps them.

    Three things are added. For a tag of this package `pretrained=True` searches wherever its weights may be (`locate`);
    files, state dicts, folders and repositories that the user names are loaded by timm. And `img_size` is by default
    the input size of the cfg in force, whether weights are wanted or not. What no machine can hold is refused before
    any memory is taken.

    Args:
        model_cls: Makes the model; takes `img_size`.
        variant: Model name without a tag.
        pretrained: Load weights.
        pretrained_cfg: Tag, or a cfg in place of the registered one.
        pretrained_cfg_overlay: Entries that override those of the cfg.
        pretrained_filter_fn: Brings a checkpoint into the shape of the model at hand.
        cache_dir: The Hub client's cache.
        on_meta: The model is built on the meta device before it gets memory; one that is not bounds that itself.
        **kwargs: For `build_model_with_cfg` and the model.

    Raises:
        TooLargeError: There is no memory for the weights that the arguments ask for; none was taken.
        WeightsError: The model has no weights, they are nowhere to be found, or they do not fit.
    """
    # timm takes a tag and a `PretrainedCfg` in both places, whatever it says
    named = cast(Any, pretrained_cfg)
    cfg = resolve_pretrained_cfg(variant, named, pretrained_cfg_overlay)
    kwargs['img_size'] = image_size(kwargs.get('img_size', cfg.input_size[1:]))
    check_arguments(kwargs)
    if pretrained:
        if _has_own_weights(cfg):
            pretrained_cfg_overlay = dict(pretrained_cfg_overlay or {}, file=str(locate(cfg, cache_dir)))
        else:
            _check_source(variant, cfg)
        if kwargs.get('pretrained_strict', True):
            new_head = kwargs.get('num_classes', cfg.num_classes) != cfg.num_classes
            new_stem = kwargs.get('in_chans', cfg.input_size[0]) != cfg.input_size[0]
            pretrained_filter_fn = _checked(pretrained_filter_fn, cfg, new_head, new_stem)
    with bounded_build(f'the weights of {variant}') if on_meta else contextlib.nullcontext():
        return build_model_with_cfg(
            model_cls, variant, pretrained, pretrained_cfg=named, pretrained_cfg_overlay=pretrained_cfg_overlay,
            pretrained_filter_fn=pretrained_filter_fn, cache_dir=cache_dir, **kwargs)


def _has_own_weights(cfg: PretrainedCfg) -> bool:
    """Tell whether the cfg still points at this package's repository: then nobody has named another source in it."""
    named = cfg.source or cfg.file or cfg.state_dict or cfg.url
    return not named and cfg.hf_hub_id == f'{HUB_ORGANISATION}/{cfg.architecture}.{cfg.tag}'


def _check_source(variant: str, cfg: PretrainedCfg) -> None:
    """Refuse what timm has no clear error for: nothing to load, no such file, a file that is no weights."""
    if cfg.source == 'hf-hub' or cfg.state_dict:
        return
    if not cfg.has_weights:
        raise WeightsError(
            f'{variant} has no pretrained weights, use pretrained=False; there are weights for: '
            f'{", ".join(own_models(pretrained=True)) or "no model yet"}')
    if not cfg.file:
        return
    file = Path(cfg.file)
    if cfg.source == 'local-dir':
        file /= WEIGHTS_FILE  # timm's first choice in a folder; it looks for other files by itself
    elif not file.is_file():
        raise WeightsError(f'the weights of {variant} were to come from file={str(file)!r}, which does not exist')
    # a pickle that the user names is left to timm, which unpickles nothing but tensors
    if not file.is_file() or not (file.suffix == '.safetensors' or _head(file).startswith(_LFS_POINTER)):
        return
    if fault := _format_fault(file):
        raise WeightsError(f'the weights of {variant} cannot be read: {file} is {fault}')


def _checked(
        filter_fn: Callable[[StateDict, nn.Module], StateDict] | None, cfg: PretrainedCfg, new_head: bool,
        new_stem: bool,
) -> Callable[[StateDict, nn.Module], StateDict]:
    """Add to a filter the check that its result is this model's.

    timm loads non-strictly as soon as the number of classes differs, and a foreign file then leaves the whole model at
    its random start without a word. The tensors that timm adapts or drops by itself are not compared.
    """
    classifiers = (cfg.classifier,) if isinstance(cfg.classifier, str) else tuple(cfg.classifier or ())
    adapted = (*(classifiers if new_head else ()), *([cfg.first_conv] if new_stem else ()))
    left_to_timm = {f'{name}.{kind}' for name in adapted for kind in ('weight', 'bias')}

    def checked(state_dict: StateDict, model: nn.Module) -> StateDict:
        state_dict = filter_fn(state_dict, model) if filter_fn else state_dict
        faults = misfits(state_dict, model, left_to_timm) + [
            f'{name}: the file has {len(state_dict[name])} classes, the config says {cfg.num_classes}'
            for name in (f'{classifier}.weight' for classifier in classifiers)
            if name in left_to_timm and name in state_dict and len(state_dict[name]) != cfg.num_classes]
        check_fit(faults, f'the weights do not fit {cfg.architecture} as asked for')
        check_finite(state_dict, f'the weights of {cfg.architecture}')
        return state_dict

    return checked


def misfits(state_dict: StateDict, model: nn.Module, exempt: Container[str] = ()) -> list[str]:
    """What in a state dict is not of a model's names and shapes, in words; tensors named in `exempt` may differ."""
    found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return [
        f'{name}: the file has {found.get(name, "none")}, the model {wanted.get(name, "none")}'
        for name in {**wanted, **found}
        if found.get(name) != wanted.get(name) and name not in exempt
        and not (name.endswith('num_batches_tracked') and name not in found)  # torch starts these at 0 by itself
        and not (name.endswith('.q_const') and (name in found) != (name in wanted))  # as the file
    ]


def check_fit(faults: list[str], what: str) -> None:
    """Raise a `WeightsError` with the first of the faults, if there are any."""
    if faults:
        more = f'; and {len(faults) - 5} more' if len(faults) > 5 else ''
        raise WeightsError(f'{what}: {"; ".join(faults[:5])}{more}')


def check_finite(tensors: StateDict, source: str) -> None:
    """Refuse weights with which every answer would be wrong.

    Raises:
        WeightsError: A tensor holds an infinite number or something that is none.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all():
            raise WeightsError(f'{source}: {name} is infinite or not a number')


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
    return f'wrong SHA-256: {found}, expected {sha256}; it is {_format_fault(file) or "another safetensors file"}'


def _format_fault(file: Path) -> str:
    """Say what a file is if it is no whole safetensors file; '' if it is one. Nothing in it is ever unpickled."""
    try:
        with safe_open(file, framework='pt'):
            return ''
    except SafetensorError as error:
        damage = error
    if _head(file).startswith(_LFS_POINTER):
        return 'a Git LFS pointer, not the file itself (`git lfs pull` fetches it)'
    if _head(file).startswith((b'PK\x03\x04', b'\x80')):
        return 'a pickle, and only safetensors files are read'
    return f'truncated or no safetensors file ({damage})'


def _head(file: Path) -> bytes:
    with file.open('rb') as stream:
        return stream.read(64)
