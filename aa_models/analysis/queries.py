"""A picture as a network gets it whole, and the attention of one of its pixels."""
import math

import torch
from PIL import Image
from timm.data import resolve_input_data_config
from torch import nn

from aa_models.data.pictures import picture_mode
from aa_models.layers import GridAttention
from aa_models.models.memory import check_pass

from .maps import Names, read_attention
from .prediction import make_transform


def attention_from(
        model: nn.Module, picture: Image.Image, query: tuple[int, int], layers: Names = '*',
        img_size: int | None = None,
) -> dict[str, torch.Tensor]:
    """The attention weights of the query in which one pixel of a picture lies.

    Args:
        model: Network that takes pictures.
        picture: The picture, of any size and mode.
        query: Column and row of the pixel.
        layers: Pattern of the layers' names, or several.
        img_size: Side of a square of as many pixels as the picture is resized to in proportion; by default the model's.

    Returns:
        For the name of each layer (num_heads, H, W), each head's weights summing to 1, on the CPU.

    Raises:
        InputError: The model takes something else than pictures, has no such layer, or would take too much memory.
    """
    x = feed_whole(model, picture, layers, img_size)

    def row_of_query(layer: GridAttention, x: torch.Tensor) -> torch.Tensor:
        map_size = layer.map_size(x)
        row, column = cell_of(query, picture.size, map_size)
        weights = layer.attention_map(x)[0, :, row * map_size[1] + column]  # (num_heads, H * W)
        return weights.unflatten(1, map_size).float().cpu()

    return read_attention(model, x, row_of_query, layers)


def feed_whole(
        model: nn.Module, picture: Image.Image, layers: Names = '*', img_size: int | None = None,
) -> torch.Tensor:
    """Make a network's input of a whole picture in its own proportions, for reading attention maps.

    Args:
        model: Network that takes pictures.
        picture: The picture, of any size and mode.
        layers: Pattern of the names of the layers whose maps are to be read, or several.
        img_size: As in `attention_from`.

    Returns:
        (1, C, H, W), on the model's device.

    Raises:
        InputError: The model takes something else than pictures, has no such layer, or would take too much memory.
    """
    channels, height, width = resolve_input_data_config(model)['input_size']
    area = img_size ** 2 if img_size else height * width
    scale = math.sqrt(area / (picture.width * picture.height))
    size = [max(1, round(side * scale)) for side in (picture.height, picture.width)]
    # `crop_mode='squash'` resizes to just this size and crops nothing
    transform = make_transform(model, input_size=(channels, *size), crop_pct=1., crop_mode='squash')
    check_pass(
        model, (1, channels, *size), f'attention over a picture of {size[0]} x {size[1]} pixels',
        lambda model, x: read_attention(model, x, GridAttention.attention_map, layers))
    parameter = next(model.parameters())
    return transform(picture.convert(picture_mode(channels)))[None].to(parameter.device, parameter.dtype)


def cell_of(query: tuple[int, int], picture_size: tuple[int, int], map_size: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the map's cell in which a pixel (x, y) lies when the map is stretched over the picture.

    Args:
        query: Column and row of the pixel.
        picture_size: Width and height of the picture.
        map_size: Height and width of the map.
    """
    (x, y), (width, height), (H, W) = query, picture_size, map_size
    return y * H // height, x * W // width
