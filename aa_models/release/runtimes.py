"""Export a model with its weights for other runtimes, as an ONNX file or a program of torch.export.

The file takes images, normalised, as `input` (batch, channels, height, width) in float32 and gives `logits` (batch,
classes). Without --dynamic batch and size are those it was exported with; with it they are free, as they are in
PyTorch: tables of relative positions are interpolated in the file, too.

Needs `pip install 'aa-models[export]'` for ONNX. The preprocessing is not in the file: `aa-models info NAME` and the
model's config.json have size, mean and std.

Examples:
  aa-models export aa_resnet18.cifar100 --format onnx --dynamic
  aa-models export local-dir:output/mine/aa_resnet18.mine --format torch-export -o mine.pt2
"""
import argparse
import importlib.util
import os
import tempfile
import warnings
from pathlib import Path

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from aa_models.models.create import check_name

__all__ = ['add_arguments', 'export', 'run']

SUFFIXES = {'onnx': '.onnx', 'torch-export': '.pt2'}
ONNX_NEEDS = ('onnx', 'onnxscript')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        'name', metavar='NAME', help='model with weights, local-dir:FOLDER or hf-hub:OWNER/NAME')
    parser.add_argument('--format', required=True, choices=SUFFIXES, help='kind of file')
    parser.add_argument('--dynamic', action='store_true', help='any batch and any height and width')
    parser.add_argument('--img-size', type=int, nargs=2, metavar=('H', 'W'),
                        help="height and width of the images, pixels (default: the model's)")
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='images in a batch (default: 1)')
    parser.add_argument('-o', '--output', metavar='FILE', help='(default: NAME with the suffix .onnx or .pt2)')


def run(args: argparse.Namespace) -> int:
    """Check what was asked for, export and say what was written.

    Raises:
        ValueError: An option or model that cannot be used, or a package that is missing.
    """
    if args.batch_size < 1 or min(args.img_size or (1,)) < 1:
        raise ValueError(f'--batch-size and --img-size must be at least 1, not {args.batch_size} and {args.img_size}')
    missing = [name for name in ONNX_NEEDS if not importlib.util.find_spec(name)]
    if args.format == 'onnx' and missing:
        raise ValueError(f"--format onnx needs {' and '.join(missing)}: pip install 'aa-models[export]'")
    output = Path(args.output or f'{args.name.rstrip("/").rpartition("/")[2]}{SUFFIXES[args.format]}')
    if output.suffix != SUFFIXES[args.format] or not output.absolute().parent.is_dir():
        raise ValueError(f'--output must be a {SUFFIXES[args.format]} file in a folder that exists, not {output}')
    check_name(args.name)
    model = timm.create_model(args.name, pretrained=True, exportable=True).eval()
    channels, *size = resolve_data_config(model=model)['input_size']
    shape = (args.batch_size, channels, *(args.img_size or size))
    export(model, shape, output, args.format, args.dynamic)
    free = 'any batch, height and width' if args.dynamic else 'input ' + 'x'.join(map(str, shape))
    print(f'wrote {output} ({output.stat().st_size / 1e6:.1f} MB), {free}')
    return 0


@torch.no_grad()
def export(
        model: nn.Module,
        shape: tuple[int, int, int, int],
        output: Path,
        format: str = 'torch-export',
        dynamic: bool = False,
) -> None:
    """Write a model as a file that needs none of this package; whole or not at all.

    Args:
        model: In eval mode.
        shape: Batch, channels, height and width of the images it is traced with.
        output: The file.
        format: `'onnx'` or `'torch-export'`.
        dynamic: Leave batch, height and width free.
    """
    # a dimension of size 1 would be taken for a constant
    traced = [max(n, 2) for n in shape] if dynamic else shape
    x = torch.randn(traced[0], shape[1], *traced[2:], device=next(model.parameters()).device)
    free = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),) if dynamic else None
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix='.export-') as folder, \
            warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the exporters to themselves
        part = Path(folder, output.name)
        program = torch.export.export(model, (x,), dynamic_shapes=free)
        if format == 'onnx':
            # a file of its own up to protobuf's limit of 2 GB, far above any model here
            written = torch.onnx.export(
                program, (x,), dynamo=True, dynamic_shapes=free, input_names=['input'], output_names=['logits'],
                verbose=False)
            assert written is not None  # only the exporter that `dynamo` replaces returns nothing
            written.save(part, external_data=False)
        else:
            torch.export.save(program, part)
        os.replace(part, output)
