"""Options that several commands share, and how they are read."""
import argparse
import ast
import os
from pathlib import Path
from typing import Any

from aa_models.zoo import CONFIG


def key_value(word: str) -> tuple[str, Any]:
    """Read KEY=VALUE, for the `type` of an option; a value that is no Python literal is a string.

    As `timm.utils.ParseKwargs`, but without importing torch; true and false, as YAML spells them, are no strings, and a
    word without `=` is reported as a wrong option.
    """
    key, equals, text = word.partition('=')
    if not (key and equals):
        raise argparse.ArgumentTypeError(f'{word!r} is not of the form KEY=VALUE')
    if text in ('true', 'false'):
        return key, text == 'true'
    try:
        return key, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return key, text


def path(word: str) -> Path:
    """Read a path, for the `type` of an option. The empty word would be the current folder, which nobody meant."""
    if not word or '\0' in word:
        raise argparse.ArgumentTypeError(f'{word!r} is no path')
    return Path(word)


def path_text(word: str) -> str:
    """As `path`, for what takes a string."""
    return str(path(word))


def model_name(word: str) -> str:
    """Read the name of a model, for the `type` of an option; the path of a folder with a config is a name, too."""
    is_path = os.sep in word and os.path.isfile(os.path.join(word, CONFIG))
    return f'local-dir:{word}' if is_path and ':' not in word else word


def add_model(parser: argparse.ArgumentParser) -> None:
    """Declare `--model`: a network that is used as it is, with its weights."""
    parser.add_argument('--model', type=model_name, default='aa_efficientnet_lite0', metavar='NAME',
                        help='model with weights, path of a folder (local-dir:FOLDER) or hf-hub:OWNER/NAME '
                        '(default: %(default)s)')


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declare `--device`, which `aa_models.device` reads."""
    parser.add_argument(
        '--device', metavar='NAME', help='cpu, cuda, cuda:1, mps, … (default: cuda where there is one, else cpu)')
