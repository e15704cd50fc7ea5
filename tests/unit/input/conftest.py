"""A registry for the tests of formats with schemas."""

import pytest

from tests.support.small_registry import SmallRegistry


@pytest.fixture
def registry():
    made = SmallRegistry()
    yield made
    made.close()
