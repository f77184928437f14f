"""Several workers serve the host example on one file, and some are killed: nothing is lost."""

import asyncio
import contextlib
import itertools
import os
import signal
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from cat import for_user, store
from serving import LIMIT, Server, serving

pytest.importorskip("fastapi")
pytest.importorskip("gunicorn")
pytest.importorskip("uvicorn_worker")
import httpx

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
# The time under load. Read at import: the `home` fixture takes every CAT_ variable away.
SECONDS = 30.0 if os.environ.get("CAT_TEST_LONG") == "1" else 8.0
NO_TLS = ssl.create_default_context()  # one for all: it takes long to make
VISITORS = ["alice", "bob", "nobody"] * 4  # as the tokens of the example go


class Way(NamedTuple):
    """A command that serves, and how its log tells of the workers that it starts."""

    command: str
    worker: str
    ready: str = "Application startup complete"


WAYS = {
    "uvicorn": Way("uvicorn --workers 4 --port 0 host:app", r"Started server process \[(\d+)\]"),
    "gunicorn": Way(
        "gunicorn --preload --workers 4 --worker-class uvicorn_worker.UvicornWorker "
        "--bind 127.0.0.1:0 host:app",
        r"Booting worker with pid: (\d+)",
    ),
}


class Tally:
    """What was asked for, and what was answered."""

    def __init__(self) -> None:
        self.numbers: list[int] = []  # of the hits that were acknowledged
        self.todos: dict[str, list[str]] = {"alice": [], "bob": []}  # acknowledged
        self.asked: dict[str, set[str]] = {"alice": set(), "bob": set()}
        self.serial = itertools.count()
        self.cut = 0  # requests that a kill has cut off, done or not: who knows
        self.cut_hits = 0


class Visitor:
    """A caller who comes back with a new connection from time to time."""

    def __init__(self, address: str, number: int, tally: Tally) -> None:
        self.name = VISITORS[number]
        self.tally = tally
        self.mine: list[str] = []
        self.last = 0
        headers = {} if self.name == "nobody" else {"Authorization": f"Bearer token-of-{self.name}"}
        self.http = httpx.AsyncClient(
            base_url=address, headers=headers, trust_env=False, timeout=LIMIT, verify=NO_TLS
        )

    async def ask(self, method: str, path: str, status: int = 200, **options: object) -> object:
        """Send a request, and insist on its status; return `None` if it was cut off."""
        try:
            answer = await self.http.request(method, path, **options)  # type: ignore[arg-type]
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            self.tally.cut += 1
            return None
        assert answer.status_code == status, answer.text
        return answer.json()

    async def hit(self) -> None:
        """Count one more, and see that the number is a later one than before."""
        number = await self.ask("POST", "/hits")
        if number is None:
            self.tally.cut_hits += 1
            return
        assert isinstance(number, int)
        assert number > self.last
        self.last = number
        self.tally.numbers.append(number)

    async def todo(self) -> None:
        """Add a todo, and see from another connection that it and those before are there."""
        away = {"Connection": "close"}  # the next request may come to another worker
        if self.name == "nobody":
            await self.ask("GET", "/todos", 401, headers=away)
            return
        text = f"{self.name} {next(self.tally.serial)}"
        self.tally.asked[self.name].add(text)
        found = await self.ask("POST", "/todos", json=text, headers=away)
        if found is not None:
            assert isinstance(found, list)
            assert found[-1]["text"] == text
            self.mine.append(text)
            self.tally.todos[self.name].append(text)
        found = await self.ask("GET", "/todos")
        if found is not None:
            assert isinstance(found, list)
            stored = [todo["text"] for todo in found]
            assert all(text.startswith(self.name) for text in stored), "another user's"
            known = set(self.mine)
            assert [text for text in stored if text in known] == self.mine

    async def visit(self, until: float) -> None:
        """Ask for one thing after another."""
        async with self.http:
            while True:
                for _ in range(10):
                    await self.hit()
                await self.todo()
                if time.monotonic() > until:
                    break


async def visits(address: str, tally: Tally, seconds: float) -> None:
    """Let all visitors come at once."""
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(len(VISITORS)):
            group.create_task(Visitor(address, number, tally).visit(until))


def sockets(pid: int) -> int:
    """Return how many sockets a process has open."""
    found = 0
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += str(file.readlink()).startswith("socket:")
    return found


async def kills(server: Server, way: Way, seconds: float) -> None:
    """Kill the worker that is busiest, twice, and see that it is replaced."""
    for number in (1, 2):
        await asyncio.sleep(seconds / 4)
        workers = server.workers(way.worker)
        assert len(workers) == 4
        os.kill(max(workers, key=sockets), signal.SIGKILL)
        await asyncio.to_thread(server.told, way.ready, 4 + number)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for workers in /proc")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_workers_are_killed_and_nothing_is_lost(
    way: Way, home: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Counters and lists of four workers are exact, and lose nothing acknowledged in two kills."""
    tally = Tally()
    with serving(way.command, EXAMPLES, tmp_path / "log") as server:
        server.told(way.ready, 4)
        address = server.address
        await visits(address, tally, SECONDS / 8)
        assert tally.cut == 0
        assert sorted(tally.numbers) == list(range(1, len(tally.numbers) + 1))
        assert await store.load("hits") == len(tally.numbers)  # we are a fifth process

        async with asyncio.TaskGroup() as group:
            group.create_task(visits(address, tally, SECONDS))
            group.create_task(kills(server, way, SECONDS))
        assert len(server.workers(way.worker)) == 4
        hits = await store.load("hits", type=int)
        assert hits is not None
        assert len(set(tally.numbers)) == len(tally.numbers)
        assert max(tally.numbers) <= hits
        assert len(tally.numbers) <= hits <= len(tally.numbers) + tally.cut_hits
        told = {"hits": len(tally.numbers), "cut": tally.cut, "unknown": hits - len(tally.numbers)}

        cut, before = tally.cut, len(tally.numbers)
        await visits(address, tally, SECONDS / 8)
        assert tally.cut == cut
        after = tally.numbers[before:]
        assert sorted(after) == list(range(hits + 1, hits + 1 + len(after)))
    told["todos"] = sum(map(len, tally.todos.values()))
    record_property("told", told)
    print(told)  # noqa: T201  # pytest shows it if this fails
    assert "Traceback" not in server.log.read_text()
    for name, acknowledged in tally.todos.items():
        todos = await for_user(name).load("todos", type=list[dict[str, object]])
        stored = [todo["text"] for todo in todos or []]
        assert len(set(stored)) == len(stored)
        assert set(acknowledged) <= set(stored) <= tally.asked[name]
