"""Files of a model that need none of this package: ONNX, and programs of torch.export."""
import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from timm.data import resolve_input_data_config
from torch import nn

from aa_models.durable import check_file, written_whole
from aa_models.errors import InputError
from aa_models.models.create import build_model, check_image_size, parsed_name
from aa_models.models.memory import check_pass

SUFFIXES = {'onnx': '.onnx', 'torch-export': '.pt2'}

Shape = tuple[int, int, int, int]


def export_pretrained(
        name: str, format: str, output: Path | None = None, *, batch_size: int = 1,
        img_size: Sequence[int] | None = None, dynamic: bool = False,
        report: Callable[[str], object] = lambda step: None,
) -> tuple[Path, Shape]:
    """Export a model with its weights, all arguments being checked before any work.

    Args:
        name: As timm knows it: a name or tag, `local-dir:…`, `hf-hub:…`.
        format: `'onnx'` or `'torch-export'`.
        output: The file; by default the last part of `name`, with the format's suffix.
        batch_size: Images in a batch.
        img_size: Height and width of the images, by default the model's.
        dynamic: Leave batch, height and width free.
        report: Told of what is done, before it is done.

    Returns:
        The file, and batch, channels, height and width of what it was exported with.

    Raises:
        InputError: An argument or model that cannot be used, or a package that is missing.
        NoSuchFileError: The folder of `output` does not exist.
        WriteError: The file cannot be written. An earlier one is there.
    """
    if format not in SUFFIXES:
        raise InputError(f'format = {format!r} must be one of {", ".join(SUFFIXES)}')
    for argument, values in (('batch_size', [batch_size]), ('img_size', list(img_size or (1,)))):
        if min(values) < 1:
            raise InputError(f'{argument} = {" ".join(map(str, values))} must be at least 1')
    missing = [name for name in ('onnx', 'onnxscript') if not importlib.util.find_spec(name)]
    if format == 'onnx' and missing:
        raise InputError(f"format = 'onnx' needs {' and '.join(missing)}: pip install 'aa-models[export]'")
    output = output or Path(f'{_last_part(name)}{SUFFIXES[format]}')
    if output.suffix != SUFFIXES[format]:
        raise InputError(f'output = {str(output)!r} must be a {SUFFIXES[format]} file')
    check_file(output, 'output')
    model = build_model(name, pretrained=True, exportable=True).eval()
    if dynamic and (padded := _padded_by_size(model)):
        raise InputError(
            f"dynamic: {name} cannot be exported for any size, as {padded} has 'same' padding, which depends on the "
            'size of the map; export a file for each size, with img_size')
    channels, *own_size = resolve_input_data_config(model)['input_size']
    height, width = img_size or own_size
    shape = (batch_size, channels, height, width)
    check_pass(model, shape, f'a batch of {batch_size} with {height} x {width} pixels')
    check_image_size(model, shape[1:])  # the exporters' own errors would bury the reason
    report(f'tracing it with {"x".join(map(str, shape))} and writing {output}, which may take a minute')
    export_model(model, shape, output, format, dynamic)
    return output, shape


def _last_part(name: str) -> str:
    """A name or tag as it is, of a repository or folder what it is called."""
    source, rest = parsed_name(name)
    return Path(rest).resolve().name if source == 'local-dir' else rest.rpartition('/')[2]


def _padded_by_size(model: nn.Module) -> str | None:
    """The first layer that pads as TensorFlow does, by an amount worked out from the size of its map; None for none."""
    return next((
        name for name, module in model.named_modules() for kind in type(module).__mro__
        if kind.__module__.startswith('timm.layers.') and kind.__name__.endswith('Same')), None)


@torch.no_grad()
def export_model(
        model: nn.Module, shape: Shape, output: Path, format: str = 'torch-export', dynamic: bool = False,
) -> None:
    """Write a model as a file that needs none of this package; whole or not at all.

    Args:
        model: In eval mode.
        shape: Batch, channels, height and width of the images it is traced with.
        output, format, dynamic: As in `export_pretrained`.

    Raises:
        WriteError: The file cannot be written. An earlier one is there.
    """
    # torch.export takes a dimension of size 1 for a constant
    traced = [max(n, 2) for n in shape] if dynamic else shape
    x = torch.randn(traced[0], shape[1], *traced[2:], device=next(model.parameters()).device)
    free = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),) if dynamic else None
    with written_whole(output, f'output = {str(output)!r}') as part, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the exporters warn of their own internals
        program = torch.export.export(model, (x,), dynamic_shapes=free)
        if format == 'onnx':
            # one file without external data: protobuf's limit of 2 GB is far above any model here
            torch.onnx.export(
                program, (x,), part, dynamo=True, dynamic_shapes=free, external_data=False, verbose=False,
                input_names=['input'], output_names=['logits'])
        else:
            buffer = io.BytesIO()  # where a file cannot be written, torch's own writer ends the whole process
            torch.export.save(program, buffer)
            part.write_bytes(buffer.getvalue())
