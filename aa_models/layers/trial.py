"""Kernels are tried on the machine at hand before it relies on them: they meet compilers that nobody has tested."""
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from .explicit import attention_gradients, attention_weights

# (grad, q, k, v, rel_h, rel_w, scale, causal) -> the attention, and the gradients of the five tensors
Attention = Callable[..., Sequence[torch.Tensor]]


def fault_of(
        attention: Attention, size: tuple[int, int], dim_k: int, dim_v: int, *, has_rows: bool = True,
        has_columns: bool = True, causal: bool = False, dtype: torch.dtype = torch.float32,
        device: torch.device | str = 'cpu', tolerance: float,
) -> str:
    """What is wrong with a way to compute softmax attention, '' if nothing is.

    Args:
        attention: The way; arguments as for `blockwise_attention` after the gradient of its result, and a gradient for
            every tensor (anything for a table that is None).
        size: Height and width of the map that it is tried on.
        dim_k: Dim of the queries of a head.
        dim_v: Dim of the values.
        has_rows: With a relative table for rows.
        has_columns: With one for columns.
        causal: Query i sees keys 0 … i only.
        dtype: Of queries, keys and values.
        device: Of all tensors.
        tolerance: How far results may be from the explicit ones in float64, in parts of each one's largest number.
    """
    try:
        # in a thread of its own no mode of the caller's holds: autocast, inference, hooks on saved tensors
        with ThreadPoolExecutor(1) as thread:
            difference = thread.submit(
                _difference, attention, size, dim_k, dim_v, has_rows, has_columns, causal, dtype, device).result()
    except Exception as error:
        return f'{type(error).__name__} was raised: {error}'
    return '' if difference <= tolerance else f'a number differed by {difference:.1e} of the largest, not {tolerance}'


def _difference(
        attention: Attention, size: tuple[int, int], dim_k: int, dim_v: int, has_rows: bool, has_columns: bool,
        causal: bool, dtype: torch.dtype, device: torch.device | str,
) -> float:
    H, W = size
    random = torch.Generator().manual_seed(0)
    sizes = [(1, 2, H, W, dim) for dim in (dim_k, dim_k, dim_v, dim_v)]
    q, k, v, grad = (torch.randn(size, generator=random).to(dtype) for size in sizes)
    rel_h, rel_w = (
        torch.randn(2 * length - 1, dim_k, generator=random) if there else None
        for length, there in ((H, has_rows), (W, has_columns)))
    scale = dim_k ** -0.5
    with torch.no_grad():
        found = attention(*(None if t is None else t.to(device) for t in (grad, q, k, v, rel_h, rel_w)), scale, causal)

    q, k, v = (t.double().requires_grad_() for t in (q, k, v))
    rel_h, rel_w = (None if t is None else t.double().requires_grad_() for t in (rel_h, rel_w))
    out = attention_weights(q, k, rel_h, rel_w, causal, scale) @ v.flatten(2, 3)
    exact = [out.view_as(v), *attention_gradients(grad.double(), q, k, v, rel_h, rel_w, scale=scale, causal=causal)]
    differences = [(a.cpu() - b).abs().max() / b.abs().max() for a, b in zip(found, exact) if b is not None]
    return torch.stack(differences).max().item()  # nan where one is
