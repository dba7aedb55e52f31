"""Properties of the attention: what the papers say of it, and the same numbers by every implementation."""
import pytest
import torch

import reference
from aa_models.layers import AugmentedConv2d
from aa_models.layers.position import add_sincos, append_coords, rel_logits_h, rel_logits_w, resize_rel_table
from aa_models.layers.softmax_attention import attention_weights, fold_rel_pos


def layer_of(attention='softmax', pos_embed='rel', **kwargs):
    return AugmentedConv2d(**{**dict(
        in_channels=8, out_channels=8, kernel_size=1, dk=8, dv=8, num_heads=2, attention=attention, pos_embed=pos_embed,
        feat_size=(5, 6), dtype=torch.float64), **kwargs})


@pytest.mark.parametrize('attention,pos_embed', [
    ('softmax', 'rel'), ('softmax', None), ('linear', 'sincos'), ('linear', 'coord'), ('linear', None)])
@pytest.mark.parametrize('attn_pool', [1, 2])
@torch.no_grad()
def test_rows_of_the_map_sum_to_1_and_give_the_output(attention, pos_embed, attn_pool):
    layer = layer_of(attention, pos_embed, kernel_size=3, stride=2, padding=1, attn_pool=attn_pool)
    x = torch.randn(2, 8, 9, 12, dtype=torch.float64)
    weights = layer.attn.attention_map(x)
    (H, W), expected, _ = reference.attention(layer, x, (5, 6))
    assert ((5, 6) if attn_pool == 1 else (3, 3)) == (H, W) and weights.shape == (2, 2, H * W, H * W)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, H * W, dtype=torch.float64))
    torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-9)
    assert (weights >= 0).all()


@pytest.mark.parametrize('attention', ['softmax', 'linear'])
@torch.no_grad()
def test_without_positions_permuting_pixels_permutes_the_output(attention):
    layer = layer_of(attention, None)
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    order = torch.randperm(30)

    def permute(t):
        return t.flatten(2)[:, :, order].view_as(t)

    torch.testing.assert_close(layer(permute(x)), permute(layer(x)))
    for pos_embed in ('sincos', 'coord') + (('rel',) if attention == 'softmax' else ()):
        layer = layer_of(attention, pos_embed)
        assert not torch.allclose(layer(permute(x)), permute(layer(x)), atol=1e-3)


@torch.no_grad()
def test_relative_logits_are_translation_equivariant():
    """Moving query and key together moves the logits and changes none; moving the query alone does not."""
    q = torch.randn(1, 2, 1, 1, 4, dtype=torch.float64).expand(1, 2, 5, 7, 4)  # the same query everywhere
    rel_h, rel_w = (torch.randn(2 * n - 1, 4, dtype=torch.float64) for n in (5, 7))
    rows, columns = rel_logits_h(q, rel_h), rel_logits_w(q, rel_w)  # (1, 2, 5, 7, 5 or 7)
    torch.testing.assert_close(rows[:, :, 1:, :, 1:], rows[:, :, :-1, :, :-1])
    torch.testing.assert_close(columns[:, :, :, 1:, 1:], columns[:, :, :, :-1, :-1])
    assert not torch.allclose(rows[:, :, 1:], rows[:, :, :-1])
    # and each is the table's own entry: offset j - i lies in row j - i + n - 1
    for i, j in [(0, 0), (4, 0), (1, 3)]:
        torch.testing.assert_close(rows[0, :, i, 2, j], q[0, :, i, 2] @ rel_h[j - i + 4])


@torch.no_grad()
def test_folded_product_is_the_sum_of_all_logits():
    q, k = torch.randn(2, 2, 3, 5, 7, 4, dtype=torch.float64)
    rel_h, rel_w = torch.randn(5, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    for h, w in ((rel_h, rel_w), (rel_h, None), (None, rel_w), (None, None)):
        folded_q, folded_k = fold_rel_pos(q, k, h, w)
        weights = (folded_q @ folded_k.transpose(-2, -1)).softmax(-1)
        torch.testing.assert_close(weights, attention_weights(q, k, h, w))


@pytest.mark.parametrize('made_for', [1, 2, 5, 14])
@torch.no_grad()
def test_tables_are_interpolated_about_offset_0(made_for):
    table = torch.randn(2 * made_for - 1, 3, dtype=torch.float64)
    assert torch.equal(resize_rel_table(table, made_for), table)
    for size in (1, 2, 3, 7, 20):
        resized = resize_rel_table(table, size)
        expected = torch.stack([reference.relative(table, o, size) for o in range(1 - size, size)])
        torch.testing.assert_close(resized, expected)
        torch.testing.assert_close(resized[size - 1], table[made_for - 1])
    mirrored = resize_rel_table(table.flip(0), 9)
    torch.testing.assert_close(mirrored.flip(0), resize_rel_table(table, 9))


@torch.no_grad()
def test_sincos_by_its_formula():
    d, H, W = 16, 5, 7
    code = add_sincos(torch.zeros(1, d, H, W, dtype=torch.float64))[0]
    for k in range(d // 4):
        den = 10000 ** (4 * k / d)
        i, j = torch.arange(H, dtype=torch.float64), torch.arange(W, dtype=torch.float64)
        torch.testing.assert_close(code[2 * k], (i / den).sin()[:, None].expand(H, W))
        torch.testing.assert_close(code[2 * k + 1], (i / den).cos()[:, None].expand(H, W))
        torch.testing.assert_close(code[d // 2 + 2 * k], (j / den).sin().expand(H, W))
        torch.testing.assert_close(code[d // 2 + 2 * k + 1], (j / den).cos().expand(H, W))


@torch.no_grad()
def test_coordinates_run_from_corner_to_corner():
    x = append_coords(torch.zeros(2, 3, 3, 5, dtype=torch.float64))
    assert x.shape == (2, 6, 3, 5) and not x[:, :3].any()
    rows, columns, radius = x[0, 3:]
    assert rows[:, 0].tolist() == [-1, 0, 1] and columns[0].tolist() == [-1, -0.5, 0, 0.5, 1]
    torch.testing.assert_close(radius, (rows ** 2 + columns ** 2).sqrt())
    assert append_coords(torch.zeros(1, 2, 1, 1))[0, 2:].flatten().tolist() == [0, 0, 0]


def test_fused_follows_timm(fused):
    assert layer_of().attn.fused_attn == fused
