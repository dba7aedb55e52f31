"""Softmax attention with relative positions by C++, where the machine has a compiler.

`cpp_attention.cpp` takes a half to a third of the time of the same in PyTorch's calls. Nothing of it is needed:
`blockwise.py` asks for it here and computes by itself otherwise.
"""
import ctypes
import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from .cpp_build import load_library
from .trial import fault_of

VARIABLE = 'AA_MODELS_CPP'
_TOLERANCE = 1e-5  # of the largest number; found are 1e-6
_PAIRS = 2 ** 15  # of queries and keys that are worth a thread: some 50 microseconds


class _Strided(ctypes.Structure):
    _fields_ = [
        ('data', ctypes.c_void_p), *((name, ctypes.c_int64) for name in ('image', 'head', 'position', 'channel'))]


class _Problem(ctypes.Structure):
    """As the C++ source has it."""
    _fields_ = [
        *((name, ctypes.c_int32) for name in ('images', 'num_heads', 'H', 'W', 'dim_k', 'dim_v', 'causal')),
        ('scale', ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ('rel_h', 'rel_w')),
        *((name, _Strided) for name in ('q', 'k', 'v', 'out', 'grad_q', 'grad_k', 'grad_v')),
        *((name, ctypes.c_void_p) for name in ('grad_h', 'grad_w'))]


class CppAttention:
    """The two functions of a compiled `cpp_attention.cpp`.

    Args:
        library: As it is loaded.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def forward(
            self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_h: torch.Tensor | None,
            rel_w: torch.Tensor | None, scale: float, causal: bool,
    ) -> torch.Tensor:
        """As `blockwise_attention` without dropout, for tensors that `kernel_for` accepts."""
        out = torch.empty_like(v)
        _call(self._library.attention_forward, q, k, v, rel_h, rel_w, scale, causal, out=out)
        return out

    def backward(
            self, grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_h: torch.Tensor | None,
            rel_w: torch.Tensor | None, scale: float, causal: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `blockwise_attention_backward`."""
        grad = grad.to(v.dtype)
        if not _is_even(grad):
            grad = grad.contiguous()
        grad_q, grad_k, grad_v = (torch.empty_like(t) for t in (q, k, v))
        grad_h, grad_w = (  # whatever the user's default dtype and device are
            torch.empty(0 if table is None else table.shape, dtype=torch.float32, device='cpu')
            for table in (rel_h, rel_w))
        _call(
            self._library.attention_backward, q, k, v, rel_h, rel_w, scale, causal, out=grad, grad_q=grad_q,
            grad_k=grad_k, grad_v=grad_v, grad_h=grad_h, grad_w=grad_w)
        tables = ((grad_h, rel_h), (grad_w, rel_w))
        grad_h, grad_w = (found.to(q.dtype if table is None else table.dtype) for found, table in tables)
        return grad_q, grad_k, grad_v, grad_h, grad_w


def _call(
        function: Callable[..., None], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_h: torch.Tensor | None,
        rel_w: torch.Tensor | None, scale: float, causal: bool, **tensors: torch.Tensor,
) -> None:
    """Call a function of the library with further tensors by the names that the source has for them."""
    B, num_heads, H, W, dim_k = q.shape
    problem = _Problem(B, num_heads, H, W, dim_k, v.shape[4], causal, scale)
    rel_h, rel_w = (None if table is None else table.float().contiguous() for table in (rel_h, rel_w))
    for name, tensor in dict(tensors, q=q, k=k, v=v, rel_h=rel_h, rel_w=rel_w).items():
        if tensor is not None and tensor.numel():  # what stays a null pointer is not there
            setattr(problem, name, _strided(tensor) if tensor.dim() == 5 else tensor.data_ptr())
    threads = min(torch.get_num_threads(), B * num_heads, 1 + B * num_heads * (H * W) ** 2 // _PAIRS)
    function(ctypes.byref(problem), ctypes.c_int32(threads), ctypes.c_int32(q.dtype == torch.bfloat16))


def _is_even(x: torch.Tensor) -> bool:
    """Whether all positions of (B, num_heads, H, W, dim) are equally far apart, as in what a convolution gives."""
    return x.shape[2] == 1 or x.shape[3] == 1 or x.stride(2) == x.shape[3] * x.stride(3)


def _strided(x: torch.Tensor) -> _Strided:
    image, head, row, position, channel = x.stride()
    return _Strided(x.data_ptr(), image, head, row if x.shape[3] == 1 else position, channel)


def kernel_for(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seed: torch.Tensor | None) -> CppAttention | None:
    """The kernel where there is one and it is for an attention; arguments are as for `blockwise_attention`."""
    if seed is not None or q.device.type != 'cpu' or q.dtype not in (torch.float32, torch.bfloat16):
        return None
    if not all(t.dtype == q.dtype and _is_even(t) for t in (q, k, v)):
        return None
    return available_kernel()


def available_kernel() -> CppAttention | None:
    """The kernel where it can be compiled and passes a trial; AA_MODELS_CPP=0 in the environment switches it off."""
    return None if os.environ.get(VARIABLE) == '0' else _tried_kernel()


@functools.cache
def _tried_kernel() -> CppAttention | None:
    try:
        library = load_library(Path(__file__).with_suffix('.cpp'))
        if library is None:
            return None
        kernel = CppAttention(library)
        # more than one tile, and lanes that stay idle
        reason = fault_of(
            lambda grad, *args: [kernel.forward(*args), *kernel.backward(grad, *args)], (9, 11), 20, 12,
            tolerance=_TOLERANCE)
    except Exception as error:
        reason = f'{type(error).__name__} was raised: {error}'
    if not reason:
        return kernel
    warnings.warn(
        f'attention is computed without the C++ kernel of aa_models, as exactly: in its trial {reason}. With '
        f'{VARIABLE}=0 in the environment it is not tried', stacklevel=2)
    return None
