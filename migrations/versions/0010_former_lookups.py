"""What revision 0009 replaced goes.

Contracting: the release before calls them.
"""

from __future__ import annotations

from importlib import import_module

from alembic import op

revision = "0010"
down_revision = "0009"
is_contracting = True


NAMES = [
    "advance_progress(text, text, text, text, integer, integer, integer, integer, text, text, text[], bigint, bigint,"
    " bigint, integer, integer, integer, text, text, text, text, text, bigint, integer, integer, integer, text, text,"
    " text, text, text, bigint)",
    "begin_progress(text, text, text, text, integer, integer, integer, text, text, text[], bigint, bigint, bigint,"
    " integer, integer, integer, text, text, text, text, text, bigint)",
]


def upgrade() -> None:
    op.execute("drop function standings(text, text, text)")
    op.execute("drop function matching_standings(text, text, text, text)")
    for name in NAMES:
        op.execute(f"drop function {name}")


def downgrade() -> None:
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
