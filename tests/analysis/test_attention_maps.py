"""Attention maps of whole networks and over pictures: numbers and places."""
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ClassVar

import numpy
import pytest
import timm
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from timm.utils import AttentionExtract
from torch import nn

import reference
from aa_models import attention_maps
from aa_models.analysis.figures import draw
from aa_models.analysis.maps import attention_map_sizes
from aa_models.analysis.queries import attention_from
from aa_models.layers import AugmentedConv1d, AugmentedConv2d

RESNET_LAYERS = [f'layer{stage}.{block}.conv1.attn' for stage in (2, 3, 4) for block in (0, 1)]
double = partial(dict, dtype=torch.float64)


def create_model(name, **kwargs):
    """A network in float64 whose attention is far from uniform."""
    model = timm.create_model(name, **double(num_classes=3, **kwargs)).eval()
    with torch.no_grad():
        for parameter in (p for n, p in model.named_parameters() if '.qkv.' in n or '.rel_' in n):
            parameter.mul_(2)
    return model


def convolutions():
    return nn.Sequential(
        AugmentedConv2d(3, 12, 3, 2, 1, **double(dk=6, dv=6, num_heads=3, feat_size=4)),
        AugmentedConv2d(12, 8, 3, 1, 0, **double(dk=4, dv=8, num_heads=2, attn_pool=2, pos_embed='coord')),
        AugmentedConv2d(8, 8, 2, **double(dk=4, dv=4, num_heads=1, attention='linear', pos_embed='sincos')))


def sequences():
    return nn.Sequential(
        AugmentedConv1d(3, 12, 3, 2, **double(dk=6, dv=6, num_heads=3, feat_size=4, causal=True)),
        AugmentedConv1d(12, 8, 3, **double(dk=4, dv=4, num_heads=2, attn_pool=2, attention='linear', pos_embed=None)))


NETWORKS = {
    'aa_resnet18': (partial(create_model, 'aa_resnet18', img_size=64), (2, 3, 75, 50)),  # pools; other tables
    'laa_simplecnn': (partial(create_model, 'laa_simplecnn'), (1, 3, 12, 17)),
    'convolutions': (convolutions, (2, 3, 13, 18)),
    'sequences': (sequences, (2, 3, 21)),
}


@pytest.mark.parametrize('build, shape', NETWORKS.values(), ids=NETWORKS)
@torch.no_grad()
def test_every_layer_against_its_definition(build, shape):
    """Softmax and linear, pooled or not, 2-D and 1-D, at a size that is not square nor the tables'."""
    model, x = build(), torch.randn(shape, dtype=torch.float64)
    inputs = {}
    for name, module in model.named_modules():
        if getattr(module, 'attn', None) is not None:
            module.register_forward_hook(
                lambda conv, args, out, name=name: inputs.__setitem__(f'{name}.attn', (conv, args[0], out.shape[2:])))
    maps, sizes = attention_maps(model, x), attention_map_sizes(model, x)
    assert list(maps) == list(sizes) == list(inputs) and len(maps) >= 2
    for name, weights in maps.items():
        size, expected, _ = reference.attention(*inputs[name])
        assert sizes[name] == size
        torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        assert weights.shape[3] == 1 or weights.std(-1).max() > 1e-3  # the comparison is one of uneven weights


def test_names_order_and_choice():
    model, x = timm.create_model('aa_resnet18'), torch.randn(1, 3, 32, 32)
    assert list(attention_maps(model, x)) == RESNET_LAYERS
    assert list(attention_maps(model, x, 'layer3.*')) == RESNET_LAYERS[2:4]
    assert list(attention_maps(model, x, ['layer4.1.*', '*.0.conv1.attn'])) == [*RESNET_LAYERS[::2], RESNET_LAYERS[5]]

    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first = (AugmentedConv2d(4, 4, 1, dk=2, dv=2, num_heads=1) for _ in range(2))

        def forward(self, x):
            return self.second(self.first(x))

    assert list(attention_maps(Backwards(), torch.randn(1, 4, 3, 3))) == ['first.attn', 'second.attn']


def test_model_is_left_as_it_was():
    model, x = timm.create_model('aa_simplecnn', drop_rate=0.5), torch.randn(2, 3, 16, 16)
    model.train().stages[0].eval()  # a part may be frozen
    before = [m.training for m in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    maps = attention_maps(model, x)
    assert not any(weights.requires_grad for weights in maps.values())

    def fail(*_):
        raise RuntimeError('in the middle')

    handle = model.get_classifier().register_forward_hook(fail)
    with pytest.raises(RuntimeError, match='in the middle'):
        attention_maps(model, x)
    handle.remove()
    assert [m.training for m in model.modules()] == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_compiled_model(fresh_compiler):
    """Its program was made without hooks, and would call none."""
    model, x = timm.create_model('aa_simplecnn').eval(), torch.randn(1, 3, 16, 16)
    compiled = torch.compile(model, backend='eager')
    with torch.no_grad():
        compiled(x)
    torch.testing.assert_close([*attention_maps(compiled, x).values()], [*attention_maps(model, x).values()])


@pytest.mark.parametrize('compiled', ['whole', 'in place', 'a part'])
def test_compiled_in_other_ways(compiled, fresh_compiler):
    model, x = timm.create_model('aa_simplecnn').eval(), torch.randn(1, 3, 16, 16)
    expected = list(attention_maps(model, x).values())
    if compiled == 'a part':
        model.stages[0] = torch.compile(model.stages[0], backend='eager')
    elif compiled == 'in place':
        model.compile(backend='eager')
    else:
        model = torch.compile(model, backend='eager')
    with torch.no_grad():
        model(x)
    torch.testing.assert_close(list(attention_maps(model, x).values()), expected)


def test_threads(monkeypatch):
    """Each gets the maps of its own input, whatever else runs the model; nothing of the process is changed."""
    monkeypatch.setattr(torch.compiler, 'set_stance', lambda *_: pytest.fail('all threads would run eagerly'))
    model = timm.create_model('aa_simplecnn').train()
    inputs = [torch.randn(1, 3, 16, 16) for _ in range(8)]
    expected = [attention_maps(model, x) for x in inputs]
    model.eval()  # so that running it changes no statistics
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(model, torch.randn(1, 3, 24, 24)) for _ in range(8)]
        for maps, wanted in zip(pool.map(lambda x: attention_maps(model, x), inputs), expected, strict=True):
            torch.testing.assert_close(maps, wanted, rtol=0, atol=0)
        assert all(torch.isfinite(other.result()).all() for other in others)
    assert not model.training and not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize('layers, error, words', [
    ('layer9.*', ValueError, ['layer9', *RESNET_LAYERS]), (['layer3.*', 'x'], ValueError, ["['x']"]),
    ([], ValueError, ['[]', *RESNET_LAYERS]), (3, TypeError, ['layers', '3']), ([3], TypeError, ['layers', '3']),
])
def test_wrong_layers(layers, error, words):
    with pytest.raises(error) as info:
        attention_maps(timm.create_model('aa_resnet18'), torch.zeros(1, 3, 32, 32), layers)
    assert all(word in str(info.value) for word in words)


@pytest.mark.parametrize('model, x, words', [
    (None, torch.zeros(1, 3, 32, 32), 'model must be a torch.nn.Module, got None'),
    (timm.create_model('aa_simplecnn'), None, 'x must be a tensor.* got NoneType'),
])
def test_wrong_model_or_input(model, x, words):
    with pytest.raises(TypeError, match=words):
        attention_maps(model, x)


def test_model_without_attention():
    with pytest.raises(ValueError, match='ResNet has no attention layer'):
        attention_maps(timm.create_model('resnet18'), torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize('name', ['aa_resnet18', 'laa_simplecnn'])
@pytest.mark.parametrize('hook_type', ['forward', 'forward_pre'])
@torch.no_grad()
def test_attention_extract_of_timm(name, hook_type):
    """As it is by default but for the method, and the network's answer is the same while it watches."""
    model, x = create_model(name), torch.randn(2, 3, 50, 33, dtype=torch.float64)
    logits, expected = model(x), attention_maps(model, x)
    extract = AttentionExtract(model, method='hook', hook_type=hook_type)
    maps = extract(x)
    assert list(maps) == [f'{name}.attn_drop' for name in expected]
    torch.testing.assert_close(list(maps.values()), list(expected.values()))
    torch.testing.assert_close(model(x), logits)


# --- over pictures: a network that looks from red things at green ones, from all others at nothing in particular


class FromRedToGreen(nn.Module):
    pretrained_cfg: ClassVar = dict(
        input_size=(3, 12, 16), mean=(0., 0., 0.), std=(1., 1., 1.), interpolation='nearest')

    def __init__(self):
        super().__init__()
        self.conv = AugmentedConv2d(3, 4, 1, dk=2, dv=2, num_heads=2, pos_embed=None)
        weight = self.conv.attn.qkv.weight.data.zero_()  # rows: q of two heads, k of two heads, v
        weight[0, 0] = weight[2, 1] = 9.  # the second head looks nowhere

    def forward(self, x):
        return self.conv(x)


RED, GREEN = (1, 3), (10, 14)  # row and column of the objects on a map of 12 x 16


def red_and_green(red, green, cell=1):
    """A picture of 12 x 16 cells, black but for two of them."""
    picture = Image.new('RGB', (16 * cell, 12 * cell))
    for (row, column), colour in ((red, (255, 0, 0)), (green, (0, 255, 0))):
        picture.paste(colour, (column * cell, row * cell, (column + 1) * cell, (row + 1) * cell))
    return picture


@pytest.mark.parametrize('red, green', [(RED, GREEN), (GREEN, RED), ((0, 15), (11, 0)), ((11, 0), (0, 15))])
def test_object_is_found_where_it_is(red, green):
    x = torch.zeros(1, 3, 12, 16)
    x[(0, 0, *red)] = x[(0, 1, *green)] = 1
    weights = attention_maps(FromRedToGreen(), x)['conv.attn'][0].unflatten(2, (12, 16)).unflatten(1, (12, 16))
    assert weights[(0, *red, *green)] > 0.99
    torch.testing.assert_close(weights[1], torch.full((12, 16, 12, 16), 1 / 192))
    weights[(0, *red)] = 1 / 192
    torch.testing.assert_close(weights[0], torch.full((12, 16, 12, 16), 1 / 192))
    # a picture of other size than is fed, of which a pixel in the red cell is asked for
    picture, query = red_and_green(red, green, cell=5), (5 * red[1] + 4, 5 * red[0])
    seen = attention_from(FromRedToGreen().train(), picture, query)['conv.attn']
    assert seen.shape == (2, 12, 16) and seen[(0, *green)] > 0.99
    beside = (query[0] + (1 if red[1] < 15 else -5), query[1])
    torch.testing.assert_close(attention_from(FromRedToGreen(), picture, beside)['conv.attn'][0], seen[1])


def test_whole_picture_is_fed_in_its_proportions():
    def shape(size, **kwargs):
        return tuple(attention_from(FromRedToGreen(), Image.new('RGB', size), (0, 0), **kwargs)['conv.attn'].shape[1:])

    assert shape((160, 120)) == (12, 16) and shape((120, 160)) == (16, 12)
    assert shape((300, 100), img_size=30) == (17, 52) and shape((1000, 1)) == (1, 438)


@pytest.mark.parametrize('red, green', [(RED, GREEN), ((0, 15), (11, 0))])
def test_drawn_where_it_is(red, green):
    """Read from the figure's pixels: the brightest part of the panel lies on the object, the frame on the query."""
    picture, query = red_and_green(red, green, cell=10), (10 * red[1] + 7, 10 * red[0] + 2)
    seen = attention_from(FromRedToGreen(), picture, query)['conv.attn']
    figure = draw(picture, query, {'looks': seen[0], 'even': seen[1]}, 'title')
    assert [axes.get_title().split('\n')[0] for axes in figure.axes] == ['picture', 'looks', 'even', '']
    figure.set_dpi(200)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = numpy.asarray(canvas.buffer_rgba())[..., :3].astype(float)  # (height, width, 3)
    for axes, show_object in zip(figure.axes, (True, True, False)):
        box = axes.get_window_extent()  # counts pixels from the bottom

        def colour(row, column, box=box):
            """The colour of a point of the panel, in cells of the map."""
            return pixels[int(len(pixels) - box.y1 + row * box.height / 12), int(box.x0 + column * box.width / 16)]

        # beside the middle of each cell, where neither frame nor cross is
        green_light = [[colour(row + 0.75, column + 0.25)[1] for column in range(16)] for row in range(12)]
        assert divmod(int(numpy.argmax(green_light)), 16) == green or not show_object
        where = (red[0] + 0.25, red[1] + 0.75) if axes is figure.axes[0] else (red[0] + 0.5, red[1] + 0.5)
        red_light, *other_light = colour(*where)
        assert red_light < 50 and min(other_light) > 200  # the cross is cyan, in a map on its cell
    frame, = figure.axes[1].patches
    assert frame.get_bbox().bounds == pytest.approx((10 * red[1] - 0.5, 10 * red[0] - 0.5, 10, 10))


def scales(figure):
    """Range of the colours of each panel with a map, and the colour bar's."""
    return [axes.images[1].get_clim() for axes in figure.axes[1:-1]], figure.axes[-1].get_ylim()


def test_maps_that_are_compared_have_one_scale():
    """In multiples of the average weight, which maps of different sizes have in common."""
    picture = Image.new('RGB', (40, 30))
    one, even, fine = torch.zeros(3, 4), torch.full((3, 4), 1 / 12), torch.full((6, 8), 1 / 48)
    one[1, 2] = 1.
    figure = draw(picture, (0, 0), {'one': one, 'even': even, 'fine': fine}, 'title')
    assert scales(figure) == (3 * [(0, 12)], pytest.approx((0, 12)))
    assert [axes.get_title().split('\n')[1] for axes in figure.axes[1:-1]] == [
        'up to 12 × average', 'up to 1 × average', 'up to 1 × average']
    assert 'multiples of the average' in figure.axes[-1].get_ylabel()


@pytest.mark.parametrize('size', [(1000, 1), (1, 1000), (3, 2), (2000, 90)])
@pytest.mark.parametrize('count', [1, 5])
def test_no_empty_panel_for_an_odd_shape(size, count):
    panels = dict.fromkeys('abcde'[:count], torch.full((2, 3), 1 / 6))
    figure = draw(Image.new('RGB', size, 'white'), (0, 0), panels, '')
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes[:-1]:
        assert min(axes.get_window_extent().size) > 0.3 * figure.dpi  # inches
