from __future__ import annotations

from tests.serving.conftest import era, service, tenant

__all__ = ["era", "service", "tenant"]
