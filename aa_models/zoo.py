"""The models of this package and the checkpoints they have.

A checkpoint is named `<model>.<tag>` and known by the SHA-256 of its weights, which stands in the tag's cfg.
"""
from collections.abc import Iterable
from typing import Any, cast

import timm
from timm.models import PretrainedCfg

__all__ = [
    'HUB_ORGANISATION', 'WEIGHTS_FILE', 'expected_sha256', 'own_checkpoints', 'own_models', 'registered_cfg',
    'weights_cfg',
]

WEIGHTS_FILE = 'model.safetensors'
HUB_ORGANISATION = 'aa-models'
_HASH_NOTE = 'sha256:'


def weights_cfg(name_tag: str, sha256: str) -> dict[str, Any]:
    """Make the part of a cfg that says which weights `name_tag` has.

    Args:
        name_tag: Model name and tag, `'aa_resnet18.cifar100'`.
        sha256: SHA-256 of `model.safetensors`, 64 hexadecimal digits.
    """
    # timm's cfg is a dataclass that takes no fields of our own; `notes` is the one that is free for text.
    return dict(
        hf_hub_id=f'{HUB_ORGANISATION}/{name_tag}',
        hf_hub_filename=WEIGHTS_FILE,
        notes=(f'{_HASH_NOTE}{sha256}',),
    )


def expected_sha256(cfg: PretrainedCfg) -> str | None:
    """Read back the hash that `weights_cfg` put into a cfg."""
    hashes = [note.removeprefix(_HASH_NOTE) for note in cfg.notes or () if note.startswith(_HASH_NOTE)]
    return hashes[0] if hashes else None


def registered_cfg(name: str) -> PretrainedCfg:
    """The cfg of a model that is registered, with or without a tag."""
    return cast(PretrainedCfg, timm.get_pretrained_cfg(name, allow_unregistered=False))


def own_models(filter: str | Iterable[str] = '', pretrained: bool = False) -> list[str]:
    """List this package's models as `timm.list_models` does; with `pretrained` each with the tag of its weights."""
    names = timm.list_models(filter, pretrained=pretrained)
    return [name for name in names if timm.model_entrypoint(name).__module__.startswith('aa_models.')]


def own_checkpoints() -> list[str]:
    """List the tags whose weights are this package's own, not made of other networks' weights on loading."""
    return [name for name in own_models(pretrained=True) if expected_sha256(registered_cfg(name))]
