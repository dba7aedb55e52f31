"""Options that several commands have in common."""
import argparse
from collections.abc import Sequence

from timm.utils import ParseKwargs


class ParseKeyValues(ParseKwargs):
    """KEY=VALUE words as timm reads them; a word without `=` is a wrong option, not a traceback."""

    def __call__(
            self,
            parser: argparse.ArgumentParser,
            namespace: argparse.Namespace,
            values: Sequence[str],
            option_string: str | None = None,
    ) -> None:
        if wrong := [value for value in values if '=' not in value]:
            raise argparse.ArgumentError(self, f'{wrong[0]!r} is not of the form KEY=VALUE')
        super().__call__(parser, namespace, values, option_string)
