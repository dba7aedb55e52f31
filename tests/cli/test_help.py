"""The words of every help: each option explained, its default in words that can be typed, no Python, no bare jargon."""
import argparse
import re

import pytest

from aa_models.cli.main import _parser
from aa_models.schema import checked
from aa_models.training.recipe import Recipe, recipe_fields


def commands(parser, name='aa-models'):
    """Name and parser of the command line, of each command, and of each benchmark."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                yield from commands(command, f'{name} {word}')


PARSERS = dict(commands(_parser()))
# as Python writes values and types
PYTHON = re.compile(
    r"\b(None|True|False|STR|INT|FLOAT|BOOL|DICT|LIST|TUPLE|Namespace|pathlib|argparse)\b|==SUPPRESS==|<\w+ |%\(|"
    r"\(\d+, |\('|'\)|\['|'\]|\[\]|\{\}|\{'|dict\(")
JARGON = {  # what explains it where it stands
    r'channels_last': 'the channels of a pixel lie side by side in memory',
    r'[Tt]op-1': 'share of (pictures whose most probable|right first guesses|right answers)|agreement',
    r'[Ll]ogits': 'scores before they become probabilities|products of queries and keys',
    r'\b[qkv], [qkv]': '[Qq]ueries, keys and values',
    r'\bdk\b': 'how many channels, or which share',
    r'\bdv\b': 'how many channels, or which share|depth of the values',
    r'\b[Hh]eads\b': r'heads: attention is computed so often|one panel for\s+each head|num_heads',
    r'autocast|mixed precision': 'what stands it is\\s+computed',
    r'\bsdpa\b': 'scaled_dot_product_attention|whose help explains them',
    r'\bfused attention\b': 'scaled_dot_product_attention|aa-models benchmark attention',
    r'\bEMA\b|--ema\b': 'moving average of the weights',
    r'\bmixup\b': 'weighted means of two pictures',
    r'\bcutmix\b': 'a part of another picture put in',
    r'label smoothing': 'share of the label',
    r'\bmomentum\b': 'share of an update',
    r'weight decay': 'draws weights towards 0',
    r'stochastic depth': 'leaving a block out',
    r'\bMACs\b': 'multiply-accumulates',
    r'\bwsd\b': 'warm-up, stable, decay',
    r'\bHub\b': r'huggingface\.co|log in|card, recipe and log|upload',
    r'\bratio\b(?=.*rival)': 'its median over all rounds',
    r'from_a1_in1k': r'\(recipe A1\)|Examples',
    r'\bfreeze.bn\b': 'running statistics',
}


def options_of(parser):
    own = (argparse._HelpAction, argparse._VersionAction, argparse._SubParsersAction)
    return [action for action in parser._actions if not isinstance(action, own)]


def as_text(value):
    """Numbers as the help rounds them."""
    if isinstance(value, (list, tuple)):
        return [as_text(part) for part in value]
    return f'{value:.4g}' if isinstance(value, float) else str(value)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')


@pytest.mark.parametrize('name', PARSERS)
def test_nothing_is_written_as_python_does(name):
    text = PARSERS[name].format_help()
    assert not PYTHON.search(text), PYTHON.search(text)


@pytest.mark.parametrize('name', PARSERS)
def test_jargon_is_explained_where_it_stands(name):
    text = PARSERS[name].format_help()
    bare = [word for word, meaning in JARGON.items() if re.search(word, text) and not re.search(meaning, text)]
    assert not bare, bare


@pytest.mark.parametrize('name', PARSERS)
def test_a_first_line_and_examples(name):
    description = PARSERS[name].description
    assert description.partition('\n')[0].endswith('.') and (name == 'aa-models' or '\nExample' in description)


@pytest.mark.parametrize('name', PARSERS)
def test_options_are_explained(name):
    """In words of their own, not their names alone."""
    for action in options_of(PARSERS[name]):
        words = set(re.findall(r'\w+', re.sub(r'\(default: .*\)$', '', action.help or '').lower()))
        assert len(words - set(re.findall('[a-z]+', action.dest))) >= 2, (action.dest, action.help)


@pytest.mark.parametrize('name', PARSERS)
def test_defaults_are_said_and_can_be_typed(name):
    """What stands there as the default gives it; where that depends on something, words say on what."""
    for action in options_of(PARSERS[name]):
        found = re.search(r'\(default: ([^()]+)\)$', (action.help or '') % vars(action))
        if action.required or action.nargs == 0:
            assert not found or isinstance(action, argparse.BooleanOptionalAction), action.help
            continue
        assert found, (action.dest, action.help)
        words, default = [] if found[1] == '""' else found[1].split(), PARSERS[name].get_default(action.dest)
        field = recipe_fields().get(action.dest)
        if field and action.help.startswith(field.description):
            default = field.get_default(call_default_factory=True)
            typed = {} if default == {} and words == ['none'] else (
                ' '.join(words) if action.nargs in (None, '?') else words)
            typed = getattr(checked(Recipe, {action.dest: typed}, 'help'), action.dest)
        elif default in (None, '', [], (), 0, argparse.SUPPRESS) and not words[0].isdigit():
            continue  # words say what is done without
        else:
            typed = [action.type(word) if action.type else word for word in words]
            default = list(default) if isinstance(default, (list, tuple)) else [default]
        assert as_text(typed) == as_text(default), (action.dest, action.help)
