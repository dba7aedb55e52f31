"""Attention-augmented networks; importing this registers them with timm."""
from .aa_resnet import *
from .aa_wrn import *
from .simplecnn import *
