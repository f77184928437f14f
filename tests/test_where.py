"""The README's table of where the stores can be used, line by line, each in its real place."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import cat
from cat import store, users

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| ([a-z ]+) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
# What the issue that asked for the table named.
ASKED = {"endpoint", "background task", "websocket", "dependency", "tool", "bootstrap hook"}
ASKED |= {"command", "thread", "notebook", "test"}


class Line(NamedTuple):
    """What the table says of one place."""

    store: str
    user: str
    how: str


def table() -> dict[str, Line]:
    """Return the lines of the table, by the place they are about."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Where can I await it?")[2].partition("\n## ")[0]
    return {where: Line(*cells) for where, *cells in ROW.findall(section) if where != "where"}


# --- The places. Each program saves "here" for everyone, and the user's own id for the user; where
# nobody is bound at first, it says so for everyone.

SERVER = """
import asyncio

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, WebSocket

from cat import as_user, blocking, current_user, for_user, store, user
from cat.asgi import UserMiddleware, bind_user, unauthorized
from cat.errors import NoUserError


def identify(scope):
    return {b"token-of-alice": "alice"}.get(dict(scope["headers"]).get(b"authorization"))


async def save():
    await store.save("here", 1)
    await user.save("id", user.id)

app = FastAPI(exception_handlers={NoUserError: unauthorized})
app.add_middleware(UserMiddleware, identify=identify)
"""

ENDPOINT = """
@app.post("/a")
@app.post("/nobody")
async def endpoint():
    await save()

@app.post("/b")
def plain_endpoint():
    blocking.store.increment("plain")
    blocking.user.save("id too", blocking.user.id)
"""

BACKGROUND_TASK = """
def plainly():
    blocking.user.save("id too", blocking.user.id)

async def later():
    await ended.wait()
    await user.save("id three", user.id)

@app.post("/nobody")
async def only_starts():
    await asyncio.create_task(save())

kept = []
ended = asyncio.Event()

@app.post("/a")
async def endpoint(background: BackgroundTasks):
    background.add_task(save)
    background.add_task(plainly)
    kept.append(asyncio.create_task(later()))

@app.post("/b")
async def wait():
    ended.set()
    await asyncio.gather(*kept)
"""

WEBSOCKET = """
@app.websocket("/")
async def websocket(socket: WebSocket):
    await socket.accept()
    await save()
    await socket.send_json(await user.load("id"))
    await socket.close()
"""

DEPENDENCY = """
async def awaits():
    await save()

def log_in():
    bind_user("alice")

async def after_login():
    await user.save("id too", user.id)

@app.post("/a", dependencies=[Depends(awaits)])
@app.post("/nobody", dependencies=[Depends(awaits)])
async def endpoint(): ...

elsewhere = FastAPI(dependencies=[Depends(log_in), Depends(after_login)])
elsewhere.add_middleware(UserMiddleware, identify=lambda scope: None)

@elsewhere.post("/b")
async def other_endpoint():
    await user.save("id three", user.id)

inner = app

async def app(scope, receive, send):
    served = elsewhere if scope.get("path") == "/b" else inner
    await served(scope, receive, send)
"""

PLUGIN = """
from cat import as_user, for_user, store, user
from cat.errors import NoUserError
"""

TOOL = """
async def remember():
    await store.save("here", 1)
    await user.save("id", user.id)
"""

BOOTSTRAP_HOOK = """
async def bootstrap():
    await store.save("here", 1)
    try:
        await user.save("id", 1)
    except NoUserError:
        await store.save("nobody", True)
    for_one = for_user("bob")
    await for_one.save("id", "bob")
    await for_one.delete("id")

async def remember(): ...
"""

COMMAND = """
import asyncio
import cat
from cat import blocking
from cat.errors import NoUserError

blocking.store.save("here", 1)
try:
    blocking.user.save("id", 1)
except NoUserError:
    asyncio.run(cat.store.save("nobody", True))
with cat.as_user("alice"):
    blocking.user.save("id", blocking.user.id)
    assert asyncio.run(cat.user.load("id")) == "alice"
"""

THREAD = """
import asyncio, contextvars, threading
import cat
from cat import as_user, blocking
from cat.errors import NoUserError

def work():
    blocking.store.save("here", 1)
    try:
        blocking.user.save("id", 1)
    except NoUserError:
        blocking.store.save("nobody", True)
    with as_user("alice"):
        blocking.user.save("id", blocking.user.id)

def kept():
    blocking.user.save("id too", blocking.user.id)

async def main():
    with as_user("alice"):
        await asyncio.to_thread(kept)
        with as_user(None):
            thread = threading.Thread(target=work)
            thread.start()
            while thread.is_alive():
                await asyncio.sleep(0.01)
        assert await cat.user.load("id too") == "alice"

asyncio.run(main())
"""

CELLS = [
    "from cat import as_user, store, user",
    "await store.save('here', 1)",
    "from cat.errors import NoUserError",
    """
try:
    await user.save("id", 1)
except NoUserError:
    await store.save("nobody", True)
""",
    """
with as_user("alice"):
    await user.save("id", user.id)
""",
    """
from cat import blocking
from cat.errors import WouldBlockError
try:
    blocking.store.load("here")
except WouldBlockError:
    import asyncio
    assert await asyncio.to_thread(blocking.store.load, "here") == 1
else:
    raise AssertionError
""",
]

TEST = """
import pytest
from cat import user
from cat.errors import NoUserError

@pytest.mark.asyncio
async def test_it(cat_store, cat_as_user):
    await cat_store.save("here", 1)
    with pytest.raises(NoUserError):
        await user.save("id", 1)
    await cat_store.save("nobody", True)
    with cat_as_user("alice"):
        await user.save("id", user.id)
"""


# --- How each is put where it belongs.


def serve(app: str, visit: Callable[[str], None], directory: Path, name: str = "app") -> None:
    """Serve an application with uvicorn while it is visited."""
    from serving import serving

    (directory / f"{name}.py").write_text(app)
    command = f"uvicorn {name}:app --port 0 --no-use-colors"
    with serving(command, directory, directory / "log") as server:
        visit(server.address)
    assert "Traceback" not in (directory / "log").read_text()


def post(program: str, directory: Path) -> None:
    """Serve an application, and post to it as nobody, who is refused, and as alice."""
    import httpx

    def visit(address: str) -> None:
        for path in ("/nobody", "/a", "/b"):
            headers = {} if path == "/nobody" else {"Authorization": "token-of-alice"}
            answer = httpx.post(address + path, headers=headers, trust_env=False)
            assert answer.status_code == (401 if path == "/nobody" else 200)

    serve(SERVER + program, visit, directory)


def talk(program: str, directory: Path) -> None:
    """Serve a websocket, and talk to it as alice."""
    from websockets.sync.client import connect

    def visit(address: str) -> None:
        alice = {"Authorization": "token-of-alice"}
        url = address.replace("http", "ws")
        with connect(url, additional_headers=alice) as socket:
            assert socket.recv() == '"alice"'

    serve(SERVER + program, visit, directory)


def plug_in(program: str, directory: Path) -> None:
    """Put a plugin into the folder of the example of a host, and call its tool as alice."""
    import httpx

    host = directory / "pluginhost"
    shutil.copytree(ROOT / "docs" / "examples" / "pluginhost", host)
    shutil.rmtree(host / "plugins")
    (host / "plugins").mkdir()
    (host / "plugins" / "here.py").write_text(PLUGIN + program)

    def visit(address: str) -> None:
        alice = {"Authorization": "Bearer token-of-alice"}
        url = f"{address}/tools/here/remember"
        answer = httpx.post(url, json={}, headers=alice, trust_env=False)
        assert answer.status_code == 200

    app = (host / "host.py").read_text()
    serve(app, visit, host, "host")


def run(program: str, directory: Path) -> None:
    """Run a script as a command."""
    (directory / "command.py").write_text(program)
    command([sys.executable, "-W", "error", "command.py"], directory)


def command(arguments: list[str], directory: Path, text: str = "") -> str:
    """Run a program, insist that it succeeds, and return what it printed."""
    done = subprocess.run(
        arguments,
        cwd=directory,
        # Jupyter and IPython keep files in the home directory of whoever runs them.
        env={**os.environ, "HOME": str(directory)},
        input=text,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


KERNEL = """
import sys
from jupyter_client.manager import start_new_kernel

def refuse(*told):
    raise AssertionError(told)

manager, client = start_new_kernel(kernel_name="python3")
try:
    for cell in sys.stdin.read().split("# ---"):
        reply = client.execute_interactive(cell, timeout=60, allow_stdin=False)
        assert reply["content"]["status"] == "ok", reply
finally:
    client.stop_channels()
    manager.shutdown_kernel()
"""


def type_in(program: str, directory: Path) -> None:
    """Type cells into a real kernel, as a notebook does."""
    command([sys.executable, "-c", KERNEL], directory, program)


def test_project(program: str, directory: Path) -> None:
    """Run a test of a project's own, and leave its home where the others leave theirs."""
    (directory / "test_it.py").write_text(program)
    options = ["-q", "-p", "no:cacheprovider", "--basetemp", "base", "--noconftest"]
    said = command([sys.executable, "-m", "pytest", *options, "test_it.py"], directory)
    assert "1 passed" in said
    shutil.copytree(directory / "base" / "test_it0" / "cat_home", os.environ["CAT_HOME"])


test_project.__test__ = False  # type: ignore[attr-defined]

CHECKS: dict[str, tuple[Callable[[str, Path], None], str]] = {
    "endpoint": (post, ENDPOINT),
    "background task": (post, BACKGROUND_TASK),
    "websocket": (talk, WEBSOCKET),
    "dependency": (post, DEPENDENCY),
    "tool": (plug_in, TOOL),
    "bootstrap hook": (plug_in, BOOTSTRAP_HOOK),
    "command": (run, COMMAND),
    "thread": (run, THREAD),
    "notebook": (type_in, "\n# ---\n".join(CELLS)),
    "test": (test_project, TEST),
}

WEB = ["fastapi", "httpx", "uvicorn", "websockets"]
NEEDS = {post: WEB, talk: WEB, plug_in: WEB, type_in: ["ipykernel", "jupyter_client"]}


def test_every_line_has_a_check() -> None:
    """The table has a line for each place that was asked for, and each line is checked."""
    assert set(table()) == ASKED
    assert set(CHECKS) == set(table())


@pytest.mark.parametrize("where", CHECKS)
async def test_line(where: str, home: Path, tmp_path: Path) -> None:
    """What the line says of `store`, of `user` and of the way is so in the place itself."""
    line = table()[where]
    check, program = CHECKS[where]
    for needed in NEEDS.get(check, []):
        pytest.importorskip(needed)
    for term in re.findall(r"`(.+?)`", line.how):
        # `cat.blocking` is written `from cat import blocking`.
        assert re.search(rf"\b{term.removeprefix('cat.')}\b", program), term
    await asyncio.to_thread(check, program, tmp_path)

    # The host of the example gives each plugin a namespace of its name.
    below = (lambda s: s.namespace("here")) if check is plug_in else (lambda s: s)
    assert line.store == "yes"
    assert await below(store).load("here") == 1
    found = {name: await below(cat.for_user(name)).items() for name in await users()}
    if line.user == "no":
        assert found == {}
    else:
        assert list(found) == ["alice"]
        assert set(found["alice"].values()) == {"alice"}
    assert await below(store).exists("nobody") == (line.user != "yes")
    if line.user not in ("yes", "no"):
        assert re.fullmatch("with `(.*)`", line.user)[1] in program  # type: ignore[index]
