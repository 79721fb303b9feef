"""The commands by which an author hands in, publishes, takes back, and puts walkthroughs on servers."""

from __future__ import annotations

import getpass
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from application.authoring import Authoring, Done, Prospect, Stored
from domain.draft import Draft
from domain.errors import InvalidValue
from domain.forecast import Fate
from domain.publishing import Deed
from domain.walkthrough import Manuscript, PublishPolicy
from entrypoints.cli.columns import clipped
from entrypoints.cli.commands import given, manuscript_in, to_publish, with_container
from entrypoints.cli.terminal import show

_WIDTH = 80
_STEP_CELLS = 30
_ROWS_SHOWN = 50


def _who(by: str | None) -> str:
    """Who acts: as they say, or else the name by which they are logged in on this machine."""
    if by is not None:
        return by
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:  # OSError from Python 3.13 on
        raise InvalidValue("your account on this machine has no name: say who you are with --by") from error


# --------------------------------------------------------------------------------------- handing in, publishing


def push(
    folder: Path,
    org: str,
    publish: bool,
    policy: str | None,
    is_dry_run: bool,
    expected: int | None,
    is_forced: bool,
    servers: Sequence[str],
    by: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    for option, is_given in (("--policy", policy), ("--dry-run", is_dry_run), ("--expect", expected is not None)):
        if is_given and not publish:
            raise click.UsageError(f"{option} goes with --publish.")
    if is_dry_run and servers:
        raise click.UsageError("--dry-run is about the servers that there are: leave out --server.")
    placements = [_placement(each) for each in servers]
    signed = _who(by)
    manuscript = manuscript_in(folder)
    chosen = _policy(policy)
    if is_dry_run:
        again = ["push", folder, "--org", org, "--publish", *_as_given(policy, by, data_dir, is_forced=is_forced)]
        _dry_run(org, chosen, data_dir, as_json, lambda authoring: _given(manuscript), again)
        return
    stored = with_container(
        data_dir,
        lambda container: container.authoring().push(
            org,
            manuscript,
            publish=chosen if publish else None,
            servers=placements,
            by=signed,
            expected_latest=expected,
            is_forced=is_forced,
        ),
    )
    lines = [_hidden(stored.key, org, slug) for slug in stored.hidden_on]
    slugs = [slug for slug, _ in placements]
    asked = chosen if publish else None
    _show_stored(stored, asked, as_json, *lines, servers=slugs, hidden_on=list(stored.hidden_on))


async def _given(manuscript: Manuscript) -> Manuscript:
    return manuscript


def publish(
    key: str, org: str, policy: str | None, is_dry_run: bool, by: str | None, data_dir: Path | None, as_json: bool
) -> None:
    signed = _who(by)
    chosen = _policy(policy)
    if is_dry_run:
        _dry_run(org, chosen, data_dir, as_json, lambda authoring: _drafted(authoring, org, key))
        return

    async def published(authoring: Authoring) -> Stored | Done:
        draft = (await authoring.versions(org, key)).draft
        if draft is None:
            return await authoring.publish_again(org, key, by=signed)
        return await authoring.publish(org, key, _revision(draft), chosen, by=signed)

    stored = with_container(data_dir, lambda container: published(container.authoring()))
    if isinstance(stored, Stored):
        _show_stored(stored, chosen, as_json)
    else:
        _show_done(stored, as_json, asked=chosen)


async def _drafted(authoring: Authoring, org: str, key: str) -> Manuscript:
    return (await authoring.draft(org, key)).manuscript()


def rollback(
    key: str,
    version: int,
    org: str,
    policy: str | None,
    is_dry_run: bool,
    expected: int | None,
    is_forced: bool,
    by: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    signed = _who(by)
    chosen = _policy(policy)
    if is_dry_run:
        again = ["rollback", key, version, "--org", org, *_as_given(policy, by, data_dir, is_forced=is_forced)]
        _dry_run(org, chosen, data_dir, as_json, lambda authoring: _older(authoring, org, key, version), again)
        return
    stored = with_container(
        data_dir,
        lambda container: container.authoring().roll_back(
            org, key, version, chosen, by=signed, expected_latest=expected, is_forced=is_forced
        ),
    )
    _show_stored(stored, chosen, as_json, source=version)


async def _older(authoring: Authoring, org: str, key: str, version: int) -> Manuscript:
    return (await authoring.version(org, key, version)).manuscript(key)


def _policy(policy: str | None) -> PublishPolicy:
    return PublishPolicy.KEEP if policy is None else PublishPolicy(policy)


def _revision(draft: Draft) -> tuple[int, int]:
    return draft.key.number, draft.revision


def _as_given(policy: str | None, by: str | None, data_dir: Path | None, *, is_forced: bool) -> Sequence[object]:
    options = (given("--policy", policy), given("--by", by), given("--data-dir", data_dir))
    return [word for option in (*options, ["--force"] if is_forced else []) for word in option]


def _show_stored(
    stored: Stored, asked: PublishPolicy | None, as_json: bool, *lines: str, source: int | None = None, **more: Any
) -> None:
    if stored.is_unchanged:
        what = f"Published {stored.key} again" if stored.is_shown_again else f"{stored.key} is unchanged"
        sentence = f"{what}: version {stored.version} has this content.{_stands(stored.policy, asked)}"
    elif stored.is_published:
        of = "" if source is None else f", with the content of version {source}"
        sentence = f"Published {stored.key} as version {stored.version}{of}."
    else:
        sentence = f"Stored {stored.key} as a draft of version {stored.version}; --publish publishes it."
    result = {
        "key": stored.key,
        "version": stored.version,
        "published": stored.is_published,
        "unchanged": stored.is_unchanged,
        "policy": stored.policy,
        **more,
    }
    show(as_json, result, sentence, *lines)


def _stands(policy: PublishPolicy | None, asked: PublishPolicy | None) -> str:
    """That a version keeps the policy it was published with, where another one was asked for."""
    return f" Its earlier policy ({policy.value}) stands." if policy and asked and policy is not asked else ""


# ------------------------------------------------------------------------------------------------- the dry run

_WHAT_BECOMES = {
    Fate.STAYS: "finish version {0.version}",
    Fate.OFFERED: "may finish version {0.version}, and are told how to move",
    Fate.MOVES: "go on at step {0.to_number}",
    Fate.COMPLETES: "have completed it",
    Fate.PENDING: "move once it is shown there",
    Fate.RESTARTS: "begin again at step {0.to_number}",
    Fate.WAITS: "wait: it is hidden on their server",
}
_ALTOGETHER = {
    Fate.STAYS: ("stays", "stay"),
    Fate.OFFERED: ("is offered the move", "are offered the move"),
    Fate.MOVES: ("moves", "move"),
    Fate.COMPLETES: ("has completed it", "have completed it"),
    Fate.PENDING: ("moves once it is shown on their server", "move once it is shown on their server"),
    Fate.RESTARTS: ("begins again", "begin again"),
    Fate.WAITS: ("waits", "wait"),
}


def _dry_run(
    org: str,
    policy: PublishPolicy,
    data_dir: Path | None,
    as_json: bool,
    content: Callable[[Authoring], Awaitable[Manuscript]],
    again: Sequence[object] | None = None,
) -> None:
    """`again` are the words of the command that publishes, where it takes --expect."""

    async def foreseen(authoring: Authoring) -> tuple[str, Prospect]:
        manuscript = await content(authoring)
        return manuscript.key, await authoring.forecast(org, manuscript, policy)

    key, prospect = with_container(data_dir, lambda container: foreseen(container.authoring()))
    forecast = prospect.forecast
    result = {
        "key": key,
        "version": prospect.version,
        "policy": prospect.policy.value,
        "unchanged": prospect.is_unchanged,
        "people": forecast.people(),
        "fates": {fate.value: forecast.people(fate) for fate in Fate},
        "outlooks": [
            {
                "version": each.version,
                "step_number": each.number,
                "step_key": each.step_key,
                "fate": each.fate.value,
                "to_step_number": each.to_number,
                "people": each.people,
            }
            for each in forecast.outlooks
        ],
    }
    lines = list(_foretold(key, prospect, policy))
    if again is not None and not (prospect.is_unchanged and not forecast.outlooks):
        lines.append(to_publish(*again, latest=prospect.version - (not prospect.is_unchanged)))
    show(as_json, result, *lines)


def _foretold(key: str, prospect: Prospect, asked: PublishPolicy) -> Iterator[str]:
    outlooks = prospect.forecast.outlooks
    if prospect.is_unchanged and not outlooks:
        same = f"{key} is unchanged: version {prospect.version} has this content, and nobody would be moved."
        yield f"{same}{_stands(prospect.policy, asked)}"
        return
    if prospect.is_unchanged:
        yield f"Showing version {prospect.version} of {key} again, under its earlier policy, {prospect.policy.value}:"
    else:
        yield f"Publishing {key} as version {prospect.version} with {prospect.policy.value}:"
    if outlooks:
        yield ""
        steps = [clipped(f"{each.number} {each.step_key}", _STEP_CELLS) for each in outlooks[:_ROWS_SHOWN]]
        width = max(map(len, ["ON STEP", *steps]))
        yield f"VERSION  {'ON STEP':<{width}}  PEOPLE  THEY"
        for each, step in zip(outlooks, steps, strict=False):
            fate = _WHAT_BECOMES[each.fate].format(each)
            yield clipped(f"{each.version:>7}  {step:<{width}}  {each.people:>6}  {fate}", _WIDTH)
        if len(outlooks) > _ROWS_SHOWN:
            yield f"and {len(outlooks) - _ROWS_SHOWN:,} more rows: --json lists them"
        yield ""
    yield f"{_totals(prospect)} Nothing was stored."


def _totals(prospect: Prospect) -> str:
    """Everybody in one sentence."""
    of_fate = Counter[Fate]()
    for each in prospect.forecast.outlooks:
        of_fate[each.fate] += each.people
    everybody = of_fate.total()
    if not everybody:
        return "Nobody is mid-way."
    if everybody == 1:
        (fate,) = of_fate
        return f"The one person mid-way {_ALTOGETHER[fate][0]}."
    parts = [f"{of_fate[fate]:,} {_ALTOGETHER[fate][of_fate[fate] > 1]}" for fate in Fate if of_fate[fate]]
    if len(parts) == 1:
        (fate,) = of_fate
        who = "Both" if everybody == 2 else f"All {everybody:,}"
        return f"{who} people mid-way {_ALTOGETHER[fate][1]}."
    return f"Of {everybody:,} people mid-way, {', '.join(parts[:-1])} and {parts[-1]}."


# --------------------------------------------------------------------------------------- the walkthrough's life

_DONE = {
    Deed.REPUBLISHED: ("Published {} again: version {} is shown.", "{} is published: version {} is the latest."),
    Deed.UNPUBLISHED: ("Unpublished {}: it is hidden, and those mid-way may finish.", "{} is not published."),
    Deed.ARCHIVED: ("Archived {}: it is hidden, and those mid-way may finish.", "{} is archived already."),
    Deed.RESTORED: ("Restored {} from the archive.", "{} is not archived."),
    Deed.WITHDRAWN: (
        "Withdrew version {1} of {0}: those mid-way on it begin again on the latest.",
        "Version {1} of {0} is withdrawn already.",
    ),
}


def _show_done(done: Done, as_json: bool, *, asked: PublishPolicy | None = None) -> None:
    result = {
        "key": done.key,
        "done": done.deed.value,
        "version": done.version,
        "policy": done.policy,
        "unchanged": done.was_already,
    }
    sentence = _DONE[done.deed][done.was_already].format(done.key, done.version)
    show(as_json, result, f"{sentence}{_stands(done.policy, asked)}")


def unpublish(key: str, org: str, by: str | None, data_dir: Path | None, as_json: bool) -> None:
    signed = _who(by)
    done = with_container(data_dir, lambda container: container.authoring().unpublish(org, key, by=signed))
    _show_done(done, as_json)


def archive(key: str, org: str, by: str | None, data_dir: Path | None, as_json: bool) -> None:
    signed = _who(by)
    done = with_container(data_dir, lambda container: container.authoring().archive(org, key, by=signed))
    _show_done(done, as_json)


def restore(key: str, org: str, by: str | None, data_dir: Path | None, as_json: bool) -> None:
    signed = _who(by)
    done = with_container(data_dir, lambda container: container.authoring().restore(org, key, by=signed))
    _show_done(done, as_json)


def withdraw(key: str, version: int, org: str, by: str | None, data_dir: Path | None, as_json: bool) -> None:
    signed = _who(by)
    done = with_container(data_dir, lambda container: container.authoring().withdraw(org, key, version, by=signed))
    _show_done(done, as_json)


def discard(key: str, org: str, by: str | None, data_dir: Path | None, as_json: bool) -> None:
    signed = _who(by)

    async def discarded(authoring: Authoring) -> tuple[int, Draft | None]:
        history = await authoring.versions(org, key)
        if history.draft is None:
            return len(history.versions), None
        return len(history.versions), await authoring.discard_draft(org, key, _revision(history.draft), by=signed)

    latest, draft = with_container(data_dir, lambda container: discarded(container.authoring()))
    result = {"key": key, "discarded": draft is not None, "version": latest or None}
    if draft is None:
        sentence = f"{key} has no draft."
    elif latest:
        sentence = f"Discarded the draft of {key}: it is as version {latest} again."
    else:
        sentence = f"Discarded the draft of {key}: it has no steps now."
    show(as_json, result, sentence)


# ---------------------------------------------------------------------------------------------------- servers


def assign(key: str, org: str, servers: Sequence[str], data_dir: Path | None, as_json: bool) -> None:
    if not servers:
        raise click.UsageError("Name at least one server with --server SLUG[:ORDER].")
    placements = [_placement(each) for each in servers]
    assigned = with_container(data_dir, lambda container: container.authoring().assign(org, key, placements))
    rows = [
        {"server": slug, "order": each.display_order, "enabled": each.is_enabled}
        for (slug, _), each in zip(placements, assigned, strict=True)
    ]
    lines = [f"{key} is on {row['server']}, at {row['order']}." for row in rows]
    lines += [
        _hidden(key, org, slug) for (slug, _), each in zip(placements, assigned, strict=True) if not each.is_enabled
    ]
    show(as_json, {"key": key, "servers": rows}, *lines)


def _hidden(key: str, org: str, server: str) -> str:
    return f"{key} is hidden on {server}: 'cairn enable {key} --org {org} --server {server}' shows it."


def _placement(text: str) -> tuple[str, int | None]:
    slug, colon, order = text.partition(":")
    if not colon:
        return slug, None
    if not (order.isascii() and order.isdigit() and len(order) <= 6):
        raise InvalidValue(f"{text!r}: the place after the colon is a whole number of up to 6 digits, as in {slug}:1")
    return slug, int(order)


def unassign(key: str, org: str, servers: Sequence[str], data_dir: Path | None, as_json: bool) -> None:
    changed = with_container(data_dir, lambda container: container.authoring().unassign(org, key, servers))
    _show_servers(key, servers, changed, as_json, "Took {} from {}.", "{} is not on {}.")


def enable(key: str, org: str, servers: Sequence[str], data_dir: Path | None, as_json: bool) -> None:
    changed = with_container(data_dir, lambda container: container.authoring().enable(org, key, servers))
    _show_servers(key, servers, changed, as_json, "{} is shown on {}.", "{} is shown on {} already.")


def disable(key: str, org: str, servers: Sequence[str], data_dir: Path | None, as_json: bool) -> None:
    changed = with_container(data_dir, lambda container: container.authoring().disable(org, key, servers))
    _show_servers(
        key, servers, changed, as_json, "{} is hidden on {}: those mid-way may finish.", "{} is hidden on {} already."
    )


def _show_servers(
    key: str, servers: Sequence[str], changed: Sequence[bool], as_json: bool, now: str, already: str
) -> None:
    pairs = list(zip(servers, changed, strict=True))
    rows = [{"server": slug, "unchanged": not is_changed} for slug, is_changed in pairs]
    lines = [(now if is_changed else already).format(key, slug) for slug, is_changed in pairs]
    show(as_json, {"key": key, "servers": rows}, *lines)


def order(server: str, keys: Sequence[str], org: str, data_dir: Path | None, as_json: bool) -> None:
    listed = with_container(data_dir, lambda container: container.authoring().order(org, server, keys))
    lines = [f"{server}:", *(f"{number:>3}  {key}" for number, key in enumerate(listed, start=1))]
    show(as_json, {"server": server, "walkthroughs": list(listed)}, *lines)
