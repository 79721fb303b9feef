from __future__ import annotations

from tests.serving.conftest import service

__all__ = ["service"]
