"""A page to look at attention in a browser: one file that needs no server and no network.

`page.html` is the page; what it shows is put into it as JSON.
"""
import base64
import html
import io
import json
import re
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from aa_models.layers import GridAttention

from .compact_maps import CompactMaps, choose_blocks, compact
from .maps import ATTENTION, Names, read_attention
from .queries import feed_whole

LARGEST = 5_000_000  # bytes of a page: it can be sent by mail
_SHOWN = 1024  # longer side of the picture in a page, pixels
_BASE64 = 4 / 3  # characters for a byte
_REST = 100_000  # characters for names and all else that is neither picture nor weights


def attention_page(
        model: nn.Module, picture: Image.Image, *, model_name: str, picture_name: str,
        query: tuple[int, int] | None = None, layers: Names = '*', img_size: int | None = None,
) -> tuple[str, dict[str, CompactMaps]]:
    """Make a page that shows where each position of a picture looks, in every layer and head.

    Args:
        model: Network that takes pictures.
        picture: The picture, of any size and mode.
        model_name: Shown above; any text.
        picture_name: Shown above; any text.
        query: Column and row of the pixel that is shown at first, by default the centre.
        layers: Pattern of the layers' names, or several.
        img_size: Side of a square of as many pixels as the picture is resized to in proportion; by default the model's.

    Returns:
        The page, of less than 5 MB, and what it holds of each layer. Where whole maps would take more, it holds the
        means of blocks of cells, and says so.

    Raises:
        InputError: The model takes something else than pictures, has no such layer, or would take too much memory.
    """
    x = feed_whole(model, picture, layers, img_size)
    sizes = read_attention(model, x, lambda layer, x: (layer.num_heads, layer.map_size(x)), layers)
    template = Path(__file__).with_name('page.html').read_text(encoding='utf-8')
    shown = _data_uri(picture)
    blocks = choose_blocks(sizes, (LARGEST - _REST - len(template) - len(shown)) / _BASE64)
    names = {module: name for name, module in model.named_modules() if name in sizes}

    def read(layer: GridAttention, x: torch.Tensor) -> CompactMaps:
        return compact(layer.attention_map(x)[0], layer.map_size(x), blocks[names[layer]])

    maps = read_attention(model, x, read, layers)
    data = dict(
        model=model_name, file=picture_name, picture=shown, width=picture.width, height=picture.height,
        start=query or (picture.width // 2, picture.height // 2),
        layers=[_as_json(name, layer) for name, layer in maps.items()])
    parts = {'title': _as_text(f'What {model_name} looks at: {picture_name}'), 'data': _in_script(data)}
    return re.sub(r'{{(\w+)}}', lambda match: parts[match[1]], template), maps


def _data_uri(picture: Image.Image) -> str:
    """The picture for a page: no larger than can be seen there, without what else its file says, such as a place."""
    small = picture.convert('RGB')
    small.thumbnail((_SHOWN, _SHOWN))
    small.info.clear()
    files = {}
    for format, options in (('jpeg', dict(quality=90, subsampling=0)), ('png', {})):
        with io.BytesIO() as file:
            small.save(file, format, **options)
            files[format] = file.getvalue()
    format = min(files, key=lambda format: len(files[format]))  # JPEG for photographs
    return f'data:image/{format};base64,{_base64(files[format])}'


def _as_json(name: str, maps: CompactMaps) -> dict[str, str | int]:
    return dict(
        name=name.removesuffix(ATTENTION), height=maps.height, width=maps.width, block=maps.block,
        heads=len(maps.codes), largest=_base64(maps.largest.numpy().astype('<f4').tobytes()),
        codes=_base64(maps.codes.numpy().tobytes()))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode('ascii')


def _as_text(text: str) -> str:
    """Any text for HTML; a name of a file may hold what is no character."""
    return html.escape(text).encode('ascii', 'xmlcharrefreplace').decode('ascii')


def _in_script(data: object) -> str:
    """JSON for a script element, which no text in it can end: it holds no < and nothing but ASCII."""
    return json.dumps(data, separators=(',', ':')).replace('<', r'\u003c')
