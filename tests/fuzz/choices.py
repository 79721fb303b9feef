"""Choices that Hypothesis makes, and makes smaller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T")
_number = st.integers(0, 127)


@dataclass(frozen=True)
class Choices:
    """What Hypothesis decides, one small number after the other: strategies made anew for each would cost ten times as
    much, and the requests are what is wanted."""

    draw: st.DrawFn

    def below(self, end: int) -> int:
        """A number from 0 to `end` - 1; of many, the first come a little more often."""
        if end <= 128:
            return self.draw(_number) % end
        return (self.draw(_number) * 128 + self.draw(_number)) % end

    def of(self, several: Sequence[T]) -> T:
        return several[self.below(len(several))]
