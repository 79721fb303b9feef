from __future__ import annotations

from tests.cli.conftest import nursery, on_database
from tests.serving.conftest import service, tenant

__all__ = ["nursery", "on_database", "service", "tenant"]
