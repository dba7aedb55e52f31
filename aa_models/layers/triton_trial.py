"""Whether the Triton kernels are used: they ran on no GPU yet, so each device tries them before it relies on them."""
import importlib.util
import os
import warnings
from typing import Any, NamedTuple

import torch

from .tracing import is_recorded
from .trial import fault_of
from .triton_attention import tile_columns, triton_attention, triton_attention_backward

VARIABLE = 'AA_MODELS_TRITON'
# Of the largest number. In float32, products with the tables are TF32's, of 10 bits, where the user allows these.
_TOLERANCES = {torch.float32: 3e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_LONGEST = {torch.float32: 32, torch.float16: 128, torch.bfloat16: 128}  # vectors; of longer ones registers overflow
_POSITIONS = 2 ** 16  # on larger maps the parts of the rows' gradients take more memory than the folded way

_DEVICE = 'cuda'
_passed: dict['Case', bool] = {}
_refused: set[torch.device] = set()


class Case(NamedTuple):
    """What kernels are compiled for."""
    device: torch.device
    dtype: torch.dtype
    dim_k: int
    dim_v: int
    columns: int  # of a tile of keys
    has_rows: bool
    has_columns: bool
    causal: bool


def case_of(
        q: torch.Tensor, v: torch.Tensor, rel_h: torch.Tensor | None, rel_w: torch.Tensor | None, causal: bool,
        dropout_p: float = 0.,
) -> Case | None:
    """What an attention is a case of; None where the kernels are not for it, or it is recorded to run elsewhere.

    Arguments are as for `blockwise_attention`; the tables may be for any size.
    """
    if q.device.type != _DEVICE or is_recorded() or dropout_p > 0 or (rel_h is None and rel_w is None):
        return None
    # what is no plain tensor may have no memory, as in FakeTensorMode
    if type(q) is not torch.Tensor or max(q.shape[4], v.shape[4]) > _LONGEST.get(q.dtype, 0):
        return None
    if q.shape[2] * q.shape[3] > _POSITIONS:
        return None
    return Case(
        q.device, q.dtype, q.shape[4], v.shape[4], tile_columns(q.shape[3]), rel_h is not None, rel_w is not None,
        causal)


@torch.compiler.assume_constant_result  # it is asked, not recorded, while a layer is compiled
def passes_trial(*fields: Any) -> bool:
    """Whether the kernels of a case, given by its fields, are as exact on their device as they must be.

    They are compiled and compared with the explicit way at the first question. Where that fails or they are not exact,
    the device goes without any of them from then on, and one warning says why. AA_MODELS_TRITON=0 in the environment
    switches them off.
    """
    case = Case(*fields)
    if os.environ.get(VARIABLE) == '0' or case.device in _refused:
        return False
    if case not in _passed:
        if not _has_matrix_units(case.device):
            _passed[case] = False
        elif torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():  # nothing can be compared now
            return False
        else:
            reason = _fault(case)
            _passed[case] = not reason
            if reason:
                _refused.add(case.device)
                warnings.warn(
                    f'attention on {case.device} is computed without the Triton kernels of aa_models, as exactly: in '
                    f'their trial {reason}. With {VARIABLE}=0 in the environment they are not tried', stacklevel=2)
    return _passed[case]


def _has_matrix_units(device: torch.device) -> bool:
    """Whether Triton is there and multiplies by the device's matrix units: it does not on NVIDIA's before 8.0."""
    if importlib.util.find_spec('triton') is None:
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def _fault(case: Case) -> str:
    """What is wrong with the kernels of a case, '' if nothing is."""
    W = {8: 7, 16: 15}.get(case.columns, 75)  # on a wide map more than one tile is beside another
    H = 1 if case.causal else 80 // W + 1  # more than one block of queries
    return fault_of(
        _attention, (H, W), case.dim_k, case.dim_v, has_rows=case.has_rows, has_columns=case.has_columns,
        causal=case.causal, dtype=case.dtype, device=case.device, tolerance=_TOLERANCES[case.dtype])


def _attention(grad: torch.Tensor, *args: Any) -> list[torch.Tensor]:
    *tensors, scale, causal = args
    out, log_sum = triton_attention(*tensors, scale, causal)
    return [out, *triton_attention_backward(grad, *tensors, out, log_sum, scale, causal)]
