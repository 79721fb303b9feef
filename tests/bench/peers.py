"""What is compared with: servers with one tool that does nothing.

python -m tests.bench.peers sdk     the SDK's low-level server, as lean as it can be had
python peers.py fastmcp             FastMCP, in an environment of its own: this file then imports nothing else of ours

Each says its port on the first line, and serves until it is ended. Both run on uvicorn with uvloop and whatever HTTP
parser it finds, without access log, as Cairn does.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

TOOL = "nothing"


def sdk() -> Any:
    """No gate and no framework: the session manager is the application."""
    import mcp_types as types
    from mcp.server import Server
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

    tool = types.Tool(name=TOOL, description="Does nothing.", input_schema={"type": "object", "properties": {}})

    async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[tool])

    async def call_tool(context: Any, params: Any) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(type="text", text="ok")])

    server: Server[Any] = Server(
        "nothing",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        get_tool_input_schema={TOOL: tool.input_schema}.get,
    )
    manager = StreamableHTTPSessionManager(server, json_response=True, stateless=True)
    lifespan: Any = None

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        async with manager.run():
            yield

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal lifespan
        if scope["type"] == "http":
            await manager.handle_request(scope, receive, send)
            return
        await receive()
        async with running():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    return application


def fastmcp() -> Any:
    """As its documentation has it for many processes: no session, and JSON."""
    from fastmcp import FastMCP

    server = FastMCP("nothing")

    @server.tool(name=TOOL)
    async def nothing() -> str:
        """Does nothing."""
        return "ok"

    return server.http_app(path="/mcp", json_response=True, stateless_http=True)


def main() -> None:
    """Serves one of them on a free port of the loopback address."""
    logging.disable(logging.INFO)
    application = {"sdk": sdk, "fastmcp": fastmcp}[sys.argv[1]]()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(application, loop="uvloop", access_log=False, log_level="warning", lifespan="on")
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
