"""Augmented convolutions of random geometry."""
import torch

from aa_models.layers import AugmentedConv1d, AugmentedConv2d

KINDS = [dict(attention='softmax', pos_embed=pos_embed) for pos_embed in ('rel', 'sincos', 'coord', None)]
KINDS += [dict(attention='linear', pos_embed=pos_embed) for pos_embed in ('sincos', 'coord', None)]


def random_layer(rng, axes, **fixed):
    """A layer of random geometry and an input for it: non-square, odd, size 1, strided, dilated, grouped, pooled."""
    def each(*choices):
        return tuple(rng.choice(choices) for _ in range(axes))

    num_heads, groups = rng.choice([1, 2, 3]), rng.choice([1, 1, 2])
    dv = num_heads * rng.choice([1, 2])
    sizes = list(each(1, 3, 5, 8))
    args = dict(
        kernel_size=each(1, 2, 3, 5), stride=each(1, 1, 2, 3), padding=each(0, 1, 2, 4), dilation=each(1, 1, 2),
        attn_pool=rng.choice([1, 1, 2, 3]), bias=rng.choice([True, False]))
    if rng.random() < 0.25:
        args.update(padding=rng.choice(['same', 'valid']), stride=1)
    args.update(fixed)
    layer = (AugmentedConv2d if axes == 2 else AugmentedConv1d)(
        2 * groups + 2 * (groups == 1), dv + 2 * groups, groups=groups, dk=num_heads * rng.choice([1, 3]), dv=dv,
        num_heads=num_heads, feat_size=each(1, 2, 4, 7), **args).double()
    for axis in range(axes):  # no smaller than the kernel
        need = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        if layer.padding == 'valid':
            sizes[axis] = max(sizes[axis], need)
        elif layer.padding != 'same' and not layer.left_pad:
            sizes[axis] = max(sizes[axis], need - 2 * layer.padding[axis])
    return layer, torch.randn(2, layer.in_channels, *sizes, dtype=torch.float64)
