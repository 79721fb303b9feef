"""Text that others wrote, in the columns of a terminal: it obeys nobody, and takes no more room than it has."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

# Joiners hold emoji together, and Persian words.
_JOINERS = "\u200c\u200d"


def harmless(text: str) -> str:
    """On one line, and disarmed."""
    return disarmed(" ".join(text.split()))


def disarmed(line: str) -> str:
    """Without what a terminal would obey, and what turns the direction of the text."""
    return "".join("�" if _is_obeyed(letter) else letter for letter in line)


def _is_obeyed(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") and letter not in _JOINERS


def width_of(text: str) -> int:
    """How many columns of a terminal it takes."""
    return sum(map(_letter_cells, text))


def _letter_cells(letter: str) -> int:
    if letter in _JOINERS or unicodedata.category(letter) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def folded(text: str, cells: int, indent: str = "") -> Iterator[str]:
    """The text, on as many lines as it takes: broken at a blank, or where there is none, anywhere."""
    room = cells - len(indent)
    while width_of(text) > room:
        fitting = len(clipped(text, room + 1)) - 1
        blank = text.rfind(" ", 0, fitting + 1)
        at = blank if blank > 0 else fitting
        yield indent + text[:at]
        text = text[at:].lstrip()
    yield indent + text


def clipped(text: str, cells: int) -> str:
    """The text, or as much of it as fits with an ellipsis at the end."""
    if width_of(text) <= cells:
        return text
    kept = ""
    for letter in text:
        if width_of(kept + letter) > cells - 1:
            break
        kept += letter
    return kept.rstrip() + "…"
