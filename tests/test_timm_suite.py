"""timm's own model tests for one size of each family; `python tests/timm_suite.py` runs them for all models."""
import pytest

import timm_suite


def test_one_size_of_each_family():
    assert timm_suite.run([
        'aa_resnet18', 'laa_resnet18', 'aa_resnet50', 'wrn16_8', 'aa_wrn16_8', 'laa_wrn16_8', 'simplecnn',
        'aa_simplecnn', 'laa_simplecnn']) == 0


def test_names_are_checked():
    with pytest.raises(SystemExit, match='no models of this package: resnet18'):
        timm_suite.run(['resnet18'])
