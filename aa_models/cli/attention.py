"""Show what a network looks at: attention maps over a picture.

Without --layer an overview: one panel for each attention layer, the mean over its heads. With --layer one panel for
each head of that layer. A panel shows how much the query, the marked pixel, attends to each part of the picture, and
above it stands the largest weight. The bar beside the panels is the scale of all of them: 1 is a map's average weight,
what each part would get if attention made no difference between them.

The network gets the whole picture in its own proportions, resized to about as many pixels as the model was trained at
(`predict` crops the middle). So the query can be any pixel of the picture: it is counted from the top left corner of
the upright picture, and the weights shown are those of the cell of the layer's map in which it lies, framed in each
panel.

With --html it writes a page instead, to look at all layers and heads: the query follows the pointer or the arrow keys.
It is one file below 5 MB for any browser, without a server or network, and needs no matplotlib. --layer then chooses
the layers, by a pattern, and --query where it begins.

Examples:
  aa-models attention cat.jpg
  aa-models attention cat.jpg --query 120,80 --layer layer3.0.conv1 -o cat_attention.png
  aa-models attention cat.jpg --html cat.html
  aa-models attention cat.jpg --html cat.html --layer 'layer3.*' --img-size 320
  aa-models attention cat.jpg --model local-dir:output/my_model --img-size 320
"""
import argparse
import os
from typing import TYPE_CHECKING

from aa_models.durable import check_file, replace_text
from aa_models.errors import InputError

from .options import add_device, add_model, path_text

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('image', type=path_text, metavar='IMAGE', help='a picture in any format')
    add_model(parser)
    parser.add_argument('--layer', metavar='NAME', help='show the heads of this layer, which has its name above its '
                        'panel of the overview (default: the overview of all)')
    parser.add_argument(
        '--query', metavar='X,Y', help='column and row of the query pixel, 0,0 at the top left (default: centre)')
    parser.add_argument('--img-size', type=int, metavar='PX', help='the picture is resized to about as many pixels as '
                        "a square of this side has (default: the model's)")
    files = parser.add_mutually_exclusive_group()
    files.add_argument(
        '-o', '--output', type=path_text, default='attention.png', metavar='FILE',
        help='the picture to write (default: %(default)s)')
    files.add_argument('--html', type=path_text, metavar='FILE', help='the page to write instead (default: none)')
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    if args.img_size is not None and args.img_size < 1:
        raise InputError(f'--img-size must be at least 1, not {args.img_size}')
    from aa_models.data.pictures import find_pictures, read_picture
    from aa_models.device import find_device
    from aa_models.models.create import build_model, check_name

    if args.html:
        _check_html(args.html)
    else:
        from aa_models.analysis.plotting import check_plot
        check_plot(args.output)
    device = find_device(args.device)
    check_name(args.model, weights=True)
    path, *more = find_pictures([args.image])
    if more:
        raise InputError(f'IMAGE must be one picture, and {args.image} is a folder of {1 + len(more)}')
    picture = read_picture(path)
    query = _parse_query(args.query, picture.size)
    model = build_model(args.model, pretrained=True).to(device).eval()
    layers = None if args.layer is None else _find_layers(model, args.layer)
    if args.html:
        _write_page(args, model, picture, query, layers)
    else:
        _write_picture(args, model, picture, query, layers)
    return 0


def _write_picture(
        args: argparse.Namespace, model: 'nn.Module', picture: 'Image', query: tuple[int, int],
        layers: list[str] | None,
) -> None:
    from aa_models.analysis.figures import draw
    from aa_models.analysis.maps import ATTENTION
    from aa_models.analysis.plotting import save_plot
    from aa_models.analysis.queries import attention_from, cell_of

    if layers and len(layers) > 1:
        raise InputError(f'--layer {args.layer!r} must choose one layer, it chooses {", ".join(layers)}')
    weights = attention_from(model, picture, query, layers or '*', args.img_size)
    panels = {f'head {i}': head for i, head in enumerate(weights[layers[0]])} if layers else {
        f'{i}. {name.removesuffix(ATTENTION)}': heads.mean(0)
        for i, (name, heads) in enumerate(weights.items(), start=1)}
    shown = layers[0].removesuffix(ATTENTION) if layers else 'mean over the heads of each layer'
    title = f'{args.model}, {shown}, query {query[0]},{query[1]}'
    save_plot(draw(picture, query, panels, title), args.output)
    for name, heads in weights.items():
        num_heads, H, W = heads.shape
        row, column = cell_of(query, picture.size, (H, W))
        print(f'{name}: {num_heads} heads on a map of {H} x {W}, the query in row {row}, column {column}')
    print(f'wrote {args.output}')


def _write_page(
        args: argparse.Namespace, model: 'nn.Module', picture: 'Image', query: tuple[int, int],
        layers: list[str] | None,
) -> None:
    from aa_models.analysis.page import attention_page

    page, maps = attention_page(
        model, picture, model_name=args.model, picture_name=os.path.basename(args.image), query=query,
        layers=layers or '*', img_size=args.img_size)
    replace_text(args.html, page, f'html = {args.html!r}')
    for name, layer in maps.items():
        blocks = f', in blocks of {layer.block} x {layer.block} cells' if layer.block > 1 else ''
        print(f'{name}: {len(layer.codes)} heads on a map of {layer.height} x {layer.width}{blocks}')
    print(f'wrote {args.html}')


def _check_html(path: str) -> None:
    """Make sure, before any work, that a page can be written there."""
    if not path.lower().endswith(('.html', '.htm')):
        raise InputError(f'html = {path!r} must end in .html or .htm')
    check_file(path, 'html')


def _parse_query(text: str | None, size: tuple[int, int]) -> tuple[int, int]:
    """Turn `--query` into a pixel of a picture of that width and height; the centre by default."""
    if text is None:
        return size[0] // 2, size[1] // 2
    try:
        x, y = map(int, text.split(','))
    except ValueError:
        raise InputError(f'--query must be X,Y, two whole numbers, not {text!r}') from None
    if not (0 <= x < size[0] and 0 <= y < size[1]):
        raise InputError(f'--query {text} is outside the picture of {size[0]} x {size[1]} pixels, counted from 0,0')
    return x, y


def _find_layers(model: 'nn.Module', pattern: str) -> list[str]:
    from aa_models.analysis.maps import ATTENTION, attention_layers
    try:
        known = attention_layers(model)
        return [name] if (name := pattern + ATTENTION) in known else list(attention_layers(model, pattern))
    except InputError as error:
        raise InputError(f'--layer: {error}') from None
