"""The model that a command line names, with errors that say what is possible."""
import argparse
import difflib
from collections.abc import Sequence
from typing import Any, cast

import timm
from timm.models import parse_model_name, split_model_name_tag
from timm.utils import ParseKwargs
from torch import nn


class ParseKeyValues(ParseKwargs):
    """KEY=VALUE words as timm reads them; a word without `=` is a wrong option, not a traceback."""

    def __call__(
            self,
            parser: argparse.ArgumentParser,
            namespace: argparse.Namespace,
            values: str | Sequence[Any] | None,
            option_string: str | None = None,
    ) -> None:
        if wrong := [value for value in values or () if '=' not in value]:
            raise argparse.ArgumentError(self, f'{wrong[0]!r} is not of the form KEY=VALUE')
        super().__call__(parser, namespace, values, option_string)


def build_model(name: str, **options: Any) -> nn.Module:
    """`timm.create_model` with errors that say what is possible. Options that are None are left to the model.

    Raises:
        ValueError: No such model or tag, or arguments that it does not take.
    """
    check_name(name)
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        given = ', '.join(f'{k}={v!r}' for k, v in options.items() if v is not None)
        raise ValueError(f'model {name!r} cannot be made with {given}: {error}') from error


def cfg_of(model: nn.Module) -> dict[str, Any]:
    """The cfg that timm gave a model; to a type checker it is no part of `nn.Module`."""
    return cast(dict[str, Any], model.pretrained_cfg)


def num_classes_of(model: nn.Module) -> int:
    """The number of classes that timm gave a model, 0 for none."""
    return cast(int, model.num_classes)


def check_name(name: str) -> None:
    """Refuse a name or tag that no model has; a folder or a repository is left to timm.

    Raises:
        ValueError: No such model or tag.
    """
    source, name_tag = parse_model_name(name)
    if source:
        return
    architecture, tag = split_model_name_tag(name_tag)
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f'did you mean {" or ".join(near)}? ' if near else ''
        raise ValueError(f'model = {name!r} is unknown: {hint}`aa-models list` shows the models of this package')
    if tag and name_tag not in (tags := timm.list_models(f'{architecture}.*', include_tags=True)):
        raise ValueError(f'model = {name!r} is unknown; the tags of {architecture} are {", ".join(tags) or "none"}')
