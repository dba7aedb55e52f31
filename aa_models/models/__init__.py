"""Attention-augmented networks; importing this registers them with timm."""
from . import aa_efficientnet, aa_resnet, aa_wrn, augmented, simplecnn
