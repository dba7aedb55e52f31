"""Where the repository and what the tests read lie, and how they read its tables, for tests in any folder."""
import re
from pathlib import Path

from aa_models.release.results import read_results

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PICTURES = TESTS / 'pictures'
LION = PICTURES / 'lion.png'
BROKEN_PICTURES = [b'', b'not a picture', LION.read_bytes()[:-500]]


def rows_of(text, title):
    """The cells of the rows that begin with a name in backticks, by that name, from one section of a README."""
    section = text.partition(f'# {title}\n')[2].partition('\n#')[0]
    table = [[cell.strip() for cell in line.strip('|').split('|')] for line in section.splitlines()]
    names = [re.match(r'\[?`([^`]+)`', cells[0]) for cells in table]
    return {name[1]: cells[1:] for name, cells in zip(names, table) if name}


def measured(name_tag):
    """A checkpoint's row in the table of results."""
    rows = read_results(ROOT / 'weights' / f'results-{name_tag.partition(".")[2]}.csv')
    return next(row for row in rows if row['model'] == name_tag)
