"""Measure time and memory of layers and models against named rivals.

Contestants run by turns (A B C A B C …), forward alone and through a training step. A ratio is that of a contestant to
its rival in the same round, its median over all rounds: 1.25 is a quarter more. Memory is the extra peak of one step.

Examples:
  aa-models benchmark layer                            the augmented convolution and what it is compared with
  aa-models benchmark attention                        attention alone, against fused attention without positions
  aa-models benchmark growth -o growth.svg             time and memory against the size of the map
  aa-models benchmark model aa_resnet50:resnet50       a model and its plain counterpart
"""
import argparse
import dataclasses
import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aa_models.csv_text import csv_text
from aa_models.durable import check_file, replace_text

from .options import path_text

if TYPE_CHECKING:
    from aa_models.benchmark.measure import Row

HELP = {
    'layer': """Compare the augmented convolution with other layers of the same channels on one map.

All layers go from C to C channels and have no biases. By default attention makes all of them (dv = C), since that is
what timm's `BottleneckAttn` does; with a smaller --dv each gets the same 3×3 convolution for the rest.

  aa          AugmentedConv2d, softmax attention with relative positions: what the others are compared with
  laa         AugmentedConv2d, linear attention with sine/cosine positions
  conv        a plain 3×3 convolution
  bottleneck  timm's BottleneckAttn with the same heads, key and value depths and table sizes; it has no output
              projection and does not scale its position logits
  naive       the listing in the paper's appendix, which has all logits, the products of queries and keys, in memory
  sdpa        PyTorch's fused attention (scaled_dot_product_attention) without positions between the same projections:
              a lower bound of the time

Examples:
  aa-models benchmark layer
  aa-models benchmark layer --dtype bfloat16 --rivals bottleneck
  aa-models benchmark layer --size 96 --batch-size 1 --channels 64 --rivals conv sdpa""",
    'attention': """Compare attention with relative positions with fused attention without any.

Both are measured from queries, keys and values on.

  sdpa  PyTorch's fused attention (scaled_dot_product_attention) of the same: a lower bound of the time
  aa    SoftmaxAttention.attend, its relative tables made for the map

Queries, keys and values lie in memory head by head; with --channels-last as a 1×1 convolution leaves them where
the channels of a pixel lie side by side.

Examples:
  aa-models benchmark attention
  aa-models benchmark attention --size 14 --dim-head 64 --dtype bfloat16""",
    'growth': """Show how time and memory grow with the map.

The layers of `aa-models benchmark layer`, whose help explains them, on one map after the other; each goes on until it
would exceed --max-memory.

Examples:
  aa-models benchmark growth -o growth.svg --results-file growth.csv
  aa-models benchmark growth --sizes 14 28 56 --rivals conv laa --bench train""",
    'model': """Compare models with their plain counterparts.

NAME:RIVAL names two models of timm; for this package's augmented networks NAME is enough, the rival is then the plain
network. Models with the same rival are timed with it together, with its classes, and at its input size unless
--img-size says otherwise. --dtype other than float32 is autocast: what stands it is computed in 16 bits, and parameters
stay in float32, as in training.

Examples:
  aa-models benchmark model aa_resnet50
  aa-models benchmark model aa_resnet18 --img-size 128 --dtype bfloat16 --bench train
  aa-models benchmark model aa_wrn28_10:wrn28_10 laa_wrn28_10 --batch-size 512 --channels-last --compile
  aa-models benchmark model seresnet50:resnet50""",
}
MODELS = ('aa_resnet18', 'laa_resnet18', 'aa_resnet50', 'laa_resnet50', 'aa_wrn28_10', 'laa_wrn28_10')
SIZES = (4, 8, 16, 32, 64, 96, 128)
RIVALS = ('laa', 'conv', 'bottleneck', 'naive', 'sdpa')
# Each option with the benchmarks that have it
OPTIONS: list[tuple[str, str, dict[str, Any]]] = [
    ('model', 'models', dict(
        nargs='*', metavar='NAME[:RIVAL]', help=f'models to compare (default: {" ".join(MODELS)})', default=MODELS)),
    ('model', '--img-size', dict(type=int, metavar='PX', help="side of the input (default: the rival's)")),
    ('layer attention', '--size', dict(type=int, nargs='+', default=(32,), metavar=('H', 'W'),
                                       help='height and width of the map, one number for both (default: 32)')),
    ('growth', '--sizes', dict(type=int, nargs='+', default=SIZES, metavar='N',
                               help=f'heights and widths of the maps (default: {" ".join(map(str, SIZES))})')),
    ('layer growth', '--channels', dict(
        type=int, default=160, metavar='C', help='channels of input and output (default: %(default)s)')),
    ('layer attention growth', '--num-heads', dict(type=int, default=8, metavar='N', help=
        'heads: attention is computed so often, each time with a share of the channels (default: %(default)s)')),
    ('layer attention growth', '--dim-head', dict(
        type=int, default=20, metavar='D', help='depth of the queries and keys of a head (default: %(default)s)')),
    ('layer attention growth', '--dv', dict(
        type=int, metavar='D', help='depth of the values of all heads (default: C, or that of the keys)')),
    ('layer growth', '--rivals', dict(nargs='+', default=RIVALS, choices=RIVALS, metavar='NAME',
                                      help=f'layers to compare with (default: {" ".join(RIVALS)})')),
    ('growth', '--max-memory', dict(
        type=float, default=4., metavar='GB',
        help='leave a layer out from the size on where a step would need more (default: %(default)g)')),
    ('growth', '-o --output', dict(
        type=path_text, metavar='PICTURE',
        help='draw time and memory into this file (.png, .svg, .pdf; needs matplotlib) (default: none)')),
    ('', '--batch-size', dict(type=int, default=16, metavar='N', help='inputs in a batch (default: %(default)s)')),
    ('', '--bench', dict(default='both', choices=('inference', 'train', 'both'),
                         help='forward passes, training steps (forward and backward) or both (default: both)')),
    ('', '--dtype', dict(default='float32', choices=('float32', 'bfloat16', 'float16'),
                         help='kind of numbers (default: float32)')),
    ('', '--channels-last', dict(
        action='store_true', help='channels_last: the channels of a pixel lie side by side in memory')),
    ('', '--compile', dict(action='store_true', help='compile what is measured by torch.compile')),
    ('', '--device', dict(metavar='NAME', help='cpu, cuda or cuda:N (default: cuda where there is one, else cpu)')),
    ('', '--rounds', dict(type=int, default=10, metavar='N', help='turns of each contestant (default: %(default)s)')),
    ('', '--warmup', dict(type=int, default=2, metavar='N', help='turns before those that count (default: 2)')),
    ('', '--no-memory', dict(dest='memory', action='store_false',
                             help='do not measure memory, which on the CPU starts a process for each contestant')),
    ('', '--results-file', dict(
        type=path_text, metavar='CSV', help="write the results in timm's columns, and some of ours (default: none)")),
]
# The figures that the table shows, in its order
HEADS = {
    'infer_step_time': 'forward ms', 'infer_ratio': 'ratio', 'train_step_time': 'training ms', 'train_ratio': 'ratio',
    'infer_memory': 'forward MB', 'infer_memory_ratio': 'ratio', 'train_memory': 'training MB',
    'train_memory_ratio': 'ratio'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benchmarks = parser.add_subparsers(dest='benchmark', metavar='BENCHMARK', required=True)
    for name, text in HELP.items():
        benchmark = benchmarks.add_parser(
            name, help=text.partition('\n')[0], description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        for owners, flags, options in OPTIONS:
            if not owners or name in owners.split():
                benchmark.add_argument(*flags.split(), **options)
        if name == 'growth':
            benchmark.set_defaults(channels=64, batch_size=1)


def run(args: argparse.Namespace) -> int:
    """Check what was asked for, measure, print, and write the results where asked to.

    Raises:
        InputError: An option, model or device that cannot be used.
    """
    from aa_models import benchmark
    from aa_models.analysis.plotting import check_plot

    values, picture = vars(args), getattr(args, 'output', None)
    if picture:
        check_plot(picture)
    if args.results_file:
        check_file(args.results_file, 'results_file')
    settings = benchmark.Settings(**{f.name: values[f.name] for f in dataclasses.fields(benchmark.Settings)})
    measure = getattr(benchmark, f'benchmark_{args.benchmark}')
    rows = measure(settings=settings, **{n: values[n] for n in inspect.signature(measure).parameters if n in values})
    shown = ('channels', 'num_heads', 'dim_head', 'dv', 'batch_size', 'dtype', 'channels_last', 'compile', 'rounds')
    chosen = ', '.join(f'{name} {values[name]}' for name in shown if values.get(name))
    title = f'{benchmark.describe_machine(settings.where)}\n{args.benchmark}: {chosen}'
    print(title)
    names = [name for pair in ['model', *values.get('models', RIVALS)] for name in pair.split(':')]
    done = _print_rows(rows, max(map(len, names)), settings.modes, settings.memory, args.results_file)
    if picture:
        benchmark.draw_growth(done, picture, title)
    return 0


def _print_rows(rows: 'Iterable[Row]', width: int, modes: list[str], memory: bool, path: str | None) -> 'list[Row]':
    """Print row by row as the results come, and write them into the file: an interrupted run keeps what it has."""
    from aa_models.benchmark import COLUMNS
    figures = [name for name in HEADS if name.split('_')[0] in modes and (memory or 'memory' not in name)]
    heads = [HEADS[name] for name in figures]
    line = '  '.join([f'{{:{width}}}  {{:>7}}  {{:{width}}}', *(f'{{:>{max(8, len(head))}}}' for head in heads)])
    print(line.format('model', 'size', 'rival', *heads), flush=True)
    done = []
    for row in rows:
        cells = (f'{row[name]:.2f}' if name in row else '' for name in figures)
        print(line.format(row['model'], row['size'], row.get('rival', ''), *cells).rstrip(), flush=True)
        done.append(row)
        if path:
            replace_text(path, csv_text(COLUMNS, map(_rounded, done)))
    return done


def _rounded(row: 'Row') -> 'Row':
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
