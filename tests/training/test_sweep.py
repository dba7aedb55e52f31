"""Sweeps: which runs they make, what the table says of them, and what is refused."""
import csv
import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from aa_models.cli import sweep as command
from aa_models.errors import WriteError
from aa_models.lock import alone_in
from aa_models.models.create import build_model
from aa_models.training import sweep
from training_runs import RECIPE, log_of, run, run_training

RUNS = [
    dict(model='aa_simplecnn', each=dict(lr=[0.05, 0.1], seed=[3, 4])),
    dict(model='simplecnn', model_kwargs=dict(channels=[8, 8, 16, 16, 16])),
]


def write_sweep(folder, runs, **values):
    (folder / 'recipe.yaml').write_text(yaml.safe_dump(dict(RECIPE, epochs=1)))
    path = folder / 'sweep.yaml'
    path.write_text(yaml.safe_dump(dict(recipe=str(folder / 'recipe.yaml'), values=values, runs=runs)))
    return path


def rows_of(path):
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def sweep_all(path, data):
    table, output = path.parent / 'table.csv', path.parent / 'runs'
    run(command, path, '--data-dir', data, '--output', output, '--results-file', table)
    return rows_of(table)


def test_a_row_for_each_run(tmp_path, data):
    rows = sweep_all(path := write_sweep(tmp_path, RUNS, val_interval=1, epochs=2), data)
    assert [(row['model'], json.loads(row['settings']).get('lr'), row['seed']) for row in rows] == [
        ('aa_simplecnn', 0.05, '3'), ('aa_simplecnn', 0.05, '4'), ('aa_simplecnn', 0.1, '3'),
        ('aa_simplecnn', 0.1, '4'), ('simplecnn', None, '3')]
    assert not any((tmp_path / 'runs').iterdir())
    alone = log_of(run_training(tmp_path / 'alone', data, lr=0.1, seed=4))  # the row is that of the run by itself
    assert rows[3]['curve'] == ' '.join(f'{i + 1}:{float(e["eval_top1"]):.2f}' for i, e in enumerate(alone))
    assert rows[3]['loss'] == f'{float(alone[-1]["eval_loss"]):.4f}'
    network = build_model('aa_simplecnn', num_classes=3, **RECIPE['model_kwargs'])
    assert int(rows[3]['params']) == sum(p.numel() for p in network.parameters())
    # what has a row is not made again, what has none is, with the same figures
    table = tmp_path / 'table.csv'
    lines = table.read_text().splitlines(keepends=True)
    table.write_text(''.join(lines[:3] + lines[4:]))
    *kept, made = sweep_all(path, data)
    assert kept == [*rows[:2], *rows[3:]] and {**made, 'train_seconds': ''} == {**rows[2], 'train_seconds': ''}


def test_a_run_that_diverges_holds_nobody_up(tmp_path, data, caplog):
    rows = sweep_all(path := write_sweep(tmp_path, [dict(each=dict(lr=[1e30, 0.05]))]), data)
    assert [(bool(row['top1']), bool(row['machine'])) for row in rows] == [(False, True), (True, True)]
    assert 'diverged' in caplog.text and not any((tmp_path / 'runs').iterdir())
    with caplog.at_level('INFO'):
        assert sweep_all(path, data) == rows and caplog.text.count('has a row of it') == 2


def test_runs_of_another_process_are_left_to_it(tmp_path, data):
    path = write_sweep(tmp_path, [dict(each=dict(seed=[3, 4]))])
    (settings, _), _ = sweep.read_sweep(path)
    with alone_in(tmp_path / 'runs' / sweep._name(settings), sweep.LOCK):
        assert [row['seed'] for row in sweep_all(path, data)] == ['4']


@pytest.mark.parametrize('runs, message', [
    ([dict(lrr=1)], "unknown key 'lrr'; did you mean 'lr'"),
    ([dict(each=[1])], r'each = \[1\] must be a mapping of lists'),
    ([dict(lr=0.1), dict(each=dict(lr=[0.1, 0.2]))], 'there more than once'),
    ({}, r'runs = \{\} must be a valid list'),
    ([], 'has no run'), ([dict(each=dict(lr=[]))], 'has no run'),
])
def test_impossible_sweeps_are_refused(tmp_path, data, runs, message):
    path = write_sweep(tmp_path, runs)
    with pytest.raises(ValueError, match=message):
        sweep_all(path, data)
    assert not (tmp_path / 'runs').exists()


def test_foreign_files_are_refused(tmp_path, data):
    path = write_sweep(tmp_path, RUNS)
    (tmp_path / 'table.csv').write_text('a,b\n1,2\n')
    with pytest.raises(ValueError, match=r"no table of a sweep: its columns are \['a', 'b'\]"):
        sweep_all(path, data)
    for text, message in (
            ('[1]', 'must hold keys with values'), ('{', 'is not YAML'), ('runs: []', 'recipe is missing')):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            sweep_all(path, data)
    assert not (tmp_path / 'runs').exists()


def test_torchrun_is_refused(tmp_path, data, monkeypatch):
    """Its processes would take different runs, and train them as one."""
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match='a sweep .* takes one process, and torchrun started 2'):
        sweep_all(write_sweep(tmp_path, RUNS), data)
    assert not (tmp_path / 'runs').exists()


def test_rows_of_processes_at_once(tmp_path):
    results, rows = tmp_path / 'table.csv', [dict.fromkeys(sweep.COLUMNS, str(i)) for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda row: sweep._add_row(results, row), rows))
    assert sorted(rows_of(results), key=lambda row: int(row['seed'])) == rows


@pytest.mark.parametrize('there', [False, True])
def test_no_room_for_a_row(there, tmp_path, monkeypatch):
    """The table is as it was, and takes the row when there is room."""
    results, row = tmp_path / 'table.csv', dict.fromkeys(sweep.COLUMNS, '1')
    if there:
        sweep._add_row(results, row)
    before = results.read_bytes() if there else b''

    def no_room(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', no_room)
        with pytest.raises(WriteError, match='cannot be written: No space left on device'):
            sweep._add_row(results, row)
    assert results.read_bytes() == before
    assert len(sweep._done(results)) == there
    sweep._add_row(results, row)
    assert len(results.read_text().splitlines()) == 2 + there


def test_a_run_has_one_folder_of_its_own():
    for model in ('hf-hub:owner/net', 'local-dir:../../mine', 'a b'):
        name = sweep._name(dict(model=model))
        assert not set('/: ') & set(name) and name != sweep._name(dict(model=model, lr=0.1))
