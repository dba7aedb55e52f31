"""Command line options for the fields of a recipe."""
import argparse
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from .options import key_value, model_name, path_text

GROUPS = {  # heading over the options from this field on
    'model': 'model', 'dataset': 'data', 'img_size': 'input', 'crop_padding': 'changes of the training pictures',
    'teacher': 'learning from a teacher', 'batch_size': 'batches and optimiser', 'sched': 'epochs and learning rate',
    'ema': 'averaging, precision, speed', 'workers': 'order of the run'}


def add_data(parser: argparse.ArgumentParser) -> None:
    """Declare where the images are."""
    parser.add_argument('--data-dir', type=path_text, metavar='DIR',
                        help='where the dataset is, which hfds/… alone may know by itself (default: none)')
    parser.add_argument('--dataset-download', action='store_true', help='fetch the dataset if it is not there')


def add_recipe_options(parser: argparse._ActionsContainer, names: Collection[str] | None = None) -> None:
    """Give the parser an option for each field of `Recipe`; only those that are used end in the namespace.

    Args:
        names: The fields, all by default, which then stand in groups.
    """
    from aa_models.schema import may_be_none
    from aa_models.training.recipe import recipe_fields
    group = parser
    for name, field in recipe_fields().items():
        if names is not None and name not in names:
            continue
        if names is None and name in GROUPS:
            group = parser.add_argument_group(GROUPS[name])
        kind: Any = get_args(field.annotation)[0] if may_be_none(field.annotation) else field.annotation
        how: dict[str, Any] = dict(metavar=_metavar(kind))
        if kind is bool:
            how = dict(action=argparse.BooleanOptionalAction)
        elif bool in get_args(kind):  # or 'auto'
            how = dict(nargs='?', const='true', metavar='{auto,true,false}')
        elif get_origin(kind) is dict:
            how = dict(type=key_value, nargs='*', metavar='KEY=VALUE')
        elif get_origin(kind) is tuple:
            how = dict(nargs='+', metavar=_metavar(get_args(kind)[0]))
        if name in ('model', 'teacher'):
            how['type'] = model_name
        value, option = field.get_default(call_default_factory=True), name.replace('_', '-')
        default = str(value).lower() if how.get('const') else _shown(value)
        group.add_argument(f'--{option}', default=argparse.SUPPRESS,
                           help=f'{field.description} (default: {default})'.replace('%', '%%'), **how)
        if how.get('const'):
            group.add_argument(f'--no-{option}', dest=name, action='store_const', const='false',
                               default=argparse.SUPPRESS, help=f'the same as --{option} false')


def spelled_out(words: Sequence[str]) -> list[str]:
    """Say `--amp=true` for an `--amp` without a value, where argparse would take the next argument for one."""
    following = [*words[1:], '']
    return ['--amp=true' if word == '--amp' and after not in ('auto', 'true', 'false') else word
            for word, after in zip(words, following)]


def recipe_values(args: argparse.Namespace) -> dict[str, Any]:
    """The values of recipe fields that stood on the command line; the recipe reads those that are text."""
    from aa_models.training.recipe import recipe_fields
    fields = recipe_fields()
    values = {name: getattr(args, name) for name in fields if hasattr(args, name)}
    mappings = [name for name in values if get_origin(fields[name].annotation) is dict]
    return values | {name: dict(values[name]) for name in mappings}


def _shown(value: Any) -> str:
    """A default as it is typed."""
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, tuple):
        return ' '.join(f'{number:.4g}' for number in value)
    if value in (None, {}):
        return 'none'
    return f'{value:g}' if isinstance(value, float) else str(value) or '""'


def _metavar(kind: Any) -> str:
    """Name of a type in an option's help."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    words = {str: 'TEXT', int: 'N', float: 'X'}
    return f'{{{",".join(get_args(kind))}}}' if get_origin(kind) is Literal else words.get(kind, 'VALUE')
