"""The machine's clock and random source."""

from __future__ import annotations

import secrets
import string
import time

import nanoid

from domain.tenancy import Millis

_LETTERS_AND_DIGITS = string.digits + string.ascii_letters
# 62^16 is 95 bits: at a million ids a second, a first collision is a matter of millions of years.
_ID_CHARS = 16
_TOKEN_BYTES = 32  # 256 bits
_VISITOR_BYTES = 16  # 128 bits: people copy the address, and it is good for one person's progress alone


class SystemClock:
    """The wall clock."""

    def now(self) -> Millis:
        return Millis(time.time_ns() // 1_000_000)


class RandomIds:
    """Nanoids, bearer tokens, codes and visitors' ids from the operating system's random source."""

    def new(self, prefix: str) -> str:
        # No '-' or '_' in them: a double click selects the whole id, and no model mistakes one for a dash.
        return f"{prefix}_{nanoid.generate(_LETTERS_AND_DIGITS, _ID_CHARS)}"

    def token(self, prefix: str = "cairn") -> str:
        return f"{prefix}_{secrets.token_urlsafe(_TOKEN_BYTES)}"

    def code(self) -> str:
        return f"{secrets.randbelow(1_000_000):06}"

    def visitor(self) -> str:
        return secrets.token_urlsafe(_VISITOR_BYTES)
