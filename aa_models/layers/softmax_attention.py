"""Softmax attention over a map, with relative positions: four implementations of equal results, and which runs when.

Attention Augmented Convolutional Networks (arXiv 1904.09925), section 3.1:
logit(i, j) = q_i / sqrt(dk / num_heads) · (k_j + r_w[j_x - i_x] + r_h[j_y - i_y]).
"""
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_, use_fused_attn
from torch import nn
from torch.jit import Final

from .attention_args import AttentionArgs
from .blockwise import blockwise_attention
from .explicit import attention_weights
from .grid_attention import GridAttention
from .local_start import STRENGTH, head_offsets, local_query, start_locally
from .position import offset_table, rel_logits_h, rel_logits_w
from .tracing import is_recorded, is_transformed
from .triton_attention import triton_attention
from .triton_trial import Case, case_of, passes_trial


def fold_rel_pos(
        q: torch.Tensor, k: torch.Tensor, rel_h: torch.Tensor | None, rel_w: torch.Tensor | None, causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lengthen q and k so that their plain product holds the relative logits too.

    q gets its logits against every row and every column, k the one-hot code of its own row and column: the product
    picks one of each. Nothing of size (H * W)² arises.

    Args:
        q: Queries (B, num_heads, H, W, dim).
        k: Keys, same shape.
        rel_h: (2 * L_h - 1, dim), or None for no row positions.
        rel_w: (2 * L_w - 1, dim), or None for no column positions.
        causal: Take the tables as they are, so that nothing depends on the length.

    Returns:
        q and k, each (B, num_heads, H * W, dim + H + W).
    """
    B, num_heads, H, W, _ = q.shape
    queries, keys = [q], [k]
    # float16 ends at 65504, and 0 times what lies beyond is no number: so the code is 32, the relative logits are 1/32
    one = 32. if q.dtype == torch.float16 else 1.  # a power of two: no digit is lost
    if rel_h is not None:
        queries.append(rel_logits_h(q, rel_h / one))
        row = torch.arange(H, device=k.device)
        keys.append((row.unsqueeze(1) == row).to(k.dtype).mul(one).view(1, 1, H, 1, H).expand(B, num_heads, H, W, H))
    if rel_w is not None:
        queries.append(rel_logits_w(q, rel_w / one, not causal, sequence=rel_h is None))
        column = torch.arange(W, device=k.device)
        keys.append((column.unsqueeze(1) == column).to(k.dtype).mul(one).expand(B, num_heads, H, W, W))
    return torch.cat(queries, dim=-1).flatten(2, 3), torch.cat(keys, dim=-1).flatten(2, 3)


def fused_attention(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, dropout_p: float = 0., causal: bool = False,
) -> torch.Tensor:
    """One `scaled_dot_product_attention` call for q, k and v of different head dims.

    Its memory-lean kernels want equal head dims (CPU), in multiples of 8 (CUDA); zeros change no product.

    Args:
        q: Queries (B, num_heads, N, dim_k).
        k: Keys, same shape.
        v: Values (B, num_heads, N, dim_v).
        scale: Factor of the queries, which the kernel has in float32.
        dropout_p: Dropout probability of the weights.
        causal: Let position i see positions 0 … i only.

    Returns:
        (B, num_heads, N, dim_v)
    """
    dim_k, dim_v = q.shape[-1], v.shape[-1]
    dim = (max(dim_k, dim_v) + 7) // 8 * 8
    q, k, v = F.pad(q, (0, dim - dim_k)), F.pad(k, (0, dim - dim_k)), F.pad(v, (0, dim - dim_v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=causal, scale=scale)[..., :dim_v]


def choose_backend(device: str, case: Case | None = None) -> str:
    """Choose among implementations of equal results.

    Args:
        device: Type of the device, e.g. `'cpu'`.
        case: What the Triton kernels would be compiled for, if they are for this attention.

    Returns:
        `'folded'`: one fused call on lengthened q and k.
        `'triton'`: the operator of this package for GPUs.
        `'blockwise'`: its operator for CPUs.
        `'explicit'`: all weights at once, (H * W)² for each head.
    """
    if is_recorded():
        return 'folded'  # what is recorded may run without this package, so it has operators of every runtime only
    if device != 'cpu':
        if case is not None and passes_trial(*case):
            return 'triton'
        # On CUDA, fused calls take head dims beyond flash attention's limit of 256 (maps of more than about 118 × 118,
        # as H + W are added) by the memory-efficient kernel, which has none. The operator's loop over blocks is written
        # for the caches of a CPU and was never run elsewhere.
        return 'folded'
    # At every map size and dtype: the folded product is H + W longer, and values are padded to its length (2 to 4 times
    # the time at 16×16 and beyond); bfloat16's fused backward is slow on small maps (3 to 6 times); explicit weights
    # are as fast up to 14×14, but then limited by memory (2 to 5 times). `aa-models benchmark attention` measures it.
    return 'blockwise'


def _fitted(table: torch.Tensor | None, size: int, resize: bool = True) -> torch.Tensor | None:
    """`offset_table`, but for a table that fits as it is: interpolation costs as much as attention on a small map."""
    if table is None or (table.shape[0] == 2 * size - 1 and not torch.compiler.is_compiling()):
        return table  # a compiled layer would have to be compiled again for another size
    return offset_table(table, size, resize)


class SoftmaxAttention(GridAttention):
    """Multi-head softmax attention over a map or a sequence, by default with relative positions.

    `timm.layers.use_fused_attn()` (environment variable TIMM_FUSED_ATTN) decides at construction between the explicit
    implementation, which holds all (H * W)² weights, and the one that suits the device (`choose_backend`).

    Args:
        feat_size: Lengths of the attended map's axes that the relative tables are made for; at other lengths they are
            interpolated (see `resize_rel_table`). Needed for `'rel'` alone.
        causal: Let position i see positions 0 … i only (sequences).
    See `GridAttention` for the other arguments.
    """
    fused_attn: Final[bool]
    if TYPE_CHECKING:  # TorchScript reads annotations too, and would take these tables for optional at run time
        rel_h: torch.Tensor | None
        rel_w: torch.Tensor | None

    def __init__(
            self, in_channels: int, args: AttentionArgs, *, feat_size: Sequence[int] = (), causal: bool = False,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None, **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, args, device=device, dtype=dtype, **kwargs)
        self.fused_attn = use_fused_attn()
        self.causal = causal
        dim = self.dk // self.num_heads
        self.scale = dim ** -0.5
        # a sequence is a map of one row: it has columns only
        lengths = dict(zip(('rel_w', 'rel_h'), reversed(feat_size))) if args.pos_embed == 'rel' else {}
        for name in ('rel_h', 'rel_w'):
            shape = (2 * lengths[name] - 1, dim) if name in lengths else None
            self.register_parameter(name, shape and nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        super().reset_parameters()
        tables = self._tables()
        if self.attn_init == 'local' and tables and self.dk // self.num_heads >= 2 * len(tables):
            self.look_at(head_offsets(self.num_heads, len(tables), self.causal))
        else:
            for table in tables:
                trunc_normal_(table, std=self.scale)
            if self.q_const is not None:  # of weights that were loaded
                self.q_const.zero_()

    def _tables(self) -> list[torch.Tensor]:
        return [table for table in (self.rel_h, self.rel_w) if table is not None]

    @torch.no_grad()
    def look_at(self, offsets: Sequence[Sequence[int]], strength: float = STRENGTH) -> None:
        """Have each head start at one offset, with relative tables drawn anew; values and projection stay.

        Args:
            offsets: For each head its offset along each axis, in pixels of the attended map.
            strength: β, how fast the logits fall with the squared distance from there.
        """
        tables = self._tables()
        for table in tables:
            trunc_normal_(table, std=self.scale)
        self.q_const = local_query(offsets, self.dk // self.num_heads, self.scale, strength).to(tables[0])
        start_locally(tables, strength)
        # where a head looks is all position at first: the queries have no content yet, and the constant meets no keys
        q, k, _ = self.qkv.weight.split([self.dk, self.dk, self.dv])
        q.zero_()
        k.unflatten(0, [self.num_heads, -1])[:, :2 * len(tables)].zero_()

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:
        """A checkpoint says by itself how it started: one without a constant goes on with a constant of zero.

        The buffer stays: what builds the network from its config and fills in the tensors by name, as transformers
        does, would find one that the saved file lacks.
        """
        key = f'{prefix}q_const'
        if key in state_dict and self.q_const is None:
            self.q_const = self.qkv.weight.new_zeros(self.num_heads, self.dk // self.num_heads)
        elif self.q_const is not None and f'{prefix}qkv.weight' in state_dict:
            # into torch's own copy of the dict: strict loading finds nothing missing
            state_dict.setdefault(key, state_dict[f'{prefix}qkv.weight'].new_zeros(self.q_const.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Weigh the values; shapes as in `GridAttention.attend`."""
        dropout_p = self.attn_drop.p if self.attn_drop.training else 0.
        if torch.jit.is_scripting():
            backend = 'folded' if self.fused_attn else 'explicit'  # a script, too, runs without this package
        elif self.fused_attn and not self.is_watched() and not is_transformed(q, k, v, self.rel_h, self.rel_w):
            backend = choose_backend(
                q.device.type, case_of(q, v, self.rel_h, self.rel_w, self.causal, dropout_p))
            if backend == 'blockwise' or backend == 'triton':
                rel_h, rel_w = _fitted(self.rel_h, q.shape[2]), _fitted(self.rel_w, q.shape[3], not self.causal)
                if backend == 'triton':
                    return triton_attention(q, k, v, rel_h, rel_w, self.scale, self.causal)[0]
                # a tensor, because a number would have to be known when the layer is compiled
                seed = torch.randint(2 ** 62, (1,), device='cpu') if dropout_p > 0 else None
                return blockwise_attention(q, k, v, rel_h, rel_w, self.scale, self.causal, dropout_p, seed)
        else:
            backend = 'explicit'
        H, W = v.shape[2], v.shape[3]
        v = v.flatten(2, 3)
        if backend == 'folded':
            q, k = fold_rel_pos(q, k, self.rel_h, self.rel_w, self.causal)
            out = fused_attention(q, k, v, self.scale, dropout_p, self.causal)
        else:
            out = self.attn_drop(self.weights(q, k)) @ v
        return out.unflatten(2, [H, W])

    def weights(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """All weights; shapes as in `GridAttention.weights`."""
        return attention_weights(q, k, self.rel_h, self.rel_w, self.causal, self.scale)
