"""Attention-augmented convolutional networks for timm: importing this package registers its models."""
from . import models
from .augment import augment

__all__ = ['augment']
__version__ = '0.1.0'
