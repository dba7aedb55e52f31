"""`aa-models info`: its figures are those of the model, its columns add up, its errors come with status 2."""
import re

import pytest
import timm
from timm.data import resolve_data_config

from aa_models.analysis.layer_tables import layer_table
from aa_models.analysis.macs import count_macs
from command import answered, refused

KWARGS = dict(dk=16, dv=8, num_heads=2)


def model_of(name, **kwargs):
    return timm.create_model(name, device='meta', **kwargs)


def info(capsys, *arguments):
    """Its lines split into cells."""
    return [re.split('  +', line) for line in answered(capsys, 'info', *arguments).splitlines()]


@pytest.mark.parametrize('name, plain', [
    ('aa_resnet18', False), ('laa_resnet18', True), ('aa_wrn16_8', False), ('simplecnn', False), ('aa_simplecnn', True),
    ('laa_simplecnn', False), ('aa_efficientnet_lite0', True), ('aa_mnasnet_100', False), ('resnet10t', True)])
def test_columns_add_up_to_the_model(name, plain):
    model = model_of(name)
    size = resolve_data_config(model=model)['input_size'][1:]
    *rows, rest, total = layer_table(model, size, plain)
    params = sum(p.numel() for p in model.parameters())
    assert (rest.layer, total.layer) == ('everything else', 'total')
    assert total.params == params == sum(row.params for row in [*rows, rest])
    assert total.macs == count_macs(model) == sum(row.macs for row in [*rows, rest])
    assert rest.params > 0 and rest.macs >= 0
    if plain:
        assert rest.macs == 0  # convolutions and linear layers are all there is beside the augmented ones


@pytest.mark.parametrize('attention', ['softmax', 'linear'])
def test_costs_of_a_layer_by_a_formula(attention):
    pos_embed = dict(softmax='rel', linear='coord')[attention]
    model = model_of('aa_simplecnn', attention=attention, pos_embed=pos_embed, attn_pool=(1, 2), **KWARGS)
    full, pooled, _, _ = layer_table(model, (48, 64))
    dk, dv, heads = 16, 8, 2
    for row, fan_in, output, attended in ((full, 64, 24 * 32, (24, 32)), (pooled, 128, 12 * 16, (6, 8))):
        n, (H, W) = attended[0] * attended[1], attended
        read = fan_in + (3 if pos_embed == 'coord' else 0)
        params = 9 * fan_in * (128 - dv) + read * (2 * dk + dv) + dv * dv
        macs = output * 9 * fan_in * (128 - dv) + n * read * (2 * dk + dv) + n * dv * dv
        if attention == 'softmax':
            tables = 2 * 32 // 2 - 1 if row is full else 2 * 32 // 8 - 1  # made for 32 px: 16 × 16, and 8 × 8 pooled
            params += 2 * tables * dk // heads
            macs += n * (n * (dk + dv) + (H + W) * dk)  # keys and values, then rows and columns
        else:
            macs += 2 * n * dk // heads * dv  # kᵀv, then q times that
        assert (row.params, row.macs) == (params, macs)
        assert (row.dk, row.dv, row.heads, row.attention, row.positions) == ('16', '8', '2', attention, pos_embed)


def test_all_lists_the_plain_layers_too():
    rows = {row.layer: row for row in layer_table(model_of('aa_simplecnn', **KWARGS), (32, 32), plain=True)}
    assert list(rows)[:-2] == [
        'stem.conv', 'stages.0.0.conv', 'stages.0.1.conv', 'stages.1.0.conv', 'stages.1.1.conv', 'head.fc']
    strided, linear = rows['stages.1.0.conv'], rows['head.fc']
    assert strided[:4] == ('stages.1.0.conv', '3x3', '2x2', '128 > 128') and strided.output == '8x8'
    assert (strided.params, strided.macs) == (9 * 128 * 128, 8 * 8 * 9 * 128 * 128)
    assert (linear.channels, linear.params, linear.macs) == ('128 > 100', 129 * 100, 128 * 100)
    assert strided.attention == linear.attention == linear.kernel == '-'


def test_a_layer_without_attention_says_so():
    layer, *_ = layer_table(model_of('aa_simplecnn', dk=0, dv=0), (32, 32))
    assert (layer.layer, layer.dk, layer.attention, layer.attends) == ('stages.0.1.conv', '-', '-', '-')
    assert layer.params == 9 * 64 * 128


@pytest.mark.parametrize('arguments, output, attends, made_for', [
    ((), '16x16', '8x8', (8, 8)),  # the tag's 128 px
    (('--img-size', '96', '160'), '12x20', '6x10', (6, 10)),
    # tables made for one size, images of another
    (('--img-size', '96', '--model-kwargs', 'img_size=64'), '12x12', '6x6', (4, 4)),
    (('--model-kwargs', 'attn_pool=(1,1,1,1)'), '16x16', '16x16', (16, 16)),
])
def test_maps_follow_the_image(arguments, output, attends, made_for, capsys):
    title, header, row, *_ = info(capsys, 'aa_resnet18.cifar100', *arguments)
    cells = dict(zip(header, row))
    assert title[0].startswith('aa_resnet18.cifar100, one image of ')
    assert (cells['layer'], cells['output'], cells['attends']) == ('layer2.0.conv1', output, attends)
    tables = (2 * made_for[0] - 1 + 2 * made_for[1] - 1) * 160 // 8
    assert cells['params'] == f'{9 * 64 * 96 + 64 * (2 * 160 + 32) + 32 * 32 + tables:,}'


def test_command_prints_what_the_table_holds(capsys):
    _, header, *rows = info(capsys, 'laa_resnet50', '--model-kwargs', 'pos_embed=none', 'in_chans=1')
    assert len(rows) == 4 + 6 + 3 + 2
    first = dict(zip(header, rows[0]))
    assert (first['layer'], first['kernel'], first['stride'], first['channels']) == (
        'layer2.0.conv2', '3x3', '2x2', '128 > 128')
    assert [first[k] for k in ('dk', 'dv', 'heads', 'attention', 'positions')] == ['160', '8', '8', 'linear', 'none']
    for column in ('params', 'MACs'):
        *parts, total = [int(row[header.index(column)].replace(',', '')) for row in rows]
        assert total == sum(parts)
    model = model_of('laa_resnet50', pos_embed='none', in_chans=1)
    assert total == count_macs(model, (1, 224, 224))
    assert sum(float(row[-1].rstrip('%')) for row in rows[:-1]) == pytest.approx(100, abs=1)


@pytest.mark.parametrize('words', [['resnet10t', '--img-size', '32'], ['skresnet18']])
def test_maps_of_one_pixel(words, capsys):
    """In training batch norm would refuse them."""
    assert info(capsys, *words)[-1][0] == 'total'


def test_a_plain_network_has_the_last_lines_only(capsys):
    _, _, *rows = info(capsys, 'resnet18')
    assert [row[0] for row in rows] == ['everything else', 'total']
    assert rows[1][-3:] == ['11,689,512', '1,814,073,344', '100.0%']


@pytest.mark.parametrize('arguments, message', [
    (['aa_resnet19'], "model = 'aa_resnet19' is unknown: did you mean aa_resnet"),
    (['aa_resnet18.best'], "model = 'aa_resnet18.best' is unknown; the tags of aa_resnet18 are aa_resnet18.cifar100"),
    (['aa_resnet19.cifar100'], 'did you mean aa_resnet'),
    (['local-dir:nowhere'], 'nowhere'),
    (['aa_resnet18', '--model-kwargs', 'depth=3'], "aa_resnet18' cannot be made with .*depth=3"),
    (['aa_resnet18', '--model-kwargs', 'dv=1000'], 'layer2.0.conv1 cannot be augmented: dv=1000'),
    (['aa_resnet18', '--model-kwargs', 'dv'], "'dv' is not of the form KEY=VALUE"),
    (['aa_resnet18', '--img-size', '0'], '--img-size must be .* got 0'),
    (['aa_resnet18', '--img-size', '1', '2', '3'], '--img-size must be .* got 1 2 3'),
    (['vit_tiny_patch16_224', '--img-size', '100'], 'takes no images of 100x100 pixels'),
    ([], 'NAME'),
])
def test_what_cannot_be_shown_is_refused(arguments, message, capsys):
    assert re.search(message, refused(capsys, 'info', *arguments))
