"""Folders of class folders: which of their files are pictures, and what is said of all that is none."""
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .pictures import picture_suffixes
from .split_names import FOLDERS

_SHOWN = 5  # folders or suffixes in a message


def folder_options(name: str, root: str | None) -> dict[str, Any]:
    """For `timm.data.create_dataset`: have a folder's reader see what can be read.

    By itself timm sees .png, .jpg and .jpeg, and torchvision a few more.

    Args:
        name: Of the dataset, in timm's notation.
        root: Where it is.
    """
    if root is None or not os.path.isdir(root):
        return {}
    if '/' not in name:
        return dict(input_key=';'.join(sorted(picture_suffixes())))
    if name.lower() in FOLDERS:
        return dict(is_valid_file=_is_picture)
    return {}


def overlooked(dataset: Any) -> list[str]:
    """What a folder of class folders holds that is no picture, in a message for each kind; none for other datasets.

    Args:
        dataset: As timm or torchvision opened it.
    """
    owner = getattr(dataset, 'reader', dataset)
    root = getattr(owner, 'root', None)
    if not isinstance(getattr(owner, 'samples', None), list) or root is None or not os.path.isdir(root):
        return []
    full: set[str] = set()
    empty, others = [], Counter[str]()
    for folder, below, files in os.walk(root, topdown=False, followlinks=True):
        others.update(_suffix(file) for file in files if not _is_picture(file) and not file.startswith('.'))
        if any(map(_is_picture, files)) or any(os.path.join(folder, name) in full for name in below):
            full.add(folder)
        elif folder != os.fspath(root) and not os.path.basename(folder).startswith('.'):
            empty.append(folder)
    messages = []
    if outermost := sorted(folder for folder in empty if os.path.dirname(folder) not in empty):
        messages.append(f'no class is made of folders without a picture: {_some(outermost)}')
    if others:
        kinds = [f'{count} {suffix or "without a suffix"}' for suffix, count in others.most_common()]
        messages.append(f'left out of {root}, as no pictures in a format that can be read: {_some(kinds)}')
    return messages


def _is_picture(file: str) -> bool:
    return _suffix(file) in picture_suffixes()


def _suffix(file: str) -> str:
    return Path(file).suffix.lower()


def _some(words: Iterable[str]) -> str:
    words = list(words)
    return ', '.join(words[:_SHOWN]) + (f' and {len(words) - _SHOWN} more' if len(words) > _SHOWN else '')
