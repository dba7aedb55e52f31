"""Where a position is: relative tables at any size, 2-D sine/cosine waves, coordinate channels.

Relative logits: Attention Augmented Convolutional Networks (arXiv 1904.09925), section 3.1 "Two-dimensional Positional
Encodings". Sine/cosine and coordinates are the alternatives of its ablation (section 4.4). Everything is computed from
the map at hand, so nothing has to be cached, moved between devices or kept in a checkpoint.
"""
import torch
import torch.nn.functional as F


def resize_rel_table(table: torch.Tensor, size: int) -> torch.Tensor:
    """Bring a table of relative positions to another axis length.

    The rows stand for the offsets -(L - 1) … L - 1. They are interpolated linearly about the middle row, so offset 0
    stays offset 0 at every length; at the length the table was made for, they come back unchanged.

    Args:
        table: (2 * L - 1, dim), L being the length it was made for.
        size: Length of the axis at hand.

    Returns:
        (2 * size - 1, dim)
    """
    # always interpolated: a branch on the size would have to be guarded by every tracer, and equal sizes are exact;
    # as a map of one row, because on GPUs 'linear' has no deterministic gradient, 'bilinear' has
    row = table.t().unsqueeze(0).unsqueeze(2)  # (1, dim, 1, 2 * L - 1)
    return F.interpolate(row, size=(1, 2 * size - 1), mode='bilinear').squeeze(2).squeeze(0).t()


def offset_table(table: torch.Tensor, size: int, resize: bool = True) -> torch.Tensor:
    """Look up the embedding of every offset that an axis has.

    Args:
        table: (2 * L - 1, dim), for any L.
        size: Length of the axis at hand.
        resize: Interpolate the table to the axis; otherwise offsets count as they are, those beyond L - 1 as L - 1.

    Returns:
        (2 * size - 1, dim), for the offsets -(size - 1) … size - 1.
    """
    if resize:
        return resize_rel_table(table, size)
    furthest = table.shape[0] // 2
    offset = torch.arange(1 - size, size, device=table.device)
    return table[offset.clamp(-furthest, furthest) + furthest]


def rel_offsets(table: torch.Tensor, size: int, resize: bool = True) -> torch.Tensor:
    """Look up the embedding of the offset j - i between any two positions of an axis; arguments as in `offset_table`.

    Returns:
        (size, size, dim), entry [i, j] for the query at i and the key at j.
    """
    position = torch.arange(size, device=table.device)
    return offset_table(table, size, resize)[position.unsqueeze(0) - position.unsqueeze(1) + (size - 1)]


def rel_logits_h(q: torch.Tensor, rel_h: torch.Tensor) -> torch.Tensor:
    """Logits of every query against every row of the map.

    Args:
        q: Scaled queries (B, num_heads, H, W, dim).
        rel_h: (2 * L - 1, dim), shared by the heads.

    Returns:
        (B, num_heads, H, W, H), the last axis being the key's row.
    """
    return torch.einsum('bnhwd,hjd->bnhwj', q, rel_offsets(rel_h, q.shape[2]))


def rel_logits_w(
        q: torch.Tensor, rel_w: torch.Tensor, resize: bool = True, sequence: bool = False) -> torch.Tensor:
    """Logits of every query against every column, as `rel_logits_h` those of the rows: (B, num_heads, H, W, W).

    Args:
        resize: As for `offset_table`.
        sequence: There is one row. The embedding of each pair would take `dim` times the memory of the logits, so these
            are read off the logits against all offsets, twice as many.
    """
    length = q.shape[3]
    if not sequence:
        return torch.einsum('bnhwd,wjd->bnhwj', q, rel_offsets(rel_w, length, resize))
    by_offset = q @ F.pad(offset_table(rel_w, length, resize), [0, 0, 0, 1]).t()  # (B, num_heads, 1, L, 2 * L)
    # Query i meets key j at the offset j - i, which is column j - i + L - 1 of row i: read without a break, each row
    # but one number short, that is a matrix whose row i begins with j = 0.
    flat = by_offset.flatten(3).narrow(3, length - 1, length * (2 * length - 1))
    return flat.unflatten(3, [length, 2 * length - 1])[..., :length]


def _waves(length: int, channels: int, like: torch.Tensor) -> torch.Tensor:
    """sin and cos of one axis in turn: (length, channels)."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    k = torch.arange(channels // 2, device=like.device, dtype=dtype)
    position = torch.arange(length, device=like.device, dtype=dtype)
    angle = position.unsqueeze(1) / torch.pow(10000., 2. * k / channels)  # (length, channels / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def add_sincos(x: torch.Tensor) -> torch.Tensor:
    """Add sine/cosine positions to a map or a sequence.

    With d channels: P[2k] = sin(i / 10000^(4k/d)), P[2k + 1] = cos(…) for the row i in the first half of the channels,
    the same for the column in the second half; a sequence has all d channels for its one axis (10000^(2k/d), as in
    Attention Is All You Need). Channels left over when d is no multiple of 4 (2) stay as they are.

    Args:
        x: (B, C, H, W) or (B, C, L).

    Returns:
        Tensor of x's shape, dtype and memory format.
    """
    axes = x.dim() - 2
    channels = x.shape[1] // (2 * axes) * 2  # an even number for each axis
    parts: list[torch.Tensor] = []
    for axis in range(axes):
        waves = _waves(x.shape[2 + axis], channels, x).t()  # (channels, length)
        if axes == 2:
            waves = waves.unsqueeze(2 - axis).expand(channels, x.shape[2], x.shape[3])
        parts.append(waves)
    code = torch.cat(parts).to(x.dtype)
    if code.shape[0] < x.shape[1]:
        code = torch.cat([code, code.new_zeros([x.shape[1] - code.shape[0]] + list(code.shape[1:]))])
    return x + code


def append_coords(x: torch.Tensor) -> torch.Tensor:
    """Append the coordinates of each position, each from -1 to 1, and their distance from the middle (CoordConv).

    Args:
        x: (B, C, H, W) or (B, C, L).

    Returns:
        (B, C + 3, H, W), the new channels being row, column and radius, or (B, C + 2, L).
    """
    coords: list[torch.Tensor] = []
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32  # half precision cannot count the pixels
    for axis in range(x.dim() - 2):
        length = x.shape[2 + axis]
        # centres of the pixels, so that a single one lies in the middle
        coord = (2 * torch.arange(length, device=x.device, dtype=dtype) + 1 - length) / max(length - 1, 1)
        shape = [1] * (x.dim() - 2)
        shape[axis] = length
        coords.append(coord.view(shape).expand(x.shape[2:]))
    grid = torch.stack(coords)
    grid = torch.cat([grid, grid.square().sum(0, keepdim=True).sqrt()]).to(x.dtype)
    return torch.cat([x, grid.unsqueeze(0).expand([x.shape[0]] + list(grid.shape))], dim=1)
