"""The names of a model's classes, as its cfg has them."""
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .imagenet import describe


def class_name(cfg: Mapping[str, Any], index: int) -> str:
    """The name of a class, or its index where it has no name.

    Args:
        cfg: A model's `pretrained_cfg`. Its `label_names` may be a dict of some names, whose keys JSON makes strings.
        index: Number of the output.
    """
    names = cfg.get('label_names') or ()
    names = names if isinstance(names, dict) else {str(i): name for i, name in enumerate(names)}
    return names.get(str(index), str(index))


def class_description(cfg: Mapping[str, Any], index: int) -> str | None:
    """What a class is in words, if the cfg's `label_descriptions` say so, for its name or its index."""
    descriptions = cfg.get('label_descriptions') or {}
    if not isinstance(descriptions, dict):
        descriptions = {str(i): text for i, text in enumerate(descriptions)}
    return descriptions.get(class_name(cfg, index), descriptions.get(str(index)))


def describe_synsets(names: Sequence[str]) -> dict[str, str] | None:
    """The meanings of classes that are all named by WordNet identifiers, like the folders of ImageNet; else None."""
    if not names or not all(re.fullmatch(r'n\d{8}', name) for name in names):
        return None
    try:
        return {name: describe(name) for name in names}
    except KeyError:
        return None
