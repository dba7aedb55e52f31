"""The command `aa-models`."""
import argparse
import contextlib
import difflib
import importlib
import inspect
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from aa_models import __version__
from aa_models.errors import UserError, WorkError

from . import hear_interrupts
from .recipe_options import spelled_out
from .terminal import Output, harmless, leave, log_harmlessly, open_closed_streams

COMMANDS = (  # each a module of this package
    'attention', 'benchmark', 'convert', 'corruptions', 'curves', 'export', 'info', 'list', 'pack', 'predict',
    'publish', 'sweep', 'train', 'validate')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        Exit status: 0; 1 where the work failed; 2 for a request that cannot be met, as argparse has it for a wrong
        option; 130 when interrupted. An exception that is none of these is a fault of this package and is passed on.
    """
    open_closed_streams()
    log_harmlessly()
    what = 'aa-models'
    try:
        hear_interrupts()
        with contextlib.redirect_stdout(Output(sys.stdout)):
            args = _parser().parse_args(spelled_out(sys.argv[1:] if argv is None else argv))
            what = f'aa-models {args.command}'
            status = args.run(args)
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # `aa-models list | head`: the reader has seen enough
        leave(sys.stdout)
        return 0
    except KeyboardInterrupt:
        return 130
    except (UserError, WorkError) as error:
        print(harmless(f'{what}: error: {error}'), file=sys.stderr)
        return 1 if isinstance(error, WorkError) else 2


_EPILOG = """`aa-models COMMAND --help` explains a command and shows examples. The Hub is huggingface.co.

Four variables of the environment are read:
  AA_MODELS_WEIGHTS  a folder of checkpoints, the first to be searched
  AA_MODELS_MAX_GB   memory in GB above which a request is refused (default: 16)
  AA_MODELS_CPP      0: attention on CPUs goes without the C++ kernel, which is compiled at its first use
  AA_MODELS_TRITON   0: attention on GPUs goes without the Triton kernels of this package"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(harmless(message))  # it may name files that the shell found for a pattern

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, which calls this for a command, too; an unknown option is said with the nearest one."""
        namespace, rest = super().parse_known_args(args, namespace)
        for word in rest:
            if word.startswith('-'):
                option = word.partition('=')[0]
                near = difflib.get_close_matches(option, self._option_string_actions, n=1)
                self.error(f'unknown option {option}' + (f'; did you mean {near[0]}?' if near else ''))
        return namespace, rest


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog='aa-models', formatter_class=argparse.RawDescriptionHelpFormatter, epilog=_EPILOG,
        description='Attention-augmented convolutional networks: look at them, use them, train them.')
    parser.add_argument('--version', action='version', version=f'aa-models {__version__}')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name in COMMANDS:
        module = importlib.import_module(f'aa_models.cli.{name}')
        description = inspect.getdoc(module) or ''
        command = commands.add_parser(
            name, help=description.partition('\n')[0], description=description, usage=getattr(module, 'USAGE', None),
            formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
