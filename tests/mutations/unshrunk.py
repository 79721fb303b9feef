"""A pytest plugin: Hypothesis does not look for the smallest example. That a test went red is all that is asked."""

from __future__ import annotations

from hypothesis import Phase, settings

settings.register_profile("unshrunk", phases=[Phase.explicit, Phase.generate], database=None)
settings.load_profile("unshrunk")
