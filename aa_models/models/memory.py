"""Memory is bounded before it is taken: a pass of the network over tensors that hold nothing tells what one needs."""
import contextlib
import copy
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aa_models.errors import InputError

VARIABLE = 'AA_MODELS_MAX_GB'
_LIMIT = 16.0  # GB
_LARGEST_A_GB = 10 ** 6  # whole numbers in arguments
_TENSORS_A_GB = 250  # 4000 in all, and the deepest of timm's networks have 2500
_AT_ONCE = 2  # tensors of the largest size, such as logits and weights of an attention


class TooLargeError(InputError):
    """What is asked for would take more memory than is allowed."""


class _Largest(TorchDispatchMode):
    """Watches for the largest tensor that any operation gives."""
    size = 0  # bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() * leaf.element_size() for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor)]
        self.size = max(self.size, *sizes, 0)
        return results


class _FusedAttention(TorchFunctionMode):
    """On the meta device torch would compute fused attention by all of its weights, which no real device holds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            return _attended(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])


def check_pass(
        model: nn.Module, shape: Sequence[int], what: str,
        run: Callable[[nn.Module, torch.Tensor], object] = lambda model, x: model(x),
) -> None:
    """Refuse a pass of a network for which there is no memory; nothing is computed to find that out.

    Args:
        model: Any network; it is left as it is.
        shape: Of its input.
        what: Words that say which sizes make the pass large, for the error.
        run: The pass, given a copy of the model on the meta device and an input.

    Raises:
        TooLargeError: Its largest tensors need more than the limit, 16 GB or what the variable AA_MODELS_MAX_GB says.
    """
    parameter = next(model.parameters(), torch.empty(0))
    seen = _Largest()
    try:
        with torch.no_grad(), seen, _FusedAttention():
            run(copy.deepcopy(model).to('meta'), torch.empty(shape, device='meta', dtype=parameter.dtype))
        needed: float = seen.size
    except Exception as error:  # a network that takes no such input says so itself when it is to run
        needed = float('inf') if 'overflow' in str(error) else seen.size
    check_memory(_AT_ONCE * needed, what)


@contextlib.contextmanager
def bounded_build(what: str) -> Iterator[None]:
    """End the body, which builds a network, as soon as there is no memory for its weights.

    Args:
        what: Words for the weights, for the error.

    Raises:
        TooLargeError: They need more than the limit, or there are more tensors than anything of that size is made of.
    """
    thread, size, count, refused = threading.get_ident(), 0, 0, []

    def see(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        nonlocal size, count
        if tensor is None or threading.get_ident() != thread:
            return
        size, count = size + tensor.numel() * tensor.element_size(), count + 1
        try:
            check_memory(size, what)
            if count > (most := _TENSORS_A_GB * _limit()):
                raise TooLargeError(
                    f'{what} would be more than {most:.0f} tensors, {_TENSORS_A_GB} for each GB allowed: take less, or '
                    f'set {VARIABLE} in the environment')
        except TooLargeError as error:  # ends the building, whatever that does with it
            refused.append(error)
            raise

    hooks = register_module_parameter_registration_hook(see), register_module_buffer_registration_hook(see)
    try:
        yield
    except Exception as error:
        if not refused and 'overflow' in str(error):  # torch's word for more bytes than it can count
            check_memory(math.inf, what)
        if not refused:
            raise
    finally:
        for hook in hooks:
            hook.remove()
    if refused:
        raise refused[0]


def check_build(make: Callable[[], object], what: str) -> None:
    """Refuse to build a network for whose weights there is no memory; it is built of tensors that hold nothing.

    Args:
        make: Builds it. Its own errors are left to the building that counts.
        what: Words for the weights, for the error.

    Raises:
        TooLargeError: As `bounded_build` does.
    """
    try:
        with bounded_build(what), torch.random.fork_rng(devices=[]), torch.device('meta'):
            make()
    except TooLargeError:
        raise
    except Exception:
        pass


def check_arguments(values: Mapping[str, Any]) -> None:
    """Refuse arguments of a model that hold a number too large for any of them.

    A network may make a list as long as its number of blocks before it makes the first of them, which `check_build`
    cannot see.

    Args:
        values: By name.

    Raises:
        TooLargeError: A whole number, wherever in the arguments, is above a million for each GB allowed.
    """
    most = _LARGEST_A_GB * _limit()
    for name, value in values.items():
        for number in tree_leaves(value):
            if isinstance(number, Integral) and abs(int(number)) > most:
                raise TooLargeError(f'{name} = {value!r} has a number above {most:.0f}, {_LARGEST_A_GB} for each GB '
                                    f'allowed: take less, or set {VARIABLE} in the environment')


def check_memory(needed: float, what: str) -> None:
    """Compare bytes with the limit; arguments and error as in `check_pass`."""
    if needed > 1e9 * (limit := _limit()):
        amount = f'at least {needed / 1e9:.3g} GB' if math.isfinite(needed) else 'more bytes than can be counted'
        raise TooLargeError(
            f'{what} would take {amount}, more than the {limit:g} GB allowed: take less, or set '
            f'{VARIABLE} in the environment')


def _limit() -> float:
    text = os.environ.get(VARIABLE)
    try:
        limit = _LIMIT if not text else float(text)
    except ValueError:
        limit = math.nan
    if not limit > 0:  # nor is what is not a number
        raise InputError(f'{VARIABLE} = {text!r} in the environment must be a number of gigabytes above 0')
    return limit
