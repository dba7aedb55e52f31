"""timm's own model tests for one size of each family; `python tests/timm_suite.py` runs them for all models."""
import pytest

import timm_suite
from our_models import NETWORKS


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_one_size_of_each_family():
    assert timm_suite.run(NETWORKS) == 0


def test_names_are_checked():
    with pytest.raises(SystemExit, match='no models of this package: resnet18'):
        timm_suite.run(['resnet18'])
