"""Arguments of the augmented convolutions: what they may be, and what is said of others."""
import re

import pytest
import torch

from aa_models.layers import AttentionArgs, AugmentedConv1d, AugmentedConv2d


def test_none_has_one_spelling_inside():
    assert {AttentionArgs(pos_embed=none).pos_embed for none in (None, 'none', '')} == {''}
    assert AttentionArgs().replace(pos_embed='none') == AttentionArgs(pos_embed=None)


@pytest.mark.parametrize('kwargs,error,words', [
    (dict(dk=10), ValueError, 'dk=10 .* num_heads=8'), (dict(dk=5.0), ValueError, 'dk=5.0 .* int'),
    (dict(dk='8'), TypeError, "dk must be .* got '8'"), (dict(dv=True), TypeError, 'dv must be .* got True'),
    (dict(dv=3), ValueError, 'dv=3 .* num_heads=8'), (dict(dv=24), ValueError, 'dv=24 .* out_channels=16'),
    (dict(dv=-8), ValueError, 'dv=-8'), (dict(dv=-0.5), ValueError, 'dv=-0.5'),
    (dict(num_heads=0), ValueError, 'num_heads=0'), (dict(num_heads=2.), TypeError, 'num_heads .* 2.0'),
    (dict(attention=['softmax']), ValueError, 'attention .* got'),
    (dict(attention='full'), ValueError, "attention .*'softmax', 'linear'.* got 'full'"),
    (dict(pos_embed='relative'), ValueError, "pos_embed .*'rel', 'sincos', 'coord', None.* got 'relative'"),
    (dict(attention='linear'), ValueError, "pos_embed with attention='linear' .* got 'rel'"),
    (dict(feat_size=0), ValueError, 'feat_size .* got 0'), (dict(feat_size=7.5), ValueError, 'feat_size .* got 7.5'),
    (dict(feat_size=(3, 4, 5)), ValueError, r'feat_size .* got \(3, 4, 5\)'),
    (dict(attn_pool=0), ValueError, 'attn_pool .* got 0'), (dict(in_channels=0), ValueError, 'in_channels .* got 0'),
    (dict(groups=0), ValueError, 'groups .* got 0'), (dict(groups=3), ValueError, 'groups=3'),
    (dict(groups=16, dv=8), ValueError, r'groups=16 must divide .* 16 - 8 = 8'),
    (dict(kernel_size=True), ValueError, 'kernel_size .* got True'), (dict(stride=0), ValueError, 'stride .* got 0'),
    (dict(padding=-1), ValueError, 'padding .* got -1'), (dict(padding='full'), ValueError, 'full'),
    (dict(padding='same', stride=2), ValueError, 'same'), (dict(heads=4), TypeError, 'heads'),
    (dict(causal=True), TypeError, 'causal'),
])
def test_bad_arguments(kwargs, error, words):
    with pytest.raises(error, match=words):
        AugmentedConv2d(**{**dict(in_channels=16, out_channels=16, kernel_size=3, dk=8, dv=8), **kwargs})


@pytest.mark.parametrize('kwargs,words', [
    (dict(attention='linear'), 'causal=True needs attention'),
    (dict(pos_embed='coord'), 'causal=True needs pos_embed'),
    (dict(attn_pool=2), 'causal=True needs attn_pool=1'),
    (dict(padding=1), 'causal=True .* padding=0, got 1'),
    (dict(padding='same'), "causal=True .* got 'same'"),
])
def test_bad_causal_arguments(kwargs, words):
    with pytest.raises(ValueError, match=words):
        AugmentedConv1d(8, 16, 3, dk=8, dv=8, causal=True, **kwargs)


@pytest.mark.parametrize('shape', [(8, 9, 9), (2, 7, 9, 9), (2, 8, 9), (2, 8, 9, 9, 1), (2, 8, 2, 9), (2, 8, 9, 1)])
def test_bad_inputs(shape):
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        AugmentedConv2d(8, 16, 3, dk=8, dv=8)(torch.randn(shape))
