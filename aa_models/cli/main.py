"""The command `aa-models`. Each subcommand is a module with `add_arguments(parser)` and `run(args) -> int`."""
import argparse
import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from aa_models import __version__
from aa_models.errors import WeightsError

__all__ = ['main']

# The first line of a module's docstring is the subcommand's help, the rest its description; `USAGE`, where it has one,
# replaces argparse's list of all options.
COMMANDS = {
    'attention': 'aa_models.cli.attention',
    'benchmark': 'aa_models.benchmark',
    'export': 'aa_models.cli.export',
    'info': 'aa_models.analysis.layer_tables',
    'list': 'aa_models.cli.list',
    'pack': 'aa_models.cli.pack',
    'predict': 'aa_models.analysis.prediction',
    'publish': 'aa_models.cli.publish',
    'train': 'aa_models.training.run',
    'validate': 'aa_models.training.validation',
}
# What the user can put right: exit status 2, as argparse has it for a wrong option.
USER_ERRORS = (ValueError, TypeError, FileNotFoundError, WeightsError)
# What went wrong in the work itself: exit status 1. Any other exception is a fault of ours and keeps its traceback.
FAILURES = (RuntimeError, OSError, ArithmeticError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        Exit status: 0, 1 where the work failed, 2 where the user asked for what cannot be, 130 when interrupted.
    """
    args = _parser().parse_args(argv)
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `aa-models list | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except USER_ERRORS as error:
        return _complain(args.command, error, 2)
    except FAILURES as error:
        return _complain(args.command, error, 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='aa-models',
        description='Attention-augmented convolutional networks: look at them, use them, train them.',
        epilog='`aa-models COMMAND --help` explains a command and shows examples.',
    )
    parser.add_argument('--version', action='version', version=f'aa-models {__version__}')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, module_name in COMMANDS.items():
        module = importlib.import_module(module_name)
        summary, text = _help(module)
        command = commands.add_parser(
            name,
            help=summary,
            description=text,
            usage=getattr(module, 'USAGE', None),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _help(module: ModuleType) -> tuple[str, str]:
    """Return the first line of a module's docstring, and all of it."""
    text = inspect.getdoc(module) or ''
    return text.partition('\n')[0], text


def _complain(command: str, error: BaseException, status: int) -> int:
    print(f'aa-models {command}: error: {error or type(error).__name__}', file=sys.stderr)
    return status
