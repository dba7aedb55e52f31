"""Slow, obvious float64 definitions of what `aa_models.layers` computes, written from the papers' formulas.

They take a layer for its parameters and settings alone and share no code with it. Loops run over pixels; keep maps
small. Sequences are maps of one row.
"""
import math
from itertools import product

import torch
import torch.nn.functional as F


def augmented_conv(layer, x):
    """Concat[Conv(x), Attention(x)] for x of (B, C, H, W) or (B, C, L), by the layer's settings."""
    x = x.double()
    outputs = []
    if layer.conv is not None:
        bias = None if layer.conv.bias is None else layer.conv.bias.double()
        geometry = layer.stride, layer.padding, layer.dilation, layer.groups
        convolve = F.conv2d if x.dim() == 4 else F.conv1d
        outputs.append(convolve(F.pad(x, [layer.left_pad, 0]), layer.conv.weight.double(), bias, *geometry))
    if layer.attn is not None:
        size = tuple(outputs[0].shape[2:]) if outputs else output_size(layer, x.shape[2:])
        outputs.append(attention_branch(layer, x, size))
    return torch.cat(outputs, dim=1)


def conv1x1(conv, x):
    """A convolution with a kernel of one pixel, over any number of axes."""
    out = torch.einsum('oc,bc...->bo...', conv.weight.double().flatten(1), x)
    return out if conv.bias is None else out + conv.bias.double().view(-1, *[1] * (x.dim() - 2))


def output_size(layer, size):
    """The textbook formula for the output size of a convolution."""
    sizes = []
    for axis, length in enumerate(size):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        padding = {'same': reach, 'valid': 0}[layer.padding] if isinstance(layer.padding, str) else (
            2 * layer.padding[axis])
        sizes.append((length + padding + layer.left_pad - reach - 1) // layer.stride[axis] + 1)
    return tuple(sizes)


def centre(layer, axis, index):
    """Input coordinate under the centre of the kernel of output pixel `index`; its end for a causal layer."""
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
    if layer.left_pad:
        return index * layer.stride[axis]
    before = {'same': reach // 2, 'valid': 0}[layer.padding] if isinstance(layer.padding, str) else layer.padding[axis]
    return index * layer.stride[axis] - before + reach // 2


def sampled(layer, x, size):
    """x at the kernels' centres, zero where they lie in the padding: (B, C, *size)."""
    axes = len(size)
    x = x if axes == 2 else x.unsqueeze(2)
    height, width = size if axes == 2 else (1, size[0])
    out = x.new_zeros(x.shape[0], x.shape[1], height, width)
    for i, j in product(range(height), range(width)):
        row, column = centre(layer, 0, i) if axes == 2 else 0, centre(layer, axes - 1, j)
        if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
            out[:, :, i, j] = x[:, :, row, column]
    return out


def pooled(x, p, axes):
    """Mean over the part of a (2p - 1)-wide window that lies inside the map, at every p-th pixel."""
    height, width = math.ceil(x.shape[2] / p) if axes == 2 else 1, math.ceil(x.shape[3] / p)
    out = x.new_zeros(x.shape[0], x.shape[1], height, width)
    for i, j in product(range(height), range(width)):
        top, left = max(0, i * p - p + 1), max(0, j * p - p + 1)
        out[:, :, i, j] = x[:, :, top:i * p + p, left:j * p + p].mean((2, 3))
    return out


def enlarged(x, height, width):
    """Bilinear interpolation between pixel centres, constant beyond the outermost ones."""
    def weights(n_out, n_in):
        matrix = x.new_zeros(n_out, n_in)
        for i in range(n_out):
            source = min(max((i + 0.5) * n_in / n_out - 0.5, 0.), n_in - 1.)
            low = int(source)
            matrix[i, low] += 1 - (source - low)
            matrix[i, min(low + 1, n_in - 1)] += source - low
        return matrix

    return torch.einsum('iy,jx,bcyx->bcij', weights(height, x.shape[2]), weights(width, x.shape[3]), x)


def relative(table, offset, length, causal=False):
    """Embedding of an offset on an axis of `length`, from a table made for another one: linear about offset 0.

    A causal layer takes the table as it is, whatever the length.
    """
    made_for = (table.shape[0] + 1) // 2
    if causal:
        return table[made_for - 1 + max(offset, 1 - made_for)]
    # rows are spread evenly, so one step here is (2 L - 1) / (2 length - 1) steps of the table
    at = (made_for - 1) + offset * (2 * made_for - 1) / (2 * length - 1)
    at = min(max(at, 0.), table.shape[0] - 1.)
    low = int(at)
    high = min(low + 1, table.shape[0] - 1)
    return (1 - (at - low)) * table[low] + (at - low) * table[high]


def with_positions(attn, x, axes):
    """The attended map with its absolute positions added ('sincos') or appended ('coord')."""
    B, C, H, W = x.shape
    if attn.pos_embed == 'sincos':
        x = x.clone()
        d = C // (2 * axes) * (2 * axes)
        per_axis = d // axes
        for k in range(per_axis // 2):
            den = 10000 ** (2 * k / per_axis)  # for two axes this is 10000^(4k / d)
            for i, j in product(range(H), range(W)):
                for first, position in ((0, i), (per_axis, j)) if axes == 2 else ((0, j),):
                    x[:, first + 2 * k, i, j] += math.sin(position / den)
                    x[:, first + 2 * k + 1, i, j] += math.cos(position / den)
    if attn.pos_embed == 'coord':
        def unit(i, n):
            return 2 * i / (n - 1) - 1 if n > 1 else 0.
        extra = x.new_zeros(B, axes + 1, H, W)
        for i, j in product(range(H), range(W)):
            coords = [unit(i, H), unit(j, W)] if axes == 2 else [unit(j, W)]
            extra[:, :, i, j] = x.new_tensor([*coords, math.hypot(*coords)])
        x = torch.cat([x, extra], dim=1)
    return x


def heads(attn, x, axes):
    """q, k, v of the attended map x: (B, num_heads, H * W, dim)."""
    B, _, H, W = x.shape
    qkv = conv1x1(attn.qkv, with_positions(attn, x, axes))
    q, k, v = qkv[:, :attn.dk], qkv[:, attn.dk:2 * attn.dk], qkv[:, 2 * attn.dk:]
    # channels of a head are neighbours, positions are in row-major order
    q, k, v = [t.reshape(B, attn.num_heads, -1, H * W).transpose(2, 3) for t in (q, k, v)]
    return q if attn.q_const is None else q + attn.q_const.double()[:, None], k, v


def softmax_weights(attn, q, k, H, W):
    """softmax_j(q_i / sqrt(d) · (k_j + r_w[j_x - i_x] + r_h[j_y - i_y])), pair by pair."""
    q = q / math.sqrt(q.shape[-1])
    logits = q.new_full((*q.shape[:2], H * W, H * W), -math.inf)
    for i, j in product(range(H * W), repeat=2):
        if attn.causal and j > i:
            continue
        key = k[:, :, j]
        if attn.rel_h is not None:
            key = key + relative(attn.rel_h.double(), j // W - i // W, H)
        if attn.rel_w is not None:
            key = key + relative(attn.rel_w.double(), j % W - i % W, W, attn.causal)
        logits[:, :, i, j] = (q[:, :, i] * key).sum(-1)
    return logits.softmax(-1)


def linear_weights(q, k):
    """ρ_q(Q) ρ_k(K)ᵀ: softmax over the channels of a query, over the positions of a key's channel."""
    q, k = (q - q.amax(-1, keepdim=True)).exp(), (k - k.amax(-2, keepdim=True)).exp()
    q, k = q / q.sum(-1, keepdim=True), k / k.sum(-2, keepdim=True)
    return torch.einsum('bnid,bnjd->bnij', q, k)


def attention(layer, x, size):
    """The attended map's size, its weights (B, num_heads, N, N) and its values (B, num_heads, N, dv / num_heads)."""
    axes = len(size)
    attended = sampled(layer, x.double(), size)
    if layer.attn.attn_pool > 1:
        attended = pooled(attended, layer.attn.attn_pool, axes)
    H, W = attended.shape[2:]
    q, k, v = heads(layer.attn, attended, axes)
    linear = type(layer.attn).__name__ == 'LinearAttention'
    return (H, W), linear_weights(q, k) if linear else softmax_weights(layer.attn, q, k, H, W), v


def attention_branch(layer, x, size):
    """The attention's channels of the output: (B, dv, *size)."""
    attn, axes = layer.attn, len(size)
    (H, W), weights, v = attention(layer, x, size)
    out = torch.einsum('bnij,bnjd->bnid', weights, v)
    out = conv1x1(attn.proj, out.transpose(2, 3).reshape(x.shape[0], attn.dv, H, W))
    if attn.attn_pool > 1:
        out = enlarged(out, *(size if axes == 2 else (1, size[0])))
    return out if axes == 2 else out.squeeze(2)


def check_gradients(layer, x):
    """Those of the input and of every parameter against finite differences."""
    names, values = zip(*layer.named_parameters())
    assert torch.autograd.gradcheck(
        lambda x, *values: torch.func.functional_call(layer, dict(zip(names, values)), (x,)),
        (x.requires_grad_(), *values))


def self_attention_conv(layer, x):
    """SAGAN: act(shortcut(x) + γ · v(Σ_i β_ji h(x_i))), β_ji = softmax_i(g(x_j) · f(x_i) / √dim_head).

    Returns:
        The output and β (B, num_heads, H * W, H * W); the activation is the layer's own.
    """
    flat, depth = x.double().flatten(2), layer.num_heads * layer.dim_head
    qkv = conv1x1(layer.attn.qkv, flat)
    scores, contexts = [], []
    for head in range(layer.num_heads):
        g, f, h = (qkv[:, part * depth + head * layer.dim_head:][:, :layer.dim_head] for part in range(3))
        scores.append((torch.einsum('bdj,bdi->bji', g, f) / math.sqrt(layer.dim_head)).softmax(-1))
        contexts.append(torch.einsum('bji,bdi->bdj', scores[-1], h))
    shortcut = flat if isinstance(layer.shortcut, torch.nn.Identity) else conv1x1(layer.shortcut, flat)
    out = shortcut + layer.gamma.double() * conv1x1(layer.attn.proj, torch.cat(contexts, dim=1))
    return layer.act(out.unflatten(2, x.shape[2:])), torch.stack(scores, dim=1)
