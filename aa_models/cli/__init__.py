"""The command line `aa-models`: one module for each command, and `main`, which chooses among them.

A command is a module `aa_models/cli/<command>.py` that parses, calls a function of the library and prints. It has

- a docstring, which is the command's description and whose first line stands in the list of commands,
- `add_arguments(parser)`, which declares its options,
- `run(args) -> int`, which does the work and returns the exit status,
- `USAGE`, where argparse's list of all options would be too long.

`aa-models --help` imports every command, so what is slow to import (torch, timm, numpy, PIL, matplotlib) is left to
`run`.
"""
import os
import signal
import sys
import threading


def is_command_line() -> bool:
    """Whether this process was started as `aa-models` or as `python -m aa_models`."""
    argv = getattr(sys, 'argv', None) or ['']  # Python inside another program may have none
    if argv[0] == '-m':  # what stands there until the module to run is found
        return sys.orig_argv[-len(argv)] in ('aa_models', '-maa_models')
    return os.path.basename(argv[0]) in ('aa-models', 'aa-models.exe')


def end_at_interrupts() -> None:
    """Have Ctrl-C end the process without a word while it starts; `main` then has a word to say."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and _is_main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def hear_interrupts() -> None:
    """Have Ctrl-C raise `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL and _is_main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()  # no other may set handlers
