"""Where the repository and what the tests read lie, for tests in any folder."""
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
