"""Print tables."""
from collections.abc import Iterable, Sequence


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Print rows in columns, the first to the left and the others, which are figures, to the right."""
    rows = list(rows)
    first, *others = [max(map(len, column)) for column in zip(*rows)]
    for name, *figures in rows:
        print('  '.join([name.ljust(first), *(figure.rjust(width) for figure, width in zip(figures, others))]))
