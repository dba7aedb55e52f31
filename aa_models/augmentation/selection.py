"""Which convolutions of a network are augmented: patterns of module names, or a function."""
import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from aa_models.errors import InputError, InputTypeError
from aa_models.layers import AugmentedConv2d, GridAttention

Where = str | Sequence[str] | Mapping[str, Mapping[str, Any]] | Callable[[str, nn.Conv2d], bool]


def select(model: nn.Module, where: Where) -> dict[str, Mapping[str, Any]]:
    """Find the convolutions that `where` chooses (see `augment`).

    Returns:
        Their names in the model's order, each with the attention's arguments that `where` has for it.
    """
    inner = tuple(f'{name}.' for name, m in model.named_modules() if isinstance(m, (AugmentedConv2d, GridAttention)))
    names = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    convs = {n: m for n, m in model.named_modules()
             if type(m) is nn.Conv2d and not n.startswith(inner) and names[id(m)] < 2}  # shared ones would come apart
    larger = {name: m for name, m in convs.items() if max(m.kernel_size) > 1}
    chosen: dict[str, Mapping[str, Any]]
    missed: list[str] = []
    if callable(where):
        choices = ([name for name, m in some.items() if where(name, m)] for some in (larger, convs))
        chosen = {name: {} for name in next(filter(None, choices), [])}
    else:
        settings = _by_pattern(where)
        found = {pattern: matching(larger, pattern) or matching(convs, pattern) for pattern in settings}
        # where several patterns fit a name, the first is written last and stays
        chosen = {name: settings[pattern] for pattern in reversed(list(settings)) for name in found[pattern]}
        chosen = {name: chosen[name] for name in convs if name in chosen}
        missed = [pattern for pattern in settings if not found[pattern]]
    if '' in convs:
        raise InputError('model must be a network with a convolution in it, not a convolution: nothing holds its place')
    if missed or not chosen:
        raise InputError(
            f'where={(missed or where)!r} chooses none of the {len(convs)} convolutions of {type(model).__name__}: '
            f'{", ".join(convs) or "it has none"}')
    return chosen


def _by_pattern(where: str | Sequence[str] | Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """Give `where` the form of a mapping from patterns to arguments."""
    patterns = [where] if isinstance(where, str) else where
    if not isinstance(patterns, (Mapping, Sequence)) or not all(isinstance(pattern, str) for pattern in patterns):
        raise InputTypeError(f'where must be a pattern, several, a mapping from patterns or a function, got {where!r}')
    settings = patterns if isinstance(patterns, Mapping) else {pattern: {} for pattern in patterns}
    for pattern, own in settings.items():
        if not isinstance(own, Mapping):
            raise InputTypeError(f'where[{pattern!r}] must be a mapping of arguments of the attention, got {own!r}')
    return settings


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that fit a pattern as in a shell, by upper and lower case on every system."""
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]
