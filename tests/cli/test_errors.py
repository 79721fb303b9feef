"""What goes wrong is told in one line that says what to do; status 1, or 2 for a command that is not understood."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url

from tests.cli.conftest import AS_ROOT, Cairn, Nursery, ordinary_folder, write_walkthrough
from tests.processes import PROJECT, environment

NOT_UTF8 = os.fsdecode(b"\xff")


@pytest.fixture(scope="module")
def acme(nursery: Nursery, data_dir: Path) -> str:
    """An organisation with a server of the same name; `other` is another one."""
    for slug in ("acme", "other"):
        for command in (("org", "create", slug), ("server", "create", "--org", slug, "--slug", slug)):
            assert nursery.run(*command, "--data-dir", str(data_dir)).status == 0
    return "acme"


def on_server(url: str, *statements: str) -> None:
    async def execute() -> None:
        connection = await asyncpg.connect(url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(execute())


@contextmanager
def listening() -> Iterator[tuple[int, threading.Event]]:
    """A port that somebody holds and never answers at; the event says that a client has come."""
    came = threading.Event()
    with closing(socket.create_server(("127.0.0.1", 0))) as held:

        def accept() -> None:
            try:
                link, _ = held.accept()
            except OSError:
                return
            came.set()
            with closing(link):
                while link.recv(1024):
                    pass

        threading.Thread(target=accept, daemon=True).start()
        yield held.getsockname()[1], came


# ------------------------------------------------------------------------------------------- what is not there


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("server create --org nowhere --slug x", r"no organisation 'nowhere': .*cairn org create nowhere"),
        ("server list --org nowhere", r"no organisation 'nowhere': .*cairn org create"),
        ("push {folder} --org nowhere", r"no organisation 'nowhere': .*cairn org create"),
        ("assign tour --org nowhere --server acme", r"no organisation 'nowhere': .*cairn org create"),
        ("assign nothing --org acme --server acme", r"no walkthrough 'nothing': .*cairn push"),
        ("push {folder} --org acme --server nowhere", r"no server 'nowhere' in organisation 'acme': .*server list"),
        ("token create --server nowhere --email a@example.com", r"no server 'nowhere': .*server list"),
        ("token revoke --server nowhere --email a@example.com", r"no server 'nowhere': .*server list"),
        ("token revoke --server acme --email nobody@example.com", r"nothing to revoke"),
        ("push {folder}/nothing --org acme", r"/tour/nothing"),
        ("lint {folder}/nothing", r"/tour/nothing"),
    ],
)
def test_what_is_not_there_is_named_with_the_way_to_it(
    cairn: Cairn, acme: str, folder: Path, arguments: str, says: str
) -> None:
    assert re.search(says, cairn(*arguments.format(folder=folder).split()).error)


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("command", ["push {folder} --org acme --server {}", "assign tour --org acme --server {}"])
def test_another_organisations_server_is_refused_in_the_words_for_one_that_is_not_there(
    cairn: Cairn, acme: str, folder: Path, command: str
) -> None:
    assert cairn("push", str(folder), "--org", "acme").status == 0
    theirs = cairn(*command.format("other", folder=folder).split()).error
    missing = cairn(*command.format("nowhere", folder=folder).split()).error
    assert theirs == missing.replace("nowhere", "other")


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("org create acme", r"organisation 'acme' already: (choose|use)"),
        ("server create --org acme --slug acme", r"acme is taken: choose another"),
        ("server create --org other --slug acme", r"acme is taken: choose another"),
    ],
)
def test_a_slug_that_is_taken_is_named_with_what_to_do(cairn: Cairn, acme: str, arguments: str, says: str) -> None:
    assert re.search(says, cairn(*arguments.split()).error)


@pytest.mark.promise("cli.answers")
def test_a_domain_that_is_taken_is_refused(cairn: Cairn, acme: str) -> None:
    create = ("server", "create", "--org", "acme", "--domain", "guides.example.com", "--slug")
    assert cairn(*create, "with-domain").lines
    assert "guides.example.com" in cairn(*create, "with-same-domain").error


# ------------------------------------------------------------------------------------------ values that cannot be


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("slug", ["Acme", "-a", "a-", "a.b", "a b", "ä", "", "a" * 64])
def test_a_bad_slug_is_refused_with_what_a_slug_is(cairn: Cairn, acme: str, slug: str) -> None:
    for command in (("org", "create", "--", slug), ("server", "create", "--org", "acme", f"--slug={slug}")):
        assert "lower-case letters, digits and hyphens" in cairn(*command).error


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("email", ["ada", "@example.com", "ada@", "a b@example.com", ""])
def test_a_bad_e_mail_address_is_refused_with_an_example(cairn: Cairn, acme: str, email: str) -> None:
    assert "such as ada@example.com" in cairn("token", "create", "--server", "acme", "--email", email).error


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("domain", ["https://example.com", "example", "a_b.example.com", "example.com:80", "", "a..b"])
def test_a_bad_domain_is_refused_with_an_example(cairn: Cairn, acme: str, domain: str) -> None:
    error = cairn("server", "create", "--org", "acme", "--slug", "bad-domain", "--domain", domain).error
    assert "such as guides.example.com" in error


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("place", ["acme:", "acme:x", "acme:-1", "acme:1.5", "acme:1:2", "acme:9999999", "acme:٣"])
def test_a_place_that_is_no_number_is_refused_with_an_example(
    cairn: Cairn, acme: str, folder: Path, place: str
) -> None:
    for command in (("push", str(folder), "--org", "acme"), ("assign", "tour", "--org", "acme")):
        assert "acme:1" in cairn(*command, "--server", place).error


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("spec", ["", ":1"])
def test_a_place_without_a_server_is_refused(cairn: Cairn, acme: str, folder: Path, spec: str) -> None:
    assert cairn("push", str(folder), "--org", "acme", "--server", spec).error


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize(
    "arguments",
    [
        ("org", "create", NOT_UTF8),
        ("org", "create", "not-utf8", "--name", NOT_UTF8),
        ("server", "create", "--org", "acme", "--slug", "not-utf8", "--name", NOT_UTF8),
        ("server", "create", "--org", NOT_UTF8, "--slug", "not-utf8"),
        ("server", "list", "--org", NOT_UTF8),
        ("push", "{folder}", "--org", NOT_UTF8),
        ("push", "{folder}", "--org", "acme", "--server", NOT_UTF8),
        ("assign", NOT_UTF8, "--org", "acme", "--server", "acme"),
        ("token", "create", "--server", NOT_UTF8, "--email", "ada@example.com"),
        ("token", "create", "--server", "acme", "--email", f"{NOT_UTF8}@example.com"),
        ("token", "revoke", "--server", "acme", "--email", f"{NOT_UTF8}@example.com"),
        ("token", "revoke", "--server", "acme", "--token", NOT_UTF8),
    ],
)
def test_bytes_that_are_no_text_are_refused_in_every_argument(
    cairn: Cairn, acme: str, folder: Path, arguments: tuple[str, ...]
) -> None:
    assert cairn(*(each.format(folder=folder) for each in arguments)).error


@pytest.mark.promise("cli.answers")
def test_findings_come_each_on_a_line_before_the_error(cairn: Cairn, acme: str, folder: Path) -> None:
    write_walkthrough(folder, "one", type="tutorial")
    (folder / "02-two.md").write_text("")
    outcome = cairn("push", str(folder), "--org", "acme")
    *findings, error = outcome.complaint.splitlines()
    assert [re.match(r"([^:]+):\d+: [a-z-]+: \S", each)[1] for each in findings] == ["02-two.md", "walkthrough.yaml"]
    assert re.fullmatch(r"error: 2 problems found.*", error)
    assert (outcome.status, outcome.stdout) == (1, "")


# -------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    "arguments",
    [
        "nonsense",
        "org",
        "org create",
        "org create a b",
        "server create --slug x",
        "server create --org acme",
        "server create --org acme --slug x --auth-mode nobody",
        "server create --org acme --slug x --auth-mode ON_CONNECT",
        "server list --nonsense",
        "assign tour --org acme",
        "assign --org acme --server acme",
        "lint",
        "push somewhere",
        "token create --server acme",
        "token create --email ada@example.com",
        "token revoke --server acme",
        "token revoke --server acme --email ada@example.com --token x",
        "serve --port 65536",
        "serve --port x",
        "serve --workers 0",
        "dev --port -1",
        "migrate now",
    ],
)
def test_a_command_that_is_not_understood_shows_its_usage_and_ends_with_status_2(cairn: Cairn, arguments: str) -> None:
    assert cairn(*arguments.split()).usage_error


# -------------------------------------------------------------------------------------------- data directories


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("command", ["migrate", "server list", "dev --port 0", "serve --port 0"])
@pytest.mark.parametrize("below", ["", "/below"])
def test_a_file_for_a_data_directory_is_refused(nursery: Nursery, tmp_path: Path, command: str, below: str) -> None:
    (tmp_path / "file").write_text("precious")
    error = nursery.run(*command.split(), "--data-dir", f"{tmp_path}/file{below}").error
    assert f"{tmp_path}/file" in error
    assert re.search("another data directory|--data-dir", error)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("command", ["migrate", "dev --port 0"])
def test_an_unwritable_data_directory_is_refused(nursery: Nursery, command: str) -> None:
    with ordinary_folder() as folder:
        for data_dir in (folder, folder / "below"):
            error = nursery.run(*command.split(), "--data-dir", str(data_dir), ordinary=True, cwd=Path("/")).error
            assert str(folder) in error
            assert "another data directory" in error


@pytest.mark.promise("cli.answers")
def test_a_data_directory_that_does_not_exist_is_not_made_by_a_command_that_only_reads(
    nursery: Nursery, tmp_path: Path
) -> None:
    for command in ("server list", "org create acme", "serve --port 0"):
        error = nursery.run(*command.split(), "--data-dir", f"{tmp_path}/tpyo").error
        assert f"{tmp_path}/tpyo" in error
        assert "--data-dir" in error
        assert not (tmp_path / "tpyo").exists()


@pytest.mark.promise("cli.answers")
def test_dev_says_so_when_its_token_cannot_be_kept(nursery: Nursery, tmp_path: Path) -> None:
    (tmp_path / "dev-token").mkdir()
    error = nursery.run("dev", "--port", "0", "--data-dir", str(tmp_path)).error
    assert str(tmp_path) in error
    assert "--data-dir" in error


@pytest.mark.promise("cli.answers")
def test_dev_keeps_its_hands_off_a_database_that_is_set(nursery: Nursery, tmp_path: Path) -> None:
    url = "postgresql://127.0.0.1:1/production"
    error = nursery.run("dev", "--port", "0", "--data-dir", str(tmp_path), CAIRN_DATABASE_URL=url).error
    assert "unset CAIRN_DATABASE_URL" in error
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------- ports


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("command", ["serve", "serve --workers 2", "dev"])
def test_a_port_in_use_is_named_with_the_way_out(
    on_database: Cairn, data_dir: Path, nursery: Nursery, command: str
) -> None:
    with listening() as (port, _):
        run = on_database if command != "dev" else nursery.run
        error = run(*command.split(), "--port", str(port), CAIRN_DATA_DIR=str(data_dir)).error
    assert f"port {port} is in use" in error
    assert "--port" in error


@pytest.mark.promise("cli.answers")
def test_a_port_that_only_root_may_have_is_refused(owner_url: str) -> None:
    low = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if not low.exists() or int(low.read_text()) <= 80:
        pytest.xfail("here anybody may listen on port 80")
    without = []
    if AS_ROOT:
        if not shutil.which("setpriv"):
            pytest.xfail("there is no setpriv to give the right up with")
        without = ["setpriv", "--bounding-set=-net_bind_service"]
    process = subprocess.run(
        [*without, sys.executable, "-m", "entrypoints.cli.main", "serve", "--port", "80"],
        cwd=PROJECT,
        env=environment(CAIRN_DATABASE_URL=owner_url),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 1
    assert re.fullmatch(r"error: cannot listen on 127.0.0.1 port 80 \(Permission denied\): choose .*\n", process.stderr)


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("host", ["nowhere.invalid", "203.0.113.1", "256.0.0.1"])
def test_an_address_that_is_not_of_this_machine_is_refused(on_database: Cairn, host: str) -> None:
    error = on_database("serve", "--port", "0", "--host", host).error
    assert error.startswith(f"cannot listen on {host} ")
    assert "choose another" in error


# ----------------------------------------------------------------------------------------------------- databases


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("command", ["migrate", "server list", "serve --port 0", "dev --port 0"])
def test_a_database_that_refuses_connections_is_told_within_5_seconds(
    nursery: Nursery, tmp_path: Path, command: str
) -> None:
    began = time.monotonic()
    error = nursery.run(*command.split(), cwd=tmp_path, CAIRN_DATABASE_URL="postgresql://u:s3cret@127.0.0.1:1/x").error
    assert time.monotonic() - began < 5
    assert "CAIRN_DATABASE_URL" in error
    assert "s3cret" not in error


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("command", ["server list", "migrate"])
def test_a_database_that_never_answers_is_given_up_within_5_seconds(nursery: Nursery, command: str) -> None:
    with listening() as (port, came):
        began = time.monotonic()
        error = nursery.run(*command.split(), CAIRN_DATABASE_URL=f"postgresql://127.0.0.1:{port}/x").error
        assert came.is_set()
    assert time.monotonic() - began < 5
    assert "CAIRN_DATABASE_URL" in error


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("command", ["server list", "serve --port 0", "org create acme"])
def test_a_database_without_a_schema_says_to_migrate(
    nursery: Nursery, make_database: Callable[..., str], command: str
) -> None:
    assert "'cairn migrate'" in nursery.run(*command.split(), CAIRN_DATABASE_URL=make_database(is_empty=True)).error


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("command", ["serve --port 0", "migrate", "server list"])
def test_a_database_of_a_newer_cairn_is_left_alone(
    nursery: Nursery, make_database: Callable[..., str], tmp_path: Path, command: str
) -> None:
    url = make_database()
    on_server(url, "update alembic_version set version_num = '9999'")
    error = nursery.run(*command.split(), CAIRN_DATABASE_URL=url, CAIRN_DATA_DIR=str(tmp_path)).error
    assert re.search("newer Cairn: upgrade", error)


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("command", ["server list", "migrate"])
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://[bad",
        "postgresql://127.0.0.1:s3cret/x",
        "postgresql://u:s3cret@127.0.0.1:99999/x",
        "postgresql://u:s3cret@nowhere.invalid/x",
        "postgresql://u:s3cret@127.0.0.1:1/x?sslmode=nonsense",
        "mysql://u:s3cret@127.0.0.1/x",
        "127.0.0.1",
    ],
)
def test_a_url_that_leads_nowhere_is_refused_and_no_secret_is_shown(nursery: Nursery, command: str, url: str) -> None:
    error = nursery.run(*command.split(), CAIRN_DATABASE_URL=url).error
    assert "CAIRN_DATABASE_URL" in error
    assert "s3cret" not in error


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("command", ["server list", "migrate", "serve --port 0"])
@pytest.mark.parametrize("wrong", ["database", "login", "parameter"])
def test_a_server_that_turns_us_away_is_told_with_its_reason(
    nursery: Nursery, superuser_url: str, command: str, wrong: str
) -> None:
    given = make_url(superuser_url)
    if wrong == "database":
        url = given.set(database="cairn_not_there")
    elif wrong == "login":
        url = given.set(username="cairn_nobody", password="s3cret")
    else:
        url = given.update_query_dict({"nonsense": "1"})
    error = nursery.run(*command.split(), CAIRN_DATABASE_URL=url.render_as_string(hide_password=False)).error
    assert "CAIRN_DATABASE_URL" in error
    assert {"database": "cairn_not_there", "login": "cairn_nobody", "parameter": "nonsense"}[wrong] in error
    assert "s3cret" not in error


@pytest.mark.promise("cli.answers")
def test_a_service_login_that_does_not_exist_is_named_by_migrate(nursery: Nursery, owner_url: str) -> None:
    nobody = make_url(owner_url).set(username="cairn_nobody").render_as_string(hide_password=False)
    error = nursery.run("migrate", CAIRN_OWNER_DATABASE_URL=owner_url, CAIRN_DATABASE_URL=nobody).error
    assert "cairn_nobody" in error


@pytest.mark.promise("cli.answers")
def test_the_owners_url_alone_is_refused(nursery: Nursery, owner_url: str) -> None:
    for command in ("migrate", "server list", "serve"):
        error = nursery.run(*command.split(), CAIRN_OWNER_DATABASE_URL=owner_url).error
        assert "CAIRN_OWNER_DATABASE_URL needs CAIRN_DATABASE_URL" in error


# --------------------------------------------------------------------------------------------------- interruption


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_interrupted_ends_without_a_stack_trace(number: signal.Signals) -> None:
    with listening() as (port, came):
        process = subprocess.Popen(
            [sys.executable, "-m", "entrypoints.cli.main", "server", "list"],
            cwd=PROJECT,
            env=environment(CAIRN_DATABASE_URL=f"postgresql://127.0.0.1:{port}/x"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert came.wait(30)
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert output == ""
    assert errors.strip() in ("", "Aborted!")
