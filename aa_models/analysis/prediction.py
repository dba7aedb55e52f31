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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_data_config
from torch import nn

from aa_models.data.labels import class_description, class_name
from aa_models.data.pictures import find_pictures, picture_mode, read_picture
from aa_models.models.create import cfg_of, check_name, num_classes_of

__all__ = ['add_arguments', 'find_device', 'predict', 'run']

DEFAULT_MODEL = 'aa_resnet18'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='picture, or folder of pictures')
    parser.add_argument(
        '--model', default=DEFAULT_MODEL, metavar='NAME',
        help='model with weights, local-dir:FOLDER or hf-hub:OWNER/NAME (default: %(default)s)')
    parser.add_argument('--top', type=int, default=5, metavar='N', help='classes to show (default: %(default)s)')
    parser.add_argument('--json', action='store_true', help='print one JSON list instead of text')
    parser.add_argument(
        '--device', default='', help='cpu, cuda, cuda:1, mps (default: an accelerator where there is one)')


def run(args: argparse.Namespace) -> int:
    """Check what was asked for, then print the answers.

    Raises:
        ValueError: An option, model or picture that cannot be used.
        FileNotFoundError: A picture or folder that does not exist.
    """
    if args.top < 1:
        raise ValueError(f'--top must be at least 1, not {args.top}')
    device = find_device(args.device)
    check_name(args.model)
    paths = find_pictures(args.images)
    for path in paths:  # all of them before any work: the last of a thousand must not end it
        read_picture(path)
    model = timm.create_model(args.model, pretrained=True).to(device).eval()
    answers = predict(model, paths, args.top)
    if args.json:
        print(json.dumps(list(answers), indent=2))
        return 0
    for answer in answers:
        print(answer['file'])
        for guess in answer['predictions']:
            print(f'  {guess["probability"]:7.2%}  {guess.get("description", guess["label"])}')
    return 0


@torch.inference_mode()
def predict(model: nn.Module, paths: list[Path], top: int = 5) -> Iterator[dict[str, Any]]:
    """Classify pictures one after the other, so that no answer depends on which others are asked about.

    Args:
        model: Classifier made by timm, in eval mode.
        paths: Picture files.
        top: Number of classes in an answer.

    Yields:
        `dict(file=, predictions=[dict(index=, label=, probability=), ...])`, the most probable class first. A class
        without a name has its index as label; one that is described in words has a `description` too.
    """
    config = resolve_data_config(model=model)
    mode = picture_mode(config['input_size'][0])
    if not num_classes_of(model):
        raise ValueError('the model has no classes, it only makes features')
    transform = create_transform(**config)
    cfg = cfg_of(model)
    parameter = next(model.parameters())
    for path in paths:
        picture = transform(read_picture(path, mode))  # (C, H, W)
        logits = model(picture[None].to(parameter.device, parameter.dtype))[0]  # (num_classes,)
        best = logits.float().softmax(0).topk(min(top, len(logits)))
        yield dict(
            file=str(path),
            predictions=[
                dict(index=i, **_named(cfg, i), probability=p)
                for p, i in zip(best.values.tolist(), best.indices.tolist())
            ],
        )


def find_device(name: str) -> torch.device:
    """Turn `--device` into a device that is there; by default an accelerator where there is one.

    Raises:
        ValueError: It is not there.
    """
    if not name:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device('cpu')
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f'--device {name!r} is not there: {str(error).splitlines()[0]}') from error


def _named(cfg: dict[str, Any], index: int) -> dict[str, str]:
    description = class_description(cfg, index)
    return dict(label=class_name(cfg, index), **({} if description is None else dict(description=description)))
