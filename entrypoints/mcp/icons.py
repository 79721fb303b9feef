"""Cairn's icon, in the data itself: so a client needs no second address, and nobody else's."""

from __future__ import annotations

import base64
from pathlib import Path

import mcp_types as types

# PNG is what every client that shows icons can show (MCP 2025-11-25 "Icons").
_PNG = base64.b64encode(Path(__file__).with_name("icon.png").read_bytes()).decode()
ICONS = [types.Icon(src=f"data:image/png;base64,{_PNG}", mime_type="image/png", sizes=["48x48"])]
