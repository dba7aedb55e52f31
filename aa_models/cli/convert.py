"""Put attention into a trained network, keep what it knows, and write the folder that timm loads.

BASE is any convnet of timm with weights, local-dir:FOLDER or hf-hub:OWNER/NAME. In the layers that --augment chooses a
part of the filters gives way to attention that imitates them; with --images, pictures of the kind that the network is
for (no labels), the loss is smaller, except in 1x1 convolutions, where there is hardly any.

Examples:
  aa-models convert mnasnet_100 --augment 'blocks.[56].*.conv_pw' --output output/aa_mnasnet
  aa-models convert local-dir:output/plain/resnet18.mine --augment 'layer[34].*.conv1' --images pictures/ --output new
  aa-models convert resnet50 --augment 'layer4.*.conv2' --model-kwargs dv=0.25 --images pictures/ --output new
"""
import argparse

from .options import add_device, key_value, model_name, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('base', type=model_name, metavar='BASE',
                        help='model with weights, local-dir:FOLDER or hf-hub:OWNER/NAME')
    parser.add_argument('--augment', nargs='+', required=True, metavar='PATTERN',
                        help="patterns of the convolutions' names, with * ? [ ] as in a shell")
    parser.add_argument('--model-kwargs', nargs='*', type=key_value, default=[], metavar='KEY=VALUE',
                        help='arguments of the attention: dk and dv, how many channels, or which share of them, '
                        'keys and values have; num_heads; … (default: those of the layer)')
    parser.add_argument('--images', type=path, metavar='FOLDER', help='pictures to calibrate with (default: none)')
    parser.add_argument('--num-images', type=int, default=300, metavar='N',
                        help='pictures to calibrate with, and others to compare with, at most (default: %(default)s)')
    parser.add_argument('--img-size', type=int, nargs=2, metavar=('H', 'W'),
                        help="size in pixels to make tables of relative positions for (default: the model's)")
    parser.add_argument('--output', type=path, required=True, metavar='DIR', help='the folder to write')
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    from aa_models.augmentation.calibration import Calibrated
    from aa_models.device import find_device
    from aa_models.release.converted import convert

    def tell(fit: Calibrated) -> None:
        print(f'{fit.layer}: {fit.fitted} off by {fit.before:.3f} of its spread, fitted {fit.after:.3f}', flush=True)

    result = convert(
        args.base, args.augment, args.output, dict(args.model_kwargs), images=args.images, num_images=args.num_images,
        img_size=args.img_size, device=find_device(args.device), report=tell)
    for layer, (dv, channels) in result.layers.items():
        print(f'{layer}: {dv} of {channels} channels are attention')
    if result.agreement is not None:
        print(f'the class of the plain network on {result.agreement:.1%} of {result.compared} other pictures')
    print(f'wrote {args.output} in {result.seconds:.1f} s: --model local-dir:{args.output}')
    return 0
