"""The augmented convolution and what it is made of; SAGAN's attention layer from the same parts."""
from .attention_args import AttentionArgs
from .augmented_conv import AugmentedConv1d, AugmentedConv2d
from .grid_attention import GridAttention
from .head_dims import resolve_depths
from .self_attention_conv import SelfAttentionConv2d

__all__ = [
    'AttentionArgs', 'AugmentedConv1d', 'AugmentedConv2d', 'GridAttention', 'SelfAttentionConv2d', 'resolve_depths',
]
