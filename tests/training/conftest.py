"""Pictures that the tests of training share."""
import pytest

from training_runs import make_pictures


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp('data') / 'pictures')  # three batches an epoch
