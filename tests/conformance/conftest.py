from __future__ import annotations

from tests.sign_in.conftest import mailbox

__all__ = ["mailbox"]
