"""Tables as every CSV file of this package has them: a row of names, lines that end in one character."""
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool = True) -> str:
    """Rows, each by its column's name and empty where it lacks one, below a row of names unless `header` is False."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
