"""What a process says about itself: one JSON object a line, on standard error."""

from __future__ import annotations

import sys

import structlog


def configure_logs() -> None:
    """Once a process, before it serves."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
