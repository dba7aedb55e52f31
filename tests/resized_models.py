"""Narrow networks and wide ones of the same form, for the tests of widening and narrowing."""
import timm
from torch import nn

from aa_models.layers import GridAttention
from our_models import uneven

# arguments that make a network narrow and wide, whole factors and others
WRN = dict(depth=10, img_size=16)
RESNET = dict(layers=(1, 1, 1, 1), img_size=32)
NARROW, DOUBLE, OTHER = ((16, 16, 32, 32), (32, 32, 64, 64), (24, 40, 56, 64))
HALF, FULL, BOTTLENECK = (8, 8, 16, 16), (24, 16, 32, 32), (12, 16, 24, 40)
FIVE, TEN, UNEVEN = (8, 8, 16, 16, 16), (16, 16, 48, 32, 64), (9, 13, 20, 22, 26)
WHOLE = [
    *((name, dict(WRN, width=2), dict(WRN, width=4, num_heads=4))
      for name in ('wrn28_2', 'aa_wrn28_2', 'laa_wrn28_2')),
    *((name, dict(RESNET, channels=NARROW, num_heads=2), dict(RESNET, channels=DOUBLE, num_heads=2))
      for name in ('resnet18_cifar', 'aa_resnet18', 'aa_resnet18_cifar', 'laa_resnet18')),
    *((name, dict(RESNET, channels=HALF, num_heads=1, dv=4),
       dict(RESNET, channels=FULL, num_heads=2, dv=8))
      for name in ('aa_resnet50', 'laa_resnet50')),
    *((name, dict(channels=FIVE, num_heads=2, dk=16, dv=4, img_size=16),
       dict(channels=TEN, num_heads=4, dk=64, dv=8, img_size=16))
      for name in ('simplecnn', 'aa_simplecnn', 'laa_simplecnn')),
]
ANY = [
    ('wrn28_2', dict(WRN, width=2), dict(WRN, width=3)),
    ('aa_wrn28_2', dict(WRN, width=2), dict(WRN, width=3, num_heads=3, dk=0.5)),
    ('aa_resnet18', dict(RESNET, channels=NARROW, num_heads=2), dict(RESNET, channels=OTHER, num_heads=4)),
    ('aa_resnet50', dict(RESNET, channels=HALF, num_heads=1, dv=4),
     dict(RESNET, channels=BOTTLENECK, num_heads=3, dv=6)),
    ('simplecnn', dict(channels=FIVE), dict(channels=UNEVEN)),
    *(('aa_simplecnn', dict(channels=FIVE, num_heads=2, dk=16, dv=4, img_size=16, pos_embed=positions),
       dict(channels=UNEVEN, num_heads=2, dk=42, dv=6, img_size=32, pos_embed=positions))
      for positions in ('coord', 'none')),
    ('resnet18', dict(channels=(8, 8, 8, 8)), dict(channels=(10, 12, 16, 18))),  # timm's own
]


def make(name, **kwargs):
    model = uneven(timm.create_model(name, num_classes=7, **kwargs).eval())
    for module in model.modules():
        if isinstance(module, GridAttention):  # queries that depend on what they see
            nn.init.normal_(module.qkv.weight, std=0.3)
    return model
