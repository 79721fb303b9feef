"""A real PgBouncer in transaction mode, to be mistreated."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SERVER_CONNECTIONS = 4
_START_SECONDS = 20
_PASSWORD = "secret"  # of everybody here; the server behind trusts whoever reaches its socket
# It refuses to run as root. What it reads, and the server's socket, are in directories that are closed to others.
_AS_NOBODY = (
    *("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"),
    *("--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
)
# `alone` has one connection to the server, and everybody who comes by that name shares it.
_SETTINGS = """\
[databases]
postgres = host={socket_dir}
alone = host={socket_dir} dbname=postgres pool_size=1

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users.txt
logfile = {folder}/pgbouncer.log
pool_mode = transaction
default_pool_size = {connections}
server_login_retry = 1
"""


@dataclass
class PgBouncer:
    """A pgbouncer of Debian's before a server, for these logins."""

    binary: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes] = field(init=False)

    def url(self, login: str, database: str = "postgres") -> str:
        return f"postgresql://{login}:{_PASSWORD}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """From nothing, and again at the same port after `kill`. Returns once it listens."""
        account = _AS_NOBODY if os.geteuid() == 0 else ()
        log = self.folder / "output.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*account, self.binary, str(self.folder / "pgbouncer.ini")], stdout=output, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._listens():
            assert self.process.poll() is None, f"pgbouncer ended at once: {log.read_text()}"
            assert time.monotonic() < deadline, "pgbouncer did not come up"

    def kill(self) -> None:
        """kill -9, and nothing is left of it when this returns."""
        self.process.kill()
        self.process.wait()

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


@contextmanager
def pgbouncer_serving(folder: Path, socket_dir: Path, *logins: str) -> Iterator[PgBouncer]:
    """A PgBouncer for as long as the block; without Debian's pgbouncer the test is skipped."""
    binary = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if binary is None:
        pytest.skip("there is no pgbouncer to go through")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = _SETTINGS.format(socket_dir=socket_dir, folder=folder, port=port, connections=SERVER_CONNECTIONS)
    (folder / "pgbouncer.ini").write_text(settings)
    (folder / "users.txt").write_text("".join(f'"{login}" "{_PASSWORD}"\n' for login in logins))
    server = PgBouncer(binary, folder, port)
    server.start()
    try:
        yield server
    finally:
        server.kill()
