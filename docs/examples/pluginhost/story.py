"""The story that host.py tells: served for real, and visited over HTTP by three callers at once."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """Serve the app on a free loopback port while the block runs; the block gets its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


def visitor(address: str, token: str | None = None) -> httpx.AsyncClient:
    """Return what calls tools on behalf of whoever has the token, or of nobody."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(base_url=f"{address}/tools", headers=headers, trust_env=False)


async def call(http: httpx.AsyncClient, tool: str, **arguments: object) -> Any:
    """Call a tool, and return its answer, or the status if it was refused."""
    answer = await http.post(tool, json=arguments)
    return answer.json() if answer.is_success else answer.status_code


async def visit(http: httpx.AsyncClient, name: str) -> str:
    """Call the tools that need a user, and tell what happened."""
    greeting = await call(http, "welcome/greet")
    before = await call(http, "todos/show")
    after = await call(http, "todos/add", text=f"feed the cat, says {name}")
    if greeting == before == after == httpx.codes.UNAUTHORIZED:
        return f"{name} was answered 401 three times."
    mine = all(text.endswith(name) for text in after)
    return (
        f"{name} was told {greeting!r}, had {len(before)} todos and has {len(after)}, "
        f"{'none' if mine else 'SOME'} of another user."
    )


async def tell(app: FastAPI) -> None:
    """Serve, visit, tell, stop."""
    async with (
        served(app) as address,
        visitor(address, "token-of-alice") as alice,
        visitor(address, "token-of-bob") as bob,
        visitor(address) as anonymous,
    ):
        print(f"Three plugins are served at {address}.")
        print(f"  The bootstrap hook: {await call(anonymous, 'welcome/story')}.")
        visits = [visit(alice, "alice"), visit(bob, "bob"), visit(anonymous, "anonymous")]
        for line in await asyncio.gather(*visits):
            print(f"  {line}")
        print(f"  The request hook has counted {await call(anonymous, 'hits/hits')} calls.")
    home = Path(os.environ.get("CAT_HOME", "data")).resolve()
    print(f"The server has stopped. Everything lies in {home}; run this again to go on from there.")
