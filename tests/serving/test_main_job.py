"""The main job, with an unmodified MCP client against a real service, in both protocol eras."""

from __future__ import annotations

import hashlib

import pytest

from domain.walkthrough import PublishPolicy
from tests.processes import text_of
from tests.serving.conftest import Tenant


@pytest.mark.promise("list", "select.started", "next.advanced", "next.completed", "status")
async def test_a_developer_is_led_through_a_walkthrough_to_its_end(tenant: Tenant, era: str) -> None:
    await tenant.publish("one", "two", "three")
    async with tenant.learner(era=era) as me:
        (row,) = (await me.call("list_walkthroughs"))["walkthroughs"]
        assert (row["key"], row["status"], row["step_count"], row["estimated_minutes"]) == ("tour", "not_started", 3, 6)
        told = await me.call("select_walkthrough", walkthrough="tour")
        seen = []
        while told["step"]:
            seen.append(
                (told["status"], told["step"]["key"], told["step"]["number"], told["progress"]["completed_steps"])
            )
            told = await me.call("next_walkthrough_step", completed_step=told["step"]["handle"])
        assert seen == [("started", "one", 1, 0), ("advanced", "two", 2, 1), ("advanced", "three", 3, 2)]
        assert told["status"] == "completed"
        assert told["progress"]["completed_steps"] == told["progress"]["total_steps"] == 3
        assert told["progress"]["completed_at"] >= told["progress"]["started_at"]
        (row,) = (await me.call("get_walkthrough_status", walkthrough="tour"))["walkthroughs"]
        assert (row["status"], row["completed_steps"], row["current_step_number"]) == ("completed", 3, None)
        assert row["completed_at"] == told["progress"]["completed_at"]


@pytest.mark.promise("resume.anywhere")
async def test_the_same_person_resumes_in_another_client_and_era(tenant: Tenant) -> None:
    await tenant.publish("one", "two", "three")
    async with tenant.learner(era="legacy") as me:
        first = await me.call("select_walkthrough", walkthrough="The tour")
        second = await me.call("next_walkthrough_step", completed_step=first["step"]["handle"])
    async with tenant.learner(era="auto") as me:
        told = await me.call("select_walkthrough", walkthrough=second["walkthrough"]["id"])
        assert (told["status"], told["step"]) == ("resumed", second["step"])
        (row,) = (await me.call("list_walkthroughs"))["walkthroughs"]
        assert (row["status"], row["current_step_number"]) == ("in_progress", 2)


@pytest.mark.promise("next.repeated")
async def test_a_repeated_call_moves_nothing_and_shows_the_step_that_is_now_current(tenant: Tenant, era: str) -> None:
    await tenant.publish("one", "two", "three")
    async with tenant.learner(era=era) as me:
        first = await me.call("select_walkthrough", walkthrough="tour")
        second = await me.call("next_walkthrough_step", completed_step=first["step"]["handle"])
        for _ in range(3):
            again = await me.call("next_walkthrough_step", completed_step=first["step"]["handle"])
            assert (again["status"], again["step"], again["progress"]) == (
                "repeated",
                second["step"],
                second["progress"],
            )


@pytest.mark.promise("next.handle-required", "next.not-current")
async def test_next_without_a_proper_handle_moves_nothing_and_tells_the_current_one(tenant: Tenant, era: str) -> None:
    await tenant.publish("one", "two", "three")
    async with tenant.learner(era=era) as me:
        assert (await me.refused("next_walkthrough_step")).startswith("completed_step_required: ")
        told = await me.call("select_walkthrough", walkthrough="tour")
        handle = told["step"]["handle"]
        for arguments in ({}, {"completed_step": None}, {"completed_step": "step one"}, {"walkthrough": "tour"}):
            text = await me.refused("next_walkthrough_step", **arguments)
            assert text.startswith("completed_step_required: ")
            assert handle in text
            assert "Step one" in text
        for arguments, problem in (({}, "is missing"), ({"completed_step": "step one"}, "is not a handle")):
            assert problem in await me.refused("next_walkthrough_step", walkthrough="tour", **arguments)
        async with tenant.learner("bob@example.com", era=era) as other:
            await other.call("select_walkthrough", walkthrough="tour")
            ahead = await other.call("next_walkthrough_step", completed_step=handle)
        text = await me.refused("next_walkthrough_step", completed_step=ahead["step"]["handle"])
        assert text.startswith("step_not_current: ")
        assert handle in text
        assert (await me.call("select_walkthrough", walkthrough="tour"))["step"]["number"] == 1


@pytest.mark.promise("next.outcome")
async def test_a_person_who_is_stuck_stays_and_a_skipped_step_counts_as_completed(tenant: Tenant, era: str) -> None:
    await tenant.publish("one", "two")
    async with tenant.learner(era=era) as me:
        told = await me.call("select_walkthrough", walkthrough="tour")
        stuck = await me.call(
            "next_walkthrough_step", completed_step=told["step"]["handle"], outcome="stuck", note="no\x00 such file"
        )
        assert (stuck["status"], stuck["step"]) == ("stuck", told["step"])
        skipped = await me.call("next_walkthrough_step", completed_step=told["step"]["handle"], outcome="skipped")
        assert (skipped["status"], skipped["progress"]["completed_steps"]) == ("advanced", 1)


@pytest.mark.promise("select.restart", "select.completed", "review")
async def test_a_completed_walkthrough_can_be_reviewed_and_only_restart_leaves_it(tenant: Tenant, era: str) -> None:
    await tenant.publish("one", "two")
    async with tenant.learner(era=era) as me:
        first = await me.call("select_walkthrough", walkthrough="tour")
        text = await me.refused("review_walkthrough_step", walkthrough="tour", step_number=2)
        assert text.startswith("step_not_reached: ")
        second = await me.call("next_walkthrough_step", completed_step=first["step"]["handle"])
        reviewed = await me.call("review_walkthrough_step", walkthrough="tour", step_number=1)
        assert (reviewed["status"], reviewed["step"]["key"], reviewed["step"]["handle"]) == ("review", "one", None)
        assert first["step"]["handle"] not in reviewed["what_now"]
        await me.call("next_walkthrough_step", completed_step=second["step"]["handle"])
        for version in ("pinned", "latest"):
            done = await me.call("select_walkthrough", walkthrough="tour", version=version)
            assert (done["status"], done["step"]) == ("completed", None)
        late = await me.call("next_walkthrough_step", completed_step=second["step"]["handle"])
        assert (late["status"], late["step"]) == ("repeated", None)
        assert "restart" in late["what_now"]
        again = await me.call("select_walkthrough", walkthrough="tour", restart=True)
        assert (again["status"], again["step"]["number"], again["progress"]["attempt"]) == ("restarted", 1, 2)
        old = await me.refused("next_walkthrough_step", completed_step=first["step"]["handle"])
        assert old.startswith("step_not_current: ")


@pytest.mark.promise("version.pinned", "version.policies")
async def test_a_new_version_moves_nobody_unless_its_publish_says_so(tenant: Tenant, era: str) -> None:
    await tenant.publish("one", "two", "three")
    async with tenant.learner(era=era) as me:
        told = await me.call("select_walkthrough", walkthrough="tour")
        await tenant.publish("zero", "one", "two", policy=PublishPolicy.KEEP)
        kept = await me.call("select_walkthrough", walkthrough="tour")
        assert (kept["status"], kept["walkthrough"]["version"], kept["walkthrough"]["latest_version"]) == (
            "resumed",
            1,
            2,
        )
        assert "version" not in kept["what_now"]
        await tenant.publish("zero", "one", "three", policy=PublishPolicy.OFFER)
        (row,) = (await me.call("list_walkthroughs"))["walkthroughs"]
        assert (row["version"], row["newer_version_available"]) == (1, True)
        offered = await me.call("next_walkthrough_step", completed_step=told["step"]["handle"])
        assert (offered["status"], offered["step"]["key"]) == ("advanced", "two")
        assert 'version="latest"' in offered["what_now"]
        await tenant.publish("zero", "one", "two", "four", policy=PublishPolicy.CARRY_OVER)
        moved = await me.call("next_walkthrough_step", completed_step=offered["step"]["handle"])
        assert (moved["status"], moved["walkthrough"]["version"], moved["step"]["key"]) == (
            "moved_to_latest",
            4,
            "zero",
        )
        assert moved["progress"]["completed_steps"] == 2
        last = await me.call("next_walkthrough_step", completed_step=moved["step"]["handle"])
        assert last["step"]["key"] == "four"  # one and two were completed on version 1


@pytest.mark.promise("version.policies")
async def test_a_withdrawn_version_stops_and_select_begins_again_on_the_latest(tenant: Tenant, era: str) -> None:
    await tenant.publish("one", "two")
    async with tenant.learner(era=era) as me:
        told = await me.call("select_walkthrough", walkthrough="tour")
        await tenant.publish("one", "other", policy=PublishPolicy.SUPERSEDE)
        text = await me.refused("next_walkthrough_step", completed_step=told["step"]["handle"])
        assert text.startswith("version_withdrawn: ")
        again = await me.call("select_walkthrough", walkthrough="tour")
        assert (again["status"], again["walkthrough"]["version"], again["step"]["number"]) == ("restarted", 2, 1)


@pytest.mark.promise("find")
async def test_a_walkthrough_is_found_by_id_key_or_title_and_else_the_candidates_are_listed(tenant: Tenant) -> None:
    await tenant.publish("a", key="tour", title="Same")
    await tenant.publish("a", key="other", title="same")
    async with tenant.learner() as me:
        assert (await me.call("select_walkthrough", walkthrough="other"))["walkthrough"]["key"] == "other"
        for wrong in ("nothing", "Same"):
            text = await me.refused("select_walkthrough", walkthrough=wrong)
            assert text.startswith("walkthrough_not_found: ")
            assert "- tour: Same" in text
            assert "- other: same" in text
        text = await me.refused("review_walkthrough_step", walkthrough="tour", step_number=1)
        assert text.startswith("walkthrough_not_started: ")


@pytest.mark.promise("text-and-structure")
async def test_the_text_alone_says_everything_that_the_structure_says(tenant: Tenant, era: str) -> None:
    await tenant.publish("one", "two")
    async with tenant.learner(era=era) as me:
        result = await me.client.call_tool("select_walkthrough", {"walkthrough": "tour"})
        told, text = result.structured_content, text_of(result)
        assert told is not None
        fence = hashlib.sha256(told["step"]["content"].encode()).hexdigest()[:16]
        assert text.splitlines()[0] == (
            "The tour · step 1 of 2: Step one · 0 of 2 completed · attempt 1 · version 1 · started · about 2 min"
        )
        assert f"{fence} -----\nDo one.\n----- end {fence}" in text
        assert text.endswith(told["what_now"])
        assert told["step"]["handle"] in text
        assert "Step two" not in text
        assert "Step two" not in str(told)
