"""The names of a model's classes, as its cfg has them."""
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset

from aa_models.errors import InputError

from .imagenet import describe

_SYNSET = re.compile(r'n\d{8}')  # an identifier of WordNet
_SHOWN = 5  # names in a message


class LabelError(InputError):
    """A picture has a label that the model has no output for."""

    def __init__(self, message: str) -> None:
        super().__init__(said_in_a_worker(message, type(self)))


class KnownLabel:
    """A dataset's `target_transform` that refuses labels of which nothing is known before they are read.

    Args:
        num_classes: Labels are from 0 to below this.

    Raises:
        LabelError: When it is called with another label.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def __call__(self, label: int) -> int:
        if not 0 <= label < self.num_classes:
            raise LabelError(f'num_classes = {self.num_classes}, but there is an image with the label {label}')
        return label


def said_in_a_worker(message: str, kind: type[Exception]) -> str:
    """What an error said: a loader's worker process hands on the whole traceback, at whose end it stands."""
    return message.rpartition(f'{kind.__name__}: ')[2].rstrip()


def class_name(cfg: Mapping[str, Any], index: int) -> str:
    """The name of a class, or its index where it has no name.

    Args:
        cfg: A model's `pretrained_cfg`. Its `label_names` may be a dict of some names, whose keys JSON makes strings.
        index: Number of the output.
    """
    return _by_index(cfg, 'label_names').get(str(index), str(index))


def class_names_of(cfg: Mapping[str, Any], num_classes: int) -> list[str]:
    """The names of all classes, as `class_name` has them."""
    names = _by_index(cfg, 'label_names')
    return [names.get(str(i), str(i)) for i in range(num_classes)]


def class_description(cfg: Mapping[str, Any], index: int) -> str | None:
    """What a class is in words, if the cfg's `label_descriptions` say so, for its name or its index."""
    descriptions = _by_index(cfg, 'label_descriptions')
    return descriptions.get(class_name(cfg, index), descriptions.get(str(index)))


def _by_index(cfg: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A list of a cfg by the index of the class; a dict as it is."""
    values = cfg.get(key) or ()
    return values if isinstance(values, dict) else {str(i): value for i, value in enumerate(values)}


def describe_synsets(names: Sequence[str]) -> dict[str, str] | None:
    """The meanings of classes that are all named by WordNet identifiers, like the folders of ImageNet; else None."""
    if not names or not all(_SYNSET.fullmatch(name) for name in names):
        return None
    try:
        return {name: describe(name) for name in names}
    except KeyError:
        return None


def outputs_of(names: Sequence[str] | None, cfg: Mapping[str, Any], num_classes: int) -> list[int] | None:
    """Match the classes of a dataset with a model's by their names.

    Args:
        names: Of the dataset's classes in the order of their labels, where it has names.
        cfg: The model's `pretrained_cfg`.
        num_classes: The number of its outputs.

    Returns:
        The model's output for each label; None where there is nothing to match, and label and output are the same.

    Raises:
        InputError: The model has no class of that name, or it does not say what its classes are and has not as many.
    """
    if not names:
        return None
    known = _names_of(cfg, num_classes, names)
    if known is None:
        if len(names) != num_classes:
            raise InputError(
                f'num_classes = {num_classes}, whose names the model does not say, but the images have {len(names)} '
                'classes: which are which cannot be told')
        return None
    foreign = [name for name in names if name not in known]
    if foreign:
        raise InputError(
            f'the model has no class {shown(foreign)}, which the images have; its {num_classes} classes are '
            f'{shown(list(known))}')
    return [known[name] for name in names]


def known_outputs(names: Sequence[str], cfg: Mapping[str, Any], num_classes: int) -> dict[int, int]:
    """The classes of a dataset that a model has, too.

    A model's class goes by its name or, where no other class does so, by one of the words, separated by commas, that
    describe it: `n01443537`, `goldfish`, `Carassius auratus`. In words case and `_` make no difference.

    Args:
        names: Of the dataset's classes in the order of their labels.
        cfg: The model's `pretrained_cfg`. Those of timm's models of ImageNet have no names, and need none.
        num_classes: The number of its outputs.

    Returns:
        The model's outputs by the labels of those classes.
    """
    cfg = with_names(cfg)
    own = class_names_of(cfg, num_classes) if cfg.get('label_names') else [''] * num_classes
    descriptions = _by_index(cfg, 'label_descriptions')
    words: dict[str, set[int]] = {}
    for output, name in enumerate(own):
        for word in (name, *(descriptions.get(name) or descriptions.get(str(output)) or '').split(',')):
            words.setdefault(_spoken(word), set()).add(output)
    spoken = {word: found.pop() for word, found in words.items() if word and len(found) == 1}
    count = Counter(own)
    exact = {name: output for output, name in enumerate(own) if name and count[name] == 1}
    known = {label: exact.get(name, spoken.get(_spoken(name))) for label, name in enumerate(names)}
    return {label: output for label, output in known.items() if output is not None}


def _spoken(name: str) -> str:
    return name.replace('_', ' ').strip().lower()


def _names_of(cfg: Mapping[str, Any], num_classes: int, wanted: Sequence[str]) -> dict[str, int] | None:
    """The output of each class by its name, if every class has one of its own."""
    cfg = with_names(cfg) if all(map(_SYNSET.fullmatch, wanted)) else cfg
    if len(cfg.get('label_names') or ()) != num_classes:
        return None
    found = {name: i for i, name in enumerate(class_names_of(cfg, num_classes))}
    return found if len(found) == num_classes else None


def with_names(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """A cfg with the names of its classes: timm's models of ImageNet have its order and no names."""
    if cfg.get('label_names') or not (subset := infer_imagenet_subset(dict(cfg))):
        return cfg
    info = ImageNetInfo(subset)
    return dict(label_names=info.label_names(), label_descriptions=info.label_descriptions(as_dict=True))


def shown(names: Sequence[str]) -> str:
    """Some of the names, for a message."""
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(map(repr, names[:_SHOWN])) + more
