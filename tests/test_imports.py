"""Imports point downwards only: what a room needs lies below it."""
import ast
from importlib.util import resolve_name

from repository import ROOT

ROOMS = (  # from the lowest up
    'errors', 'lock', 'cpu', 'csv_text', 'durable', 'schema', 'data', 'device', 'zoo', 'layers', 'augmentation',
    'models', 'analysis', 'training', 'release', 'benchmark', 'examples', 'run', 'cli')
UPWARDS = {('zoo', 'models')}  # inside a function: the command line lists the models without importing them


def imported(path):
    """Rooms of the package that a file imports."""
    package = '.'.join(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom):
            module = resolve_name('.' * node.level + (node.module or ''), package)
            yield from (f'{module}.{name.name}'.split('.')[1] for name in node.names if module.startswith('aa_models'))
        elif isinstance(node, ast.Import):
            yield from (f'{name.name}.'.split('.')[1] for name in node.names if name.name.startswith('aa_models'))


def test_imports_point_downwards():
    found = set()
    for path in (ROOT / 'aa_models').glob('*/**/*.py'):
        room = path.relative_to(ROOT / 'aa_models').parts[0]
        found |= {(room, other) for other in imported(path) if other != room and other in ROOMS}
    for path in (ROOT / 'aa_models').glob('[a-z]*.py'):
        found |= {(path.stem, other) for other in imported(path) if other in ROOMS}
    assert ('cli', 'errors') in found
    assert {pair for pair in found if ROOMS.index(pair[0]) <= ROOMS.index(pair[1])} == UPWARDS
