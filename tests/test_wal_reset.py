"""The race in SQLite that loses acknowledged commits, stretched, and how the library escapes it.

https://www.sqlite.org/wal.html#walresetbug: while one process is between
reading how long the log is and noting how much of it was copied back, another
begins the log anew; what is committed next counts as copied, and is dropped.
`wal_reset/build.sh` makes an SQLite in which that moment lasts for
milliseconds. CAT_TEST_WAL_RACE may name one that is made already.
"""

import asyncio
import hashlib
import json
import os
import struct
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import NamedTuple

import aiosqlite
import filelock
import pytest

import cat
from cat import CatError, store

BUILD = Path(__file__).with_name("wal_reset") / "build.sh"
READY_MADE = os.environ.get("CAT_TEST_WAL_RACE")

# Of three processes one is held up: before each checkpoint and within it, in
# microseconds. The others begin the log anew meanwhile, if they can.
HELD_UP = {"CAT_WAL_GAP": "5000", "CAT_WAL_RACE": "10000"}
SAVES = (100, 300, 300)
ROUNDS = 10
# Without the guard it loses in most rounds: on two cores, plain automatic
# checkpoints in 17 of 20, unguarded ones in 13 of 20.
ROUNDS_TO_LOSE = 30

CHILD = """
import asyncio, contextlib, json, os, random, sys, time
from cat import store
from cat.backends.sqlite import start, writer

way, name, saves = sys.argv[1:]
PAGES = 20  # of the log, after which it is copied back
SMALL = 32 + PAGES * (4096 + 24)

def say(*what):
    print(json.dumps(what), flush=True)

def unguarded(self):
    if writer.size_of(start.beside(self._path, "-wal")) > SMALL:
        with contextlib.closing(start.connect(self._path, "rw", 0)) as other:
            other.execute(writer.CHECKPOINT).fetchall()

def replaced(text, old, new):
    assert text.count(old) == 1, text
    return text.replace(old, new)

start.PRAGMAS = replaced(
    start.PRAGMAS, f"journal_size_limit = {start.LOG_BYTES}", f"journal_size_limit = {SMALL}"
)
writer.LOG_BYTES, writer.PAGES_BETWEEN_LOOKS = SMALL, 8
assert writer.Writer._thread_tend_log  # or else replacing it would do nothing
if way == "unguarded":
    writer.Writer._thread_tend_log = unguarded
if way == "automatic":
    writer.Writer._thread_tend_log = lambda self: None
    start.PRAGMAS = replaced(
        start.PRAGMAS, "wal_autocheckpoint = 0", f"wal_autocheckpoint = {PAGES}"
    )

async def main():
    await store.exists("k")
    say("ready")
    sys.stdin.readline()
    for n in range(int(saves)):
        key = f"{random.random()} {name} {n}"  # anywhere in the tree
        begun = time.monotonic()
        try:
            await store.save(key, key * 100)  # about a page
        except Exception as error:
            say("failed", repr(error))
            break
        say("saved", key, time.monotonic() - begun)
        await asyncio.sleep(random.uniform(0, 0.001))
    say("done")
    sys.stdin.readline()  # nobody closes before all are done

asyncio.run(main())
"""

# Says how long a checkpoint lasts that is held up for 0.2 s.
PROBE = """
import sqlite3, sys, time
import cat.backends.sqlite
connection = sqlite3.connect(sys.argv[1])
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("CREATE TABLE t (c)")
begun = time.monotonic()
connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
print(time.monotonic() - begun)
"""


class Outcome(NamedTuple):
    """What came of a round: keys, errors, saves that were held up, and how often the log began."""

    saved: list[str]
    failed: list[str]
    held_up: int
    logs: int


@pytest.fixture(scope="session")
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the SQLite with the stretched moment, once for all, as it takes half a minute."""
    if READY_MADE:
        return Path(READY_MADE)
    if request.config.pluginmanager.has_plugin("cacheprovider"):
        place = request.config.cache.mkdir("wal_reset")
    else:
        place = tmp_path_factory.mktemp("wal_reset")
    try:
        version = _output(["dpkg-query", "-W", "-f", "${Version}", "libsqlite3-0"])
        place /= f"{version}-{hashlib.sha256(BUILD.read_bytes()).hexdigest()[:12]}"
        place.mkdir(exist_ok=True)
        made = place / "libsqlite3-race.so"
        with filelock.FileLock(place / "lock", timeout=300):
            if not made.exists():
                _output(["sh", str(BUILD), str(place)], timeout=280)
    except (OSError, filelock.Timeout, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        pytest.skip(f"the SQLite with the stretched race cannot be built here: {told}")
    return made


@pytest.fixture(scope="session")
def interpreter(library: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command of a Python that uses this SQLite: this one, or else the system's."""
    environment = {**_environment(library), "CAT_WAL_RACE": "200000"}
    for number, candidate in enumerate([sys.executable, "/usr/bin/python3"]):
        database = tmp_path_factory.mktemp("probe") / f"{number}.db"
        done = subprocess.run(
            [candidate, "-c", PROBE, str(database)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode == 0 and float(done.stdout) >= 0.2:
            return [candidate]
    pytest.skip("no Python here takes its SQLite from the system's shared library")


def test_nothing_acknowledged_is_lost(
    library: Path, interpreter: list[str], tmp_path: Path
) -> None:
    """Every acknowledged save is there, though checkpoints are held up where SQLite may lose it."""
    held_up = logs = 0
    for number in range(ROUNDS):
        home = tmp_path / str(number)
        outcome = run(interpreter, library, home, "library")
        assert outcome.failed == []
        assert len(outcome.saved) == sum(SAVES)
        assert lost(outcome.saved, home) == []
        held_up += outcome.held_up
        logs += outcome.logs
    assert held_up >= 2 * ROUNDS, "or else nothing was tried"
    assert logs >= 5 * ROUNDS, "or else nothing was copied back"


@pytest.mark.parametrize("way", ["automatic", "unguarded"])
def test_without_the_guard_it_is(
    way: str, library: Path, interpreter: list[str], tmp_path: Path
) -> None:
    """The same saves are lost with SQLite's own checkpoints, and with ours without the lock."""
    for number in range(ROUNDS_TO_LOSE):
        home = tmp_path / str(number)
        if lost(run(interpreter, library, home, way).saved, home):
            return
    pytest.fail(f"nothing was lost in {ROUNDS_TO_LOSE} rounds: this harness finds no such fault")


def run(interpreter: list[str], library: Path, home: Path, way: str) -> Outcome:
    """Save from three processes, the first of them held up, until all are done."""
    environment = {**_environment(library), "CAT_HOME": str(home)}
    children = [
        subprocess.Popen(
            [*interpreter, "-c", textwrap.dedent(CHILD), way, f"p{number}", str(saves)],
            env=environment if number else {**environment, **HELD_UP},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, saves in enumerate(SAVES)
    ]
    told: list[list[list]] = [[] for _ in children]

    def listen(number: int) -> None:
        for line in children[number].stdout:
            told[number].append(json.loads(line))
            if told[number][-1] == ["done"]:
                break

    listeners = [threading.Thread(target=listen, args=(n,)) for n in range(len(children))]
    try:
        assert [child.stdout.readline() for child in children] == ['["ready"]\n'] * len(children)
        for child in children:
            child.stdin.write("\n")
            child.stdin.flush()
        for listener in listeners:
            listener.start()
        for listener in listeners:
            listener.join(60)
        # No SQLite of this process has it open, so reading it drops no lock.
        logs = struct.unpack(">8I", (home / "cat.db-wal").read_bytes()[:32])[3]
    finally:
        for child in children:
            child.communicate("\n", timeout=60)
    assert [child.returncode for child in children] == [0] * len(children)
    lines = [line for one in told for line in one]
    patience = sum(map(int, HELD_UP.values())) / 1e6
    return Outcome(
        saved=[line[1] for line in lines if line[0] == "saved"],
        failed=[line[1] for line in lines if line[0] == "failed"],
        held_up=len([line for line in told[0] if line[0] == "saved" and line[2] >= patience]),
        logs=logs,
    )


def lost(keys: list[str], home: Path) -> list[str]:
    """Return those of `keys` whose values cannot be loaded; that the file is sound says nothing."""

    async def missing() -> list[str]:
        found = []
        async with cat.connect(home=home):
            for key in keys:
                try:
                    value = await store.load(key)
                except CatError:
                    value = None
                if value != key * 100:
                    found.append(key)
        return found

    try:
        return asyncio.run(missing())
    except CatError:
        return keys


def _environment(library: Path) -> dict[str, str]:
    """Return what makes a Python use `library`, and find the packages that this one has."""
    packages = {str(Path(module.__file__).parent.parent) for module in (cat, aiosqlite)}
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("CAT_")},
        "LD_PRELOAD": str(library),
        "PYTHONPATH": os.pathsep.join(sorted(packages)),
    }


def _output(command: list[str], timeout: float = 30) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=True
    ).stdout
