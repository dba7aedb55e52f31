"""Runs timm's own model tests on this package's models.

    .venv/bin/python tests/timm_suite.py              # every registered model
    .venv/bin/python tests/timm_suite.py aa_resnet18  # these only

timm ships its tests in its source distribution alone: pip fetches the one of the installed version into a temporary
folder. This file is also the pytest plugin that the run loads: timm chooses models for some tests by the names of its
own modules, so the plugin makes `timm.list_models` return the models asked for and drops tests of any other model.
"""
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import timm

from aa_models.zoo import own_models
from repository import ROOT, TESTS

NAMES = 'AA_MODELS_TIMM_SUITE'  # environment variable: the models, separated by commas


def pytest_configure(config):
    wanted = os.environ[NAMES].split(',')
    timm_list_models = timm.list_models

    def list_models(filter='', module='', **kwargs):  # whatever module is asked for, the models are ours
        return [name for name in timm_list_models(filter, **kwargs) if name.split('.')[0] in wanted]

    timm.list_models = list_models


def pytest_collection_modifyitems(config, items):
    wanted = os.environ[NAMES].split(',')

    def is_wanted(item):
        name = getattr(item, 'callspec', None) and item.callspec.params.get('model_name')
        # a tag from_… would fetch a plain network's weights from the Hub
        return isinstance(name, str) and name.split('.')[0] in wanted and '.from_' not in name

    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(item)])
    items[:] = [item for item in items if is_wanted(item)]


def fetch_tests(folder):
    """Put timm's tests into a folder, away from its source, which would be imported in place of the installed timm."""
    subprocess.run(
        [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary', 'timm', '--dest', folder,
         f'timm=={timm.__version__}'], check=True, stdout=subprocess.DEVNULL)
    archive, = Path(folder).glob('timm-*.tar.gz')
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if '/tests/' in m.name or m.name.endswith('/pyproject.toml')]
        for member in members:
            member.name = member.name.split('/', 1)[1]
        tar.extractall(folder, members=members)


def run(names=(), arguments=()):
    """Run the tests and return pytest's exit status."""
    names = list(names) or own_models()
    if unknown := sorted(set(names) - set(own_models())):
        raise SystemExit(f'no models of this package: {", ".join(unknown)}; it has {", ".join(own_models())}')
    with tempfile.TemporaryDirectory() as folder:
        fetch_tests(folder)
        environment = dict(
            os.environ, **{NAMES: ','.join(names)}, TORCH_BACKEND='aa_models', HF_HUB_OFFLINE='1',
            PYTHONPATH=os.pathsep.join([str(ROOT), str(TESTS)]))
        command = [
            sys.executable, '-m', 'pytest', '-q', '-c', 'pyproject.toml', '--rootdir=.', '-p', 'timm_suite',
            '-p', 'no:cacheprovider', '-W', 'ignore', 'tests/test_models.py', *arguments]
        return subprocess.run(command, cwd=folder, env=environment).returncode


if __name__ == '__main__':
    sys.exit(run(sys.argv[1:]))
