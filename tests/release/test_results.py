"""The table of results and the picture of the logs."""
from concurrent.futures import ThreadPoolExecutor

import pytest

from aa_models.errors import UserError
from aa_models.release.results import COLUMNS, read_results, update_results
from aa_models.training.curves import draw_curves, read_curve
from command import run_command


def row(model, top1):
    return dict(zip(COLUMNS, (model, top1, 100 - top1, 90., 10., 0.3, 32, 1., 'bicubic')))


def test_rows_are_sorted_and_replaced(tmp_path):
    table = tmp_path / 'results.csv'
    for model, top1 in (('a', 50.), ('b', 60.5), ('c', 9.), ('a', 70.25)):
        update_results(table, row(model, top1))
    rows = read_results(table)
    assert [(r['model'], r['top1'], r['top1_err']) for r in rows] == [
        ('a', '70.25', '29.75'), ('b', '60.5', '39.5'), ('c', '9.0', '91.0')]
    assert table.read_bytes().startswith(','.join(COLUMNS).encode() + b'\na,70.25,')
    assert [path.name for path in tmp_path.iterdir()] == ['results.csv']


def test_writers_at_once_lose_no_row(tmp_path):
    table, models = tmp_path / 'results.csv', [f'model{i}' for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda model: update_results(table, row(model, 50.)), models))
    assert sorted(r['model'] for r in read_results(table)) == sorted(models)
    assert [path.name for path in tmp_path.iterdir()] == ['results.csv']


@pytest.mark.parametrize('content', [
    b'', b'hello\n', b'model,top1\na,1\n', b'\xff\xfe',
    *(f'{",".join(COLUMNS)}\na,{top1},1,{top5},1,1,1,1,x\n'.encode() for top1, top5 in (('much', '1'), ('1', '')))])
def test_another_file_is_not_overwritten(tmp_path, content):
    table = tmp_path / 'results.csv'
    table.write_bytes(content)
    with pytest.raises(ValueError, match='results_file = .*results.csv'):
        update_results(table, row('a', 50.))
    assert table.read_bytes() == content


def write_log(path, *points):
    path.parent.mkdir(exist_ok=True)
    path.write_text('epoch,train_loss,eval_top1\n' + ''.join(f'{epoch},1.0,{top1}\n' for epoch, top1 in points))


def test_runs_of_a_model_are_one_line(tmp_path, capsys):
    write_log(tmp_path / 'net.cifar100' / 'log.csv', (0, ''), (1, 10.5), (2, 30))
    write_log(tmp_path / 'net-seed2.csv', (0, 5), (1, 20), (2, 40))
    write_log(tmp_path / 'other.csv', (2, 50))
    runs = [tmp_path / name for name in ('net.cifar100', 'net-seed2.csv', 'other.csv')]
    assert [read_curve(run) for run in runs] == [
        ('net.cifar100', {2: 10.5, 3: 30.}), ('net', {1: 5., 2: 20., 3: 40.}), ('other', {3: 50.})]
    picture = tmp_path / 'curves.svg'
    assert run_command(capsys, 'curves', *runs, '-o', picture, '--title', 'three') == (0, '', '')
    assert picture.read_text().count('<path') > 20


def test_names_and_titles_are_no_formulas(tmp_path, capsys, recwarn):
    for name in ('_net', 'a$b_{$c'):
        write_log(tmp_path / name / 'log.csv', (0, 5), (1, 20))
    picture = tmp_path / 'curves.svg'
    words = *(tmp_path / name for name in ('_net', 'a$b_{$c')), '-o', picture, '--title', 'cost in $ and _{ $'
    assert run_command(capsys, 'curves', *words) == (0, '', '') and not recwarn.list
    for text in ('<!--  _net -->', '<!-- a$b_{$c -->', '<!-- cost in $ and _{ $ -->'):
        assert text in picture.read_text()


@pytest.mark.parametrize('paths, lines', [
    (['net.one', 'net-seed2.csv', 'other.csv'], ['net, 2 seeds', 'other']),
    (['net.one', 'net.two', 'net.one/log.csv'], ['net.one, 2 seeds', 'net.two']),
    (['net.one/log.csv', 'other/log.csv'], ['net', 'other']),
])
def test_only_runs_of_one_name_are_averaged(paths, lines, tmp_path, monkeypatch):
    for name in ('net.one/log.csv', 'net.two/log.csv', 'other/log.csv', 'net-seed2.csv', 'other.csv'):
        write_log(tmp_path / name, (0, 5))
    drawn = []
    monkeypatch.setattr('aa_models.training.curves.save_plot', lambda figure, output: drawn.extend(
        text.get_text() for text in figure.axes[0].get_legend().get_texts()))
    draw_curves([tmp_path / path for path in paths], str(tmp_path / 'curves.svg'))
    assert drawn == lines


def test_seeds_without_a_common_epoch(tmp_path):
    for seed, epochs in ((1, (1, 3)), (2, (2, 4))):
        write_log(tmp_path / f'net-seed{seed}.csv', *((epoch, 5) for epoch in epochs))
    with pytest.raises(UserError, match='the 2 runs of net were measured after no epoch in common'):
        draw_curves(sorted(tmp_path.glob('*.csv')), str(tmp_path / 'curves.svg'))
    assert not (tmp_path / 'curves.svg').exists()


def test_what_cannot_be_drawn_is_refused(tmp_path):
    write_log(tmp_path / 'empty.csv', (0, ''))
    (tmp_path / 'table.csv').write_text('eval_top1\n3\n')
    for name, message in (
            ('empty.csv', 'has no accuracy'), ('none', 'neither a log nor a folder'), ('table.csv', 'is no log of')):
        with pytest.raises(UserError, match=message):
            read_curve(tmp_path / name)
