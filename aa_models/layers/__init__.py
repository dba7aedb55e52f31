"""The augmented convolution and what it is made of."""
from .augmented_conv import AugmentedConv1d, AugmentedConv2d
from .depths import resolve_depths
from .grid_attention import GridAttention

__all__ = ['AugmentedConv1d', 'AugmentedConv2d', 'GridAttention', 'resolve_depths']
