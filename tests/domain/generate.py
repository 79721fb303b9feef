"""Generated values for the domain's tests: chains of steps, texts, manuscripts and versions."""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st

from domain.tenancy import OrganizationId, StepId, WalkthroughId
from domain.walkthrough import Delivery, Manuscript, Outline, Step, StepText, Version, VersionKey, WalkthroughType

ORGANIZATION = OrganizationId("acme")
WALKTHROUGH = WalkthroughId("w1")


def examples(count: int, *, stateful_step_count: int = 50) -> settings:
    """The same `count` examples in every run, however slow the machine."""
    return settings(max_examples=count, stateful_step_count=stateful_step_count, deadline=None, derandomize=True)


# ------------------------------------------------------------------------------------------- orders of steps

step_ids = st.text("abcdef", min_size=1, max_size=2).map(StepId)
"""From so few that two often meet."""

orders = st.lists(step_ids, unique=True, max_size=8)

step_keys = st.sampled_from("abcdefgh")
key_orders = st.lists(step_keys, unique=True, min_size=1, max_size=6).map(tuple)
"""The step keys of one version, in order."""


@st.composite
def revised(draw: st.DrawFn, before: tuple[str, ...]) -> tuple[str, ...]:
    """Another version's keys, as authors make them: a step added, removed, moved, renamed or split; all; none."""
    after = list(before)
    edits = ["add", "rename", "split", "replace all", "identical"] + ["remove", "move"] * (len(before) > 1)
    for edit in draw(st.lists(st.sampled_from(edits), min_size=1, max_size=3)):
        place = draw(st.integers(0, len(after)))
        unused = [key for key in "abcdefgh" if key not in after]
        match edit:
            case "add" if unused:
                after.insert(place, draw(st.sampled_from(unused)))
            case "rename" if unused:
                after[place % len(after)] = draw(st.sampled_from(unused))
            case "split" if len(unused) > 1:
                whole = place % len(after)
                halves = unused[:2]
                if draw(st.booleans()):
                    halves[draw(st.integers(0, 1))] = after[whole]
                after[whole : whole + 1] = halves
            case "remove" if len(after) > 1:
                del after[place % len(after)]
            case "move":
                after.insert(place, after.pop(draw(st.integers(0, len(after) - 1))))
            case "replace all":
                after = list(draw(key_orders))
    return tuple(after)


# ---------------------------------------------------------------------------------------------------- texts

keys = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
_characters = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
texts = st.text(_characters, min_size=1, max_size=60).filter(str.strip)
titles = st.text(string.ascii_letters + "äß…“日本 ", min_size=1, max_size=40).filter(str.strip)

step_texts = st.builds(
    StepText,
    key=keys,
    title=titles,
    content=texts,
    assistant_notes=st.none() | texts,
    workspace_actions=st.none() | texts,
    done_when=st.none() | texts,
    delivery=st.sampled_from(Delivery),
    estimated_minutes=st.none() | st.integers(1, 24 * 60),
)

manuscripts = st.builds(
    Manuscript,
    key=keys,
    title=titles,
    description=texts,
    type=st.sampled_from(WalkthroughType),
    steps=st.lists(step_texts, unique_by=lambda step: step.key, min_size=1, max_size=4).map(tuple),
)


@st.composite
def revisions(draw: st.DrawFn) -> tuple[Manuscript, Manuscript]:
    """A manuscript and what its author made of it: other steps, another order, other texts, other details."""
    before = draw(key_orders)
    after = draw(revised(before))
    contents = draw(st.dictionaries(step_keys, st.sampled_from(["Do that.", "Do both."])))
    versions = (version_of(1, before).manuscript("setup"), version_of(1, after).manuscript("setup"))
    steps = (replace(step, content=contents.get(step.key, step.content)) for step in versions[1].steps)
    details = draw(
        st.fixed_dictionaries(
            {}, optional={"title": titles, "description": texts, "type": st.sampled_from(WalkthroughType)}
        )
    )
    return versions[0], replace(versions[1], steps=tuple(steps), **details)


def version_of(number: int, step_keys: Iterable[str]) -> Version:
    """A version with these steps. A step's id is its key and the version: `intro-2`."""
    return Version(
        key=VersionKey(ORGANIZATION, WALKTHROUGH, number),
        title=f"Walkthrough, version {number}",
        description="Made for a test.",
        type=WalkthroughType.COURSE,
        steps=tuple(
            Step(StepId(f"{key}-{number}"), StepText(key=key, title=f"Step {key}", content=f"Do {key}."))
            for key in step_keys
        ),
    )


def outline_of(number: int, step_keys: Iterable[str]) -> Outline:
    """What rules need of `version_of` the same."""
    return version_of(number, step_keys).outline()
