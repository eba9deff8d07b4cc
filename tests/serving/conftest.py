"""One server for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving_fixtures import RunningServer, load_tiny_model, run_server

from krill.inference.load import LoadedModel


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_tiny_model(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def server(tiny: LoadedModel) -> Iterator[RunningServer]:
    with run_server(tiny) as running:
        yield running
