"""A plugin host: it loads the files in plugins/ and serves what they offer over HTTP.

A plugin is one file, and the names of its functions say what they are for:

    async def bootstrap()               called when the plugin starts, when there is no user
    async def before_request(request)   called before each call of a tool
    async def any_other_name(...)       a tool: POST /tools/<plugin>/<tool>, arguments in JSON

Run it twice, as `python docs/examples/pluginhost/host.py`: two users and an
anonymous caller visit it, and the second run goes on from what the first one
saved. The data lies in ./data, or wherever CAT_HOME says.
"""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, HTTPException, Request

import cat
from cat.asgi import Scope, UserMiddleware, unauthorized
from cat.errors import NoUserError
from loader import load

PLUGINS = Path(__file__).parent / "plugins"
HOOKS = ("bootstrap", "before_request")

log = logging.getLogger(__name__)
plugins: dict[str, ModuleType] = {}


# --- Plugins.


async def call_hook(plugin: ModuleType, hook: str, *arguments: object) -> None:
    """Call a hook, if the plugin has it."""
    if hasattr(plugin, hook):
        await getattr(plugin, hook)(*arguments)


async def start(name: str) -> None:
    """Load a plugin, again if it is there, and call its bootstrap hook on behalf of nobody."""
    plugin = load(PLUGINS / f"{name}.py")
    with cat.as_user(None):
        await call_hook(plugin, "bootstrap")
    plugins[name] = plugin  # if it does not start, the old one stays


def installed() -> list[str]:
    """Return the names of the plugins that have a file."""
    return sorted(path.stem for path in PLUGINS.glob("*.py"))


# --- The host: who is calling, and what can be called.

# A demonstration: a real host checks a signed token or a session here.
USERS_BY_TOKEN = {"token-of-alice": "alice", "token-of-bob": "bob"}
ADMINISTRATORS = ("alice",)


def caller(scope: Scope) -> str | None:
    """Return the user whose bearer token the request carries, or `None`."""
    authorization = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
    return USERS_BY_TOKEN.get(authorization.removeprefix("Bearer "))


def only_administrators() -> None:
    """Let nobody else pass."""
    if cat.user.id not in ADMINISTRATORS:
        raise HTTPException(403)


async def call_request_hooks(request: Request) -> None:
    """Call the request hook of each plugin; what one raises fails this request alone."""
    for plugin in list(plugins.values()):
        await call_hook(plugin, "before_request", request)


@asynccontextmanager
async def start_all(_: FastAPI) -> AsyncIterator[None]:
    """Start every plugin when the server starts; one that fails is left out."""
    for name in installed():
        try:
            await start(name)
        except Exception:
            log.exception("the plugin %s does not start and is left out", name)
    yield


app = FastAPI(lifespan=start_all, exception_handlers={NoUserError: unauthorized})
app.add_middleware(UserMiddleware, identify=caller)


@app.post("/tools/{plugin}/{tool}", dependencies=[Depends(call_request_hooks)])
async def call_tool(plugin: str, tool: str, arguments: Annotated[dict[str, Any], Body()]) -> Any:
    """Call a tool and return what it returns."""
    found: Any = getattr(plugins.get(plugin), tool, None)
    # What a plugin has imported, such as `erase_user`, is no tool of its own.
    own = inspect.iscoroutinefunction(found) and found.__module__ == f"plugins.{plugin}"
    if not own or tool in HOOKS or tool.startswith("_"):
        raise HTTPException(404)
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        raise HTTPException(422, str(error)) from None
    return await found(**arguments)


@app.put("/plugins/{name}", dependencies=[Depends(only_administrators)])
async def start_again(name: str) -> None:
    """Start a plugin whose file is new or was changed; what it stored is still there.

    In this process: several workers are restarted instead.
    """
    if name not in installed():
        raise HTTPException(404)
    await start(name)


@app.delete("/plugins/{name}", dependencies=[Depends(only_administrators)])
async def clean_up(name: str) -> dict[str, int]:
    """Forget a plugin whose file was removed, and erase what it stored for everyone."""
    if name in installed():
        raise HTTPException(409, "remove its file first")
    plugins.pop(name, None)
    return (await cat.erase_namespace(name))._asdict()


if __name__ == "__main__":
    from story import tell

    asyncio.run(tell(app))
