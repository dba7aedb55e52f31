"""How fast the command line starts, and that leaving out the models for it concerns no other process."""
import importlib
import resource
import shutil
import signal
import subprocess
import sys

import pytest

import aa_models.cli
from aa_models import __version__
from aa_models.cli.main import COMMANDS
from aa_models.cli.recipe_options import GROUPS
from repository import ROOT

ENTRY_POINT = 'import sys\nfrom aa_models.cli.main import main\nsys.exit(main())\n'  # as installers write it
SLOW = {'torch', 'timm', 'numpy', 'PIL', 'matplotlib', 'huggingface_hub', 'torchvision'}


def run(*words, cwd, path=None):
    """Standard output and standard error of Python, which finds the package in the folder `path`."""
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env={'PYTHONPATH': str(path or cwd)}, capture_output=True, text=True)
    return done.stdout, done.stderr


SAID = {  # in answer to the words
    '--version': [f'aa-models {__version__}\n'],
    '--help': [f'\n    {name}' for name in COMMANDS],
    'list': ['aa_resnet18'],
}
for name in COMMANDS:
    purpose, _, _ = importlib.import_module(f'aa_models.cli.{name}').__doc__.partition('\n')
    SAID[f'{name} --help'] = [f'usage: aa-models {name} ', purpose]
SAID['train --help'] += [f'\n\n{heading}:\n  --{field.replace("_", "-")}' for field, heading in GROUPS.items()]


@pytest.mark.parametrize('words', SAID)
def test_answers_at_once(words, tmp_path):
    script = tmp_path / 'aa-models'
    script.write_text(ENTRY_POINT)
    for start in (['-m', 'aa_models'], [script]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out, imports = run('-X', 'importtime', *start, *words.split(), cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert all(text in out for text in SAID[words])
        assert not SLOW & {line.split('|')[-1].strip().split('.')[0] for line in imports.splitlines()}
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize('status', [-signal.SIGINT, 130])
def test_interrupted_while_it_is_imported(status, tmp_path):
    """Before `main` has begun and after: no traceback of whatever is being imported."""
    script = tmp_path / 'aa-models'
    kill = 'import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n'
    if status == 130:
        kill = ('import sys\nfrom aa_models.cli import main\n'
                f'main._parser = lambda: exec({kill!r})\nsys.exit(main.main(["list"]))\n')
    script.write_text(f'import aa_models\n{kill}')
    done = subprocess.run(
        [sys.executable, script], env={'PYTHONPATH': str(ROOT)}, capture_output=True, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    assert (done.returncode, done.stderr) == (status, '')


# --- which processes are the command line: asked where it matters, while the package is being imported


@pytest.fixture
def package(tmp_path):
    """A package of the same name that says when it is imported what `is_command_line` finds."""
    (tmp_path / 'aa_models' / 'cli').mkdir(parents=True)
    shutil.copy(aa_models.cli.__file__, tmp_path / 'aa_models' / 'cli')
    (tmp_path / 'aa_models' / '__init__.py').write_text('from .cli import is_command_line\nprint(is_command_line())\n')
    for name in ('aa_models/__main__.py', 'aa_models/sub.py', 'aa-models', 'aa-models.py', 'script', 'other.py'):
        (tmp_path / name).write_text('import aa_models\n')
    return tmp_path


@pytest.mark.parametrize('words, expected', [
    (['-m', 'aa_models'], True),
    (['-m', 'aa_models', 'train', '--help'], True),
    (['-u', '-W', 'error', '-X', 'dev', '-maa_models', 'list'], True),
    (['aa-models'], True),
    (['-u', './aa-models', 'list'], True),
    (['-m', 'aa_models.sub'], False),
    (['-m', 'other'], False),
    (['-m', 'other', '-m', 'aa_models'], False),
    (['other.py', '-m', 'aa_models'], False),
    (['script', 'aa-models'], False),
    (['aa-models.py'], False),
    (['-c', 'import aa_models', '-m', 'aa_models'], False),
    (['-c', 'import sys; sys.argv = []; import aa_models'], False),
    (['-c', 'import sys; del sys.argv; import aa_models'], False),
], ids=lambda value: ' '.join(value) if isinstance(value, list) else '')
def test_is_command_line(words, expected, package):
    assert run(*words, cwd=package) == (f'{expected}\n', '')


@pytest.mark.parametrize('method', ['fork', 'spawn', 'forkserver'])
def test_workers_of_a_script(method, package):
    (package / 'work.py').write_text(
        'import multiprocessing, sys\n'
        'def work(): import aa_models\n'
        'if __name__ == "__main__":\n'
        f'    worker = multiprocessing.get_context({method!r}).Process(target=work)\n'
        '    worker.start()\n'
        '    worker.join()\n')
    assert run('work.py', cwd=package) == ('False\n', '')


USE = (
    'import aa_models\n'
    'from aa_models import attention_maps, augment\n'
    'assert callable(aa_models.augment) and aa_models.attention_maps is attention_maps\n'
    'assert not hasattr(aa_models, "nothing")\n'
    'import timm\n'
    'print(timm.is_model("aa_resnet18"), aa_models.layers.AugmentedConv2d.__name__)\n'
)


@pytest.mark.parametrize('name', ['script.py', 'aa-models'])
def test_public_names(name, tmp_path):
    """They are there in every process; where the package takes it for the command line, from their first use."""
    (tmp_path / name).write_text(USE)
    assert run(name, cwd=tmp_path, path=ROOT) == ('True AugmentedConv2d\n', '')
