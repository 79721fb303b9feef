"""Writing to a peer that may be gone."""

from __future__ import annotations

import asyncio


def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Writes it. Raises ConnectionResetError where the connection is closed; uvloop itself raises a RuntimeError."""
    if writer.transport.is_closing():
        raise ConnectionResetError("The connection is closed.")
    writer.write(data)
