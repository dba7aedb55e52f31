"""Errors that are no fault of this package, each raised where the input or the work is looked at.

The command line prints them in one line; every other exception keeps its traceback. Each is also the built-in exception
that a caller of the library would expect, so `except ValueError` goes on working.
"""


class UserError(Exception):
    """A request that cannot be met; the message says what was given and what is possible."""


class InputError(UserError, ValueError):
    """An argument, option, file or model that cannot be used."""


class InputTypeError(UserError, TypeError):
    """An argument of the wrong kind."""


class NoSuchFileError(UserError, FileNotFoundError):
    """A file or folder that the user named does not exist."""


class WeightsError(UserError, RuntimeError):
    """There are no usable weights. A `RuntimeError`, because that is what timm raises for a model without weights."""


class WorkError(Exception):
    """Work that failed for a reason outside the program; the message says what is kept and how to go on."""


class WriteError(WorkError, OSError):
    """Something could not be written, as on a full disk."""


class DivergenceError(WorkError, FloatingPointError):
    """A loss or a weight became infinite or not a number."""


class HubError(WorkError, RuntimeError):
    """The Hub refused or was not reached."""


class HubWeightsError(HubError, WeightsError):
    """Weights are nowhere on this machine, and the Hub did not answer: another try may find them."""
