"""Values from outside, in recipes and configs, checked by pydantic: whatever is wrong is said in one line."""
import difflib
import json
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from .errors import InputError


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic would take true for 1
        raise PydanticCustomError('number_type', 'Input should be a number')
    return value


def _bool_or_auto(value: Any) -> Any:
    try:
        return value if value == 'auto' else TypeAdapter(bool).validate_python(value)
    except ValidationError as error:  # a union's own would name each of its kinds
        raise PydanticCustomError('auto_type', 'Input should be auto, true or false') from error


T = TypeVar('T')
# `none` is a word as it comes from a command line
OrNone = Annotated[T | None, BeforeValidator(lambda value: None if value in ('none', ['none']) else value)]
BoolOrAuto = Annotated[bool | Literal['auto'], BeforeValidator(_bool_or_auto)]
Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
Size = Annotated[Int, Field(ge=1)]
Count = Annotated[Int, Field(ge=0)]
Positive = Annotated[Float, Field(gt=0)]


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


def parsed_json(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        InputError: It cannot be read, is no JSON, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f'{file} cannot be read as JSON: {error}') from error
    return _mapping(content, file)


def parsed_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file, empty for an empty file. A key that is there twice is an error, not the later value.

    Raises:
        InputError: It cannot be read, is no YAML, or holds something else.
    """
    try:
        content = yaml.load(file.read_text(encoding='utf-8'), _Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).replace('in "<unicode string>", ', 'in ').split())
        raise InputError(f'{file} is not YAML: {reason}') from error
    return _mapping({} if content is None else content, file)


class _Loader(yaml.SafeLoader):
    """Reads plain values only, and every key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, key in enumerate(keys):
            if any(key.value == earlier.value for earlier in keys[:i]):
                raise yaml.constructor.ConstructorError(None, None, f'key {key.value!r} is there twice', key.start_mark)
        return super().construct_mapping(node, deep)


def _mapping(content: Any, file: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        kinds = {list: 'a list', str: 'a text', bool: 'true or false', int: 'a number', float: 'a number'}
        raise InputError(f'{file} must hold keys with values, not {kinds.get(type(content), "nothing")}')
    return content


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
    message = message.partition(' or instance of ')[0]  # of a class that no file holds
    if path in fields and may_be_none(fields[path].annotation):
        message += ', or none'
    wanted = message.removeprefix('Input should be ')
    return f'{value} must be {wanted}' if wanted != message else f'{value}: {message}'
