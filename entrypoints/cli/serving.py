"""Running uvicorn: one process, or several behind one socket."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn
from uvicorn.supervisors import Multiprocess

from domain.errors import OperatorError
from entrypoints.container import Storage
from entrypoints.http.app import application
from entrypoints.logs import configure_logs
from entrypoints.settings import Settings

# Longer than any accepted call may take; a request that is stuck would ignore SIGTERM for ever.
_GRACE_SECONDS = 5
_BACKLOG = 2048


def serve_until_stopped(
    storage: Storage,
    settings: Settings,
    *,
    host: str,
    port: int,
    workers: int,
    on_ready: Callable[[str], None],
) -> None:
    """Serves until SIGINT or SIGTERM. `on_ready` is told the address once calls are answered.

    Raises:
        OperatorError: when the address cannot be listened on.
    """
    configure_logs()
    listening = _listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    options = {
        # Without uvloop, a socket that was bound beforehand answers 50 ms late (no TCP_NODELAY).
        "loop": "uvloop" if sys.platform != "win32" else "asyncio",
        "timeout_graceful_shutdown": _GRACE_SECONDS,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "lifespan": "on",
    }
    if workers == 1:
        config = uvicorn.Config(application(storage, settings), **options)  # type: ignore[arg-type]
        # uvicorn raises the signal that stopped it once more, for whoever waits for it. Nobody does: to be stopped is
        # how serving ends, and what follows (the embedded server is left) has still to happen.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: None)
        _Server(config, lambda: on_ready(address)).run(sockets=[listening])
        return
    os.environ.update(settings.environment())
    config = uvicorn.Config("entrypoints.http.app:create_app", factory=True, workers=workers, **options)  # type: ignore[arg-type]
    on_ready(address)  # the socket listens: what comes before the workers are up waits for them
    Multiprocess(config, sockets=[listening]).run()


class _Server(uvicorn.Server):
    """A uvicorn server that says when it is ready."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()


def _listen(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            problem = f"port {port} is in use: stop what listens there, or choose another with --port"
        else:
            problem = f"cannot listen on {host} port {port} ({error.strerror}): choose another address or port"
        raise OperatorError(problem) from error
    listening.set_inheritable(True)
    return listening
