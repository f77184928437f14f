"""A copy of the home directory is a backup: of a project that stopped or of one that was killed."""

# ruff: noqa: ASYNC240  # a test has its event loop to itself, and may block it

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.conftest import integrity

from cat import as_user, connect, for_user, store, user

ACKNOWLEDGED = 200

# Says on its output what is saved, and not before it is.
WRITER = """
import asyncio, itertools
from cat import as_user, store, user

async def main():
    for n in itertools.count():
        await store.save(f"k{n}", {"n": n, "text": "x" * (n * 37 % 3000)})
        await store.save("latest", n)
        with as_user(f"user {n % 7}"):
            await user.save(f"k{n}", [n])
            if n % 10 == 0:
                (user.folder / f"{n}.txt").write_text(f"user's {n}")
                (store.folder / f"{n}.txt").write_text(f"store's {n}")
        print(n, flush=True)

asyncio.run(main())
"""


async def test_copy_of_a_stopped_project(home: Path, tmp_path: Path) -> None:
    """All is in the copy of a project that has ended, and the database is one file of its own."""
    async with connect(home=home):
        await store.save("k", ["shared"])
        await store.namespace("plugin").save("k", "named")
        (store.folder / "a.txt").write_text("shared")
        with as_user("alice"):
            await user.save("k", "private")
            (user.folder / "a.txt").write_text("private")
    assert not list(home.glob("cat.db-*"))
    copy = shutil.copytree(home, tmp_path / "copy")
    async with connect(home=copy):
        assert await store.load("k") == ["shared"]
        assert await store.namespace("plugin").load("k") == "named"
        assert await for_user("alice").load("k") == "private"
        assert (store.folder / "a.txt").read_text() == "shared"
        assert (for_user("alice").folder / "a.txt").read_text() == "private"
        await store.save("k", "changed in the copy")
        assert store.folder.is_relative_to(copy)
    async with connect(home=home):
        assert await store.load("k") == ["shared"]
    assert integrity(copy / "cat.db") == "ok"


def killed_in_mid_writing() -> list[int]:
    """Run the writer, kill it, and return what it had acknowledged."""
    command = [sys.executable, "-c", textwrap.dedent(WRITER)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(ACKNOWLEDGED)]
        process.kill()
        lines += process.stdout.readlines()
    return [int(line) for line in lines if line.endswith("\n")]


@pytest.mark.parametrize("leftover", ["copied", "moved"])
async def test_copy_of_a_killed_project(leftover: str, home: Path, tmp_path: Path) -> None:
    """All that was acknowledged before a kill is in the copy, values and files alike."""
    acknowledged = killed_in_mid_writing()
    assert len(acknowledged) >= ACKNOWLEDGED
    assert (home / "cat.db-wal").stat().st_size, "a kill leaves what was not yet written back"
    copy = tmp_path / "copy"
    if leftover == "copied":
        shutil.copytree(home, copy)
    else:
        home.rename(copy)
    async with connect(home=copy):
        for n in acknowledged:
            value = {"n": n, "text": "x" * (n * 37 % 3000)}
            assert await store.load(f"k{n}") == value
            with as_user(f"user {n % 7}"):
                assert await user.load(f"k{n}") == [n]
                if n % 10 == 0:
                    assert (user.folder / f"{n}.txt").read_text() == f"user's {n}"
                    assert (store.folder / f"{n}.txt").read_text() == f"store's {n}"
        assert await store.load("latest") in (acknowledged[-1], acknowledged[-1] + 1)
        await store.save("latest", "on we go")
    assert integrity(copy / "cat.db") == "ok"
