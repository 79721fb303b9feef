"""What people mid-way see while new versions come out: the rules of Versions, read off the answers they get.

The tables say what each call is answered with. They were worked out by hand from the rules, and not by the domain.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from domain.draft import Edit, InsertStep, MoveStep, RemoveStep, RenameStep, ReplaceStep
from domain.tenancy import StepId
from domain.walkthrough import PublishPolicy, Step, StepText
from tests.processes import Learner, text_of
from tests.serving.conftest import Tenant

_LIST, _STATUS, _REVIEW = "list_walkthroughs", "get_walkthrough_status", "review_walkthrough_step"
_SELECT, _NEXT = "select_walkthrough", "next_walkthrough_step"


class Reader:
    """A person's assistant, and every answer it got, as a line of a table."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self.handle = ""
        """Of the step that was shown last."""
        self.lines: list[str] = []

    async def call(self, said: str, tool: str, **arguments: Any) -> str:
        """Makes the call, keeps its line under the name `said`, and returns the line's cells but that name."""
        result = await self._learner.client.call_tool(tool, arguments)
        text, told = text_of(result), result.structured_content
        if result.is_error:
            cells = (text.partition(":")[0], "", "", "", _refusal(text))
        elif tool in (_LIST, _STATUS):
            cells = _row(told, text)
        else:
            assert isinstance(told, dict)
            cells = _lesson(told)
            self.handle = (told["step"] or {}).get("handle") or self.handle
        widths = (17, 9, 14, 11, 0)
        line = "".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        self.lines.append(f"{said:<24}{line}")
        return " ".join(filter(None, cells))


def _row(told: Any, text: str) -> tuple[str, ...]:
    (row,) = told["walkthroughs"]
    assert row["newer_version_available"] is ("a newer version is out" in text)
    note = "a newer one is out" if row["newer_version_available"] else ""
    completed = f"{row['completed_steps']} of " if "completed_steps" in row else "of "
    number = str(row["current_step_number"] or "–")
    return row["status"], str(row["version"]), number, f"{completed}{row['step_count']}", note


def _lesson(told: dict[str, Any]) -> tuple[str, ...]:
    step, walkthrough, progress = told["step"], told["walkthrough"], told["progress"]
    version, latest = walkthrough["version"], walkthrough["latest_version"]
    kept = "What they completed stays completed."
    notes = {
        f"Version {latest} of this walkthrough is out. Tell the user; if they want to move, call select_walkthrough "
        f'with walkthrough="{walkthrough["id"]}" and version="latest". {kept}': f"version {latest} is out",
        f"The user is now on version {version}. {kept}": f"now on version {version}",
    }
    spoken = [line for line in told["what_now"].splitlines() if re.search(r"\bversion \d", line, re.IGNORECASE)]
    return (
        told["status"],
        str(version),
        f"{step['number']} {step['key']}" if step else "–",
        f"{progress['completed_steps']} of {progress['total_steps']}",
        ", ".join(notes[line] for line in spoken),
    )


def _refusal(text: str) -> str:
    """What a refusal has to say beside its code, in short."""
    if text.startswith("version_withdrawn: "):
        assert "was withdrawn by its author, and nothing has moved." in text
        assert "to begin on the newest version, call select_walkthrough with walkthrough=" in text
        return "select begins anew"
    assert text.startswith("step_not_current: ")
    ((number, key),) = re.findall(r"is at step (\d+) of \d+: Step (\S+) \(completed_step=", text)
    return f"at {number} {key}"


# ------------------------------------------------------------------------------------------- version by version

_STORY = """
version 1: clone, install, build, test, deploy, release
  CALL                    ANSWER           VERSION  STEP          COMPLETED  NOTE
  select                  started          1        1 clone       0 of 6
  next                    advanced         1        2 install     1 of 6
  next                    advanced         1        3 build       2 of 6

version 2, keep: inserted step 'licence' after 'clone'; removed step 'test'
version 2: clone, licence, install, build, deploy, release
  list                    in_progress      1        3             of 6
  status                  in_progress      1        3             2 of 6
  review 1                review           1        1 clone       2 of 6
  next, old handle        advanced         1        4 test        3 of 6
  next, the same again    repeated         1        4 test        3 of 6
  select                  resumed          1        4 test        3 of 6
  list                    in_progress      1        4             of 6
  status                  in_progress      1        4             3 of 6

version 3, offer: moved step 'deploy' after 'clone'; renamed step 'install' to 'set-up'
version 3: clone, deploy, licence, set-up, build, release
  list                    in_progress      1        4             of 6       a newer one is out
  status                  in_progress      1        4             3 of 6     a newer one is out
  review 1                review           1        1 clone       3 of 6     version 3 is out
  next, old handle        advanced         1        5 deploy      4 of 6     version 3 is out
  next, the same again    repeated         1        5 deploy      4 of 6     version 3 is out
  select                  resumed          1        5 deploy      4 of 6     version 3 is out
  list                    in_progress      1        5             of 6       a newer one is out
  status                  in_progress      1        5             4 of 6     a newer one is out

version 4, carry_over: rewrote step 'build'; inserted step 'image' after 'build'
version 4: clone, deploy, licence, set-up, build, image, release
  list                    in_progress      1        5             of 6
  status                  in_progress      1        5             4 of 6
  review 1                review           1        1 clone       4 of 6
  next, old handle        moved_to_latest  4        3 licence     3 of 7     now on version 4
  next, the same again    repeated         4        3 licence     3 of 7
  select                  resumed          4        3 licence     3 of 7
  list                    in_progress      4        3             of 7
  status                  in_progress      4        3             3 of 7
  review 2                review           4        2 deploy      3 of 7
  next                    advanced         4        4 set-up      4 of 7
  next                    advanced         4        6 image       5 of 7

version 5, supersede: removed step 'licence'; moved step 'image' to the beginning
version 5: image, clone, deploy, set-up, build, release
  list                    in_progress      4        6             of 7
  status                  in_progress      4        6             5 of 7
  review 1                review           4        1 clone       5 of 7
  next, old handle        version_withdrawn                                  select begins anew
  next, the same again    version_withdrawn                                  select begins anew
  status                  in_progress      4        6             5 of 7
  select                  restarted        5        1 image       0 of 6
  next, old handle        step_not_current                                   at 1 image
  list                    in_progress      5        1             of 6
  status                  in_progress      5        1             0 of 6
  next                    advanced         5        2 clone       1 of 6
"""


async def _publish(tenant: Tenant, policy: PublishPolicy, *edits: Edit) -> Sequence[str]:
    """Edits the draft, publishes it, and returns what a table says of that."""
    authoring = tenant.world.authoring
    draft = await authoring.draft(tenant.organization, "tour")
    based_on = (draft.key.number, draft.revision)
    draft = await authoring.edit(tenant.organization, "tour", based_on, edits, by="author@example.com")
    stored = await authoring.publish(
        tenant.organization, "tour", (draft.key.number, draft.revision), policy, by="author@example.com"
    )
    chain = ", ".join(step.text.key for step in draft.steps)
    said = "; ".join(map(str, edits))
    return ["", f"version {stored.version}, {policy.value}: {said}", f"version {stored.version}: {chain}"]


def _inserted(key: str, after: str) -> InsertStep:
    return InsertStep(Step(StepId("-"), StepText(key, f"Step {key}", f"Do {key}.")), after)


@pytest.mark.promise("version.pinned", "version.policies", "carry-over")
async def test_somebody_mid_way_sees_four_versions_come_out_one_with_each_policy(
    tenant: Tenant, era: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["clone", "install", "build", "test", "deploy", "release"]
    await tenant.publish(*keys)
    story = ["", f"version 1: {', '.join(keys)}"]
    story.append(f"  {'CALL':<24}{'ANSWER':<17}{'VERSION':<9}{'STEP':<14}{'COMPLETED':<11}NOTE")
    async with tenant.learner(era=era) as learner:
        me = Reader(learner)

        def tell(*published: str) -> None:
            story.extend(f"  {line}" for line in me.lines)
            story.extend(published)
            me.lines.clear()

        async def on(completed_step: str, said: str = "next") -> None:
            await me.call(said, _NEXT, completed_step=completed_step)

        async def look() -> None:
            await me.call("list", _LIST)
            await me.call("status", _STATUS)

        async def look_back(number: int) -> None:
            await me.call(f"review {number}", _REVIEW, walkthrough="tour", step_number=number)

        async def select() -> None:
            await me.call("select", _SELECT, walkthrough="tour")

        await select()
        await on(me.handle)
        await on(me.handle)

        for policy, edits in (
            (PublishPolicy.KEEP, (_inserted("licence", "clone"), RemoveStep("test"))),
            (PublishPolicy.OFFER, (MoveStep("deploy", "clone"), RenameStep("install", "set-up"))),
            (
                PublishPolicy.CARRY_OVER,
                (ReplaceStep(StepText("build", "Step build", "Build its first half.")), _inserted("image", "build")),
            ),
        ):
            tell(*await _publish(tenant, policy, *edits))
            await look()
            await look_back(1)
            held = me.handle
            await on(held, "next, old handle")
            await on(held, "next, the same again")
            await select()
            await look()

        await look_back(2)
        await on(me.handle)
        await on(me.handle)

        tell(*await _publish(tenant, PublishPolicy.SUPERSEDE, RemoveStep("licence"), MoveStep("image", None)))
        await look()
        await look_back(1)
        held = me.handle
        await on(held, "next, old handle")
        await on(held, "next, the same again")
        await me.call("status", _STATUS)
        await select()
        await on(held, "next, old handle")
        await look()
        await on(me.handle)
        tell()
    if era == "auto":
        with capsys.disabled():
            print("\n".join(story))
    assert "\n".join(story) == _STORY.rstrip("\n")


# ------------------------------------------------------------------------- every policy, position and order of calls

_VERSION_1, _VERSION_2 = ("a", "b", "c"), ("b", "n", "a")
"""Moved: b. Inserted: n. Removed: c."""

_CALLS = ("select", "next", "next, the same again", "select, next")

# Where somebody stood when version 2 came out; then how the last of these calls is answered, each time in a
# walkthrough of its own: the status, the version, the step by number and key, how many are completed, the note.
_MATRIX = {
    PublishPolicy.KEEP: """
first     | resumed 1 1 a 0 of 3   | advanced 1 2 b 1 of 3  | repeated 1 2 b 1 of 3 | advanced 1 2 b 1 of 3
middle    | resumed 1 2 b 1 of 3   | advanced 1 3 c 2 of 3  | repeated 1 3 c 2 of 3 | advanced 1 3 c 2 of 3
last      | resumed 1 3 c 2 of 3   | completed 1 – 3 of 3   | repeated 1 – 3 of 3   | completed 1 – 3 of 3
completed | completed 1 – 3 of 3   | repeated 1 – 3 of 3    | repeated 1 – 3 of 3   | repeated 1 – 3 of 3
""",
    PublishPolicy.OFFER: """
first     | resumed 1 1 a 0 of 3 + | advanced 1 2 b 1 of 3 + | repeated 1 2 b 1 of 3 + | advanced 1 2 b 1 of 3 +
middle    | resumed 1 2 b 1 of 3 + | advanced 1 3 c 2 of 3 + | repeated 1 3 c 2 of 3 + | advanced 1 3 c 2 of 3 +
last      | resumed 1 3 c 2 of 3 + | completed 1 – 3 of 3    | repeated 1 – 3 of 3     | completed 1 – 3 of 3
completed | completed 1 – 3 of 3   | repeated 1 – 3 of 3     | repeated 1 – 3 of 3     | repeated 1 – 3 of 3
""",
    PublishPolicy.CARRY_OVER: """
first     | moved 2 1 b 0 of 3     | moved 2 1 b 1 of 3     | repeated 2 1 b 1 of 3 | step_not_current at 1 b
middle    | moved 2 1 b 1 of 3     | moved 2 2 n 2 of 3     | repeated 2 2 n 2 of 3 | advanced 2 2 n 2 of 3
last      | moved 2 2 n 2 of 3     | completed 1 – 3 of 3   | repeated 1 – 3 of 3   | repeated 2 2 n 2 of 3
completed | completed 1 – 3 of 3   | repeated 1 – 3 of 3    | repeated 1 – 3 of 3   | repeated 1 – 3 of 3
""",
    PublishPolicy.SUPERSEDE: """
first     | restarted 2 1 b 0 of 3 | version_withdrawn      | version_withdrawn     | step_not_current at 1 b
middle    | restarted 2 1 b 0 of 3 | version_withdrawn      | version_withdrawn     | step_not_current at 1 b
last      | restarted 2 1 b 0 of 3 | version_withdrawn      | version_withdrawn     | step_not_current at 1 b
completed | completed 1 – 3 of 3   | repeated 1 – 3 of 3    | repeated 1 – 3 of 3   | repeated 1 – 3 of 3
""",
}
_SHORTER = {
    "moved_to_latest": "moved",
    " now on version 2": "",
    " version 2 is out": " +",
    " select begins anew": "",
}


def _expected(policy: PublishPolicy) -> dict[tuple[str, str], str]:
    rows = ([cell.strip() for cell in line.split("|")] for line in _MATRIX[policy].strip().splitlines())
    return {(row[0], calls): cell for row in rows for calls, cell in zip(_CALLS, row[1:], strict=True)}


@pytest.mark.promise("version.pinned", "version.policies", "next.other-version")
@pytest.mark.parametrize("policy", PublishPolicy)
async def test_each_policy_does_its_own_wherever_somebody_stands_and_whatever_they_call_first(
    tenant: Tenant, policy: PublishPolicy
) -> None:
    expected = _expected(policy)
    assert len(expected) == 16
    answers, held = {}, {}
    async with tenant.learner() as learner:
        me = Reader(learner)
        for place, calls in expected:
            key = _key(place, calls)
            await tenant.publish(*_VERSION_1, key=key)
            await me.call("select", _SELECT, walkthrough=key)
            for _ in range(("first", "middle", "last", "completed").index(place)):
                await me.call("next", _NEXT, completed_step=me.handle)
            held[place, calls] = me.handle
            await tenant.publish(*_VERSION_2, key=key, policy=policy)
        for (place, calls), handle in held.items():
            for made in calls.split(", "):
                if made == "select":
                    answer = await me.call(made, _SELECT, walkthrough=_key(place, calls))
                else:
                    answer = await me.call(made, _NEXT, completed_step=handle)
            for long, short in _SHORTER.items():
                answer = answer.replace(long, short)
            answers[place, calls] = answer
    assert answers == expected


def _key(place: str, calls: str) -> str:
    return f"{place}-{_CALLS.index(calls)}"
