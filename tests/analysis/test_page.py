"""The page to look at attention: what stands in it, read without a browser. `clients/` opens it in one."""
import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy
import pytest
import timm
import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from aa_models import attention_maps
from aa_models.analysis import page
from aa_models.analysis.compact_maps import choose_blocks, compact, stored_bytes
from aa_models.analysis.maps import attention_map_sizes
from aa_models.analysis.queries import feed_whole
from repository import TESTS

HOSTILE = '</script><img src=x onerror=alert(1)>"\'&{{data}}\u2028\u202e\udc80'


def make_page(model, picture, model_name='a model', picture_name='a.png', **kwargs):
    return page.attention_page(model, picture, model_name=model_name, picture_name=picture_name, **kwargs)[0]


def uneven(name):
    """A network whose attention is far from uniform."""
    model = timm.create_model(name).eval()
    with torch.no_grad():
        for parameter in (p for n, p in model.named_parameters() if '.qkv.' in n or '.rel_' in n):
            parameter.mul_(3)
    return model


def noise(width, height):
    return Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=numpy.uint8))


def read_data(text):
    data, = re.findall(r'<script type="application/json" id="data">(.*)</script>', text)
    return json.loads(data)


def decode(layer):
    """Weights in multiples of the average, (num_heads, cells, cells), from the JSON of a layer."""
    rows, columns = (-(-layer[side] // layer['block']) for side in ('height', 'width'))
    largest = numpy.frombuffer(base64.b64decode(layer['largest']), '<f4').reshape(layer['heads'], -1, 1)
    codes = numpy.frombuffer(base64.b64decode(layer['codes']), numpy.uint8)
    return largest * (codes.reshape(layer['heads'], rows * columns, rows * columns) / 255) ** 2


@pytest.mark.parametrize('name', ['aa_simplecnn', 'laa_simplecnn'])
def test_weights_are_those_of_attention_maps(name):
    """Softmax and linear, on a map that is not square; no weight is off by more than the page says."""
    model, picture = uneven(name), noise(51, 33)
    x = feed_whole(model, picture)
    maps, sizes = attention_maps(model, x), attention_map_sizes(model, x)
    layers = read_data(make_page(model, picture))['layers']
    assert [layer['name'] + '.attn' for layer in layers] == list(maps)
    for layer, (name, weights) in zip(layers, maps.items()):
        expected = weights[0].numpy() * weights.shape[-1]
        height, width = sizes[name]
        assert (layer['height'], layer['width'], layer['block']) == (height, width, 1) and height < width
        found = decode(layer)
        largest = expected.max(-1, keepdims=True)
        assert largest.max() > 1.5 and abs(found - expected).max() > 0
        assert (abs(found - expected) <= 0.004 * largest).all()
        numpy.testing.assert_allclose(found.max(-1, keepdims=True), largest, rtol=1e-6)


@pytest.mark.parametrize('size, block', [((5, 7), 2), ((5, 7), 3), ((4, 6), 2), ((1, 9), 4), ((3, 2), 8)])
def test_blocks_hold_means(size, block):
    """Those at the lower and right edge are of fewer cells."""
    cells = size[0] * size[1]
    weights = torch.randn(2, cells, cells).mul(2).softmax(-1)
    multiples = weights.reshape(2, *size, *size) * cells
    kept = compact(weights, size, block)
    parts = [(slice(y, y + block), slice(x, x + block))
             for y in range(0, size[0], block) for x in range(0, size[1], block)]
    expected = torch.stack([torch.stack([
        multiples[(slice(None), *query, *key)].mean((1, 2, 3, 4)) for key in parts], 1) for query in parts], 1)
    largest = expected.amax(2, keepdim=True)
    torch.testing.assert_close(kept.largest, largest[..., 0])
    assert ((kept.largest[..., None] * (kept.codes / 255) ** 2 - expected).abs() <= 0.004 * largest).all()
    assert kept.codes.numel() + 4 * kept.largest.numel() == stored_bytes(2, size, block)


def test_finest_maps_give_way_first():
    maps = {'fine': (8, (14, 14)), 'too': (2, (14, 14)), 'coarse': (8, (7, 7))}
    whole = sum(stored_bytes(*shape, 1) for shape in maps.values())
    assert choose_blocks(maps, whole) == {'fine': 1, 'too': 1, 'coarse': 1}
    assert choose_blocks(maps, whole - 1) == {'fine': 2, 'too': 2, 'coarse': 1}
    assert choose_blocks(maps, 30_000) == {'fine': 3, 'too': 3, 'coarse': 2}
    assert choose_blocks(maps, 0) == {'fine': 14, 'too': 14, 'coarse': 7}


def test_page_of_aa_resnet18_at_224_px():
    """Below 5 MB with every cell of every map, even with a picture that no format makes smaller."""
    text, maps = page.attention_page(
        timm.create_model('aa_resnet18'), noise(1500, 1500), model_name='', picture_name='', img_size=224)
    assert len(text.encode()) < 5e6
    assert [(layer.height, layer.width, layer.block) for layer in maps.values()] == 4 * [(14, 14, 1)] + 2 * [(7, 7, 1)]


def test_larger_maps_are_shown_in_blocks(monkeypatch):
    monkeypatch.setattr(page, 'LARGEST', 250_000)
    model, picture = uneven('aa_simplecnn'), noise(40, 40)
    text = make_page(model, picture, img_size=32)
    first, second = read_data(text)['layers']
    assert len(text) < 250_000 and (first['height'], first['block'], second['block']) == (16, 2, 1)
    weights = attention_maps(model, feed_whole(model, picture, img_size=32))['stages.0.1.conv.attn'][0]
    blocks = weights.reshape(8, 8, 2, 8, 2, 8, 2, 8, 2).mean((2, 4, 6, 8)).reshape(8, 64, 64).numpy() * 256
    assert (abs(decode(first) - blocks) <= 0.004 * blocks.max(-1, keepdims=True)).all()


def test_choice_of_layers_and_the_first_position():
    data = read_data(make_page(uneven('aa_simplecnn'), noise(30, 20), layers='stages.1.*', query=(29, 3)))
    assert [layer['name'] for layer in data['layers']] == ['stages.1.1.conv'] and data['start'] == [29, 3]
    assert read_data(make_page(uneven('aa_simplecnn'), noise(30, 20)))['start'] == [15, 10]


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its title."""

    def __init__(self, text):
        super().__init__()
        self.found, self.title = [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, attributes))

    def handle_data(self, data):
        if self.found and self.found[-1][0] == 'title' and self.title is None:
            self.title = data


def test_names_cannot_change_the_page():
    """Neither those of files and models, nor of layers."""
    model = torch.nn.Sequential(uneven('aa_simplecnn'))
    model.pretrained_cfg = model[0].pretrained_cfg
    plain = Elements(make_page(model, noise(20, 20)))
    layer = model._modules.pop('0')
    model._modules['</script>'] = layer
    text = make_page(model, noise(20, 20), model_name=HOSTILE, picture_name=HOSTILE)
    assert Elements(text).found == plain.found
    shown = HOSTILE.replace('\udc80', '\ufffd')  # HTML has no such character
    assert Elements(text).title == f'What {shown} looks at: {shown}'
    data = read_data(text)
    assert data['model'] == data['file'] == HOSTILE and data['layers'][0]['name'] == '</script>.stages.0.1.conv'
    text.encode('utf-8')


def test_page_needs_no_network():
    text = make_page(uneven('aa_simplecnn'), noise(20, 20))
    found = Elements(text).found
    assert not [(tag, name) for tag, attributes in found for name, _ in attributes if name in ('src', 'href', 'srcset')]
    assert not re.search(r'https?:|@import|url\(|fetch\(|XMLHttpRequest', text)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert ('meta', [('http-equiv', 'Content-Security-Policy'), ('content', policy)]) in found


def shown_picture(data):
    kind, content = re.fullmatch(r'data:image/(\w+);base64,(.*)', data['picture']).groups()
    return kind, Image.open(io.BytesIO(base64.b64decode(content)))


def test_picture_in_the_page(tmp_path):
    """Small, of the right kind, and without what its file says of place and time."""
    exif = Image.Exif()
    exif[0x010E] = 'at home'
    photograph = Image.open(TESTS / 'photographs' / 'cat.jpg').resize((1600, 1200))
    photograph.save(tmp_path / 'a.jpg', exif=exif, comment=b'a secret', icc_profile=b'mine')
    photograph = Image.open(tmp_path / 'a.jpg')
    model = uneven('aa_simplecnn')
    kind, shown = shown_picture(data := read_data(make_page(model, photograph)))
    assert (kind, shown.size, data['width'], data['height']) == ('jpeg', (1024, 768), 1600, 1200)
    assert not shown.getexif() and not {'comment', 'icc_profile', 'exif'} & set(shown.info)
    reduced = photograph.resize((1024, 768), Image.Resampling.BICUBIC)
    assert numpy.abs(numpy.asarray(shown, float) - numpy.asarray(reduced, float)).mean() < 3
    drawing = Image.new('RGB', (40, 30), 'white')
    kind, shown = shown_picture(read_data(make_page(model, drawing)))
    assert kind == 'png' and shown.convert('RGB').tobytes() == drawing.tobytes()


def test_colours_are_those_of_the_figures():
    stops = re.search(r"STOPS = \[(.*)\]", make_page(uneven('aa_simplecnn'), noise(20, 20)))[1].split(', ')
    assert [stop.strip("'") for stop in stops] == [
        to_hex(colormaps['inferno'](round(255 * i / 8) / 255)) for i in range(9)]
