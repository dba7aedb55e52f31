"""`python -m aa_models.run SCRIPT ARGS…` runs a Python script with this package's models registered.

For scripts that build timm's models and import no plugin, as timm's `validate.py`, `benchmark.py`, `inference.py` and
`onnx_export.py`; its `train.py` has `--device-modules aa_models` for that.
"""
import runpy
import sys
from pathlib import Path

from aa_models import models  # noqa: F401, registers them


def main() -> None:
    """Run the script as `python SCRIPT ARGS…` would."""
    words = sys.argv[1:]
    if not words or words[0] in ('-h', '--help') or not Path(words[0]).is_file():
        what = f'{words[0]!r} is no file\n' if words and not words[0].startswith('-') else ''
        sys.exit(f'{what}usage: python -m aa_models.run SCRIPT [ARGS ...]')
    sys.argv = words
    sys.path[0] = str(Path(words[0]).resolve().parent)
    runpy.run_path(words[0], run_name='__main__')


if __name__ == '__main__':
    main()
