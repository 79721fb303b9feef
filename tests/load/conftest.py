from __future__ import annotations

from tests.serving.conftest import service, tenant

__all__ = ["service", "tenant"]
