from __future__ import annotations

import pytest

from tests.worlds import World, in_memory, on_postgres


@pytest.fixture(params=["memory", "postgres"])
def world(request: pytest.FixtureRequest) -> World:
    """On the fakes and on PostgreSQL; the rules are the domain's, so that both answer alike."""
    if request.param == "memory":
        return in_memory()
    return on_postgres(request.getfixturevalue("database"))
