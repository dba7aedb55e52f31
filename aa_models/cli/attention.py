"""Show what a network looks at: attention maps over a picture.

Without --layer an overview: one panel for each attention layer, the mean over its heads. With --layer one panel for
each head of that layer. A panel shows how much the query, the marked pixel, attends to each part of the picture; its
brightest colour is the largest weight, which stands above it, and black is none.

The whole picture is fed, in its own proportions and with about as many pixels as the model was trained at (`predict`
crops its middle). So the query can be any pixel of the picture: it is counted from the top left corner of the upright
picture, and the weights shown are those of the cell of the layer's map in which it lies, framed in each panel.

Examples:
  aa-models attention cat.jpg
  aa-models attention cat.jpg --query 120,80 --layer layer3.0.conv1.attn -o cat_attention.png
  aa-models attention cat.jpg --model local-dir:output/my_model --img-size 320
"""
import argparse
import math

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn

from aa_models.analysis.maps import attention_layers, read_attention
from aa_models.analysis.plotting import check_plot
from aa_models.analysis.prediction import DEFAULT_MODEL, find_device
from aa_models.data.pictures import find_pictures, picture_mode, read_picture
from aa_models.layers import GridAttention
from aa_models.models.create import check_name

__all__ = ['add_arguments', 'run', 'seen_from']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument('image', metavar='IMAGE', help='picture')
    parser.add_argument(
        '--model', default=DEFAULT_MODEL, metavar='NAME',
        help='model with weights, local-dir:FOLDER or hf-hub:OWNER/NAME (default: %(default)s)')
    parser.add_argument('--layer', metavar='NAME', help='show the heads of this layer (default: an overview of all)')
    parser.add_argument(
        '--query', metavar='X,Y', help='column and row of the pixel that looks, 0,0 at the top left (default: centre)')
    parser.add_argument(
        '--img-size', type=int, metavar='PX',
        help="side of a square of as many pixels as are fed (default: the model's)")
    parser.add_argument(
        '-o', '--output', default='attention.png', metavar='FILE', help='the picture to write (default: %(default)s)')
    parser.add_argument(
        '--device', default='', help='cpu, cuda, cuda:1, mps (default: an accelerator where there is one)')


def run(args: argparse.Namespace) -> int:
    """Check what was asked for, read the attention, draw it and say what is shown.

    Raises:
        ValueError: An option, model or picture that cannot be used.
        FileNotFoundError: The picture does not exist.
    """
    if args.img_size is not None and args.img_size < 1:
        raise ValueError(f'--img-size must be at least 1, not {args.img_size}')
    check_plot(args.output)
    device = find_device(args.device)
    check_name(args.model)
    picture = _read_one(args.image)
    query = _parse_query(args.query, picture.size)
    model = timm.create_model(args.model, pretrained=True).to(device).eval()
    layer = None if args.layer is None else _one_layer(model, args.layer)
    weights = seen_from(model, picture, query, layer or '*', args.img_size)
    if layer:
        panels = {f'head {i}': head for i, head in enumerate(weights[layer])}
    else:
        panels = {name: heads.mean(0) for name, heads in weights.items()}
    from aa_models.analysis.figures import draw

    title = f'{args.model}{f", {layer}" if layer else ", mean over the heads"}, query {query[0]},{query[1]}'
    draw(picture, query, panels, title).savefig(args.output, dpi=150)
    for name, heads in weights.items():
        num_heads, H, W = heads.shape
        row, column = _cell(query, picture.size, (H, W))
        print(f'{name}: {num_heads} heads on a map of {H} x {W}, the query in row {row}, column {column}')
    print(f'wrote {args.output}')
    return 0


def seen_from(
        model: nn.Module,
        picture: Image.Image,
        query: tuple[int, int],
        layers: str = '*',
        img_size: int | None = None,
) -> dict[str, torch.Tensor]:
    """What one pixel of a picture attends to.

    Args:
        model: Network that reads pictures.
        picture: The picture, any size and mode.
        query: Column and row of the pixel.
        layers: Pattern of the layers' names.
        img_size: Side of a square that has as many pixels as the picture is fed with; by default as many as the model
            was trained at. The picture keeps its proportions.

    Returns:
        For the name of each layer (num_heads, H, W), each head's weights summing to 1, on the CPU.

    Raises:
        ValueError: The model reads something else than pictures, or has no such layer.
    """
    config = resolve_data_config(model=model)
    channels, height, width = config['input_size']
    area = img_size ** 2 if img_size else height * width
    scale = math.sqrt(area / (picture.width * picture.height))
    size = [max(1, round(side * scale)) for side in (picture.height, picture.width)]
    # nothing cropped: `crop_mode='squash'` resizes to just this size
    transform = create_transform(
        **{**config, 'input_size': (channels, *size), 'crop_pct': 1., 'crop_mode': 'squash'})
    parameter = next(model.parameters())
    x = transform(picture.convert(picture_mode(channels)))[None].to(parameter.device, parameter.dtype)  # (1, C, H, W)

    def row_of_query(layer: GridAttention, x: torch.Tensor) -> torch.Tensor:
        map_size = layer.map_size(x)
        row, column = _cell(query, picture.size, map_size)
        weights = layer.attention_map(x)[0, :, row * map_size[1] + column]  # (num_heads, H * W)
        return weights.unflatten(1, map_size).float().cpu()

    return read_attention(model, x, row_of_query, layers)


def _cell(query: tuple[int, int], picture_size: tuple[int, int], map_size: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the map's cell in which a pixel (x, y) lies, the map being stretched over the picture."""
    (x, y), (width, height), (H, W) = query, picture_size, map_size
    return y * H // height, x * W // width


def _read_one(path: str) -> Image.Image:
    """Read the one picture asked for."""
    paths = find_pictures([path])
    if len(paths) > 1:
        raise ValueError(f'IMAGE must be one picture, and {path} is a folder of {len(paths)}')
    return read_picture(paths[0])


def _parse_query(text: str | None, size: tuple[int, int]) -> tuple[int, int]:
    """Turn `--query` into a pixel of a picture of that width and height; the centre by default."""
    if text is None:
        return size[0] // 2, size[1] // 2
    try:
        x, y = map(int, text.split(','))
    except ValueError:
        raise ValueError(f'--query must be X,Y, two whole numbers, not {text!r}') from None
    if not (0 <= x < size[0] and 0 <= y < size[1]):
        raise ValueError(f'--query {text} is outside the picture of {size[0]} x {size[1]} pixels, counted from 0,0')
    return x, y


def _one_layer(model: nn.Module, pattern: str) -> str:
    """The name of the only layer that `--layer` matches."""
    try:
        names = list(attention_layers(model, pattern))
    except ValueError as error:
        raise ValueError(f'--layer: {error}') from None
    if len(names) > 1:
        raise ValueError(f'--layer {pattern!r} must choose one layer, it chooses {", ".join(names)}')
    return names[0]
