"""Weights and config of a model as timm saves them, and so that transformers can read them too.

transformers' `TimmWrapper` builds the network that a config describes, with the number of classes from the config's top
level beside `model_args`, and names the classes by the top level's `label_names` or `id2label`.
"""
import json
from pathlib import Path
from typing import Any

from timm.models import save_for_hf
from torch import nn

from aa_models.zoo import CONFIG, WEIGHTS_FILE

_LABELS = ('label_names', 'label_descriptions')


def save_folder(model: nn.Module, folder: Path, **options: Any) -> None:
    """Write the weights, as safetensors, and the config.

    Args:
        model: A network that timm made.
        folder: Where to.
        **options: For `timm.models.save_for_hf`.
    """
    save_for_hf(model, str(folder), safe_serialization=True, **options)
    file = folder / CONFIG
    config = for_transformers(json.loads(file.read_text(encoding='utf-8')))
    file.write_text(json.dumps(config, indent=2), encoding='utf-8')
    (folder / WEIGHTS_FILE).chmod(file.stat().st_mode)  # safetensors makes files that their owner alone may read


def for_transformers(config: dict[str, Any]) -> dict[str, Any]:
    """Say what a config of timm's says so that transformers understands it, too; timm reads the same from it.

    The number of classes stands at the top level alone: transformers hands over both, and Python refuses an argument
    that is there twice. Where classes are named by identifiers and described in words, the names move to
    `pretrained_cfg` and the words become `id2label`, which transformers shows.
    """
    config = {**config, 'pretrained_cfg': dict(config['pretrained_cfg'])}
    if 'model_args' in config:
        config['model_args'] = {key: value for key, value in config['model_args'].items() if key != 'num_classes'}
    cfg = config['pretrained_cfg']
    labels = {key: value for key in _LABELS if (value := config.get(key, cfg.get(key)))}
    names, words = (labels.get(key) for key in _LABELS)
    if not (isinstance(words, dict) and isinstance(names, list) and all(name in words for name in names)):
        config.update(labels)  # transformers looks for them there
        return config
    cfg.update(labels)
    config = {key: value for key, value in config.items() if key not in _LABELS}
    shown = [words[name] for name in names]
    config['id2label'] = {str(i): text for i, text in enumerate(shown)}
    if len(set(shown)) == len(shown):
        config['label2id'] = {text: i for i, text in enumerate(shown)}
    return config
