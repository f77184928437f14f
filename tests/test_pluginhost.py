"""The example of a plugin host: it tells its story, and keeps plugins and users apart."""

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cat import export_user, for_user, store, users
from serving import LIMIT, serving

pytest.importorskip("fastapi")
import httpx

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "pluginhost"
ALICE, BOB = ({"Authorization": f"Bearer token-of-{name}"} for name in ("alice", "bob"))

KEEPER = """
import cat
from cat import store, user

async def keep(value):
    from cat import for_user
    await store.save("key", ["all", value])
    await user.save("key", [user.id, value])
    await for_user("carol").save("key", ["carol", value])
    (store.folder / "file.txt").write_text(value)
    (user.folder / "file.txt").write_text(value)

async def kept():
    from cat import user
    return [
        await cat.store.load("key"),
        await user.load("key"),
        await cat.for_user("carol").load("key"),
        (cat.store.folder / "file.txt").read_text(),
        (user.folder / "file.txt").read_text(),
    ]
"""

STRICT = """
from cat import store

async def before_request(request):
    await store.increment("seen")
    if "x-bad" in request.headers:
        raise LookupError("the plugin does not like it")

async def seen():
    return await store.load("seen")

async def fail():
    raise LookupError("the tool does not work")
"""

COUNTER = """
from __future__ import annotations

from dataclasses import dataclass

from cat import current_user, erase_user, store, user
from cat.errors import NoUserError

VERSION = 1

@dataclass
class Count:
    user: str
    total: int
    version: int = VERSION

async def bootstrap():
    await store.increment("starts")
    assert current_user() is None
    try:
        await user.load("total")
    except NoUserError:
        await store.increment("starts without a user")

async def count(by=1):
    return Count(user.id, await user.increment("total", by))

async def starts():
    return [await store.load("starts"), await store.load("starts without a user")]

async def _private():
    return "private"

def plain():
    return "not async"
"""


def test_second_run_goes_on_from_the_first(tmp_path: Path) -> None:
    """Each run starts once more, finds what was stored by user and hook, and keeps users apart."""
    for number in (1, 2):
        done = subprocess.run(
            [sys.executable, "-W", "error", EXAMPLE / "host.py"],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        served, *story, end = done.stdout.splitlines()
        assert re.fullmatch(r"Three plugins are served at http://127\.0\.0\.1:\d+\.", served)
        assert story == [
            f"  The bootstrap hook: start no. {number}, with nobody.",
            *(
                f"  {name} was told 'Meow no. {number}, {name}!', had {number - 1} todos and has "
                f"{number}, none of another user."
                for name in ("alice", "bob")
            ),
            "  anonymous was answered 401 three times.",
            f"  The request hook has counted {11 * number} calls.",
        ]
        assert str(tmp_path / "data") in end
    assert (tmp_path / "data" / "cat.db").is_file()


class Host:
    """The host of the example, with plugins of a test's own, as a user would set it up."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("plugins", "__pycache__"))
        (directory / "plugins").mkdir()
        self.address = ""

    def write(self, name: str, text: str) -> None:
        """Write the file of a plugin."""
        (self.directory / "plugins" / f"{name}.py").write_text(text)

    async def ask(self, method: str, path: str, who: dict[str, str], **arguments: object) -> Any:
        """Send a request, and return its answer, or the status if it was refused."""
        body = {"json": arguments} if method == "POST" else {}
        async with httpx.AsyncClient(trust_env=False, timeout=LIMIT) as http:
            url = f"{self.address}/{path}"
            answer = await http.request(method, url, headers=who, **body)  # type: ignore[arg-type]
        return answer.json() if answer.is_success else answer.status_code

    async def call(self, tool: str, who: dict[str, str] = ALICE, **arguments: object) -> Any:
        """Call a tool."""
        return await self.ask("POST", f"tools/{tool}", who, **arguments)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Serve the host with three plugins of this test, and one that does not start."""
    made = Host(tmp_path / "host")
    made.write("first", KEEPER)
    made.write("second", KEEPER)
    made.write("strict", STRICT)
    made.write("counter", COUNTER)
    made.write("broken", "async def bootstrap():\n    raise LookupError('it does not start')\n")
    command = "uvicorn --port 0 host:app"
    with serving(command, made.directory, tmp_path / "log") as server:
        made.address = server.address
        server.told("Application startup complete")
        yield made


async def test_plugins_are_kept_apart(host: Host) -> None:
    """Two plugins use the same keys and files, and neither sees the other's, nor another user's."""
    # However they import it: at the top, in a function, as a name or as a whole.
    calls = [(plugin, who) for plugin in ("first", "second") for who in (ALICE, BOB)]
    for plugin, who in calls:
        assert await host.call(f"{plugin}/keep", who, value=plugin) is None
    for plugin, who in calls:
        assert await host.call(f"{plugin}/kept", who) == [
            ["all", plugin],
            ["alice" if who is ALICE else "bob", plugin],
            ["carol", plugin],
            plugin,
            plugin,
        ]
    # And what the host sees, in the same file from another process.
    for plugin in ("first", "second"):
        assert await store.namespace(plugin).load("key") == ["all", plugin]
        assert await for_user("bob").namespace(plugin).load("key") == ["bob", plugin]
    assert await store.keys() == []
    assert await store.namespaces() == ["counter", "first", "second", "strict"]
    export = await export_user("alice")
    assert export.entries == {name: {"key": ["alice", name]} for name in ("first", "second")}


async def test_a_failing_hook_fails_its_request_alone(host: Host) -> None:
    """Where a request hook raises, that request is answered 500, and those beside it are served."""
    bad = {**ALICE, "X-Bad": "yes"}
    answers = await asyncio.gather(
        *(host.call("counter/count", bad if number % 2 else BOB) for number in range(40))
    )
    assert answers[1::2] == [500] * 20
    assert sorted(answer["total"] for answer in answers[::2]) == list(range(1, 21))
    assert await host.call("strict/seen") == 41
    assert await host.call("strict/fail") == 500
    assert await host.call("counter/count") == {"user": "alice", "total": 1, "version": 1}
    assert await host.call("broken/bootstrap") == 404


async def test_only_tools_are_called(host: Host) -> None:
    """A hook, a private or a plain function, or what the plugin imported, cannot be called."""
    names = ("bootstrap", "_private", "plain", "erase_user", "NoUserError", "__class__", "none")
    for name in names:
        assert await host.call(f"counter/{name}", user_id="alice") == 404
    assert await host.call("strict/before_request", request=None) == 404
    assert await host.call("none/none") == 404
    assert await host.call("counter/count", {}) == 401
    assert await host.call("counter/count", of="cats") == 422


async def test_a_changed_plugin_finds_its_data(host: Host) -> None:
    """A plugin whose file was changed goes on from what it stored, and so if it cannot start."""
    assert await host.call("counter/count", by=4) == {"user": "alice", "total": 4, "version": 1}
    assert await host.call("counter/starts") == [1, 1]
    host.write("counter", COUNTER.replace("VERSION = 1", "VERSION = 2"))
    assert await host.ask("PUT", "plugins/counter", {}) == 401
    assert await host.ask("PUT", "plugins/counter", BOB) == 403
    assert await host.call("counter/count") == {"user": "alice", "total": 5, "version": 1}
    assert await host.ask("PUT", "plugins/counter", ALICE) is None
    assert await host.call("counter/count") == {"user": "alice", "total": 6, "version": 2}
    assert await host.call("counter/starts") == [2, 2]  # alice asked for it, and is not its user
    for text in ("this is no Python", "async def bootstrap():\n    raise LookupError\n"):
        host.write("counter", text)
        assert await host.ask("PUT", "plugins/counter", ALICE) == 500
        assert (await host.call("counter/count"))["version"] == 2
    assert await host.ask("PUT", "plugins/none", ALICE) == 404
    host.write("new", KEEPER)
    assert await host.ask("PUT", "plugins/new", ALICE) is None
    assert await host.call("new/keep", value="new") is None


async def test_a_removed_plugin_leaves_nothing(host: Host) -> None:
    """What a removed plugin kept is erased, of everyone and files too, and nothing else is."""
    for plugin in ("first", "second"):
        for who in (ALICE, BOB):
            await host.call(f"{plugin}/keep", who, value=plugin)
    assert await host.ask("DELETE", "plugins/second", BOB) == 403
    assert await host.ask("DELETE", "plugins/second", ALICE) == 409
    (host.directory / "plugins" / "second.py").unlink()
    erased = await host.ask("DELETE", "plugins/second", ALICE)
    assert (erased["entries"], erased["files"]) == (4, 3)  # all, alice, bob, carol; carol no file
    assert await host.call("second/kept") == 404
    assert await store.namespaces() == ["counter", "first", "strict"]
    assert await users() == ["alice", "bob", "carol"]
    for name in await users():
        export = await export_user(name)
        assert export.entries == {"first": {"key": [name, "first"]}}
        assert len(export.files) == (name != "carol")
    assert (await host.call("first/kept", BOB))[1] == ["bob", "first"]
    host.write("second", KEEPER)
    assert await host.ask("PUT", "plugins/second", ALICE) is None
    assert await host.call("second/kept") == 500  # it has no file to read
