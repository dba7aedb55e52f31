"""`benchmark`: what it compares is comparable, and its figures are what they say. No test looks at speed."""
import argparse
import csv
import dataclasses
import functools
import inspect
import os
import signal
import statistics

import numpy as np
import pytest
import torch
from PIL import Image

from aa_models import benchmark
from aa_models.benchmark import COLUMNS, Settings, comparisons, measure
from aa_models.benchmark.case import BENCH, DTYPES, Case
from aa_models.benchmark.rivals import LAYERS, make_attention, make_layer
from aa_models.cli import benchmark as command
from aa_models.cpu import cpu_name, instruction_sets
from aa_models.errors import InputError, WorkError
from aa_models.layers import AugmentedConv2d
from aa_models.layers.cpp_attention import available_kernel
from command import answered, refused

TINY = ['--rounds', '2', '--warmup', '1', '--device', 'cpu']
SMALL = [*TINY, '--batch-size', '2', '--num-heads', '2', '--dim-head', '4']


@pytest.fixture
def run_benchmark(capsys, tmp_path):
    """Runs a benchmark; gives what it prints and the rows that it writes."""
    def run(*words):
        out = answered(capsys, 'benchmark', *words, '--results-file', tmp_path / 'r.csv')
        with open(tmp_path / 'r.csv', newline='') as file:
            return out, list(csv.DictReader(file))
    return run


# --- what is compared


@pytest.mark.parametrize('name, dv, pos_embed', [('naive', 4, 'rel'), ('naive', 12, 'rel'), ('sdpa', 4, None)])
def test_rivals_that_are_our_layer(name, dv, pos_embed):
    """The paper's listing is the layer itself, the lower bound the layer without positions."""
    rival = make_layer(name, 12, 8, dv, 2, (5, 3), dtype=torch.float64)
    ours = AugmentedConv2d(
        12, 12, 3, padding=1, bias=False, dk=8, dv=dv, num_heads=2, pos_embed=pos_embed, feat_size=(5, 3),
        dtype=torch.float64)
    rival.load_state_dict(ours.state_dict())
    x = torch.randn(2, 12, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(rival(x), ours(x))


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('dtype,channels_last', [('float32', False), ('bfloat16', True)])
def test_every_layer_runs_and_leaves_no_gradient(monkeypatch, name, dtype, channels_last):
    settings = Settings(batch_size=2, dtype=dtype, channels_last=channels_last, device='cpu')
    case = Case(name, functools.partial(make_layer, name, 12, 8, 4, 2), (5, 3), 12, settings)
    module, x = case.module('cpu'), torch.randn(2, 12, 5, 3, dtype=getattr(torch, dtype))
    assert module(x).shape == x.shape and module(x).dtype == x.dtype
    monkeypatch.setattr(Case, 'module', lambda *_: module)
    seen = []
    module.register_full_backward_hook(lambda _, to_input, to_output: seen.append((to_input[0], to_output[0])))
    for mode in ('infer', 'train'):
        case.step(mode)()
    (to_input, to_output), = seen  # one backward pass in all, as far as the input
    assert to_input.shape == to_output.shape == x.shape and to_input.abs().sum() > 0
    assert to_output.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize('dtype, own_gradients', [('float32', False), ('bfloat16', True)])
def test_depthwise_convolutions_are_trained_as_in_training(monkeypatch, dtype, own_gradients):
    conv = torch.nn.Conv2d(4, 4, 5, groups=4)
    monkeypatch.setattr(Case, 'module', lambda *_: conv)
    settings = Settings(batch_size=2, dtype=dtype, device='cpu')
    Case('net', torch.nn.Identity, (7, 7), 4, settings, network=True).step('train')()
    assert ('forward' in vars(conv)) == own_gradients


@pytest.mark.parametrize('channels_last', [False, True])
def test_attention_of_q_k_and_v(channels_last):
    settings = Settings(batch_size=2, channels_last=channels_last, device='cpu')
    case = Case('aa', functools.partial(make_attention, 'aa', 1, 8, 6, 2), (5, 3), 2, settings, (4, 4, 3))
    q, k, v = case._inputs()
    assert q.shape == k.shape == (2, 2, 5, 3, 4) and v.shape == (2, 2, 5, 3, 3) and v.requires_grad
    # head by head, or as a convolution in channels_last order leaves them
    assert (v.permute(0, 2, 3, 1, 4) if channels_last else v).is_contiguous()


# --- timing


def test_turns_alternate_and_short_ones_are_repeated(monkeypatch):
    order, now = [], [0.]

    def step(name, seconds):
        order.append(name)
        now[0] += seconds

    monkeypatch.setattr(measure, '_clock', lambda: now[0])
    steps = {'a': lambda: step('a', 0.005), 'b': lambda: step('b', 0.1)}
    rounds = measure.time_by_turns(steps, rounds=3, warmup=2)
    assert ''.join(order) == 'ab' * 2 + 'aaaab' * 3
    assert rounds == [{'a': pytest.approx(0.005), 'b': pytest.approx(0.1)}] * 3


def test_ratio_is_the_median_of_the_rounds_ratios(monkeypatch):
    rounds = [{'aa': 0.2, 'conv': 0.1}, {'aa': 0.6, 'conv': 0.1}, {'aa': 0.2, 'conv': 0.4}]
    monkeypatch.setattr(measure, 'time_by_turns', lambda *_: rounds)
    settings = Settings(batch_size=2, bench='train', memory=False, device='cpu')
    ours, conv = benchmark.benchmark_layer(
        (5, 3), channels=12, num_heads=2, dim_head=4, rivals=['conv'], settings=settings)
    assert (ours['train_step_time'], conv['train_step_time']) == (200., 100.)
    # that of the medians would be 0.5
    assert conv['train_ratio'] == statistics.median([0.5, 1 / 6, 2.]) and conv['rival'] == 'aa'
    assert ours['train_samples_per_sec'] == pytest.approx(2 / 0.2) and 'train_ratio' not in ours
    assert conv['param_count'] == pytest.approx(12 * 12 * 9 / 1e6) and 'infer_gmacs' not in conv


# --- memory


class Hungry(Case):
    """Needs as many bytes as a batch is said to have images."""

    def step(self, mode):
        return lambda: torch.ones(self.settings.batch_size, dtype=torch.uint8) if mode == 'train' else None


class Killed(Case):
    """Ends its process as the system does when memory runs out."""

    def step(self, mode):
        return lambda: os.kill(os.getpid(), signal.SIGKILL)


def test_memory_is_what_a_step_touches():
    case = Hungry('hungry', torch.nn.Identity, (1, 1), 1, Settings(batch_size=200_000_000, device='cpu'))
    peaks = measure.peak_memory(case)
    assert peaks['train'] == pytest.approx(200e6, rel=0.1) and peaks['infer'] < 20e6


class Fixed(torch.nn.Linear):
    """Takes pictures of one size, as vision transformers do."""

    def __init__(self, size, device, dtype):
        super().__init__(3 * 48 * 48, 10, device=device, dtype=dtype)

    def forward(self, x):
        return super().forward(x.flatten(1))


def test_memory_of_a_network_that_takes_one_size():
    case = Case('fixed', Fixed, (48, 48), 3, Settings(batch_size=2, device='cpu'), network=True)
    assert set(measure.peak_memory(case)) == set(case.settings.modes)


def test_a_process_killed_for_memory_is_no_fault_of_ours():
    with pytest.raises(WorkError, match='greedy: the process that measures memory was killed'):
        measure.peak_memory(Killed('greedy', torch.nn.Identity, (1, 1), 1, Settings(device='cpu')))


@pytest.mark.slow
def test_no_full_logits_in_memory():
    """96×96: one (H * W)² tensor of float32 for 8 heads would be 2.7 GB."""
    settings = Settings(batch_size=1, bench='train', device='cpu')
    case = Case('aa', functools.partial(make_layer, 'aa', 64, 160, 64, 8), (96, 96), 64, settings)
    assert measure.peak_memory(case)['train'] < 300e6


# --- the command


def test_layer(run_benchmark):
    out, rows = run_benchmark('layer', *SMALL, '--size', 6, 5, '--channels', 8, '--rivals', 'bottleneck')
    lines = out.splitlines()
    assert f'{torch.get_num_threads()} thread' in lines[0] and torch.__version__ in lines[0]
    assert torch.backends.cpu.get_cpu_capability() in lines[0] and 'float32' in lines[1]
    assert cpu_name() in lines[0] and ' '.join(instruction_sets()) in lines[0]
    assert ('attention in C++' if available_kernel() else "attention by PyTorch's calls") in lines[0]
    assert {row['machine'] for row in rows} == {lines[0]}
    assert [line.split()[0] for line in lines[2:]] == ['model', 'aa', 'bottleneck']
    assert list(rows[0]) == list(COLUMNS)
    assert {row['size'] for row in rows} == {'6x5'}
    assert all(float(row['train_step_time']) > 0 and float(row['infer_memory']) >= 0 for row in rows)
    assert [row['rival'] for row in rows] == ['', 'aa']


def test_attention(run_benchmark):
    for extra in ((), ('--channels-last', '--dtype', 'bfloat16')):
        _, (floor, ours) = run_benchmark('attention', *SMALL, '--size', 5, '--no-memory', *extra)
        assert (floor['model'], ours['model'], ours['rival']) == ('sdpa', 'aa', 'sdpa')
        assert float(ours['train_ratio']) > 0


def test_growth(run_benchmark, tmp_path):
    _, rows = run_benchmark(
        'growth', *SMALL, '--channels', 8, '--sizes', 4, 8, 16, '--rivals', 'conv', 'naive', '--no-memory',
        '--max-memory', '0.0001', '-o', tmp_path / 'growth.png')
    sizes = {name: [row['size'] for row in rows if row['model'] == name] for name in ('aa', 'conv', 'naive')}
    # the logits of two images and heads at 8×8 are 65 kB four times over
    assert sizes == {'aa': ['4x4', '8x8', '16x16'], 'conv': ['4x4', '8x8', '16x16'], 'naive': ['4x4']}
    assert np.asarray(Image.open(tmp_path / 'growth.png').convert('L')).std() > 5


def test_model(run_benchmark):
    _, rows = run_benchmark(
        'model', 'aa_simplecnn', 'laa_simplecnn:aa_simplecnn', *TINY, '--batch-size', 2, '--img-size', 16,
        '--no-memory', '--dtype', 'bfloat16')
    assert [(row['model'], row['rival']) for row in rows] == [
        ('simplecnn', ''), ('aa_simplecnn', 'simplecnn'), ('aa_simplecnn', ''), ('laa_simplecnn', 'aa_simplecnn')]
    assert {row['infer_img_size'] for row in rows} == {'16'} and all(float(row['param_count']) > 0.1 for row in rows)


def test_rivals_that_are_not_named():
    assert [comparisons._pair(name)[1] for name in (
        'aa_resnet50', 'laa_efficientnet_lite0', 'aa_mnasnet_100', 'aa_efficientnet_lite2:resnet18')] == [
        'resnet50', 'tf_efficientnet_lite0', 'mnasnet_100', 'resnet18']


@pytest.mark.parametrize('arguments,message', [
    (['model', 'no_such_model'], 'needs a rival'),
    (['model', 'aa_no_such_model'], 'no_such_model'),
    (['model', 'test_vit:resnet10t', '--img-size', '100'], 'takes no images of 100x100 pixels'),
    (['layer', '--size', '0'], 'size = 0 must be at least 1'),
    (['layer', '--size', '1', '2', '3'], 'size must be H W'),
    (['layer', '--rounds', '0'], 'rounds = 0'),
    (['layer', '--dtype', 'int8'], "invalid choice: 'int8'"),
    (['layer', '--rivals', 'nobody'], "invalid choice: 'nobody'"),
    (['layer', '--channels', '9', '--dv', '5'], 'num_heads'),
    (['attention', '--dv', '9'], 'dv = 9 must be a multiple of num_heads = 8'),
    (['layer', '--results-file', '/no/such/folder/r.csv'], 'results_file'),
    (['growth', '-o', 'growth.doc'], "output = 'growth.doc' must end in"),
    (['growth', '--max-memory', '0'], 'max_memory'),
    (['layer', '--device', 'cuda:99'], 'device'),
    (['layer', '--size', '100000'], 'would take at least'),
    (['layer', '--size', '96', '--rivals', 'naive'], 'naive at 96 x 96'),
    (['layer', '--size', '96', '--rivals', 'bottleneck'], 'bottleneck at 96 x 96'),
    (['growth', '--sizes', '100000', '--rivals', 'conv'], 'AA_MODELS_MAX_GB'),
    (['attention', '--size', '100000'], 'AA_MODELS_MAX_GB'),
    (['model', 'aa_resnet18', '--img-size', '100000'], 'AA_MODELS_MAX_GB'),
])
def test_errors_come_before_any_work(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(measure, '_measure', lambda *_: pytest.fail('measured before the check'))
    assert message in refused(capsys, 'benchmark', *arguments)


@pytest.mark.parametrize('call,message', [
    (lambda: Settings(bench='sometimes'), "bench = 'sometimes' must be one of inference, train, both"),
    (lambda: Settings(dtype='int8'), "dtype = 'int8' must be one of float32"),
    (lambda: benchmark.benchmark_layer(rivals=['nobody']), 'rivals = nobody: possible are laa'),
])
def test_functions_refuse_what_the_command_does(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize('name', command.HELP)
def test_options_are_the_functions_arguments(name):
    """With the same defaults: the command imports no function before it runs one, so it names them itself."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = vars(parser.parse_args([name]))
    parameters = inspect.signature(getattr(benchmark, f'benchmark_{name}')).parameters
    expected = {key: parameter.default for key, parameter in parameters.items() if key != 'settings'}
    expected |= dataclasses.asdict(Settings()) | (dict(batch_size=1) if name == 'growth' else {})
    own, theirs = (
        {key: tuple(values[key]) if isinstance(values[key], list) else values[key] for key in expected}
        for values in (args, expected))
    assert own == theirs and set(args) - set(expected) <= {'benchmark', 'output', 'results_file'}


def test_choices_are_the_functions():
    choices = {flag: options.get('choices') for _, flag, options in command.OPTIONS}
    assert (choices['--bench'], choices['--dtype']) == (tuple(BENCH), DTYPES)
    assert choices['--rivals'] == tuple(comparisons.RIVALS)
    assert set(command.HEADS) < set(COLUMNS)
