"""Measure every model of this package for `zoo.csv`. After a change of the models or their checkpoints run

  python -m aa_models.analysis.zoo_table
"""
import csv

import timm
from timm.models import split_model_name_tag

from aa_models.augmentation.description import ARCHITECTURE
from aa_models.zoo import ZOO_FILE, ZooRow, expected_sha256, own_checkpoints, own_models, registered_cfg

from .macs import count_macs, in_giga


def measure_zoo() -> list[ZooRow]:
    """Build every model, each tag with weights and the bare name of a model without weights of its own."""
    tags = own_models(pretrained=True)
    with_own_weights = {split_model_name_tag(tag)[0] for tag in own_checkpoints()}
    return [
        _measure(name_tag) for name in own_models() if name != ARCHITECTURE  # which is any network, by its arguments
        for name_tag in ([] if name in with_own_weights else [name]) + [
            tag for tag in tags if split_model_name_tag(tag)[0] == name]]


def _measure(name: str) -> ZooRow:
    model = timm.create_model(name, device='meta')  # costs neither memory nor random numbers
    cfg = registered_cfg(name)
    return ZooRow(name, sum(p.numel() for p in model.parameters()), 'x'.join(map(str, cfg.input_size)), cfg.num_classes,
                  gmacs=in_giga(count_macs(model)),
                  weights='yes' if expected_sha256(cfg) else 'to fine-tune' if cfg.has_weights else '-')


if __name__ == '__main__':
    rows = measure_zoo()  # before the file is opened: without it the package lists nothing
    with ZOO_FILE.open('w', encoding='utf-8', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows([ZooRow._fields, *rows])
