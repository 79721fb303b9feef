"""A pytest plugin: that a test went red is all that is asked. Hypothesis does not look for the smallest example, and
the tests that take longest come last: those on PostgreSQL, and then those that generate their examples."""

from __future__ import annotations

import pytest
from hypothesis import Phase, is_hypothesis_test, settings

settings.register_profile("unshrunk", phases=[Phase.explicit, Phase.generate], database=None)
settings.load_profile("unshrunk")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (is_hypothesis_test(getattr(item, "function", None)), "postgres" in item.name))
