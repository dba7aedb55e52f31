"""Softmax attention by all of its weights at once, (H * W)² for each head, in operators that torch differentiates.

Attention Augmented Convolutional Networks (arXiv 1904.09925), section 3.1.
"""

import torch

from .position import rel_logits_h, rel_logits_w


def attention_weights(
        q: torch.Tensor, k: torch.Tensor, rel_h: torch.Tensor | None, rel_w: torch.Tensor | None, causal: bool = False,
        scale: float = 1.,
) -> torch.Tensor:
    """The softmax of all logits, in full; the logits are float32 at least, as in every fused kernel.

    Half precision holds large ones to the nearest 8 or 64, and then another key may win.

    Args:
        q: Queries (B, num_heads, H, W, dim).
        k: Keys, same shape.
        rel_h: (2 * L_h - 1, dim), or None for no row positions.
        rel_w: (2 * L_w - 1, dim), or None for no column positions.
        causal: Let position i see positions 0 … i only, and take the tables as they are.
        scale: Factor of the queries.

    Returns:
        (B, num_heads, H * W, H * W), rows summing to 1.
    """
    if not torch.jit.is_scripting():
        device = q.device.type
        if device != 'meta' and torch.is_autocast_enabled(device):  # there is none on meta
            with torch.autocast(device, enabled=False):  # which would have products in half precision again
                return attention_weights(q, k, rel_h, rel_w, causal, scale)
    H, W, dtype = q.shape[2], q.shape[3], q.dtype
    if dtype != torch.float64:
        q, k = q.float(), k.float()
    q = q * scale
    logits = q.flatten(2, 3) @ k.flatten(2, 3).transpose(-2, -1)
    logits = logits.unflatten(3, [H, W]).unflatten(2, [H, W])  # (B, num_heads, H, W, H, W)
    if rel_h is not None:
        logits = logits + rel_logits_h(q, rel_h.to(q.dtype)).unsqueeze(-1)
    if rel_w is not None:
        logits = logits + rel_logits_w(q, rel_w.to(q.dtype), not causal, sequence=rel_h is None).unsqueeze(-2)
    logits = logits.flatten(4, 5).flatten(2, 3)
    if causal:
        position = torch.arange(H * W, device=q.device)
        logits = logits.masked_fill(position > position.unsqueeze(1), float('-inf'))
    return logits.softmax(dim=-1).to(dtype)


def attention_gradients(
        grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rel_h: torch.Tensor | None,
        rel_w: torch.Tensor | None, *, scale: float, causal: bool, factors: torch.Tensor | None = None,
) -> list[torch.Tensor | None]:
    """The gradients of attention as functions that can be differentiated again, to any order.

    Args:
        grad: Of the output (B, num_heads, H, W, dim_v).
        v: Values (B, num_heads, H, W, dim_v).
        factors: Of dropout, (B, num_heads, H * W, H * W), which the weights are multiplied by.
    The others are as for `attention_weights`.

    Returns:
        Those of q, k, v, rel_h and rel_w, None where none is wanted.
    """
    # as views of their own: of a tensor that is given twice, each place has its own gradient
    q, k, v = (t.view_as(t) for t in (q, k, v))
    rel_h, rel_w = (None if t is None else t.view_as(t) for t in (rel_h, rel_w))
    inputs = (q, k, v, rel_h, rel_w)
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    with torch.autocast(q.device.type, enabled=False):
        weights = attention_weights(q, k, rel_h, rel_w, causal, scale)
        out = (weights if factors is None else weights * factors) @ v.flatten(2, 3)
        found = iter(torch.autograd.grad(out.view_as(v), wanted, grad, create_graph=True))
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]
