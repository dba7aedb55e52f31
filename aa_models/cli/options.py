"""Options that several commands share, and how they are read."""
import argparse
import ast
from collections.abc import Sequence
from typing import Any


class ParseKeyValues(argparse.Action):
    """Read words KEY=VALUE into a dict; a value that is no Python literal is a string.

    As `timm.utils.ParseKwargs`, but without importing torch, and a word without `=` is reported as a wrong option.
    """

    def __call__(
            self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: str | Sequence[Any] | None,
            option_string: str | None = None,
    ) -> None:
        pairs = {}
        for word in values or ():
            key, equals, text = word.partition('=')
            if not (key and equals):
                raise argparse.ArgumentError(self, f'{word!r} is not of the form KEY=VALUE')
            try:
                pairs[key] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                pairs[key] = text
        setattr(namespace, self.dest, pairs)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Declare `--model`: a network that is used as it is, with its weights."""
    parser.add_argument('--model', default='aa_resnet18', metavar='NAME',
                        help='model with weights, local-dir:FOLDER or hf-hub:OWNER/NAME (default: %(default)s)')


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declare `--device`, which `aa_models.device` reads."""
    parser.add_argument(
        '--device', metavar='NAME', help='cpu, cuda, cuda:1, mps, … (default: cuda where there is one, else cpu)')
