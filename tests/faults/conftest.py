"""How often faults are injected, and the table of what held."""

from collections.abc import Callable

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="all the times that docs/faults.md speaks of")


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    return lambda quick, full: full if request.config.getoption("--full", default=False) else quick


@pytest.fixture
def held(request: pytest.FixtureRequest) -> Callable[[str, int, str], None]:
    return lambda fault, tried, what: print(f"{fault} | {tried} | {what}")
