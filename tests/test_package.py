"""What goes to users: an sdist that holds the whole repository, and the wheel that is built from it."""
import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hatchling import build

import aa_models
from repository import ROOT

NAME = f'aa_models-{aa_models.__version__}'
CHECKPOINTS = [
    'aa_efficientnet_lite0.in1k', 'aa_resnet18.muon_tiny_in',
    *(f'{kind}simplecnn.{tag}' for kind in ('', 'aa_', 'laa_') for tag in ('cifar100', 'muon_cifar100'))]


def built(folder, hook, target):
    """Build as pip and `python -m build` do, by the hooks of PEP 517, which work in the current folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return target / hook(str(target))


@pytest.fixture(scope='module')
def sdist(tmp_path_factory):
    """The unpacked sdist."""
    folder = tmp_path_factory.mktemp('sdist')
    with tarfile.open(built(ROOT, build.build_sdist, folder)) as archive:
        # before 3.11.4 and 3.10.12 Python has no such filter, after 3.12 it warns without one
        archive.extractall(folder, **(dict(filter='data') if hasattr(tarfile, 'data_filter') else {}))
    return folder / NAME


@pytest.fixture(scope='module')
def wheel(sdist, tmp_path_factory):
    """The wheel that the sdist alone makes, opened."""
    with zipfile.ZipFile(built(sdist, build.build_wheel, tmp_path_factory.mktemp('wheel'))) as archive:
        yield archive


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """Runs a command of the installed package in the folder of the repository, as after README's `pip install .`."""
    folder = tmp_path_factory.mktemp('installed')
    wheel.extractall(folder / 'site')
    start = folder / 'aa-models'  # its folder is the first that Python imports from, where `-m` would take the current
    start.write_text(f'import sys\nimport aa_models\nassert aa_models.__file__.startswith({str(folder)!r})\n'
                     'from aa_models.cli.main import main\nsys.exit(main())\n')

    def run(*words):
        return subprocess.run(
            [sys.executable, start, *map(str, words)], cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(folder / 'site')},
            capture_output=True, text=True, timeout=300)
    return run


def test_sdist_is_the_repository(sdist):
    if not shutil.which('git') or not (ROOT / '.git').exists():
        pytest.skip('needs a git checkout')
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {name for name in listed.split('\0') if name and (ROOT / name).exists()}
    there = {path.relative_to(sdist).as_posix() for path in sdist.rglob('*') if path.is_file()}
    assert not tracked - there
    # no environment, cache or run that lies in the checkout
    assert not {name.split('/')[0] for name in there - tracked} & {'.venv', '.mypy_cache', '.ruff_cache', 'output'}


def test_wheel_holds_what_a_user_needs(wheel, sdist):
    path = Path(wheel.filename)
    assert path.name == f'{NAME}-py3-none-any.whl' and path.stat().st_size < 40e6
    source = {path.relative_to(sdist).as_posix() for path in (sdist / 'aa_models').rglob('*') if path.is_file()}
    files = [path for tag in CHECKPOINTS for path in (ROOT / 'weights' / tag).iterdir()]
    weights = {f'aa_models/weights/{path.parent.name}/{path.name}' for path in files}
    info = {f'{NAME}.dist-info/{name}' for name in (
        'METADATA', 'WHEEL', 'RECORD', 'entry_points.txt', 'licenses/LICENSE')}
    assert {'aa_models/py.typed', 'aa_models/recipes/finetune.yaml'} < source
    default = 'aa_models/weights/aa_efficientnet_lite0.in1k'
    assert {f'{default}/{name}' for name in ('config.json', 'model.safetensors', 'README.md')} < weights
    assert set(wheel.namelist()) == source | weights | info  # no test, no log of another run, nothing else


def test_metadata(wheel):
    metadata = email.message_from_bytes(wheel.read(f'{NAME}.dist-info/METADATA'))
    scripts = wheel.read(f'{NAME}.dist-info/entry_points.txt').decode()
    assert metadata['Version'] == aa_models.__version__
    assert metadata['Requires-Python'] == '>=3.10' and metadata['License-Expression'] == 'Apache-2.0'
    assert set(metadata.get_all('Provides-Extra')) == {'clients', 'corruptions', 'export', 'plot', 'test'}
    assert 'aa-models = aa_models.cli.main:main' in scripts
    # an upper bound would break whoever installs this beside other packages
    assert not [line for line in metadata.get_all('Requires-Dist') if '<' in line or '==' in line.partition(';')[0]]


@pytest.mark.slow
@pytest.mark.parametrize('words, said', [
    ('list', 'aa_resnet18.cifar100'),
    ('predict tests/photographs/espresso.jpg', 'espresso'),
    ('info aa_resnet18.cifar100 --img-size 640', 'layer2.0.conv1'),
    ('attention tests/photographs/uniform.jpg --model aa_resnet18.cifar100 -o {tmp}/map.png', 'map.png'),
    ('validate --model aa_simplecnn.cifar100 --data-dir {tmp}', '100.000 %'),
    ('publish weights/aa_resnet18.cifar100 --repo-id aa-models/aa_resnet18.cifar100 --dry-run', 'aa_resnet18.cifar100'),
    ('export aa_resnet18.cifar100 --format torch-export -o {tmp}/net.pt2', 'net.pt2'),
    ('curves weights/aa_resnet18.cifar100 -o {tmp}/curves.svg', ''),
])
def test_installed_package_in_a_clone(installed, tmp_path, words, said):
    """Commands as README has them find the clone's checkpoints, which the wheel does not hold."""
    picture = tmp_path / 'validation' / 'orange' / 'orange.png'
    picture.parent.mkdir(parents=True)
    shutil.copy(ROOT / 'tests' / 'pictures' / 'orange.png', picture)
    done = installed(*words.format(tmp=tmp_path).split())
    assert done.returncode == 0 and said in done.stdout + done.stderr, done.stderr
