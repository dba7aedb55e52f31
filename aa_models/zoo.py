"""The models of this package and the checkpoints they have.

A checkpoint is named `<model>.<tag>` and known by the SHA-256 of its weights, which stands in the tag's cfg. `zoo.csv`
holds what a table of the models needs, so that reading it takes no torch; `analysis/zoo_table.py` writes it.
"""
import csv
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

CONFIG, WEIGHTS_FILE = 'config.json', 'model.safetensors'  # of a folder as timm and the Hub have it
HUB_ORGANISATION = 'aa-models'
ZOO_FILE = Path(__file__).with_suffix('.csv')
_HASH_NOTE = 'sha256:'


class ZooRow(NamedTuple):
    """A checkpoint or, where a model has none, the model."""
    name: str  # with the tag
    params: int
    input_size: str  # channels, height and width, '3x224x224'
    num_classes: int
    gmacs: str  # 10⁹ multiply-accumulates of one image of that size
    weights: str  # 'yes': this package's own; 'to fine-tune': a plain network's, converted on loading; '-': none


def read_zoo() -> list[ZooRow]:
    """Read the table of all models."""
    with ZOO_FILE.open(encoding='utf-8', newline='') as file:
        _, *rows = csv.reader(file)
    return [ZooRow(name, int(params), size, int(classes), *others) for name, params, size, classes, *others in rows]


def weights_cfg(name_tag: str, sha256: str) -> dict[str, Any]:
    """Make the part of a cfg that says which weights `name_tag` has.

    Args:
        name_tag: Model name and tag, `'aa_resnet18.cifar100'`.
        sha256: SHA-256 of `model.safetensors`, 64 hexadecimal digits.
    """
    # timm's cfg is a dataclass that takes no fields of our own; `notes` is the one that is free for text.
    notes = (f'{_HASH_NOTE}{sha256}',)
    return dict(hf_hub_id=f'{HUB_ORGANISATION}/{name_tag}', hf_hub_filename=WEIGHTS_FILE, notes=notes)


def expected_sha256(cfg: 'PretrainedCfg') -> str | None:
    """Read back the hash that `weights_cfg` put into a cfg."""
    hashes = (note.removeprefix(_HASH_NOTE) for note in cfg.notes or () if note.startswith(_HASH_NOTE))
    return next(hashes, None)


def registered_cfg(name: str) -> 'PretrainedCfg':
    """The cfg of a model that is registered, with or without a tag."""
    import timm

    return cast('PretrainedCfg', timm.get_pretrained_cfg(name, allow_unregistered=False))


def own_models(filter: str | Iterable[str] = '', pretrained: bool = False) -> list[str]:
    """List this package's models as `timm.list_models` does; with `pretrained` each with the tag of its weights."""
    import timm

    from . import models  # noqa: F401, registers them: a process of the command line does not by itself

    names = timm.list_models(filter, pretrained=pretrained)
    return [name for name in names if timm.model_entrypoint(name).__module__.startswith('aa_models.')]


def own_checkpoints() -> list[str]:
    """List the tags whose weights are this package's own, not made of other networks' weights on loading."""
    return [name for name in own_models(pretrained=True) if expected_sha256(registered_cfg(name))]
