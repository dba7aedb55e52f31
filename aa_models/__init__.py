"""Attention-augmented convolutional networks for timm: importing this package registers its models."""
from . import models
from .analysis.maps import attention_maps
from .augmentation.conversion import augment

__all__ = ['attention_maps', 'augment']
__version__ = '0.1.0'
