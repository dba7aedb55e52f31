"""List the models: name and tag, parameters, input size, classes, whether there are weights.

`yes` are weights of this package; `start` are a plain network's, converted on loading, to fine-tune.

Examples:
  aa-models list                     every model
  aa-models list wrn                 those with `wrn` in their names
  aa-models list 'aa_resnet1*'       those that match a pattern
  aa-models list --pretrained        those with weights
"""
import argparse
import fnmatch

import timm
from timm.models import split_model_name_tag

from aa_models.zoo import expected_sha256, own_checkpoints, own_models, registered_cfg

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        'filter', nargs='?', default='', metavar='FILTER', help='part of a name, or a pattern with * ? [ ]')
    parser.add_argument('--pretrained', action='store_true', help='only models with weights')


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    names = _names(args.filter, args.pretrained)
    rows = [('model', 'params', 'input', 'classes', 'weights'), *(_row(name) for name in names)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for name, *figures in rows:
        print('  '.join([name.ljust(widths[0]), *(f.rjust(w) for f, w in zip(figures, widths[1:]))]))
    return 0


def _names(pattern: str, pretrained: bool) -> list[str]:
    """Find the names that match: `name.tag` for every tag with weights, the bare name of a model without its own."""
    tagged = own_models(pretrained=True)
    complete = {split_model_name_tag(tag)[0] for tag in own_checkpoints()}
    names = []
    for name in own_models():
        names += [] if pretrained or name in complete else [name]
        names += [tag for tag in tagged if split_model_name_tag(tag)[0] == name]
    if pattern:
        wildcard = pattern if set(pattern) & set('*?[') else f'*{pattern}*'
        names = [n for n in names if any(fnmatch.fnmatch(m, wildcard) for m in (n, split_model_name_tag(n)[0]))]
    if not names:
        raise ValueError(
            f'no model{" with weights" if pretrained else ""} matches FILTER {pattern!r}; `aa-models list` shows all'
        )
    return names


def _row(name: str) -> tuple[str, ...]:
    """Make one line of the table. On the meta device a model costs neither memory nor a random start."""
    model = timm.create_model(name, device='meta')
    cfg = registered_cfg(name)
    params = sum(parameter.numel() for parameter in model.parameters())
    return (
        name,
        f'{params / 1e6:.2f} M',
        'x'.join(map(str, cfg.input_size)),
        str(cfg.num_classes),
        'yes' if expected_sha256(cfg) else 'start' if cfg.has_weights else '-',
    )
