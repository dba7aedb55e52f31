"""Say what is on pictures: the most probable classes of each.

IMAGE is a file of any picture format, or a folder whose pictures are taken with those of the folders below it.
Size, crop and colour statistics are those that the model was trained with.

Examples:
  aa-models predict cat.jpg
  aa-models predict holiday/ --top 3 --json
  aa-models predict cat.jpg --model local-dir:output/my_model
  aa-models predict cat.jpg --model hf-hub:timm/resnet50.a1_in1k
"""
import argparse
import json

from aa_models.errors import InputError

from .options import add_device, add_model, path_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('images', nargs='+', type=path_text, metavar='IMAGE', help='picture, or folder of pictures')
    add_model(parser)
    parser.add_argument('--top', type=int, default=5, metavar='N', help='classes to show (default: %(default)s)')
    parser.add_argument('--json', action='store_true', help='print one JSON list instead of text')
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    if args.top < 1:
        raise InputError(f'--top must be at least 1, not {args.top}')
    from aa_models.analysis.prediction import predict
    from aa_models.data.pictures import find_pictures, read_picture
    from aa_models.device import find_device
    from aa_models.models.create import build_model, check_name

    device = find_device(args.device)
    check_name(args.model)
    paths = find_pictures(args.images)
    for path in paths:  # all of them before any is classified: an unreadable one must not cost the answers before it
        read_picture(path)
    answers = predict(build_model(args.model, pretrained=True).to(device).eval(), paths, args.top)
    if args.json:
        print(json.dumps(list(answers), indent=2))
        return 0
    for answer in answers:
        print(answer['file'])
        for guess in answer['predictions']:
            print(f'  {guess["probability"]:7.2%}  {guess.get("description", guess["label"])}')
    return 0
