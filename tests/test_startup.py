"""Importing does nothing; the first verb does all; many processes may start at once."""

# ruff: noqa: ASYNC240  # a test has its event loop to itself, and may block it

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from tests.conftest import integrity

from cat import as_user, for_user, store, user
from children import printed, python

PROCESSES = 20


def test_import_does_nothing() -> None:
    """Importing opens no file but modules, reads no environment, and starts no thread."""
    seen = json.loads(
        printed(
            """
            import aiosqlite, asyncio, json, os, sys, threading
            from collections.abc import MutableMapping

            reads, events, before = [], [], set(sys.modules)

            class Recording(MutableMapping):
                def __getitem__(self, name):
                    reads.append(name)
                    raise KeyError(name)
                def __iter__(self):
                    reads.append("all")
                    return iter(())
                def __contains__(self, name):
                    reads.append(name)
                    return False
                __setitem__ = __delitem__ = __len__ = __getitem__

            kept, os.environ, os.environb = os.environ, Recording(), Recording()
            threads = threading.enumerate()
            watched = ("os.", "sqlite3.", "socket.", "subprocess.", "_thread.", "shutil.")
            quiet = ("os.listdir", "os.scandir")  # how importing looks for modules

            def hook(event, arguments):
                if event == "open" or event.startswith(watched) and event not in quiet:
                    events.append((event, str(arguments[0]) if arguments else ""))

            sys.dont_write_bytecode = True
            sys.addaudithook(hook)
            from cat import store, user
            watched, found = (), list(events)
            os.environ = kept

            modules = [module for name, module in sys.modules.items() if name not in before]
            own = {getattr(module, "__file__", None) for module in modules}
            own |= {getattr(module, "__cached__", None) for module in modules}
            print(json.dumps({
                "reads": reads,
                "events": [event for event in found if event[0] != "open" or event[1] not in own],
                "opened": len(found),
                "threads": len(threading.enumerate()) - len(threads),
                "modules": sorted(set(sys.modules) - before),
            }))
            """
        )
    )
    assert seen["reads"] == []
    assert seen["events"] == []
    assert seen["opened"] > 5, "the hook must have seen the modules"
    assert seen["threads"] == 0
    assert {"cat", "cat.ambient"} < set(seen["modules"])
    assert not {"pydantic", "pydantic_core"}.intersection(seen["modules"])


def test_import_survives_an_unusable_environment(home: Path) -> None:
    """Settings that are all wrong harm no one who only imports."""
    names = ["CAT_HOME", "CAT_URL", "CAT_DURABILITY", "CAT_TIMEOUT", "CAT_MAX_VALUE_BYTES"]
    environment = {**os.environ, **dict.fromkeys(names, "")}
    printed("from cat import as_user, for_user, store, user", env=environment)


def test_plain_values_do_without_pydantic() -> None:
    """Only the first model or `type=` imports pydantic, plain values do not."""
    code = """
    import asyncio, sys
    from cat import store

    async def main():
        await store.save("k", {"a": [1, None, "x"]})
        await store.load("k")
        print("pydantic" in sys.modules)
        await store.load("k", type=dict)
        print("pydantic" in sys.modules)
    asyncio.run(main())
    """
    assert printed(code).split() == ["False", "True"]


async def test_nothing_is_made_without_a_verb(home: Path) -> None:
    """Making stores, binding users and naming namespaces leaves no trace on disk."""
    for one in (store, user, for_user("alice")):
        repr(one.namespace("a").namespace("b"))
    with as_user("bob"):
        assert user.id == "bob"
    assert not home.exists()


async def test_the_first_verb_makes_everything(home: Path) -> None:
    """A verb that only looks is enough to make a database for all later ones."""
    assert await store.load("k") is None
    assert {path.name for path in home.iterdir()} >= {"cat.db", "cat.db.lock"}


async def test_a_folder_needs_no_database(home: Path) -> None:
    """Touching `folder` makes that directory and nothing else."""
    assert store.folder.is_dir()
    assert [path for path in home.rglob("*") if not path.is_dir()] == []


SAVE_AND_LOAD = """
import asyncio, os, sys
from cat import store

async def main():
    key, value = sys.argv[1:3]
    print(await store.load(key))
    await store.save(key, value)
asyncio.run(main())
"""


def test_default_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any setting, everything lies in `./data`."""
    monkeypatch.delenv("CAT_HOME")
    here = tmp_path / "here"
    here.mkdir()
    assert printed(SAVE_AND_LOAD, "k", "v", cwd=here) == "None\n"
    assert printed(SAVE_AND_LOAD, "k", "v", cwd=here) == "v\n"
    assert [path.name for path in here.iterdir()] == ["data"]
    assert (here / "data" / "cat.db").is_file()


def test_a_second_process_finds_what_the_first_saved(home: Path) -> None:
    """Processes that follow one another share what they save."""
    found = [printed(SAVE_AND_LOAD, "k", str(number)).strip() for number in range(3)]
    assert found == ["None", "0", "1"]


def test_two_loops_in_a_row(home: Path) -> None:
    """A second `asyncio.run` in a process goes on where the first ended."""

    async def count() -> int:
        await store.save("n", await store.load("n", 0) + 1)
        return await store.load("n")

    assert [asyncio.run(count()) for _ in range(5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("setting", ["", "data", "./some/../data"])
def test_relative_home_outlives_chdir(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative home stays where it was when first used, whatever directory is entered later."""
    code = """
    import asyncio, os
    from cat import store

    async def use(n):
        print(await store.load("n"))
        await store.save("n", n)
        os.chdir("/")
        print(store.folder)

    os.chdir("elsewhere")  # before the first use, so this counts
    for n in range(3):
        asyncio.run(use(n))
    """
    (tmp_path / "here" / "elsewhere" / "some").mkdir(parents=True)
    monkeypatch.delenv("CAT_HOME")
    if setting:
        monkeypatch.setenv("CAT_HOME", setting)
    lines = printed(code, cwd=tmp_path / "here").split()
    assert lines[::2] == ["None", "0", "1"]
    [folder] = {Path(line).resolve() for line in lines[1::2]}
    assert folder.is_relative_to(tmp_path / "here" / "elsewhere" / "data")
    assert list((tmp_path / "here").glob("**/cat.db")) == [
        tmp_path / "here" / "elsewhere" / "data" / "cat.db"
    ]


ENDINGS = {
    "the loop is left open": "loop.run_until_complete(main())",
    "the loop is closed alone": "loop.run_until_complete(main()); loop.close()",
    "an exception": "loop.run_until_complete(main()); sys.exit(0)",
    "a pending task": "loop.create_task(later()); loop.run_until_complete(main())",
    "a daemon thread's loop": """
import threading
thread = threading.Thread(target=lambda: asyncio.run(forever()), daemon=True)
thread.start()
saved.wait()
""",
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_a_process_that_never_closes_exits(ending: str, home: Path) -> None:
    """A process that just ends does so at once, and what it saved is there."""
    code = f"""
import asyncio, sys, threading
from cat import store

saved = threading.Event()

async def main():
    await store.save("k", 1)
    saved.set()

async def later():
    await asyncio.sleep(3600)

async def forever():
    await main()
    await later()

loop = asyncio.new_event_loop()
{ending}
"""
    started = time.monotonic()
    done = python(code, timeout=20)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 10

    async def load() -> object:
        return await store.load("k")

    assert asyncio.run(load()) == 1


STORM = """
import asyncio, os, sys, time
import aiosqlite, cat.backends.sqlite
from cat import store

name = sys.argv[1]

async def main():
    await store.save(name, name)
    assert await store.load(name) == name

print("ready", flush=True)
for line in sys.stdin:
    start, os.environ["CAT_HOME"] = line.strip().split(" ", 1)
    time.sleep(max(0, float(start) - time.time()))
    try:
        asyncio.run(main())
        print("ok", flush=True)
    except BaseException as error:
        print(repr(error), flush=True)
"""


def test_many_processes_start_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty processes that open one home at the same moment all succeed, three new homes long.

    Then they open the first home again.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(STORM), f"process {number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    try:
        assert {process.stdout.readline() for process in processes} == {"ready\n"}
        for home in [tmp_path / name for name in ("one", "two", "three", "one")]:
            start = time.time() + 0.1
            for process in processes:
                process.stdin.write(f"{start} {home}\n")
                process.stdin.flush()
            assert {process.stdout.readline() for process in processes} == {"ok\n"}
            assert asyncio.run(_all_there(home, monkeypatch)) == PROCESSES
            assert integrity(home / "cat.db") == "ok"
    finally:
        for process in processes:
            process.communicate()


async def _all_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("CAT_HOME", str(home))
    names = [f"process {number}" for number in range(PROCESSES)]
    return sum([await store.load(name) == name for name in names])
