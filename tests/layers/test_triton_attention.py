"""The Triton kernels: their numbers in Triton's interpreter, their way through its compiler, when they are chosen."""
import importlib.util
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aa_models.layers import AugmentedConv1d, AugmentedConv2d, softmax_attention, triton_attention, triton_trial
from aa_models.layers import trial as trial_module
from repository import ROOT
from torch_faults import skip_where_compiling_is_called_exporting

needs_triton = pytest.mark.skipif(importlib.util.find_spec('triton') is None, reason='triton is not installed')


@needs_triton
@pytest.mark.timeout(600)
@pytest.mark.parametrize('marked', ['not slow', pytest.param('slow', marks=pytest.mark.slow)])
def test_in_the_interpreter(marked):
    """In a process of its own: what triton is imported as, it stays."""
    file = Path(__file__).with_name('interpreted_triton.py')
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-n', '0', '-m', marked, str(file)], cwd=ROOT, text=True,
        capture_output=True, env=dict(os.environ, TRITON_INTERPRET='1'), timeout=580)
    assert done.returncode == 0 and ' passed' in done.stdout, done.stdout + done.stderr


class Compiled:
    """Stands for a kernel: what it would be launched with, the compiler and NVIDIA's assembler make a program of."""

    def __init__(self, kernel, capability, shared):
        self.kernel, self.capability, self.shared = kernel, capability, shared

    def __getitem__(self, grid):
        assert len(grid) == 1 and grid[0] > 0
        return self.compile

    def compile(self, *args, num_warps, num_stages, **constants):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile
        kinds = {torch.float32: '*fp32', torch.float16: '*fp16', torch.bfloat16: '*bf16', int: 'i32', float: 'fp32'}
        values = dict(zip(self.kernel.arg_names, args), **constants)
        assert list(values) == self.kernel.arg_names
        constants |= {name: None for name, value in values.items() if value is None}
        signature = {name: 'constexpr' if name in constants else kinds[getattr(value, 'dtype', type(value))]
                     for name, value in values.items()}
        program = compile(
            ASTSource(self.kernel, signature, constants), target=GPUTarget('cuda', self.capability, 32),
            options=dict(num_warps=num_warps, num_stages=num_stages))
        assert program.asm['cubin'] and (signature['q'] == '*fp32' or 'mma' in program.asm['ptx'])
        self.shared.append(program.metadata.shared)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize('shape,rows,columns,causal,dtype', [
    ((1, 1, 14, 14, 20, 20), True, True, False, torch.bfloat16),
    ((1, 1, 40, 40, 128, 128), True, True, False, torch.float16),
    ((1, 1, 1, 99, 20, 4), False, True, True, torch.bfloat16),
    ((1, 1, 7, 7, 32, 32), True, False, False, torch.float32)])
def test_compiles_without_a_gpu(monkeypatch, tmp_path, capability, shape, rows, columns, causal, dtype):
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    from aa_models.layers import triton_kernels
    shared = []
    for name in ('forward', 'backward_queries', 'backward_keys'):
        monkeypatch.setattr(triton_kernels, name, Compiled(getattr(triton_kernels, name), capability, shared))
    B, num_heads, H, W, dim_k, dim_v = shape
    q, k, v = (torch.zeros(B, num_heads, H, W, dim, dtype=dtype, requires_grad=True) for dim in (dim_k, dim_k, dim_v))
    tables = [torch.zeros(2 * n - 1, dim_k) if there else None for n, there in ((H, rows), (W, columns))]
    triton_attention.triton_attention(q, k, v, *tables, 0.5, causal)[0].sum().backward()
    assert len(shared) == 3 and max(shared) <= 2 ** 16  # bytes; every GPU from 8.0 on has more for a program


# --- the choice, on a device that has no memory and stands for a GPU


@pytest.fixture
def tried(monkeypatch):
    """The cases that were tried. Nothing was before; the trial finds what `result` gives, or raises it."""
    cases, fault = [], triton_trial._fault

    def noted(case):
        cases.append(case)
        return fault(case)

    def difference(*args):
        if isinstance(difference.result, Exception):
            raise difference.result
        return difference.result

    def trial(result):
        difference.result = result
        return cases

    for name, value in (
            ('_DEVICE', 'meta'), ('_passed', {}), ('_refused', set()), ('_has_matrix_units', lambda device: True),
            ('_fault', noted)):
        monkeypatch.setattr(triton_trial, name, value)
    monkeypatch.setattr(trial_module, '_difference', difference)
    monkeypatch.delenv('AA_MODELS_TRITON', raising=False)
    return trial


@pytest.fixture
def way(monkeypatch):
    """Which way a layer goes for an input of a size."""
    called = []
    for name in ('triton_attention', 'blockwise_attention', 'fused_attention', 'attention_weights'):
        function = getattr(softmax_attention, name)
        monkeypatch.setattr(
            softmax_attention, name, lambda *args, name=name, function=function: called.append(name) or function(*args))

    def ask(layer, *size):
        called.clear()
        layer(layer.conv.weight.new_zeros(2, 8, *size))
        return called.pop()
    return ask


def make(kind=AugmentedConv2d, **kwargs):
    return kind(8, 16, 3, **{**dict(padding=1, dk=40, dv=8, num_heads=2, feat_size=6, device='meta'), **kwargs})


def test_chosen_after_a_trial(tried, way):
    cases, layer = tried(1e-4), make()
    assert way(layer, 6, 6) == way(layer, 5, 8) == 'triton_attention' and len(cases) == 1
    assert way(layer, 6, 40) == way(layer, 9, 70) == 'triton_attention' and len(cases) == 2
    assert way(make(dtype=torch.bfloat16), 6, 6) == 'triton_attention' and len(cases) == 3
    assert way(make(AugmentedConv1d, padding=0, causal=True), 6) == 'triton_attention'
    assert cases[-1].causal and not cases[-1].has_rows


@pytest.mark.parametrize('result,reason', [
    (0.1, 'a number differed by 1.0e-01'), (math.nan, 'differed by nan'),
    (OSError('no assembler'), 'OSError was raised: no assembler')])
def test_a_failed_trial_is_said_once(tried, way, result, reason):
    cases, layer = tried(0.), make()
    assert way(layer, 6, 6) == 'triton_attention'
    tried(result)
    with pytest.warns(UserWarning, match=f'meta is computed without the Triton kernels.*{reason}.*AA_MODELS_TRITON=0'):
        assert way(layer, 6, 40) == 'fused_attention'
    with warnings.catch_warnings(action='error'):  # for the rest of the process, whatever the case
        assert way(layer, 6, 40) == way(layer, 6, 6) == way(layer, 12, 12) == 'fused_attention' and len(cases) == 2


def test_switched_off(tried, way, monkeypatch):
    cases = tried(0.)
    monkeypatch.setenv('AA_MODELS_TRITON', '0')
    assert way(make(), 6, 6) == 'fused_attention' and not cases


def test_not_tried_where_it_is_not_for(tried, way, monkeypatch):
    cases = tried(0.)
    for settings in (dict(dtype=torch.float64), dict(pos_embed=None), dict(attn_drop=0.1), dict(dk=80)):
        assert way(make(**settings), 6, 6) == 'fused_attention', settings
    assert way(make(), 300, 300) == 'fused_attention'
    assert way(make(device='cpu'), 6, 6) == 'blockwise_attention'
    assert way(make(attn_drop=0.1).eval(), 6, 6) == 'triton_attention' and len(cases) == 1
    monkeypatch.setattr(triton_trial, '_passed', {})
    monkeypatch.setattr(triton_trial, '_has_matrix_units', lambda device: False)
    assert way(make(), 6, 6) == 'fused_attention' and len(cases) == 1


def test_not_recorded_for_elsewhere(tried, way):
    cases, layer, x = tried(0.), make().eval(), torch.zeros(2, 8, 6, 6, device='meta')
    program = torch.export.export(layer, (x,))
    names = [str(node.target) for node in program.graph.nodes]
    assert any('scaled_dot_product' in name for name in names) and not any('aa_models' in name for name in names)
    torch.func.vmap(layer)(x.unsqueeze(1))
    with FakeTensorMode():
        assert way(make(), 6, 6) == 'fused_attention'
    assert not cases


def test_asked_while_compiling(tried, fresh_compiler):
    """One operator in the graph, for all sizes that have tiles of the same width."""
    skip_where_compiling_is_called_exporting()
    cases, graphs = tried(0.), []
    layer = make().eval()
    compiled = torch.compile(layer, backend=lambda graph, example: graphs.append(graph) or graph, fullgraph=True)
    for width in (18, 20, 21, 25, 30, 9, 10):
        compiled(torch.zeros(1, 8, 6, width, device='meta'))
    assert {case.columns for case in cases} == {32, 16} and len(graphs) == 3  # one size, all sizes; the narrower ones
    for graph in graphs:
        assert sum('triton_attention' in str(node.target) for node in graph.graph.nodes) == 1
