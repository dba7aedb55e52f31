"""`benchmark`: what it compares is comparable, and its figures are what they say. No test looks at speed."""
import csv
import statistics
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from aa_models.analysis import plotting
from aa_models.benchmark.case import Case
from aa_models.benchmark.layer import LAYERS, LayerCase
from aa_models.benchmark.measure import COLUMNS, measure
from aa_models.benchmark.memory import peak_memory
from aa_models.benchmark.rivals import offsets_to_keys
from aa_models.benchmark.timing import by_turns, median_ratio
from aa_models.layers import AugmentedConv2d
from aa_models.layers.position import rel_logits_w
from command import run_command

TINY = ['--rounds', '2', '--warmup', '1', '--device', 'cpu']
SMALL = [*TINY, '--batch-size', '2', '--num-heads', '2', '--dim-head', '4']


def rows_of(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def layer_case(name, **kwargs):
    return LayerCase(**{**dict(
        name=name, size=(5, 3), batch_size=2, channels=12, num_heads=2, dim_head=4, dv=4, dtype='float64'), **kwargs})


# --- what is compared


@pytest.mark.parametrize('dv', [4, 12])
def test_the_papers_listing_is_our_layer(dv):
    ours, naive = (layer_case(name, dv=dv).module('cpu') for name in ('aa', 'naive'))
    naive.load_state_dict(ours.state_dict())
    x = torch.randn(2, 12, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(naive(x), ours(x))


def test_the_floor_is_our_layer_without_positions():
    floor = layer_case('sdpa').module('cpu')
    ours = AugmentedConv2d(
        12, 12, 3, padding=1, bias=False, dk=8, dv=4, num_heads=2, pos_embed=None, dtype=torch.float64)
    ours.load_state_dict(floor.state_dict())
    x = torch.randn(2, 12, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(floor(x), ours(x))


def test_offsets_to_keys_is_a_lookup():
    q, table = torch.randn(1, 2, 3, 5, 4), torch.randn(9, 4)
    torch.testing.assert_close(offsets_to_keys(q @ table.t()), rel_logits_w(q, table))


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('dtype,channels_last', [('float32', False), ('bfloat16', True)])
def test_every_layer_runs_and_leaves_no_gradient(name, dtype, channels_last):
    case = layer_case(name, dtype=dtype, channels_last=channels_last)
    module = case.module('cpu')
    assert module(*case.inputs()).shape == (2, 12, 5, 3)
    for mode in ('infer', 'train'):
        case.step(mode)()
    assert case.counts()[0] == sum(p.numel() for p in module.parameters())


# --- timing


def test_turns_alternate_and_short_ones_are_repeated():
    order, cost = [], {'a': 0.005, 'b': 0.1}

    def stopwatch(step, runs):
        order.append((step(), runs))
        return cost[step()] * runs

    times = by_turns({'a': lambda: 'a', 'b': lambda: 'b'}, rounds=3, warmup=2, stopwatch=stopwatch)
    assert order == [('a', 1), ('b', 1)] * 2 + [('a', 4), ('b', 1)] * 3
    assert times == {'a': [pytest.approx(0.005)] * 3, 'b': [0.1] * 3}


def test_ratio_is_the_median_of_the_rounds_ratios(monkeypatch):
    assert median_ratio([1., 30., 4.], [1., 10., 8.]) == 1.  # that of the medians would be 4 / 8
    times = {'aa': [0.2, 0.6, 0.2], 'conv': [0.1, 0.1, 0.4]}
    monkeypatch.setattr(sys.modules[measure.__module__], 'by_turns', lambda *_: times)
    rows = measure([layer_case(name) for name in times], ['train'], 3, 1, memory=False)
    assert [row['train_step_time'] for row in rows] == [200., 100.]
    assert rows[1]['train_ratio'] == statistics.median([0.5, 1 / 6, 2.]) and rows[1]['rival'] == 'aa'
    assert rows[0]['train_samples_per_sec'] == pytest.approx(2 / 0.2) and 'train_ratio' not in rows[0]


# --- memory


class Hungry(Case):
    """Needs as many bytes as a batch is said to have images."""

    def step(self, mode):
        return lambda: torch.ones(self.batch_size, dtype=torch.uint8) if mode == 'train' else None


def test_memory_is_what_a_step_touches():
    peaks = peak_memory(Hungry(name='hungry', size=(1, 1), batch_size=200_000_000), ['infer', 'train'])
    assert peaks['train'] == pytest.approx(200e6, rel=0.1) and peaks['infer'] < 20e6


@pytest.mark.slow
def test_no_full_logits_in_memory():
    """96×96: one (H * W)² tensor of float32 for 8 heads would be 2.7 GB."""
    case = LayerCase(name='aa', size=(96, 96), batch_size=1, channels=64, num_heads=8, dim_head=20, dv=64)
    assert peak_memory(case, ['train'])['train'] < 300e6


# --- the command


def test_layer(capsys, tmp_path):
    status, out, err = run_command(
        capsys, 'benchmark', 'layer', *SMALL, '--size', 6, 5, '--channels', 8, '--rivals', 'conv', 'bottleneck',
        '--results-file', tmp_path / 'r.csv')
    assert status == 0, err
    lines = out.splitlines()
    assert f'{torch.get_num_threads()} thread' in lines[0] and 'float32' in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ['model', 'aa', 'conv', 'bottleneck']
    rows = rows_of(tmp_path / 'r.csv')
    assert list(rows[0]) == list(COLUMNS)
    assert {row['size'] for row in rows} == {'6x5'}
    assert all(float(row['train_step_time']) > 0 and float(row['infer_memory']) >= 0 for row in rows)
    assert [row['rival'] for row in rows] == ['', 'aa', 'aa']


def test_attention(capsys, tmp_path):
    for extra in ((), ('--channels-last', '--dtype', 'bfloat16')):
        status, out, err = run_command(
            capsys, 'benchmark', 'attention', *SMALL, '--size', 5, '--no-memory',
            '--results-file', tmp_path / 'r.csv', *extra)
        assert status == 0, err
        floor, ours = rows_of(tmp_path / 'r.csv')
        assert (floor['model'], ours['model'], ours['rival']) == ('sdpa', 'aa', 'sdpa')
        assert float(ours['train_ratio']) > 0


def test_growth(capsys, tmp_path):
    status, out, err = run_command(
        capsys, 'benchmark', 'growth', *SMALL, '--channels', 8, '--sizes', 4, 8, 16, '--rivals', 'conv', 'naive',
        '--no-memory', '--max-memory', '0.0001', '--results-file', tmp_path / 'r.csv', '-o', tmp_path / 'growth.png')
    assert status == 0, err
    sizes = {name: [row['size'] for row in rows_of(tmp_path / 'r.csv') if row['model'] == name]
             for name in ('aa', 'conv', 'naive')}
    # the logits of two images and heads at 8×8 are 65 kB four times over
    assert sizes == {'aa': ['4x4', '8x8', '16x16'], 'conv': ['4x4', '8x8', '16x16'], 'naive': ['4x4']}
    assert np.asarray(Image.open(tmp_path / 'growth.png').convert('L')).std() > 5


def test_model(capsys, tmp_path):
    status, out, err = run_command(
        capsys, 'benchmark', 'model', 'aa_simplecnn', 'laa_simplecnn:aa_simplecnn', *TINY, '--batch-size', 2,
        '--img-size', 16, '--no-memory', '--dtype', 'bfloat16', '--results-file', tmp_path / 'r.csv')
    assert status == 0, err
    rows = rows_of(tmp_path / 'r.csv')
    assert [(row['model'], row['rival']) for row in rows] == [
        ('simplecnn', ''), ('aa_simplecnn', 'simplecnn'), ('aa_simplecnn', ''), ('laa_simplecnn', 'aa_simplecnn')]
    assert {row['infer_img_size'] for row in rows} == {'16'} and all(float(row['param_count']) > 0.1 for row in rows)


@pytest.mark.parametrize('arguments,message', [
    (['model', 'no_such_model'], 'needs a rival'),
    (['model', 'aa_no_such_model'], 'no_such_model'),
    (['layer', '--size', '0'], 'size = 0 must be at least 1'),
    (['layer', '--size', '1', '2', '3'], 'size must be H W'),
    (['layer', '--rounds', '0'], 'rounds = 0'),
    (['layer', '--dtype', 'int8'], "invalid choice: 'int8'"),
    (['layer', '--rivals', 'nobody'], "invalid choice: 'nobody'"),
    (['layer', '--channels', '9', '--dv', '5'], 'num_heads'),
    (['layer', '--results-file', '/no/such/folder/r.csv'], 'results_file'),
    (['growth', '-o', 'growth.doc'], "output = 'growth.doc' must end in"),
    (['growth', '--max-memory', '0'], 'max_memory'),
    (['layer', '--device', 'cuda:99'], 'device'),
    (['layer', '--device', 'nowhere'], 'device'),
])
def test_errors_come_before_any_work(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr('aa_models.benchmark.measure', lambda *_: pytest.fail('measured before the check'))
    status, _, err = run_command(capsys, 'benchmark', *arguments)
    assert status == 2 and message in err


def test_a_picture_needs_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(ValueError, match=r'aa-models\[plot\]'):
        plotting.check_plot('growth.png')
