"""Cases of a test that stand for all of them every day; the others are slow tests."""
import pytest


def daily(cases, *kept):
    """The cases for `parametrize`, those that are not kept marked slow."""
    return [case if case in kept else pytest.param(case, marks=pytest.mark.slow) for case in cases]
