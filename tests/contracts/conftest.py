from __future__ import annotations

import pytest

from tests.worlds import World, in_memory, on_postgres


@pytest.fixture(params=["memory", "postgres"])
def world(request: pytest.FixtureRequest) -> World:
    """Every test of this folder runs on the fakes and on PostgreSQL."""
    if request.param == "memory":
        return in_memory()
    return on_postgres(request.getfixturevalue("database"))
