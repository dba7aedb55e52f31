"""Values from outside, such as a recipe, checked by pydantic: whatever is wrong is said in one line."""
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from .errors import InputError

T = TypeVar('T')


def checked(kind: type[T], values: Mapping[Any, Any], source: str) -> T:
    """Make an object of values.

    Args:
        kind: A pydantic dataclass or model.
        values: By key.
        source: Where they are from, for the error.

    Raises:
        InputError: Unknown keys, wrong types or impossible values; all of them, each with its key.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        fields = getattr(kind, '__pydantic_fields__', {})
        faults = '; '.join(_in_words(fault, fields) for fault in error.errors())
        raise InputError(f'{source}: {faults}') from error


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of a message about an unknown word: the known word that is most like it, else all of them."""
    near = difflib.get_close_matches(word, words := list(words), n=1)
    return f'; did you mean {near[0]!r}?' if near else f'; possible are {", ".join(words)}'


def may_be_none(annotation: Any) -> bool:
    """Whether a field's annotation has `| None`."""
    return type(None) in get_args(annotation)


def _in_words(fault: ErrorDetails, fields: Mapping[str, Any]) -> str:
    """One of pydantic's errors with key, value and what is possible."""
    path = ''.join(f'[{part}]' if isinstance(part, int) else f'.{part}' for part in fault['loc']).lstrip('.')
    if fault['type'] in ('unexpected_keyword_argument', 'extra_forbidden'):
        return f'unknown key {path!r}{nearest(path, fields)}'
    if fault['type'] == 'missing':
        return f'{path} is missing'
    if fault['type'] == 'value_error':  # raised by a validator of ours, whose message is complete
        return str(fault['ctx']['error'])
    value = f'{path} = {fault["input"]!r}'
    message = fault['msg'].replace('Tuple', 'List').replace('tuple', 'list')  # YAML and JSON know lists
    if path in fields and may_be_none(fields[path].annotation):
        message += ', or none'
    wanted = message.removeprefix('Input should be ')
    return f'{value} must be {wanted}' if wanted != message else f'{value}: {message}'
