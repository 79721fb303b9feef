import pytest

# What differs is said there.
pytest.register_assert_rewrite("tests.isolation.walk")
