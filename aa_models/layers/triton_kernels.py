"""Triton kernels of softmax attention with relative positions; `triton_attention.py` launches them.

A program works on QUERIES successive positions of one head, against a tile of ROWS × COLUMNS keys at a time: there the
relative logits are one number for each query and row plus one for each query and column. Softmax is taken along with
the tiles (arXiv 1805.02867), and the backward pass makes the weights again from the logarithm of their sum
(arXiv 2205.14135). No number is added to by two programs, so the order of every sum is fixed.

Tensors are contiguous, M being images times heads and N = H * W: q and k (M, N, DIM_K), v (M, N, DIM_V); log_sum and
delta (M, N); by_row (M, N, 2 * H - 1) and by_column (M, N, 2 * W - 1), logits against all offsets, or None. Vectors are
read into registers of PADDED_K and PADDED_V numbers, powers of two. The grid has one axis.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
import triton
import triton.language as tl


@triton.jit
def _read(tensor, start, positions, present, DIM: tl.constexpr, PADDED: tl.constexpr):
    """Vectors (positions, PADDED) of the head that begins at `start`, zero where there is none and beyond DIM."""
    d = tl.arange(0, PADDED)
    places = tensor + start * DIM + (positions[:, None] * DIM + d[None, :])
    return tl.load(places, mask=present[:, None] & (d < DIM)[None, :], other=0.)


@triton.jit
def _write(tensor, vectors, start, positions, present, DIM: tl.constexpr, PADDED: tl.constexpr):
    """Put vectors where `_read` finds them."""
    d = tl.arange(0, PADDED)
    places = tensor + start * DIM + (positions[:, None] * DIM + d[None, :])
    tl.store(places, vectors, mask=present[:, None] & (d < DIM)[None, :])


@triton.jit
def _places(by_offset, first, own, keys, length):
    """Where queries have a number for each of some keys of an axis: the offset j - i has the index j - i + length - 1.

    Queries lie at `own` on the axis, and their numbers for all offsets begin at `first`.
    """
    return by_offset + first[:, None] + (length - 1 - own)[:, None] + keys[None, :]


@triton.jit
def _keys(row, column, H, W, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The positions of the keys of the tile that begins there, and which of them are on the map."""
    t = tl.arange(0, ROWS * COLUMNS)
    rows, columns = row + t // COLUMNS, column + t % COLUMNS
    return rows * W + columns, (rows < H) & (columns < W)


@triton.jit
def _relative(by_offset, query, own, keys, length, present):
    """The relative logits (queries, keys of an axis); zeros for an axis without positions."""
    if by_offset is None:
        logits = tl.zeros((query.shape[0], keys.shape[0]), tl.float32)
    else:
        places = _places(by_offset, query * (2 * length - 1), own, keys, length)
        logits = tl.load(places, mask=present[:, None] & (keys < length)[None, :], other=0.)
    return logits


@triton.jit
def _logits(q, k, row_logits, column_logits, i, j, present, scale, CAUSAL: tl.constexpr):
    """The logits (queries, keys) of a tile, -inf for keys that are not there or not to be seen."""
    logits = tl.dot(q, tl.trans(k), input_precision='ieee') * scale
    logits += tl.reshape(row_logits[:, :, None] + column_logits[:, None, :], logits.shape)
    if CAUSAL:
        return tl.where(present[None, :] & (j[None, :] <= i[:, None]), logits, -float('inf'))
    else:
        return tl.where(present[None, :], logits, -float('inf'))


@triton.jit(do_not_specialize=['H', 'W'])
def forward(
        q, k, v, by_row, by_column, out, log_sum, H, W, scale, CAUSAL: tl.constexpr,
        DIM_K: tl.constexpr, DIM_V: tl.constexpr, PADDED_K: tl.constexpr, PADDED_V: tl.constexpr,
        QUERIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """Write `out` (M, N, DIM_V) and `log_sum` of a block of queries; M * cdiv(N, QUERIES) programs."""
    N = H * W
    blocks = tl.cdiv(N, QUERIES)
    start = tl.program_id(0).to(tl.int64) // blocks * N  # of the head
    i = tl.program_id(0) % blocks * QUERIES + tl.arange(0, QUERIES)
    there, row_of, column_of = i < N, i // W, i % W
    q_i = _read(q, start, i, there, DIM_K, PADDED_K)
    largest = tl.full((QUERIES,), -float('inf'), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    average = tl.zeros((QUERIES, PADDED_V), tl.float32)
    end = tl.minimum(W, tl.max(i) + 1) if CAUSAL else W
    for column in range(0, end, COLUMNS):
        columns = column + tl.arange(0, COLUMNS)
        column_logits = _relative(by_column, start + i, column_of, columns, W, there)
        for row in range(0, H, ROWS):
            row_logits = _relative(by_row, start + i, row_of, row + tl.arange(0, ROWS), H, there)
            j, present = _keys(row, column, H, W, ROWS, COLUMNS)
            k_j = _read(k, start, j, present, DIM_K, PADDED_K)
            v_j = _read(v, start, j, present, DIM_V, PADDED_V)
            logits = _logits(q_i, k_j, row_logits, column_logits, i, j, present, scale, CAUSAL)
            larger = tl.maximum(largest, tl.max(logits, 1))  # finite: every query sees a key of the first tile
            weights = tl.exp(logits - larger[:, None])
            shrink = tl.exp(largest - larger)
            total = total * shrink + tl.sum(weights, 1)
            average = tl.dot(weights.to(v_j.dtype), v_j, average * shrink[:, None], input_precision='ieee')
            largest = larger
    _write(out, average / total[:, None], start, i, there, DIM_V, PADDED_V)
    tl.store(log_sum + start + i, largest + tl.log(total), mask=there)


@triton.jit(do_not_specialize=['H', 'W'])
def backward_queries(
        grad, q, k, v, by_row, by_column, log_sum, delta, grad_q, grad_by_row, grad_by_column, H, W, scale,
        CAUSAL: tl.constexpr, DIM_K: tl.constexpr, DIM_V: tl.constexpr, PADDED_K: tl.constexpr, PADDED_V: tl.constexpr,
        QUERIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """Write what a block of queries has: the gradients of q, as far as it comes from k, and of relative logits.

    The programs are those of `forward`; `grad` is that of its output, `delta` its product with the output. grad_by_row
    has a part for each column of tiles, (M, N, cdiv(W, COLUMNS), 2 * H - 1), and is zero before, as is grad_by_column.
    """
    N = H * W
    blocks = tl.cdiv(N, QUERIES)
    start = tl.program_id(0).to(tl.int64) // blocks * N
    i = tl.program_id(0) % blocks * QUERIES + tl.arange(0, QUERIES)
    there, row_of, column_of = i < N, i // W, i % W
    q_i = _read(q, start, i, there, DIM_K, PADDED_K)
    grad_i = _read(grad, start, i, there, DIM_V, PADDED_V)
    log_sum_i = tl.load(log_sum + start + i, mask=there, other=0.)
    delta_i = tl.load(delta + start + i, mask=there, other=0.)
    sum_q = tl.zeros((QUERIES, PADDED_K), tl.float32)
    end = tl.minimum(W, tl.max(i) + 1) if CAUSAL else W
    for column in range(0, end, COLUMNS):
        columns = column + tl.arange(0, COLUMNS)
        column_logits = _relative(by_column, start + i, column_of, columns, W, there)
        sum_columns = tl.zeros((QUERIES, COLUMNS), tl.float32)
        for row in range(0, H, ROWS):
            rows = row + tl.arange(0, ROWS)
            row_logits = _relative(by_row, start + i, row_of, rows, H, there)
            j, present = _keys(row, column, H, W, ROWS, COLUMNS)
            k_j = _read(k, start, j, present, DIM_K, PADDED_K)
            v_j = _read(v, start, j, present, DIM_V, PADDED_V)
            logits = _logits(q_i, k_j, row_logits, column_logits, i, j, present, scale, CAUSAL)
            grad_weights = tl.dot(grad_i, tl.trans(v_j), input_precision='ieee')
            grad_logits = tl.exp(logits - log_sum_i[:, None]) * (grad_weights - delta_i[:, None])
            sum_q = tl.dot(grad_logits.to(k_j.dtype), k_j, sum_q, input_precision='ieee')
            on_map = tl.reshape(grad_logits, (QUERIES, ROWS, COLUMNS))
            sum_columns += tl.sum(on_map, 1)
            if by_row is not None:
                part = (start + i) * tl.cdiv(W, COLUMNS) + column // COLUMNS
                places = _places(grad_by_row, part * (2 * H - 1), row_of, rows, H)
                tl.store(places, tl.sum(on_map, 2), mask=there[:, None] & (rows < H)[None, :])
        if by_column is not None:
            places = _places(grad_by_column, (start + i) * (2 * W - 1), column_of, columns, W)
            tl.store(places, sum_columns, mask=there[:, None] & (columns < W)[None, :])
    _write(grad_q, sum_q * scale, start, i, there, DIM_K, PADDED_K)


@triton.jit(do_not_specialize=['H', 'W'])
def backward_keys(
        grad, q, k, v, by_row, by_column, log_sum, delta, grad_k, grad_v, H, W, scale,
        CAUSAL: tl.constexpr, DIM_K: tl.constexpr, DIM_V: tl.constexpr, PADDED_K: tl.constexpr, PADDED_V: tl.constexpr,
        QUERIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """Write the gradients of a tile of keys and of their values; M * cdiv(H, ROWS) * cdiv(W, COLUMNS) programs."""
    N = H * W
    across = tl.cdiv(W, COLUMNS)
    tiles = tl.cdiv(H, ROWS) * across
    start = tl.program_id(0).to(tl.int64) // tiles * N
    tile = tl.program_id(0) % tiles
    row, column = tile // across * ROWS, tile % across * COLUMNS
    rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
    j, present = _keys(row, column, H, W, ROWS, COLUMNS)
    k_j = _read(k, start, j, present, DIM_K, PADDED_K)
    v_j = _read(v, start, j, present, DIM_V, PADDED_V)
    sum_k = tl.zeros((ROWS * COLUMNS, PADDED_K), tl.float32)
    sum_v = tl.zeros((ROWS * COLUMNS, PADDED_V), tl.float32)
    for first in range(column if CAUSAL else 0, N, QUERIES):
        i = first + tl.arange(0, QUERIES)
        there = i < N
        q_i = _read(q, start, i, there, DIM_K, PADDED_K)
        grad_i = _read(grad, start, i, there, DIM_V, PADDED_V)  # zeros where there is no query, so it adds nothing
        log_sum_i = tl.load(log_sum + start + i, mask=there, other=0.)
        delta_i = tl.load(delta + start + i, mask=there, other=0.)
        row_logits = _relative(by_row, start + i, i // W, rows, H, there)
        column_logits = _relative(by_column, start + i, i % W, columns, W, there)
        logits = _logits(q_i, k_j, row_logits, column_logits, i, j, present, scale, CAUSAL)
        weights = tl.exp(logits - log_sum_i[:, None])
        sum_v = tl.dot(tl.trans(weights).to(grad_i.dtype), grad_i, sum_v, input_precision='ieee')
        grad_weights = tl.dot(grad_i, tl.trans(v_j), input_precision='ieee')
        grad_logits = weights * (grad_weights - delta_i[:, None])
        sum_k = tl.dot(tl.trans(grad_logits).to(q_i.dtype), q_i, sum_k, input_precision='ieee')
    _write(grad_k, sum_k * scale, start, j, present, DIM_K, PADDED_K)
    _write(grad_v, sum_v, start, j, present, DIM_V, PADDED_V)
