"""What the processor is called, and which instructions it has.

Without instructions for bfloat16 a CPU multiplies it much slower than float32: the operator of this package took 16
times as long, a convolution 35 times (AMD Zen 3, torch 2.14).
"""
import functools
import platform
import re
import timeit
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

# Instruction sets that multiply a half-precision kind: of x86, then of Arm
_PRODUCTS = {
    torch.bfloat16: ('avx512_bf16', 'amx_bf16', 'bf16', 'sve_bf16'), torch.float16: ('avx512_fp16', 'amx_fp16')}
# What decides on speed, in the order of its age
_SHOWN = ('avx2', 'avx512f', 'neon', 'sve', 'sve2', *_PRODUCTS[torch.bfloat16], *_PRODUCTS[torch.float16])
_NAMES = {'avx512_f': 'avx512f', 'asimd': 'neon', 'svebf16': 'sve_bf16'}  # torch's and the kernel's other names
_CPUINFO = Path('/proc/cpuinfo')  # Linux has it


def _torch_says() -> Mapping[str, Any]:
    ask: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, 'get_capabilities', dict)  # not every torch has it
    return ask()


def _kernel_says(pattern: str) -> str:
    try:
        found = re.search(rf'^(?:{pattern})\s*:\s*(.*)$', _CPUINFO.read_text(encoding='utf-8'), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return ''
    return found[1].strip() if found else ''


@functools.cache
def instruction_sets() -> tuple[str, ...]:
    """The CPU's instruction sets that decide on speed here, such as 'avx2' and 'avx512_bf16'; none where unknown."""
    facts = _torch_says()
    names = [name for name, there in facts.items() if there is True] or _kernel_says('flags|Features').split()
    there = {_NAMES.get(name, name) for name in names}
    return tuple(name for name in _SHOWN if name in there)


@functools.cache
def multiplies(dtype: torch.dtype) -> bool:
    """Whether the CPU has instructions for products of such numbers, as far as can be known."""
    return dtype not in _PRODUCTS or any(name in instruction_sets() for name in _PRODUCTS[dtype])


def cpu_name() -> str:
    """The name of the CPU's model, as far as it tells."""
    return _torch_says().get('cpu_name') or _kernel_says('model name') or platform.processor() or platform.machine()


def slowdown(dtype: torch.dtype) -> float:
    """How many times as long as in float32 a convolution takes on this CPU, by a measurement of some milliseconds."""
    seconds = []
    for kind in (torch.float32, dtype):
        x, weight = torch.ones(4, 64, 16, 16, dtype=kind), torch.ones(64, 64, 3, 3, dtype=kind)
        timer = timeit.Timer(lambda: F.conv2d(x, weight, padding=1))  # noqa: B023, used in the same turn
        timer.timeit(1)
        seconds.append(min(timer.repeat(5, number=1)))
    return seconds[1] / seconds[0]
