"""A table of validation results in timm's columns, a row for each model, the best first."""
import csv
from pathlib import Path
from typing import Any

from aa_models.csv_text import csv_text
from aa_models.durable import replace_text
from aa_models.errors import InputError
from aa_models.lock import alone_at

COLUMNS = ('model', 'top1', 'top1_err', 'top5', 'top5_err', 'param_count', 'img_size', 'crop_pct', 'interpolation')


def read_results(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of a table, none where there is no such file yet.

    Raises:
        InputError: It is a file of another kind.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        with path.open(newline='', encoding='utf-8') as file:
            reader = csv.DictReader(file)
            columns, rows = tuple(reader.fieldnames or ()), list(reader)
            [float(row[column]) for row in rows for column in ('top1', 'top5')]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(
            f'results_file = {str(path)!r} is no table of results: {type(error).__name__}: {error}') from error
    if columns != COLUMNS:
        raise InputError(f'results_file = {str(path)!r} has the columns {list(columns)}, not {list(COLUMNS)}')
    return rows


def update_results(path: str | Path, row: dict[str, Any]) -> None:
    """Put a row into a table, which is made where there is none; a row of the same model goes."""
    with alone_at(Path(path), f'results_file = {str(path)!r}'):  # of several processes none loses another's row
        rows = [other for other in read_results(path) if other['model'] != row['model']]
        replace_text(path, csv_text(COLUMNS, sorted([*rows, row], key=lambda row: -float(row['top1']))))
