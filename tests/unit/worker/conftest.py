"""Models that several files of tests here share."""

import pytest

from tests.support.models import SUCCESSORS, counting_model
from tidecast.service.model.session import Model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Variant -> model: each may follow any other."""
    folder = tmp_path_factory.mktemp("models")
    return {v: Model.load(counting_model(folder / str(i), v)) for i, v in enumerate(SUCCESSORS)}


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """A model with the features in another order, and another name."""
    folder = tmp_path_factory.mktemp("turned")
    return Model.load(counting_model(folder, SUCCESSORS[3], name="turned", features=["wind", "value"]))
