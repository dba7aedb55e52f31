"""C++ sources of this package, compiled for the CPU at hand and kept in the user's cache.

They include nothing of PyTorch's, so it takes a second or two. What is built is found again by the source, the compiler
with its arguments, and the C library, which differs between containers that share a home.
"""
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

# by what PyTorch's own kernels use on this CPU, which the variable ATEN_CPU_CAPABILITY can lower
_INSTRUCTIONS = {'AVX2': ['-mavx2', '-mfma'], 'AVX512': ['-mavx512f', '-mfma']}
_OPTIONS = ['-std=c++17', '-O3', '-shared', '-fPIC', '-fopenmp']
_SECONDS = 120


def load_library(source: Path) -> ctypes.CDLL | None:
    """Load what a C++ source exports, compiled if it was not before.

    Returns:
        None where there is no compiler, or a CPU with neither AVX2 nor AVX-512.

    Raises:
        OSError: The library cannot be written or loaded.
        subprocess.SubprocessError: The compiler fails.
    """
    instructions = _INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability())
    compiler = _compiler()
    if instructions is None or compiler is None:
        return None
    command = [*compiler, *_OPTIONS, *instructions]
    key = hashlib.sha256(source.read_bytes() + '\0'.join([*command, *platform.libc_ver()]).encode()).hexdigest()
    library = _cache() / f'{source.stem}-{key[:16]}.so'
    if library.exists():
        try:
            return ctypes.CDLL(str(library))
        except OSError:  # cut, as by the loss of power
            pass
    _compile(command, source, library)
    return ctypes.CDLL(str(library))


def _compiler() -> list[str] | None:
    """The command of a C++ compiler with its full path: what CXX says, or the system's."""
    for words in filter(None, [shlex.split(os.environ.get('CXX', '')), ['c++'], ['g++'], ['clang++']]):
        if path := shutil.which(words[0]):
            return [path, *words[1:]]
    return None


def _cache() -> Path:
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'aa_models'


def _compile(command: list[str], source: Path, library: Path) -> None:
    """Under another name first, so that no process loads half of it."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        part = Path(folder) / library.name
        try:
            subprocess.run(
                [*command, str(source), '-o', str(part)], check=True, capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.CalledProcessError as error:
            raise subprocess.SubprocessError(f'{command[0]} said {error.stderr.strip()[-500:]}') from error
        os.replace(part, library)
