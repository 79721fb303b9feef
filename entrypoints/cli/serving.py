"""Running uvicorn: one process, or several behind one socket."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import uvicorn
from uvicorn.supervisors import Multiprocess

from domain.errors import OperatorError
from entrypoints.container import Storage, serving_container
from entrypoints.http.app import application
from entrypoints.http.connections import PunctualProtocol
from entrypoints.logs import configure_logs
from entrypoints.settings import Settings

# Longer than any accepted call may take; a request that is stuck would ignore SIGTERM for ever.
_GRACE_SECONDS = 5
_BACKLOG = 2048


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens, and how to reach it."""

    socket: socket.socket
    address: str


@contextmanager
def listening(host: str, port: int) -> Iterator[Listener]:
    """Listens from now on; port 0 takes a free one. Whoever connects before anything is served waits.

    Raises:
        OperatorError: when the address cannot be listened on, with what to do.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(_BACKLOG)
        except OSError as error:
            problem = f"cannot listen on {host} port {port} ({error.strerror}): choose another address or port"
            if error.errno == errno.EADDRINUSE:
                problem = f"port {port} is in use: stop what listens there, or choose another with --port"
            raise OperatorError(problem) from error
        listener.set_inheritable(True)
        yield Listener(listener, f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}")


def serve_until_stopped(
    storage: Storage,
    settings: Settings,
    listener: Listener,
    *,
    workers: int,
    on_ready: Callable[[], None],
    show_mail: Callable[[str], None] | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM. `on_ready` is called once calls are answered.

    With one worker, `show_mail` gets what would be sent by mail.
    """
    configure_logs()
    options = {
        # Without uvloop, a socket that was bound beforehand answers 50 ms late (no TCP_NODELAY).
        "loop": "uvloop",
        "http": PunctualProtocol,
        "ws": "none",  # or a library that happens to be installed would open a way that the gate does not keep
        "timeout_graceful_shutdown": _GRACE_SECONDS,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,  # by itself, uvicorn believes whoever calls from this machine: the gate decides that
        "lifespan": "on",
    }
    if workers == 1:
        config = uvicorn.Config(application(storage, settings, show_mail=show_mail), **options)  # type: ignore[arg-type]  # of several types
        # uvicorn raises the signal that stopped it once more, for whoever waits for it. Nobody does: to be stopped is
        # how serving ends, and what follows (the embedded server is left) has still to happen.
        with suppress(KeyboardInterrupt):
            _Server(config, on_ready).run(sockets=[listener.socket])
        return
    serving_container(storage.database(), settings)  # a setting that cannot be is told once, and not by each worker
    os.environ.update(settings.environment())
    app = "entrypoints.http.app:create_app"
    config = uvicorn.Config(app, factory=True, workers=workers, **options)  # type: ignore[arg-type]  # as above
    on_ready()  # the socket listens: what comes before the workers are up waits for them
    Multiprocess(config, sockets=[listener.socket]).run()


class _Server(uvicorn.Server):
    """A uvicorn server that says when it is ready."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()
