"""Several tasks in each of several processes change one key without a pause: all get through."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cat import store
from serving import LIMIT

# Tasks of one process build on each other's changes before these are stored, so what another
# process does in between undoes a chain of them.
CHANGES = """
import asyncio, json, sys
from cat import store

async def by_increment(name):
    return await store.increment("hits")

async def by_modify(name):
    return len(await store.modify("names", lambda names: [*names, name], []))

async def by_edit(name):
    async with store.edit("names", []) as names:
        names.append(name)
    return len(names)

async def change(task):
    verb = globals()["by_" + sys.argv[1]]
    return [await verb(f"{sys.argv[2]}/{task}/{turn}") for turn in range(100)]

async def main():
    await store.load("warm")
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(await asyncio.gather(*map(change, range(3)))))

asyncio.run(main())
"""


@pytest.mark.parametrize("verb", ["increment", "modify", "edit"])
def test_everyone_gets_through(verb: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,200 changes by twelve tasks in four processes, each gets a number of its own."""
    monkeypatch.setenv("CAT_TIMEOUT", "15")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CHANGES, verb, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0] * 4
    tasks = [numbers for line in said for numbers in json.loads(line)]
    assert all(numbers == sorted(numbers) for numbers in tasks)
    assert sorted(number for numbers in tasks for number in numbers) == list(range(1, 1201))

    async def look() -> None:
        names = await store.load("names", [])
        assert len(set(names)) == len(names)
        assert (await store.load("hits", len(names))) == 1200

    asyncio.run(look())
