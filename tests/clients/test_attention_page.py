"""The page to look at attention in Chromium, opened from a file: what pointer and keys show is what the network does.

Needs the programs `chromium` and `chromedriver` (Debian: packages `chromium` and `chromium-driver`) and selenium.
"""
import json
import re
import shutil
from dataclasses import dataclass
from itertools import pairwise

import numpy
import pytest
import timm
import torch
from matplotlib import colormaps
from PIL import Image

import aa_models
from aa_models.analysis import page as page_module
from aa_models.analysis.queries import feed_whole
from aa_models.cli.main import main
from command import answered
from repository import TESTS

pytestmark = [pytest.mark.clients, pytest.mark.skipif(
    not (shutil.which('chromium') and shutil.which('chromedriver')), reason='needs chromium and chromedriver')]
FLAGS = [
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
    '--disable-background-networking', '--disable-component-update']
TEDDY = TESTS / 'photographs' / 'teddy.jpg'
NAME = 'aa_resnet18.tiny_in'


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    webdriver = pytest.importorskip('selenium.webdriver')
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium')
    for flag in (*FLAGS, f'--user-data-dir={tmp_path_factory.mktemp("profile")}'):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which('chromedriver')))
    yield browser
    browser.quit()


@dataclass
class Shown:
    """What the page says: where the position is, what it looks at most, and how many times the average."""
    query: tuple[int, int]
    most: tuple[int, int]
    multiple: float


class Page:
    """A page in the browser, handled as a person does."""

    def __init__(self, browser, path, width=1120, height=1100, scheme='light'):
        self.browser = browser
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(
            width=width, height=height, deviceScaleFactor=1, mobile=False))
        browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(
            features=[dict(name='prefers-color-scheme', value=scheme)]))
        browser.get(path.as_uri())

    def run(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def find(self, selector):
        return self.browser.find_element('css selector', selector)

    def choose(self, strip, index):
        """Click on one of the small maps."""
        self.browser.find_elements('css selector', f'#{strip} label')[index].click()

    def point(self, x, y, panel='picture', click=False):
        """Move the pointer to a place of a panel, given in parts of its sides; returns that place as it came out."""
        from selenium.webdriver import ActionChains
        self.run('scrollTo(0, 0)')
        box = self.box(f'#{panel}')
        place = round(box['x'] + x * box['width']), round(box['y'] + y * box['height'])
        actions = ActionChains(self.browser)
        actions.w3c_actions.pointer_action.move_to_location(*place)
        if click:
            actions.click()
        actions.perform()
        self.run('return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))')
        return (place[0] - box['x']) / box['width'], (place[1] - box['y']) / box['height']

    def press(self, *keys):
        from selenium.webdriver import ActionChains
        ActionChains(self.browser).send_keys(*keys).perform()

    def box(self, selector):
        return self.run('return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()', selector)

    def frame(self, kind):
        """Bounds of a frame over the map, in parts of its sides: left, top, right, bottom."""
        panel, frame = self.box('#map'), self.box(f'#map .frame.{kind}')
        return [(frame[side] - panel[start]) / panel[length] for side, start, length in (
            ('left', 'x', 'width'), ('top', 'y', 'height'), ('right', 'x', 'width'), ('bottom', 'y', 'height'))]

    def pixels(self):
        """The colours of the map, (H, W, 4)."""
        width, height, colours = self.run(
            "const canvas = document.querySelector('#map canvas'), {width, height} = canvas;"
            "return [width, height, [...canvas.getContext('2d').getImageData(0, 0, width, height).data]]")
        return numpy.array(colours).reshape(height, width, 4)

    def shown(self):
        words = r'Row (\d+), column (\d+): looks most at row (\d+), column (\d+) \(([\d.]+) times the average\)'
        *cells, multiple = re.match(words, self.find('#answer').text).groups()
        row, column, most_row, most_column = map(int, cells)
        return Shown((row, column), (most_row, most_column), float(multiple))


@pytest.fixture(scope='module')
def teddy(tmp_path_factory):
    """The page of a photograph by the command line; for each layer its size, and its maps in multiples of the average.

    The maps are (1 + num_heads, H, W, H, W), the mean over the heads before those of the heads.
    """
    path = tmp_path_factory.mktemp('page') / 'teddy.html'
    words = ['attention', TEDDY, '--model', NAME, '--img-size', 224, '--html', path, '--device', 'cpu']
    assert main([str(word) for word in words]) == 0
    model = timm.create_model(NAME, pretrained=True).eval()
    x = feed_whole(model, Image.open(TEDDY), img_size=224)
    sizes = page_module.read_attention(model, x, lambda layer, x: layer.map_size(x))
    maps = {}
    for name, weights in aa_models.attention_maps(model, x).items():
        multiples = weights[0].unflatten(2, sizes[name]).unflatten(1, sizes[name]) * weights.shape[-1]
        maps[name.removesuffix('.attn')] = torch.cat([multiples.mean(0, keepdim=True), multiples]).numpy()
    return path, maps


def check(page, map_, size, place):
    """What the page shows from a place is what a map (H, W, H, W) holds."""
    shown, (x, y) = page.shown(), place
    row, column = shown.query
    assert (row, column) == (int(y * size[0]), int(x * size[1]))
    weights = map_[row, column]
    assert weights[shown.most] >= 0.996 * weights.max() > 0
    assert shown.multiple == pytest.approx(weights.max(), rel=0.011)  # three digits, and 0.4 % of each head
    for kind, (r, c) in (('query', shown.query), ('most', shown.most)):
        bounds = [c / size[1], r / size[0], (c + 1) / size[1], (r + 1) / size[0]]
        assert page.frame(kind) == pytest.approx(bounds, abs=1e-3)
    light = page.pixels()[..., :3].sum(-1)  # in this scale of colours more is lighter
    assert light.shape == size and light[shown.most] == light.max()
    order = numpy.argsort(weights, axis=None)
    assert numpy.all(numpy.diff(light.flat[order]) >= -12)  # steps of 8 bits apart, as the weights are ordered


@pytest.mark.parametrize('layer', [0, 3, 5])
@pytest.mark.parametrize('head', [0, 1, 8])
def test_map_follows_the_pointer(layer, head, browser, teddy):
    path, maps = teddy
    page = Page(browser, path)
    page.choose('layers', layer)
    page.choose('heads', head)
    name, of_heads = list(maps.items())[layer]
    said = page.find('#map-heading').text
    assert name in said and ('average' if head == 0 else f'head {head - 1}') in said
    seen = set()
    for x, y, panel in ((0.1, 0.1, 'picture'), (0.52, 0.45, 'picture'), (0.99, 0.99, 'map'), (0.8, 0.6, 'map')):
        place = page.point(x, y, panel)
        check(page, of_heads[head], of_heads.shape[1:3], place)
        seen.add(page.find('#answer').text)
    assert len(seen) == 4
    page.point(0.5, 1.15)  # off the picture: the last one stays
    assert page.find('#answer').text in seen


def colours(weights, high):
    """What the page's scale says: the logarithm from a quarter of the average to the largest weight of the page."""
    with numpy.errstate(divide='ignore'):
        place = numpy.log(weights / 0.25) / numpy.log(high / 0.25)
    stops = numpy.array([colormaps['inferno'](round(255 * i / 8) / 255)[:3] for i in range(9)]) * 255
    return numpy.stack([numpy.interp(place, numpy.linspace(0, 1, 9), channel) for channel in stops.T], -1)


def test_small_maps_are_those_of_their_layer_and_head(browser, teddy):
    """In the colours of one scale, which the bar shows."""
    path, maps = teddy
    high = max(heads[1:].max() for heads in maps.values())
    page = Page(browser, path)
    page.choose('layers', 3)
    x, y = page.point(0.3, 0.3)
    cells = "return [...document.querySelectorAll(arguments[0] + ' canvas')].map((canvas) => [canvas.height, " \
            "canvas.width, [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]])"
    wanted = {'#layers': [heads[0] for heads in maps.values()], '#heads': list(maps['layer3.1.conv1'])}
    for strip, expected in wanted.items():
        found = page.run(cells, strip)
        assert len(found) == len(expected)
        for (height, width, pixels), map_ in zip(found, expected):
            assert (height, width) == map_.shape[:2]
            drawn = numpy.array(pixels).reshape(height, width, 4)[..., :3]
            # weights of 0.4 % of the largest are known to a tenth of themselves, and colours lie close there
            assert abs(drawn - colours(map_[int(y * height), int(x * width)], high)).max() <= 20
    assert page.find('.ticks span:last-child').text == f'{high:.3g} ×'


def test_keyboard_alone(browser, teddy):
    from selenium.webdriver import Keys
    path, maps = teddy
    page = Page(browser, path)
    page.press(Keys.TAB)
    assert page.run('return document.activeElement.id') == 'picture'
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == 'solid'  # the focus is seen
    map_ = maps['layer2.0.conv1']
    height, width = map_.shape[1:3]
    middle = (height // 2, width // 2)
    assert page.shown().query == middle
    for keys, cell in (
            ([Keys.ARROW_UP], (middle[0] - 1, middle[1])), ([Keys.ARROW_LEFT], (middle[0] - 1, middle[1] - 1)),
            ([Keys.END], (middle[0] - 1, width - 1)), ([Keys.ARROW_RIGHT], (middle[0] - 1, width - 1)),
            ([Keys.HOME, Keys.ARROW_DOWN], (middle[0], 0)), ([Keys.ARROW_DOWN] * height, (height - 1, 0))):
        page.press(*keys)
        check(page, map_[0], (height, width), ((cell[1] + 0.5) / width, (cell[0] + 0.5) / height))
    for keys, layer, head in (('l', 1, 'average'), ('h', 1, 'head 0'), ('LL', 5, 'head 0'), ('HH', 5, 'head 7')):
        page.press(keys)
        heading = page.find('#map-heading').text
        assert list(maps)[layer] in heading and head in heading
        chosen = page.run("return [...document.querySelectorAll('input:checked')].map("
                          '(input) => [...input.closest(".strip").querySelectorAll("input")].indexOf(input))')
        assert chosen == [layer, 0 if head == 'average' else int(head[-1]) + 1]
    page.press(Keys.TAB, Keys.TAB, Keys.ARROW_LEFT)  # past the slider to the layers, of which one is chosen by arrows
    assert 'layer4.0.conv1' in page.find('#map-heading').text
    page.press(Keys.TAB, Keys.ARROW_LEFT)
    assert 'head 6' in page.find('#map-heading').text
    assert page.run("return document.querySelector('[aria-live=polite]').id") == 'answer'  # read aloud as it changes


def test_click_holds_and_tap_chooses(browser, teddy):
    path, maps = teddy
    page = Page(browser, path)
    place = page.point(0.3, 0.3, click=True)
    held = page.find('#answer').text
    page.point(0.7, 0.7)
    assert page.find('#answer').text == held and 'held' in page.find('#picture-heading').text
    place = page.point(0.7, 0.7, click=True)
    check(page, maps['layer2.0.conv1'][0], maps['layer2.0.conv1'].shape[1:3], place)
    assert page.point(0.2, 0.8) and page.find('#answer').text != held
    box = page.box('#picture')
    where = dict(x=box['x'] + 0.6 * box['width'], y=box['y'] + 0.4 * box['height'])
    for kind, points in (('touchStart', [where]), ('touchEnd', [])):
        browser.execute_cdp_cmd('Input.dispatchTouchEvent', dict(type=kind, touchPoints=points))
    page.run('return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))')
    check(page, maps['layer2.0.conv1'][0], maps['layer2.0.conv1'].shape[1:3], (0.6, 0.4))


def luminance(colour):
    """Relative luminance by WCAG of what `getComputedStyle` says."""
    channels = numpy.array([int(part) for part in re.findall(r'\d+', colour)[:3]]) / 255
    linear = numpy.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_light_and_dark(scheme, browser, teddy):
    page = Page(browser, teddy[0], scheme=scheme)
    style = 'return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]'
    ground = luminance(page.run(style, 'body', 'backgroundColor'))
    assert (ground > 0.5) == (scheme == 'light')
    for selector, behind in (
            ('h1', 'body'), ('.quiet', 'body'), ('.answer', '.answer'), ('.strip .name', '.strip label'),
            ('.strip small', '.strip label'), ('.ticks span', 'body')):
        low, high = sorted((luminance(page.run(style, selector, 'color')),
                            luminance(page.run(style, behind, 'backgroundColor'))))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector


@pytest.mark.parametrize('width', [320, 700, 1600])
def test_any_width(width, browser, teddy):
    """Nothing sticks out, and the labels of the scale lie side by side."""
    page = Page(browser, teddy[0], width=width)
    assert page.run('return document.documentElement.scrollWidth') <= width
    assert min(page.box('#map')['width'], page.box('#picture')['width']) > 250
    ticks = page.run("return [...document.querySelectorAll('.ticks span')].map((tick) => "
                     '[tick.getBoundingClientRect().left, tick.getBoundingClientRect().right])')
    assert len(ticks) >= 4 and all(left[1] < right[0] for left, right in pairwise(ticks))


@pytest.mark.parametrize('size', [(900, 4), (3, 500), (1, 1)])
def test_odd_shapes(size, browser, tmp_path):
    model = timm.create_model('aa_simplecnn').eval()
    picture = Image.effect_noise(size, 90).convert('RGB')
    (tmp_path / 'a.html').write_text(page_module.attention_page(model, picture, model_name='', picture_name='')[0])
    name, weights = next(iter(aa_models.attention_maps(model, x := feed_whole(model, picture)).items()))
    shape = page_module.read_attention(model, x, lambda layer, x: layer.map_size(x))[name]
    page = Page(browser, tmp_path / 'a.html')
    map_ = (weights[0].mean(0) * weights.shape[-1]).reshape(*shape, *shape).numpy()
    for place in ((0.2, 0.3), (0.8, 0.7)):
        check(page, map_, shape, page.point(*place))


def test_maps_in_blocks(browser, tmp_path, monkeypatch):
    """Blocks of 3 x 3 cells of a map of 16 x 16: the last ones are narrower, and drawn so."""
    monkeypatch.setattr(page_module, 'LARGEST', 200_000)
    model = timm.create_model('aa_simplecnn').eval()
    picture = Image.effect_noise((40, 40), 90).convert('RGB')
    text, maps = page_module.attention_page(model, picture, model_name='', picture_name='', img_size=32)
    assert maps['stages.0.1.conv.attn'].block == 3
    (tmp_path / 'a.html').write_text(text)
    page = Page(browser, tmp_path / 'a.html')
    page.point(0.97, 0.2)
    row, column = page.shown().query
    assert (row, column) == (1, 5) and 'blocks of 3 × 3 cells' in page.find('#answer').text
    assert page.frame('query') == pytest.approx([15 / 16, 3 / 16, 1, 6 / 16], abs=1e-3)
    weights = aa_models.attention_maps(model, feed_whole(model, picture, img_size=32))['stages.0.1.conv.attn'][0]
    cells = weights.mean(0).reshape(16, 16, 16, 16)[3:6, 15:].mean((0, 1)) * 256
    blocks = numpy.array([[cells[y:y + 3, x:x + 3].mean() for x in range(0, 16, 3)] for y in range(0, 16, 3)])
    assert blocks[page.shown().most] >= 0.996 * blocks.max()
    assert page.shown().multiple == pytest.approx(blocks.max(), rel=0.011)
    assert 'blocks of 3 × 3 cells' in page.find('#notes').text and 'stages.0.1.conv' in page.find('#notes').text


def test_nothing_is_loaded_and_nothing_goes_wrong(browser, teddy):
    browser.get('about:blank')
    browser.get_log('performance'), browser.get_log('browser')
    page = Page(browser, teddy[0])
    page.point(0.5, 0.5)
    messages = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    asked = {message['params']['request']['url'] for message in messages
             if message['method'] == 'Network.requestWillBeSent'}
    assert teddy[0].as_uri() in asked and all(url.startswith(('file:', 'data:')) for url in asked)
    assert browser.get_log('browser') == []


def test_hostile_names(browser, tmp_path, capsys):
    """Of a file, as the command line takes it, and of a layer."""
    name = "<img src=x onerror=alert(1)>'\"&amp;{{data}}.png"
    Image.open(TESTS / 'pictures' / 'lion.png').save(tmp_path / name)
    answered(capsys, 'attention', tmp_path / name, '--model', 'aa_simplecnn.cifar100', '--html', tmp_path / 'a.html')
    page = Page(browser, tmp_path / 'a.html')
    assert page.find('#file').text == name
    assert browser.title == f'What aa_simplecnn.cifar100 looks at: {name}'
    page.point(0.5, 0.5)  # an open alert would make this fail
    assert page.run("return document.querySelectorAll('img').length") == 2
    model = torch.nn.Sequential(timm.create_model('aa_simplecnn').eval())
    model.pretrained_cfg = model[0].pretrained_cfg
    model._modules['</script><script>alert(1)</script>'] = model._modules.pop('0')
    (tmp_path / 'b.html').write_text(page_module.attention_page(
        model, Image.new('RGB', (9, 9)), model_name='</title><script>alert(1)</script>', picture_name='a')[0])
    page = Page(browser, tmp_path / 'b.html')
    assert page.find('#layers .name').text.startswith('</script><script>alert(1)')
    page.point(0.5, 0.5)
    assert page.run("return document.querySelectorAll('script').length") == 2
