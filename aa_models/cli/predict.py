"""Say what is on pictures: the most probable classes of each.

IMAGE is a file of any picture format, a folder whose pictures are taken with those of the folders below it, or - for a
picture on standard input. Size, crop and colour statistics are those that the model was trained with. A picture that
cannot be read holds nobody up: such ones are listed at the end, and the exit status is 1.

Examples:
  aa-models predict cat.jpg
  aa-models predict holiday/ --top 3 --json
  aa-models predict holiday/ --csv --threshold 0.5 --output holiday.csv
  aa-models predict cat.jpg --model output/my_model
  aa-models predict cat.jpg --model hf-hub:timm/resnet50.a1_in1k
  curl -s https://example.org/cat.jpg | aa-models predict -
"""
import argparse
import contextlib
import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from aa_models.durable import check_file, written_whole
from aa_models.errors import InputError

from .options import add_device, add_model, path, path_text
from .terminal import harmless

if TYPE_CHECKING:
    from PIL import Image

STDIN = '-'
COLUMNS = ('file', 'rank', 'index', 'label', 'description', 'probability')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'images', nargs='+', type=path_text, metavar='IMAGE',
        help='picture, folder of pictures, or - for one on standard input')
    add_model(parser)
    parser.add_argument('--top', type=int, default=5, metavar='N', help='classes to show (default: %(default)s)')
    parser.add_argument('--threshold', type=float, default=0.0, metavar='P',
                        help='show only classes at least as probable, from 0 to 1 (default: 0)')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--json', action='store_true', help='print one JSON list instead of text')
    form.add_argument('--csv', action='store_true', help='print a table, a line for each class shown')
    parser.add_argument('--output', type=path, metavar='FILE', help='write there (default: print)')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='pictures at once: faster on a GPU, and '
                        'last digits may change with what is in a batch (default: %(default)s)')
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 1 where a picture could not be read."""
    for option, value in (('--top', args.top), ('--batch-size', args.batch_size)):
        if value < 1:
            raise InputError(f'{option} must be at least 1, not {value}')
    if not 0 <= args.threshold <= 1:
        raise InputError(f'--threshold must be from 0 to 1, not {args.threshold:g}')
    if args.output:
        check_file(args.output, 'output')
    from tqdm import tqdm

    from aa_models.analysis.prediction import predict
    from aa_models.data.pictures import find_pictures
    from aa_models.device import find_device
    from aa_models.models.create import build_model, check_name

    device = find_device(args.device)
    check_name(args.model, weights=True)
    paths = [found for image in args.images for found in ([STDIN] if image == STDIN else find_pictures([image]))]
    model = build_model(args.model, pretrained=True).to(device).eval()
    broken: list[str] = []
    write = _write_json if args.json else _write_csv if args.csv else _write_text
    with _opened(args.output) as file, \
            tqdm(total=len(paths), unit='picture', leave=False, disable=not sys.stderr.isatty()) as bar:
        answers = predict(model, paths, args.top, batch_size=args.batch_size, read=_read, done=bar.update,
                          report=lambda error: broken.append(str(error)))
        write(_likely(answers, args.threshold), file)
    for message in broken:
        print(harmless(f'aa-models predict: {message}'), file=sys.stderr)
    return 1 if broken else 0


def _read(path: str | Path, mode: str) -> 'Image.Image':
    from aa_models.data.pictures import read_picture
    if path == STDIN:
        content = b'' if sys.stdin is None else sys.stdin.buffer.read()  # None where it is closed
        return read_picture(io.BytesIO(content), mode, name='standard input')
    return read_picture(path, mode)


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that gets its name when it is whole."""
    if path is None:
        yield sys.stdout
        return
    with written_whole(path, f'output = {str(path)!r}') as part, \
            part.open('w', encoding='utf-8', errors='backslashreplace', newline='') as file:
        yield file


def _likely(answers: Iterator[dict[str, Any]], threshold: float) -> Iterator[dict[str, Any]]:
    for answer in answers:
        yield {**answer, 'predictions': [guess for guess in answer['predictions'] if guess['probability'] >= threshold]}


def _write_text(answers: Iterator[dict[str, Any]], file: TextIO) -> None:
    for answer in answers:
        print(answer['file'], file=file)
        for guess in answer['predictions']:
            print(f'  {guess["probability"]:7.2%}  {guess.get("description", guess["label"])}', file=file)
        if not answer['predictions']:
            print('  no class is that probable', file=file)


def _write_json(answers: Iterator[dict[str, Any]], file: TextIO) -> None:
    """One answer after the other, so that a reader need not wait for the last."""
    before = '[\n'
    for answer in answers:
        print(before + json.dumps(answer, indent=2), end='', file=file, flush=True)
        before = ',\n'
    print('[]' if before == '[\n' else '\n]', file=file)


def _write_csv(answers: Iterator[dict[str, Any]], file: TextIO) -> None:
    writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
    writer.writeheader()
    for answer in answers:
        for rank, guess in enumerate(answer['predictions'], start=1):
            writer.writerow({'file': answer['file'], 'rank': rank, **guess})
        file.flush()
