"""A host with two plugins, served for real and visited over HTTP by three callers at once.

Run it twice, as `python docs/examples/host.py`: the second run goes on from
what the first one saved. The data lies in ./data, or wherever CAT_HOME says.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import uvicorn
from fastapi import APIRouter, Body, FastAPI
from starlette.types import Scope

from cat import store, user
from cat.asgi import UserMiddleware, unauthorized
from cat.errors import NoUserError

# --- Plugin one: a hit counter that everyone shares.

hits = APIRouter()


@hits.post("/hits")
async def count_hit() -> int:
    """Count one more hit and return how many there are."""
    return await store.increment("hits")


# --- Plugin two: a todo list for each user.

todos = APIRouter()
Todos = list[dict[str, Any]]


@todos.get("/todos")
async def list_todos() -> Todos:
    """Return the caller's own list."""
    return await user.load("todos", [], type=Todos)


@todos.post("/todos")
async def add_todo(text: Annotated[str, Body()]) -> Todos:
    """Add a todo to the caller's own list and return it."""
    async with user.edit("todos", [], type=Todos) as todo_list:
        todo_list.append({"text": text, "done": False})
    return todo_list


# --- The host: who is calling, and where the plugins are mounted.

# A demonstration: a real host checks a signed token or a session here.
USERS_BY_TOKEN = {"token-of-alice": "alice", "token-of-bob": "bob"}


def caller(scope: Scope) -> str | None:
    """Return the user whose bearer token the request carries, or `None`."""
    authorization = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
    return USERS_BY_TOKEN.get(authorization.removeprefix("Bearer "))


app = FastAPI(exception_handlers={NoUserError: unauthorized})
app.add_middleware(UserMiddleware, identify=caller)
app.include_router(hits)
app.include_router(todos)


# --- The story: three callers at once, over HTTP.


@asynccontextmanager
async def served() -> AsyncIterator[str]:
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


async def visit(address: str, name: str, token: str | None) -> str:
    """Call both plugins as one caller, and tell what happened."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(base_url=address, headers=headers, trust_env=False) as http:
        (await http.post("/hits")).raise_for_status()
        before = await http.get("/todos")
        if before.status_code == httpx.codes.UNAUTHORIZED:
            return f"{name} asked for todos and got 401: {before.json()['detail']}."
        after = await http.post("/todos", json=f"feed the cat, says {name}")
        texts = [todo["text"] for todo in after.raise_for_status().json()]
        mine = all(text.endswith(name) for text in texts)
        found = len(before.raise_for_status().json())
        return (
            f"{name} found {found} of their todos, saved one more and has {len(texts)}; "
            f"{'none' if mine else 'SOME'} of another user."
        )


async def main() -> None:
    """Serve, visit, tell, stop."""
    async with served() as address:
        print(f"Two plugins are served at {address}.")
        stories = await asyncio.gather(
            visit(address, "alice", "token-of-alice"),
            visit(address, "bob", "token-of-bob"),
            visit(address, "anonymous", None),
        )
        for story in stories:
            print(f"  {story}")
        print(f"  Everyone's hits, counted together: {await store.load('hits')}.")
    home = Path(os.environ.get("CAT_HOME", "data")).resolve()
    print(f"The server has stopped. Everything lies in {home}; run this again to go on from there.")


if __name__ == "__main__":
    asyncio.run(main())
