"""`cairn user` and `cairn token`: the people of an organisation, what is stored about them, and what lets them in."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from application.people import Dossier, Erased, StepName, Taken
from application.ports import PersonalRecord, TokenListing, ToolCall
from domain.errors import OperatorError
from domain.tenancy import Millis, StepId
from entrypoints.cli.columns import clipped, harmless, width_of
from entrypoints.cli.commands import with_container
from entrypoints.cli.terminal import show
from entrypoints.workshop import Workshop

_WIDTH = 80
_GAP = "  "
_LEAST_CELLS = 6  # of a text that is clipped: with less, nobody knows it again
_STANDARD_INPUT = "-"
_GIVEN_OUT = "(an operator's)"
_MAX_TOKENS = 1_000

# --------------------------------------------------------------------------------------------------- people


def user_list(
    org: str, server: str | None, after: str | None, limit: int, data_dir: Path | None, as_json: bool
) -> None:
    page = with_container(
        data_dir,
        lambda container: container.personal_data().people(org, server=server, after=after, limit=limit),
    )
    rows = [{"id": each.user_id, **_without(asdict(each), "user_id")} for each in page.people]
    lines = _table(
        ("WHO", "FIRST SEEN", "LAST SEEN", "BEGUN", "DONE"),
        [
            (
                each.email or f"visitor {each.user_id}",
                _day(each.first_seen_at),
                _day(each.last_seen_at),
                str(each.begun),
                str(each.completed),
            )
            for each in page.people
        ],
        numbers=(3, 4),
    )
    where = f" --server {server}" if server else ""
    if not rows:
        lines = [f"There is nobody in {org} yet." if (server, after) == (None, None) else "There is nobody more."]
    elif page.next is not None:
        lines += ["", f"And more: cairn user list {org}{where} --after {page.next}"]
    show(as_json, {"people": rows, "next": page.next}, *lines)


def user_show(org: str, who: str, data_dir: Path | None, as_json: bool) -> None:
    async def asked(container: Workshop) -> tuple[Dossier, Sequence[TokenListing]]:
        dossier = await container.personal_data().dossier(org, who)
        organization_id = await container.tenancy().organization(org)
        user_id = dossier.record.user_id
        return dossier, await container.identity().tokens(organization_id, user_id=user_id, limit=_MAX_TOKENS)

    dossier, tokens = with_container(data_dir, asked)
    record = dossier.record
    result = {
        **_person(record),
        "identities": record.identities,
        "progress": [_without(_taken(each), "events") for each in dossier.taken],
        "tokens": [asdict(each) for each in tokens],
    }
    show(as_json, result, *_shown(dossier, tokens))


def user_export(org: str, who: str, file: Path | None, data_dir: Path | None, as_json: bool) -> None:
    async def asked(container: Workshop) -> tuple[Dossier, Sequence[ToolCall], Mapping[str, str]]:
        data = container.personal_data()
        dossier = await data.dossier(org, who)
        calls = await data.calls(org, dossier.record)
        servers = await container.tenancy().servers(org)
        return dossier, calls, {each.server.key.server_id: each.server.slug for each in servers}

    dossier, calls, servers = with_container(data_dir, asked)
    record = dossier.record
    document = {
        "organization": org,
        "exported_at": time.time_ns() // 1_000_000,
        **_person(record),
        "users": record.users,
        "identities": record.identities,
        "progress": [_taken(each) for each in dossier.taken],
        "grants": record.grants,
        "tokens": record.tokens,
        "sign_ins": record.sign_ins,
        "tool_calls": [_call(each, servers) for each in calls],
    }
    if file is None:
        show(as_json, document, json.dumps(document, indent=2, ensure_ascii=False))
        return
    _write(file, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    result = {"file": str(file), "id": record.user_id, "tool_calls": len(calls)}
    show(as_json, result, f"Wrote all that is stored about {_name(record)} to {file}, which only you can read.")


def user_erase(org: str, who: str, is_sure: bool, data_dir: Path | None, as_json: bool) -> None:
    if not is_sure and not sys.stdin.isatty():
        raise click.UsageError("There is nobody to ask: say --yes.")

    async def asked(container: Workshop) -> tuple[PersonalRecord, Erased | None]:
        data = container.personal_data()
        record = await data.record(org, who)
        if not is_sure and not click.confirm(_question(org, record), err=True):
            return record, None
        return record, await data.erase(org, record.user_id)

    record, erased = with_container(data_dir, asked)
    if erased is None:
        raise OperatorError("nothing was erased")
    calls = f"{erased.calls:,} call{'' if erased.calls == 1 else 's'}"
    show(
        as_json,
        {"id": erased.user_id, "calls": erased.calls},
        f"Erased {_name(record)} from {org}. Of {calls} it stays in the log that they were made, without who and what."
        if erased.calls
        else f"Erased {_name(record)} from {org}.",
    )


def _question(org: str, record: PersonalRecord) -> str:
    begun = len([each for each in record.begun if each.progress.status != "merged"])
    return (
        f"Erase {_name(record)} from {org} for good, with the progress in {begun} "
        f"walkthrough{'' if begun == 1 else 's'}?"
    )


def _name(record: PersonalRecord) -> str:
    return harmless(record.email) if record.email else f"visitor {record.user_id}"


def _write(file: Path, text: str) -> None:
    # Nobody else's business: not even for the moment before it is closed to others.
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError as error:
        raise OperatorError(f"{file} is there already: name another file") from error
    except OSError as error:
        raise OperatorError(f"{file} cannot be written ({error.strerror}): name another file") from error


# --------------------------------------------------------------------------------------------- for programs


def _person(record: PersonalRecord) -> dict[str, Any]:
    person = record.users[0]
    return {name: person[name] for name in ("id", "email", "email_verified_at", "first_seen_at", "last_seen_at")}


def _taken(taken: Taken) -> dict[str, Any]:
    """Times are Unix milliseconds."""
    begun, progress = taken.begun, taken.begun.progress
    return {
        "server": begun.server,
        "walkthrough": begun.walkthrough,
        "walkthrough_id": progress.key.walkthrough_id,
        "title": taken.title,
        "user_id": progress.key.user_id,
        "version": progress.version,
        "attempt": progress.attempt,
        "revision": progress.revision,
        "status": progress.status.value,
        "current_step": None if taken.current is None else asdict(taken.current) | {"number": taken.current_number},
        "total_steps": taken.total_steps,
        "completed_steps": [asdict(each) for each in taken.completed],
        "started_at": progress.started_at,
        "last_activity_at": progress.last_activity_at,
        "completed_at": progress.completed_at,
        "events": [
            {
                **_without(event._asdict(), "from_step_id", "to_step_id"),
                "from_step": _step(taken.steps, event.from_step_id),
                "to_step": _step(taken.steps, event.to_step_id),
            }
            for event in begun.events
        ],
    }


def _step(steps: Mapping[StepId, StepName], id: StepId | None) -> dict[str, str] | None:
    return None if id is None else {"id": id, **asdict(steps[id])}


def _call(call: ToolCall, servers: Mapping[str, str]) -> dict[str, Any]:
    server, user_id = call.caller.server, call.caller.user_id
    return {
        "server": servers.get(server.server_id, server.server_id),
        "user_id": user_id,
        **_without(call._asdict(), "caller"),
    }


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


# ----------------------------------------------------------------------------------------------- for people


def _shown(dossier: Dossier, tokens: Sequence[TokenListing]) -> Iterator[str]:
    record = dossier.record
    person = record.users[0]
    yield clipped(f"{_name(record)} ({record.user_id})" if record.email else _name(record), _WIDTH)
    yield f"First seen on {_day(person['first_seen_at'])}, last on {_day(person['last_seen_at'])}."
    if visitors := len(record.users) - 1:
        yield f"Was {visitors} visitor{'' if visitors == 1 else 's'} before, and kept what they had done."
    yield ""
    yield from _table(
        ("KNOWN BY", "AS", "SINCE"),
        [
            (
                each["issuer"].partition(":")[0] if each["subject"] is None else each["issuer"],
                each["subject"] or each["user_id"],
                _day(each["created_at"]),
            )
            for each in record.identities
        ],
    )
    taken = [each for each in dossier.taken if each.begun.progress.status != "merged"]
    if taken:
        yield ""
        yield from _table(
            ("SERVER", "WALKTHROUGH", "STANDS AT", "LAST ACTIVE"),
            [
                (each.begun.server, each.begun.walkthrough, _stands(each), _day(each.begun.progress.last_activity_at))
                for each in taken
            ],
        )
    if tokens:
        yield ""
        yield from _token_table(tokens, without=("WHO",))


def _stands(taken: Taken) -> str:
    if taken.current is None:
        return "completed"
    return f"step {taken.current_number} of {taken.total_steps}: {taken.current.title}"


def _token_table(tokens: Sequence[TokenListing], *, without: Sequence[str]) -> list[str]:
    """What is the same in every row is left out, and the others have the room."""
    rows = [
        {
            "WHO": each.email or each.user_id,
            "SERVER": each.server,
            "CLIENT": each.client_name or _GIVEN_OUT,
            "SINCE": _day(each.created_at),
            "UNTIL": "never" if each.ends_at is None else _day(each.ends_at),
            "GRANT": each.grant_id or "",
        }
        for each in tokens
    ]
    header = [name for name in rows[0] if name not in without]
    return _table(header, [[row[name] for name in header] for row in rows], whole=(len(header) - 1,))


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = (), whole: Sequence[int] = ()
) -> list[str]:
    """Columns beside each other; while they are wider than a terminal, the widest is clipped. Never those of `whole`,
    which are there to be copied."""
    lines = [list(header), *([harmless(cell) for cell in row] for row in rows)]
    widths = [max(width_of(line[column]) for line in lines) for column in range(len(header))]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > _WIDTH:
        widest = max((column for column in range(len(widths)) if column not in whole), key=lambda at: widths[at])
        if widths[widest] <= _LEAST_CELLS:
            break
        widths[widest] -= 1
    return [
        _GAP.join(_cell(line[at], widths[at], at in numbers) for at in range(len(widths))).rstrip() for line in lines
    ]


def _cell(text: str, width: int, is_number: bool) -> str:
    shown = clipped(text, width)
    padding = " " * (width - width_of(shown))
    return padding + shown if is_number else shown + padding


def _day(time: Millis) -> str:
    return datetime.fromtimestamp(time / 1000, UTC).strftime("%Y-%m-%d")


# --------------------------------------------------------------------------------------------------- tokens


def token_create(server: str, email: str, data_dir: Path | None, as_json: bool) -> None:
    async def create(container: Workshop) -> str:
        key = (await container.tenancy().server(server)).key
        return await container.identity().create_token(key, email)

    token = with_container(data_dir, create)
    show(as_json, {"token": token}, f"A token of {email} on {server}; it is not shown again:", token)


def token_list(
    server: str | None, org: str | None, user: str | None, limit: int, data_dir: Path | None, as_json: bool
) -> None:
    if server is None and org is None:
        raise click.UsageError("Give --server or --org.")

    async def asked(container: Workshop) -> Sequence[TokenListing]:
        tenancy = container.tenancy()
        key = None if server is None else (await tenancy.server(server, org)).key
        organization_id = key.organization_id if key else await tenancy.organization(org or "")
        user_id = None if user is None else await container.personal_data().find(organization_id, user)
        found: Sequence[TokenListing] = await container.identity().tokens(
            organization_id, server_id=key.server_id if key else None, user_id=user_id, limit=limit + 1
        )
        return found

    found = with_container(data_dir, asked)
    tokens = found[:limit]
    without = ["SINCE", *(["SERVER"] if server else []), *(["WHO"] if user else [])]
    lines = _token_table(tokens, without=without) if tokens else ["There are no tokens."]
    if len(found) > limit:
        lines += ["", f"And more: see them with --limit, up to {_MAX_TOKENS:,}, or of one person with --user."]
    show(as_json, {"tokens": [asdict(each) for each in tokens], "has_more": len(found) > limit}, *lines)


def token_revoke(
    server: str,
    email: str | None,
    token: str | None,
    grant: str | None,
    client: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    if sum(each is not None for each in (email, token, grant, client)) != 1:
        raise click.UsageError("Give one of --email, --token, --grant and --client.")
    what = "grant" if token is None and email is None else "token"
    secret = sys.stdin.buffer.readline().decode(errors="replace").strip() if token == _STANDARD_INPUT else token

    async def revoke(container: Workshop) -> int:
        key = (await container.tenancy().server(server)).key
        identity = container.identity()
        if email is not None:
            revoked = await identity.revoke_all_of(key, email)
        elif grant is not None:
            revoked = await identity.revoke_grant(key, grant)
        elif client is not None:
            revoked = await identity.revoke_client(key, client)
        else:
            revoked = await identity.revoke(key, secret or "")
        return int(revoked)

    revoked = with_container(data_dir, revoke)
    if not revoked:
        raise OperatorError(f"nothing to revoke: there is no such {what} on {server}")
    show(as_json, {"revoked": revoked}, f"Revoked {revoked} {what}{'s' if revoked > 1 else ''} on {server}.")
