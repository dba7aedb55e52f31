"""Any JSON as config.json, any YAML as recipe or sweep: every command answers, or refuses in words."""
import json
import os
import re
import shutil

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aa_models.training.recipe import load_recipe
from command import run_command
from fake_weights import NAME, save_checkpoint
from repository import TESTS

EXAMPLES = settings(
    max_examples=int(os.environ.get('AA_MODELS_EXAMPLES', 60)), deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck))
# words of Python and torch, which tell a user nothing
FOREIGN_WORDS = re.compile(
    "Traceback|NoneType|object (is|has|cannot|does)|not supported between|unexpected keyword|data type 'str'|"
    'unhashable|'
    'must be strings|0x[0-9a-f]{6}')

numbers = st.one_of(st.integers(-3, 300), st.just(2 ** 70), st.floats(allow_subnormal=False))
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8), st.sampled_from(['none', 'x/y', '../..']))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5)


def replaced(content, draw):
    """A copy with the value at a place drawn replaced, removed, or one added."""
    content = json.loads(json.dumps(content))
    place = content
    while True:
        key = draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or draw(st.booleans()):
            break
        place = place[key]
    change = draw(st.sampled_from(['value', 'remove', 'add']))
    if change == 'remove':
        del place[key]
    else:
        place[draw(st.text(max_size=6)) if change == 'add' else key] = draw(values)
    return content


def assert_in_words(capsys, *words):
    status, _, err = run_command(capsys, *words)
    assert status in (0, 1, 2) and not FOREIGN_WORDS.search(err), err
    assert status == 0 or (err.strip() and len(err.splitlines()) == 1), err


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """The config of a checkpoint to spoil."""
    folder = tmp_path_factory.mktemp('weights') / NAME
    save_checkpoint(folder)
    return folder / 'config.json'


@EXAMPLES
@given(data=st.data())
def test_any_config(data, config, capsys):
    original = config.read_text()
    content = data.draw(values) if data.draw(st.integers(0, 3)) == 0 else replaced(json.loads(original), data.draw)
    model = f'local-dir:{config.parent}'
    command = data.draw(st.sampled_from([
        ['predict', TESTS / 'pictures' / 'lion.png', '--model', model], ['info', model],
        ['validate', '--model', model, '--data-dir', config.parent]]))
    try:
        config.write_text(json.dumps(content))
        assert_in_words(capsys, *command)
    finally:
        config.write_text(original)


RECIPE = load_recipe('cifar100_simplecnn').plain()
SWEEP = dict(recipe='cifar100_simplecnn', values=dict(holdout=5), runs=[dict(lr=0.1), dict(each=dict(seed=[1, 2]))])


@EXAMPLES
@given(data=st.data())
def test_any_recipe_and_any_sweep(data, tmp_path_factory, capsys):
    folder = tmp_path_factory.mktemp('yaml')
    command, known = data.draw(st.sampled_from([('train', RECIPE), ('sweep', SWEEP)]))
    kind = data.draw(st.sampled_from(['text', 'values', 'replaced', 'replaced']))
    text = data.draw(st.text(max_size=30)) if kind == 'text' else yaml.safe_dump(
        data.draw(values) if kind == 'values' else replaced(known, data.draw))
    file = folder / 'file.yaml'
    file.write_bytes(text.encode('utf-8', 'surrogatepass'))
    table = ['--results-file', folder / 'table.csv'] if command == 'sweep' else []
    assert_in_words(capsys, command, file, '--output', folder / 'out', '--data-dir', folder / 'nowhere', *table)
    assert {path.name for path in folder.iterdir()} <= {'file.yaml', 'out'}
    shutil.rmtree(folder)
