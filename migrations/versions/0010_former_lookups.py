"""What revision 0009 replaced goes: look-ups, commits, and the key by which events followed their progress.

Contracting: the release before calls them, and hands a history over by that key.
"""

from __future__ import annotations

from importlib import import_module

from alembic import op

revision = "0010"
down_revision = "0009"
is_contracting = True

# Takes the former key's place and name; nothing has to be deferred any more.
KEY = """
alter table walkthrough_progress_events drop constraint walkthrough_progress_events_progress_fkey;
alter table walkthrough_progress_events
    alter constraint walkthrough_progress_events_next_progress_fkey not deferrable;
alter table walkthrough_progress_events
    rename constraint walkthrough_progress_events_next_progress_fkey to walkthrough_progress_events_progress_fkey;
"""
# As revisions 0006 and 0009 left them.
FORMER_KEYS = """
alter table walkthrough_progress_events
    drop constraint walkthrough_progress_events_progress_fkey,
    add constraint walkthrough_progress_events_progress_fkey
        foreign key (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id)
        references walkthrough_progress (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id)
        on update cascade on delete cascade,
    add constraint walkthrough_progress_events_next_progress_fkey
        foreign key (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id)
        references walkthrough_progress (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id)
        on delete cascade deferrable initially deferred not valid;
"""
NAMES = [
    "advance_progress(text, text, text, text, integer, integer, integer, integer, text, text, text[], bigint, bigint,"
    " bigint, integer, integer, integer, text, text, text, text, text, bigint, integer, integer, integer, text, text,"
    " text, text, text, bigint)",
    "begin_progress(text, text, text, text, integer, integer, integer, text, text, text[], bigint, bigint, bigint,"
    " integer, integer, integer, text, text, text, text, text, bigint)",
]


def upgrade() -> None:
    op.execute("set local lock_timeout = '3s'")
    # Reads every event, and holds nobody up. Only then are the tables held, for no longer than it takes to say so.
    op.execute(
        "alter table walkthrough_progress_events validate constraint walkthrough_progress_events_next_progress_fkey"
    )
    _run(KEY)
    op.execute("drop function standings(text, text, text)")
    op.execute("drop function matching_standings(text, text, text, text)")
    for name in NAMES:
        op.execute(f"drop function {name}")


def downgrade() -> None:
    """Reads every event while nobody can add one."""
    op.execute("set local lock_timeout = '3s'")
    _run(FORMER_KEYS)
    former = import_module("migrations.versions.0007_row_level_security")
    matching = "text, text, text, text"
    _run(former.STANDINGS.format(name="standings", parameters="text, text, text", condition=""))
    _run(former.STANDINGS.format(name="matching_standings", parameters=matching, condition=former.MATCHING))
    for function in former.STATEMENTS.split("create function "):
        if function.startswith(("advance_progress(", "begin_progress(")):
            _run(f"create function {function}")
    for function in ("standings(text, text, text)", f"matching_standings({matching})", *NAMES):
        _run(
            f"revoke execute on function {function} from public; grant execute on function {function} to cairn_service"
        )


def _run(statements: str) -> None:
    # Several statements in one go are the driver's simple protocol, which SQLAlchemy does not speak.
    op.get_bind().connection.run_async(lambda driver: driver.execute(statements))
