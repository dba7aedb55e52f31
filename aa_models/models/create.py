"""The model that a user names, with errors that say what is possible."""
import difflib
import re
from pathlib import Path
from typing import Any, cast

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from timm.models import parse_model_name, split_model_name_tag
from torch import nn

from aa_models.augmentation.passes import evaluation_mode
from aa_models.errors import HubError, HubWeightsError, InputError, NoSuchFileError, UserError, WeightsError, WorkError
from aa_models.zoo import CONFIG, own_models

from .config import read_architecture
from .fit import check_finite
from .hub import check_repository_reached, check_weights_reached, fetch
from .memory import check_arguments, check_build
from .weight_files import is_final

_NO_SIZES = ('pretrained', 'device', 'exportable', 'cache_dir')
_PYTHONS_WORDS = re.compile(
    "object (is|has|cannot|does)|not supported between|unsupported operand|must be strings|indices must be|unpack|"
    "unhashable|invalid combination of arguments|argument '.*' must be|argument must be|invalid literal|concatenate")
_OF_THE_HUB = (HfHubHTTPError, LocalEntryNotFoundError)


def build_model(name: str, /, **options: Any) -> nn.Module:
    """`timm.create_model` with errors that say what is possible.

    Args:
        name: As timm has it: model, model and tag, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`.
        **options: For `timm.create_model`; those that are None are left to the model.

    Raises:
        InputError: No such model or tag, or arguments that it does not take.
        NoSuchFileError: The folder or its config does not exist.
        WeightsError: With `pretrained=True`, there are no weights that can be loaded.
        HubError: The config of a repository on the Hub cannot be read, or the Hub is not reached.
    """
    architecture = check_name(name, weights=bool(options.get('pretrained')), cache_dir=options.get('cache_dir'))
    try:
        if options.get('pretrained') and ':' not in name:
            check_weights_reached(name, options.get('cache_dir'))
        sizes = {key: value for key, value in options.items() if value is not None and key not in _NO_SIZES}
        check_arguments(sizes)
        if (sizes or ':' in name) and architecture not in own_models():  # those of this package see to it themselves
            check_build(lambda: timm.create_model(name, **sizes), 'its weights')
        model = timm.create_model(name, **options)
        if options.get('pretrained'):
            check_finite(model.state_dict(), f'model {name!r}')
        return model
    except (WeightsError, WorkError):
        raise
    except Exception as error:  # what timm and torch raise for wrong arguments and files has no class in common
        given = {k: v for k, v in options.items() if v is not None and k not in ('device', 'exportable')}
        weights_only = given == dict(pretrained=True)
        # files, the Hub, or an argument that was looked at already
        from_outside = ':' in name or architecture not in own_models() or isinstance(error, (OSError, UserError))
        if not from_outside and (weights_only or not given):
            raise  # a fault of this package
        kind: type[UserError] = WeightsError if weights_only else InputError
        if weights_only and isinstance(error, (ConnectionError, TimeoutError, *_OF_THE_HUB)) and not is_final(error):
            kind = HubWeightsError
        arguments = ', '.join(f'{key}={value!r}' for key, value in given.items())
        reason = str(error) if isinstance(error, UserError) else _in_words(error)
        raise kind(f'model {name!r} cannot be made{arguments and f" with {arguments}"}: {reason}') from error


def is_own(name: str) -> bool:
    """Whether a model is one of this package; errors as in `check_name`."""
    return check_name(name) in own_models()


def parsed_name(name: str) -> tuple[str | None, str]:
    """What stands before the colon of a name (`'local-dir'`, `'hf-hub'` or None), and what it is followed by.

    Raises:
        InputError: It is no name, as a path without `local-dir:` or an address.
    """
    try:
        return parse_model_name(name)
    except ValueError as error:
        raise InputError(f'model = {name!r}: {error}') from error


def check_name(name: str, *, weights: bool = False, cache_dir: str | Path | None = None) -> str:
    """Refuse a name or tag that no model has, and a folder or repository without a config.

    Args:
        name: As `build_model` takes it.
        weights: Those of a repository are wanted as well: where they would have to come from a Hub that does not
            answer, that is found out by asking once.
        cache_dir: Where the Hub's client keeps its files.

    Returns:
        The model's name without a tag.

    Raises:
        InputError: No such model or tag, or a config that names none.
        NoSuchFileError: The folder or its config does not exist.
        HubError: The config of a repository on the Hub cannot be read, or the Hub does not answer.
    """
    source, name_tag = parsed_name(name)
    if source:
        name_tag = _architecture_of(name, source, name_tag, weights, cache_dir)
    architecture, tag = split_model_name_tag(name_tag)
    if not timm.is_model(architecture):
        what = f'{name!r}, which is a {architecture!r},' if source else repr(name)
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f'did you mean {" or ".join(near)}? ' if near else ''
        raise InputError(f'model = {what} is unknown: {hint}`aa-models list` shows the models of this package')
    if tag and name_tag not in (tags := timm.list_models(f'{architecture}.*', include_tags=True)):
        raise InputError(f'model = {name!r} is unknown; the tags of {architecture} are {", ".join(tags) or "none"}')
    return architecture


@torch.no_grad()
def check_image_size(model: nn.Module, size: tuple[int, int, int]) -> None:
    """Refuse images of a size that a model does not take. This package's models take any.

    Args:
        model: On any device; on the meta device this costs little.
        size: Channels, height and width.

    Raises:
        InputError: The model does not take it.
    """
    if type(model).__module__.startswith('aa_models.'):
        return
    parameter = next(model.parameters())
    try:
        with evaluation_mode(model):  # in training batch norm refuses a map of one value
            model(torch.zeros(1, *size, device=parameter.device, dtype=parameter.dtype))
    except Exception as error:  # each network says this in its own way
        raise InputError(f'the model takes no images of {size[1]}x{size[2]} pixels: {error}') from error


def cfg_of(model: nn.Module) -> dict[str, Any]:
    """The cfg that timm gave a model; to a type checker it is no part of `nn.Module`."""
    return cast(dict[str, Any], model.pretrained_cfg)


def num_classes_of(model: nn.Module) -> int:
    """The number of classes that timm gave a model, 0 for none."""
    return cast(int, model.num_classes)


def classifier_of(model: nn.Module) -> nn.Module:
    """The last layer of a network that timm made."""
    return cast(nn.Module, model.get_classifier())  # type: ignore[operator]  # timm's


def _in_words(error: Exception) -> str:
    """What an error of timm or torch says, where it says something that is no matter between Python and its code."""
    text = ' '.join(str(error).split())
    if unknown := re.search(r"unexpected keyword argument '(.*?)'", text):
        return f'it has no argument {unknown[1]!r}'
    if not text or _PYTHONS_WORDS.search(text):
        return 'an argument is not of the kind that it takes'
    return f'{type(error).__name__}: {text}'


def _architecture_of(name: str, source: str, model_id: str, weights: bool, cache_dir: str | Path | None) -> str:
    """The model that the config in a folder or a repository names."""
    file = Path(model_id, CONFIG)
    if source == 'hf-hub':
        repository, _, revision = model_id.partition('@')
        if '@' in revision:
            raise InputError(f'model = {name!r} must have one revision after an @')
        try:
            if weights:
                check_repository_reached(repository, CONFIG, cache_dir, revision or None)
            file = fetch(repository, CONFIG, cache_dir=cache_dir, revision=revision or None)
        except HFValidationError as error:
            raise InputError(f'model = {name!r}: {error}') from error
        except HubError as error:
            raise HubError(f'model = {name!r}: {error}') from error
        except Exception as error:  # the client's HTTP library has changed before, its errors have no base in common
            raise HubError(f'model = {name!r}: its config cannot be read: {type(error).__name__}: {error}') from error
    elif not file.is_file():
        raise NoSuchFileError(f'model = {name!r}: {file} does not exist')
    return read_architecture(file, name)
