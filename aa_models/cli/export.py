"""Export a model with its weights for other runtimes, as an ONNX file or a program of torch.export.

The file takes images, normalised, as `input` (batch, channels, height, width) in float32 and gives `logits` (batch,
classes), the scores before they become probabilities. Without --dynamic batch and size are those it was exported with;
with it they are free, as they are in PyTorch: tables of relative positions are interpolated in the file, too. Networks
with TensorFlow's 'same' padding (those of timm called tf_…, and the EfficientNet-Lites here) are exported for one size
only.

Needs `pip install 'aa-models[export]'` for ONNX. The preprocessing is not in the file: `aa-models info NAME` and the
model's config.json have size, mean and std.

Examples:
  aa-models export aa_resnet18.cifar100 --format onnx --dynamic
  aa-models export local-dir:output/mine/aa_resnet18.mine --format torch-export -o mine.pt2
"""
import argparse

from .options import model_name, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('name', type=model_name, metavar='NAME', help='model with weights, folder or hf-hub:OWNER/NAME')
    parser.add_argument('--format', required=True, choices=('onnx', 'torch-export'), help='kind of file')
    parser.add_argument('--dynamic', action='store_true', help='any batch and any height and width')
    parser.add_argument('--img-size', type=int, nargs=2, metavar=('H', 'W'),
                        help="height and width of the images, pixels (default: the model's)")
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='images in a batch (default: 1)')
    parser.add_argument('-o', '--output', type=path, metavar='FILE',
                        help='the file to write (default: NAME with the suffix .onnx or .pt2)')


def run(args: argparse.Namespace) -> int:
    from aa_models.release.runtimes import export_pretrained
    file, shape = export_pretrained(
        args.name, args.format, args.output, batch_size=args.batch_size, img_size=args.img_size, dynamic=args.dynamic,
        report=lambda step: print(step, flush=True))
    free = 'any batch, height and width' if args.dynamic else 'input ' + 'x'.join(map(str, shape))
    print(f'wrote {file} ({file.stat().st_size / 1e6:.1f} MB), {free}')
    return 0
