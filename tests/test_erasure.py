"""What a user owns: who has something, all of it in one place, and all of it gone."""

# ruff: noqa: ASYNC240  # a test has its event loop to itself, and may block it

import asyncio
import dataclasses
import itertools
import json
import os
import random
import secrets
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pydantic
import pytest

from cat import (
    Erased,
    Export,
    Info,
    Store,
    as_user,
    erase_namespace,
    erase_user,
    export_user,
    for_user,
    store,
    user,
    users,
)
from cat.errors import (
    ConflictError,
    CorruptValueError,
    InvalidNamespaceError,
    InvalidUserError,
    NotScrubbedError,
    NotWritableError,
)
from children import beside, printed

LIMIT = 60.0  # seconds; against hanging
NOBODY = 65534
NOTHING = Erased(0, 0, 0)


def within(scope: Store, namespace: str) -> Store:
    """Return the namespace of that name, or of several joined by `/`; `""` is the scope itself."""
    for name in filter(None, namespace.split("/")):
        scope = scope.namespace(name)
    return scope


def scope_of(owner: str | None, namespace: str = "") -> Store:
    """Return the scope of a user, or of everyone (`None`), in a namespace."""
    return within(store if owner is None else for_user(owner), namespace)


def size_of(value: object) -> int:
    """Return the bytes of a value's JSON."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def token() -> str:
    """Return text that is nowhere else."""
    return f"t{secrets.token_hex(8)}"


def traces(home: Path, *texts: str) -> list[str]:
    """Return the files below the home that hold one of the texts, or are named so.

    Another process looks: were this one to open and close the database, SQLite
    would lose the locks that it has on it.
    """
    wanted = [f"-e{text}" for text in texts]
    done = subprocess.run(
        ["grep", "-rlaF", *wanted, str(home)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    named = [str(place) for place in home.rglob("*") if any(text in place.name for text in texts)]
    return sorted({*done.stdout.splitlines(), *named})


def files_below(home: Path) -> list[Path]:
    """Return all files in the folders of everyone."""
    return sorted(place for place in (home / "files").rglob("*") if place.is_file())


def fill(scope: Store, *names: str) -> list[Path]:
    """Make files in a scope's folder, in directories too, and return them."""
    made = [scope.folder / name for name in names]
    for place in made:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("file")
    return made


async def until(condition: Callable[[], Any]) -> None:
    """Wait until `condition()` holds; it may be a coroutine function."""
    async with asyncio.timeout(LIMIT):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.002)


@contextmanager
def reading(home: Path) -> Iterator[sqlite3.Connection]:
    """Hold a read transaction of what is there now, during a `with` block or until it is closed."""
    with closing(sqlite3.connect(home / "cat.db", isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM entries").fetchall()
        yield connection


# --- Everything, and nothing else

OWNERS = [None, "a", "a/b", "A", "a ", " a", "a-", "ab", "é", "e\u0301", "ﬁ", "fi", "1", "01", ".."]
NAMESPACES = ["", "a", "a-", "a/b", "a/b/c", "a/bc", "ab", "A", "a.", "a0", "b/a", "é", "e\u0301"]
Place = tuple[str | None, str]  # a user, or everyone, and a namespace


async def fill_all(places: list[Place]) -> dict[Place, dict[str, Any]]:
    """Store two entries and two files in each of many places, and return the entries."""
    made = {}
    for owner, namespace in places:
        scope = scope_of(owner, namespace)
        made[owner, namespace] = {"k": f"{owner} {namespace}", f"é{namespace}": [namespace]}
        await scope.save_many(made[owner, namespace])
        fill(scope, "f", "deep/er/g")
    return made


async def check_left(places: list[Place], made: dict[Place, dict[str, Any]], home: Path) -> None:
    """Insist that of `places` exactly those that are `made` hold their entries and files."""
    for owner, namespace in places:
        expected = made.get((owner, namespace), {})
        assert await scope_of(owner, namespace).items() == expected, (owner, namespace)
    assert len(files_below(home)) == 2 * len(made)
    for owner, namespace in made:
        folder = scope_of(owner, namespace).folder
        assert (folder / "deep" / "er" / "g").read_text() == "file"
    assert await users() == sorted({owner for owner, _ in made if owner is not None})


def counted(gone: dict[Any, dict[str, Any]]) -> Erased:
    """Return how much it was."""
    values = [value for entries in gone.values() for value in entries.values()]
    return Erased(len(values), sum(map(size_of, values)), 2 * len(gone))


async def test_all_of_a_user_goes_and_nothing_of_the_others(home: Path) -> None:
    """One after the other, users that look alike are erased from seven namespaces each."""
    places = list(itertools.product(OWNERS, NAMESPACES[::2]))
    made = await fill_all(places)
    for doomed in ["a", "é", "a ", "..", "fi", "01", "A", "a/b"]:
        gone = {place: made.pop(place) for place in list(made) if place[0] == doomed}
        assert len(gone) == 7
        assert await erase_user(doomed) == counted(gone)
        await check_left(places, made, home)
        assert not for_user(doomed).folder.joinpath("f").exists()
    await store.save("k", 1)


@pytest.mark.parametrize("name", ["a", "a-", "a/b", "ab", "A", "é", "b", "b/a", "a/b/c"])
async def test_all_of_a_namespace_goes_and_nothing_beside_it(name: str, home: Path) -> None:
    """It and those below it go, of the global store and of every user; those like it stay."""
    places = list(itertools.product([None, "a", "a/b", "A"], NAMESPACES))
    made = await fill_all(places)
    doomed = [place for place in made if f"{place[1]}/".startswith(f"{name}/")]
    gone = {place: made.pop(place) for place in doomed}
    assert len(gone) in (4, 8, 16)
    assert await erase_namespace(name) == counted(gone)
    await check_left(places, made, home)
    assert await erase_namespace(name) == NOTHING
    await check_left(places, made, home)


async def test_an_id_is_taken_as_its_text() -> None:
    """A number or a UUID erases what its text owns."""
    for given in (7, UUID(int=7)):
        await for_user(str(given)).save("k", 1)
        fill(for_user(given), "f")
        assert (await export_user(given)).user == str(given)
        assert await erase_user(given) == Erased(1, 1, 1)
    assert await users() == []


async def test_erasing_nobody_makes_nothing(home: Path) -> None:
    """A user or a namespace that has nothing is erased as well, twice, and no folder is made."""
    await store.save("k", 1)
    for _ in range(2):
        assert await erase_user("alice") == NOTHING
        assert await erase_namespace("weather") == NOTHING
        assert await export_user("alice") == Export("alice", {}, [])
    assert not (home / "files").exists()
    assert await store.items() == {"k": 1}


async def test_what_was_erased_can_be_used_again() -> None:
    """Entries and folders begin anew, at the same path, for whoever kept the store too."""
    with as_user("alice"):
        kept, folder = user.namespace("n"), user.namespace("n").folder
        for round_ in range(3):
            await kept.save("k", round_)
            assert await kept.increment("count") == 1
            async with kept.edit("todos", []) as todos:
                todos.append(round_)
            assert await kept.load("todos") == [round_]
            fill(kept, "f")
            assert await erase_user("alice") == Erased(3, 1 + 1 + 3, 1)
            assert user.id == "alice"
            assert not folder.exists()
            assert await kept.load("k") is None
            assert kept.folder == folder
            assert list(folder.iterdir()) == []


async def test_expired_entries_are_removed_and_not_counted(home: Path) -> None:
    """What has expired is nowhere to be seen, and goes with the rest."""
    dead, alive = token(), token()
    alice, deep = for_user("alice"), for_user("alice").namespace("a").namespace("b")
    await alice.save("live", alive, expires_in=3600)
    for scope in (alice, deep, for_user("bob")):
        values = {f"{n}": f"{dead} {n}" for n in range(200)}
        await scope.save_many({dead: 1, **values}, expires_in=0.2)
    assert await users() == ["alice", "bob"]
    await until(lambda: _none_of(dead, alice, deep, for_user("bob")))
    assert traces(home, dead), "they are still in the file"
    assert await users() == ["alice"]
    assert await alice.info(dead) is None
    assert (await export_user("alice")).entries == {"": {"live": alive}}
    assert (await export_user("bob")).entries == {}
    assert await erase_user("alice") == Erased(1, size_of(alive), 0)
    assert await erase_user("bob") == NOTHING
    assert await users() == []
    assert traces(home, dead, alive) == []


async def _none_of(key: str, *scopes: Store) -> bool:
    return not any([await scope.exists(key) for scope in scopes])


async def test_many_thousand_entries() -> None:
    """However many there are, all are removed at once, and counted."""
    values = {f"k{number}": number for number in range(20_000)}
    for name in ("alice", "bob"):
        await for_user(name).namespace("n").save_many(values)
    assert await erase_user("alice") == Erased(20_000, sum(map(size_of, values.values())), 0)
    assert await for_user("alice").namespace("n").count() == 0
    assert await for_user("bob").namespace("n").items() == values
    assert (await erase_namespace("n")).entries == 20_000


# --- What is refused

BAD_IDS: dict[str, Any] = {
    "None": None,
    "empty": "",
    "True": True,
    "float": 1.0,
    "bytes": b"alice",
    "list": ["alice"],
    "store": for_user("alice"),
    "control character": "alice\n",
    "NUL": "\0",
    "surrogate": "\ud800",
    "256 bytes": "a" * 256,
}
BAD_NAMES: dict[str, Any] = {
    "None": None,
    "int": 5,
    "bytes": b"a",
    "list": ["a", "b"],
    "empty": "",
    "slash": "/",
    "slash first": "/a",
    "slash last": "a/",
    "two slashes": "a//b",
    "NUL": "a\0",
    "newline": "a\n",
    "escape": "a/\x1b[31m",
    "next line": "a\x85/b",
    "surrogate": "a/\ud800",
    "256 bytes": "a" * 256,
    "256 bytes in all": "a" * 127 + "/" + "b" * 128,
}


@pytest.mark.parametrize("bad", BAD_IDS.values(), ids=BAD_IDS)
async def test_a_bad_id_is_refused_before_anything_is_touched(bad: Any, home: Path) -> None:
    """It raises with no database made, and with one, nothing goes."""
    for verb in (erase_user, export_user):
        with pytest.raises(InvalidUserError) as caught:
            await verb(bad)
        assert caught.value.not_stored
    assert not home.exists()
    await for_user("alice").save("k", 1)
    made = fill(for_user("alice"), "f")
    with pytest.raises(InvalidUserError):
        await erase_user(bad)
    assert await for_user("alice").load("k") == 1
    assert files_below(home) == made


@pytest.mark.parametrize("bad", BAD_NAMES.values(), ids=BAD_NAMES)
async def test_a_bad_name_is_refused_before_anything_is_touched(bad: Any, home: Path) -> None:
    """It raises with no database made, and with one, nothing goes: `""` is not everything."""
    with pytest.raises(InvalidNamespaceError) as caught:
        await erase_namespace(bad)
    assert caught.value.not_stored
    assert str(caught.value).isascii()
    assert not home.exists()
    await scope_of(None, "a").save("k", 1)
    made = fill(scope_of(None, "a"), "f")
    with pytest.raises(InvalidNamespaceError):
        await erase_namespace(bad)
    assert await scope_of(None, "a").load("k") == 1
    assert files_below(home) == made


# --- No trace


async def short(secret: str) -> None:
    """Store one small value."""
    await for_user("alice").save("k", secret)


async def long(secret: str) -> None:
    """Store values of 1 MB, at the top and in a namespace."""
    await for_user("alice").save(f"{secret} key", secret * 50_000)
    await scope_of("alice", "a/b").save("k", [secret] * 50_000)


async def many(secret: str) -> None:
    """Store 5,000 keys and values."""
    await for_user("alice").save_many({f"{secret} {n}": f"{secret} {n}" * 9 for n in range(5_000)})


async def often(secret: str) -> None:
    """Store many versions of a few values, in each way that there is."""
    alice = for_user("alice")
    for n in range(40):
        await alice.save("saved", [n, secret * 100])
        await alice.modify("modified", lambda old, n=n: [*old, n, secret], [])
        async with alice.edit("edited", {}) as value:
            value[f"{secret} {n}"] = secret * n
        await alice.create(f"{secret} created {n}", secret)
        await alice.increment(f"{secret} counted")
        await alice.load_or_create(f"made {n}", lambda: [secret])
    await asyncio.gather(*(alice.modify("modified", lambda old: [*old, secret]) for _ in range(50)))


async def removed(secret: str) -> None:
    """Store values that are gone again before they are erased."""
    alice = for_user("alice")
    await alice.save_many({f"{secret} {n}": secret * n for n in range(300)})
    for n in range(100):
        await alice.pop(f"{secret} {n}")
        await alice.delete(f"{secret} {n + 100}")
    await alice.clear(secret)
    await alice.save("k", 1)


async def overwritten(secret: str) -> None:
    """Store values of which nothing is left but older versions."""
    alice = for_user("alice")
    for size in (1, 100, 10_000):
        await alice.save_many({f"{n}": secret * size for n in range(20)})
    await alice.save_many({f"{n}": None for n in range(20)})


USES = [short, long, many, often, removed, overwritten]


@pytest.mark.parametrize("durability", ["always", "interval"])
@pytest.mark.parametrize("use", USES)
async def test_no_byte_is_left_in_any_file(
    use: Any, durability: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, keys and the id are in no file when it returns, with the store open all the time."""
    monkeypatch.setenv("CAT_DURABILITY", durability)
    await store.save_many({f"kept {number}": "x" * number for number in range(200)})
    secret = token()
    await use(secret)
    await for_user(secret).save("k", "this one's id")
    fill(for_user(secret), "f")
    assert traces(home, secret), "what is looked for is found where it is"
    await erase_user(secret)
    await erase_user("alice")
    assert traces(home, secret) == []
    assert await store.count() == 200
    await store.save("k", 1)
    assert traces(home, secret) == []


@pytest.mark.parametrize("use", USES)
async def test_no_byte_of_a_namespace_is_left_in_any_file(use: Any, home: Path) -> None:
    """The same for what a plugin left behind, its name included."""
    secret = token()
    await use(token())
    for scope in (store, for_user("bob")):
        await scope.namespace(secret).namespace("n").save(secret, secret * 3_000)
        fill(scope.namespace(secret), "f")
    assert traces(home, secret)
    assert await erase_namespace(secret) == Erased(2, 2 * size_of(secret * 3_000), 2)
    assert traces(home, secret) == []


async def test_no_byte_is_left_in_a_database_elsewhere(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `CAT_URL`, the files go from the home and the entries from the database."""
    place = tmp_path / "place"
    monkeypatch.setenv("CAT_URL", f"sqlite:///{place / 'other.db'}")
    secret = token()
    await for_user(secret).save(secret, secret)
    fill(for_user(secret), "f")
    assert traces(place, secret)
    assert traces(home, secret)
    assert await erase_user(secret) == Erased(1, size_of(secret), 1)
    assert traces(place, secret) == traces(home, secret) == []


# --- Other processes

IDLE = """
import asyncio
from cat import for_user, store

async def main():
    await store.save("beside", 1)
    await for_user("alice").items()
    async with store.edit("list", []) as items:
        items.append(1)
    print("open", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""

READS = """
import asyncio
from cat import for_user, store

async def main():
    print("begins", await store.items() != {}, flush=True)
    while True:
        await asyncio.gather(for_user("alice").load("k"), store.load("kept 7"), store.items())

asyncio.run(main())
"""

WRITES = """
import asyncio, os
from cat import for_user, store

async def main():
    await store.increment("count")
    print("begins", flush=True)
    bob = for_user(f"bob {os.getpid()}")
    while True:
        await asyncio.gather(
            store.increment("count"), bob.save("k", "x" * 5_000), bob.modify("m", lambda old: 1)
        )

asyncio.run(main())
"""


@pytest.mark.parametrize("use", USES)
async def test_no_byte_is_left_with_another_process_beside(use: Any, home: Path) -> None:
    """One that has the database open, and has read and written it, keeps nothing of it."""
    secret = token()
    await use(secret)
    with beside(IDLE) as other:
        await use(secret)
        assert traces(home, secret)
        await erase_user("alice")
        assert traces(home, secret) == []
        assert other.poll() is None
    assert await store.load("beside") == 1


@pytest.mark.parametrize("codes", [[READS], [WRITES], [READS, WRITES]], ids=["r", "w", "rw"])
async def test_no_byte_is_left_beside_processes_that_never_pause(
    codes: list[str], home: Path
) -> None:
    """Others read and write all the time: erasing comes through, and none of them fails."""
    await store.save_many({f"kept {number}": "x" * number for number in range(200)})
    first, *more = codes
    with beside(first) as one, beside(more[0] if more else IDLE) as other:
        for round_ in range(6):
            secret = token()
            await USES[round_ % 3](secret)
            await erase_user("alice")
            assert traces(home, secret) == []
        assert one.poll() is None
        assert other.poll() is None


@pytest.mark.parametrize("use", [short, long, often])
async def test_a_reader_that_never_ends_is_told(
    use: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it reads cannot go: that raises, and does not say that nothing was done."""
    monkeypatch.setenv("CAT_TIMEOUT", "0.5")
    secret = token()
    await use(secret)
    await for_user("bob").save("k", 1)
    made = fill(for_user("alice"), "f")
    with reading(home):
        async with asyncio.timeout(LIMIT):
            with pytest.raises(NotScrubbedError) as caught:
                await erase_user("alice")
        assert not caught.value.not_stored, "the entries and the files are gone"
        assert "nothing was stored" not in str(caught.value)
        assert not made[0].exists()
        assert await users() == ["bob"]
        assert await for_user("alice").items() == {}
        await store.save("k", 2)  # and everything else works
    assert await erase_user("alice") == NOTHING
    assert traces(home, secret) == []
    assert await for_user("bob").load("k") == await store.load("k") - 1 == 1


async def test_a_namespace_that_is_being_read_is_told_too(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for `erase_namespace`."""
    monkeypatch.setenv("CAT_TIMEOUT", "0.5")
    secret = token()
    await store.namespace("n").save("k", secret)
    with reading(home):
        with pytest.raises(NotScrubbedError):
            await erase_namespace("n")
        assert await store.namespace("n").count() == 0
    assert await erase_namespace("n") == NOTHING
    assert traces(home, secret) == []


@pytest.mark.parametrize("use", [short, long])
async def test_erasing_waits_for_a_reader_and_keeps_nobody_waiting(use: Any, home: Path) -> None:
    """While one reads, the erasure waits, and every other verb goes on; then it is done."""
    secret = token()
    await use(secret)
    await store.save("count", 0)
    with reading(home) as reader:
        erasing = asyncio.create_task(erase_user("alice"))
        await until(lambda: _is_gone("alice"))
        for number in range(5):
            assert await store.increment("count") == number + 1
            await for_user("bob").save("k", number)
            async with store.edit("list", []) as items:
                items.append(number)
            assert await for_user("bob").load("k") == number
        assert not erasing.done(), "what is read now is still in the log"
        reader.close()
        assert (await erasing).entries > 0
    assert traces(home, secret) == []


async def _is_gone(name: str) -> bool:
    return name not in await users()


# --- Killed on the way

ERASE = """
import asyncio
from cat import erase_user, users

async def main():
    await users()
    print("begins", flush=True)
    await erase_user("alice")

asyncio.run(main())
"""


async def test_killed_among_the_files(home: Path) -> None:
    """Some files are gone, the rest and all entries are not; erasing again completes it."""
    secret = token()
    await for_user("alice").save("k", secret)
    made = fill(for_user("alice"), *(f"{number}" for number in range(2_000)))
    with beside(ERASE) as killed:
        await until(lambda: not all(map(Path.exists, made)))
        killed.send_signal(signal.SIGKILL)
    await erase_user("alice")
    assert files_below(home) == []
    assert traces(home, secret) == []
    assert await users() == []


async def test_killed_before_the_entries(home: Path) -> None:
    """The files are gone, the entries are all there; erasing again completes it."""
    secret = token()
    await scope_of("alice", "a/b").save_many({f"k{number}": secret for number in range(100)})
    made = fill(scope_of("alice", "a/b"), "f")
    with closing(sqlite3.connect(home / "cat.db", isolation_level=None)) as holder:
        with beside(ERASE):
            holder.execute("BEGIN IMMEDIATE")
            await until(lambda: not made[0].exists())
        holder.execute("ROLLBACK")
    found = await scope_of("alice", "a/b").count()
    assert found in (0, 100)  # 0 if it was quicker than the lock
    assert (await erase_user("alice")).entries == found
    assert traces(home, secret) == []


async def test_killed_before_the_files_of_the_database_are_clean(home: Path) -> None:
    """The entries are gone but not their bytes; erasing nothing at all completes it."""
    secret = token()
    await for_user("alice").save("k", secret * 1_000)
    with reading(home):
        with beside(ERASE) as killed:
            await until(lambda: _is_gone("alice"))
            assert killed.poll() is None
        assert traces(home, secret), "it waited for the reader when it was killed"
    assert await erase_user("alice") == NOTHING
    assert traces(home, secret) == []


async def test_killed_anywhere(home: Path) -> None:
    """Whenever it strikes, the file is sound, others keep all, and erasing again completes it."""
    source = random.Random(11)  # noqa: S311  # not a secret
    await store.save_many({f"kept {number}": "x" * number for number in range(500)})
    for _ in range(6):
        secret = token()
        await for_user("alice").save_many({f"{secret}{n}": secret * 100 for n in range(1_000)})
        with beside(ERASE):
            await asyncio.sleep(source.random() / 20)
        assert (await erase_user("alice")).entries in (0, 1_000)
        assert traces(home, secret) == []
        assert await store.count() == 500


@pytest.mark.parametrize("turns", [*range(10), 30, 100])
async def test_cancelled_anywhere(turns: int, home: Path) -> None:
    """A cancelled erasure has removed all entries or none, and leaves the store usable."""
    secret = token()
    await for_user("alice").save_many({f"k{number}": secret for number in range(50)})
    fill(for_user("alice"), "f", "g")
    task = asyncio.create_task(erase_user("alice"))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await store.save("k", 1)
    assert await for_user("alice").count() in (0, 50)
    await erase_user("alice")
    assert traces(home, secret) == []
    assert files_below(home) == []


# --- Beside others in one process


async def test_all_at_once() -> None:
    """Many users are erased at once, beside others who go on; each is counted for itself."""
    names = [f"user {number}" for number in range(20)]
    for number, name in enumerate(names):
        await for_user(name).save_many({f"k{n}": n for n in range(number + 1)})
        fill(for_user(name), *(f"f{n}" for n in range(number)))
    await asyncio.gather(*(store.increment("count") for _ in range(5)))

    async def go_on() -> None:
        for number in range(50):
            assert await store.increment("count") == 6 + number
            await for_user("bob").save(f"k{number}", number)

    found, *_ = await asyncio.gather(asyncio.gather(*map(erase_user, names)), go_on())
    assert [(one.entries, one.files) for one in found] == [(n + 1, n) for n in range(20)]
    assert await users() == ["bob"]
    assert await for_user("bob").count() == 50


async def test_one_user_is_erased_by_several_at_once(home: Path) -> None:
    """When any of them returns, all is gone; together they count what was there, or more."""
    for _ in range(5):
        await for_user("alice").save_many({f"k{number}": number for number in range(10)})
        fill(for_user("alice"), *(f"{number}" for number in range(200)))
        left = []

        async def erase(left: list[int] = left) -> Erased:
            erased = await erase_user("alice")
            left.append(len(files_below(home)))
            return erased

        found = await asyncio.gather(*(erase() for _ in range(3)))
        assert left == [0, 0, 0]
        assert sum(one.entries for one in found) == 10
        assert sum(one.files for one in found) >= 200


async def test_a_file_that_its_owner_removes_meanwhile(home: Path) -> None:
    """A file that is gone before its turn is no reason to stop: the others go."""
    for _ in range(3):
        made = fill(for_user("alice"), *(f"{number}" for number in range(600)))
        order = [place.path for place in os.scandir(for_user("alice").folder)]

        def remove(order: list[str] = order) -> None:
            while Path(order[0]).exists():
                time.sleep(0)
            for place in order[400:500:20]:
                with suppress(FileNotFoundError):
                    Path(place).unlink()

        thread = threading.Thread(target=remove)
        thread.start()
        erased = await erase_user("alice")
        thread.join()
        assert files_below(home) == []
        assert 590 <= erased.files <= len(made)


MAKES_FILES = """
import itertools
from cat import for_user

for number in itertools.count():
    try:
        (for_user("alice").namespace("n").folder / str(number % 1000)).write_text("x")
    except OSError:
        pass  # the folder went under it
    if number == 100:
        print("begins", flush=True)
"""


async def test_files_that_are_made_meanwhile(home: Path) -> None:
    """Whoever makes files all the time does not stop an erasure, and what is made later is new."""
    await for_user("alice").save("k", 1)
    with beside(MAKES_FILES) as maker:
        for _ in range(20):
            await erase_user("alice")
        assert maker.poll() is None
    await erase_user("alice")
    assert files_below(home) == []


async def test_an_edit_that_is_open_meanwhile_brings_nothing_back(home: Path) -> None:
    """What is being edited when its user is erased is not stored at the end of the edit."""
    secret = token()
    await for_user("alice").save("todos", [secret])

    async def edited() -> None:
        async with for_user("alice").edit("todos") as todos:
            todos.append(secret)
            assert (await erase_user("alice")).entries == 1

    with pytest.raises(ConflictError):
        await edited()
    assert await users() == []
    assert traces(home, secret) == []


async def test_changes_in_flight_begin_anew() -> None:
    """Counters that are counted up while their user is erased lose all or nothing of it."""
    for _ in range(5):
        before = [asyncio.create_task(for_user("alice").increment("n")) for _ in range(20)]
        erasing = asyncio.create_task(erase_user("alice"))
        after = [asyncio.create_task(for_user("alice").increment("n")) for _ in range(20)]
        counts = [*await asyncio.gather(*before), *await asyncio.gather(*after)]
        await erasing
        left = await for_user("alice").load("n", 0)
        assert 0 <= left <= 40
        # Up from 1, and once more from 1 after it was erased.
        assert sorted(counts) == sorted([*range(1, 41 - left), *range(1, left + 1)])
        await erase_user("alice")


# --- Files


async def test_links_are_removed_and_not_followed(home: Path, tmp_path: Path) -> None:
    """What a link in a folder leads to is neither exported nor erased."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    folder = scope_of("alice", "n").folder
    (folder / "to a file").symlink_to(outside / "kept")
    (folder / "to nothing").symlink_to(outside / "nothing")
    (folder / "to a directory").symlink_to(outside)
    (folder / "deep").mkdir()
    (folder / "deep" / "to a directory").symlink_to(outside)
    (folder / "file").write_text("mine")
    files = (await export_user("alice")).files
    assert folder / "file" in files
    assert all(place.is_relative_to(folder) and ".." not in place.parts for place in files)
    assert len(files) == len(set(files))
    assert not [place for place in files if place.name == "kept"]
    assert (await erase_user("alice")).files == len(files)
    assert not folder.exists()
    assert (outside / "kept").read_text() == "kept"
    (scope_of(None, "n").folder / "to a directory").symlink_to(outside)
    await erase_namespace("n")
    assert files_below(home) == []
    assert (outside / "kept").read_text() == "kept"


async def test_a_folder_that_is_a_link_is_not_followed(home: Path, tmp_path: Path) -> None:
    """A folder that somebody replaced by a link leads nowhere: the rest goes, or it raises."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    for depth in range(2):
        folder = for_user("alice").folder
        replaced = [folder, *folder.parents][depth]
        assert replaced.is_relative_to(home / "files" / "users")
        shutil.rmtree(replaced)
        replaced.symlink_to(outside)
        with suppress(NotWritableError):
            await erase_user("alice")
        assert (outside / "kept").read_text() == "kept"
        replaced.unlink(missing_ok=True)


UNREMOVABLE = """
import asyncio, os, sys, tempfile
from cat import connect, erase_namespace, erase_user, export_user, for_user, store, users
from cat.errors import NotWritableError

async def use(name):
    alice = for_user("alice")
    await alice.save_many({"a": 1, "b": 2})
    await alice.namespace(name).save("c", 3)
    kept = alice.namespace(name).folder / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    (alice.folder / "file").write_text("y")
    return alice, kept

async def rehearse(home):  # as nobody, Python's own files may be out of reach
    async with connect(home=home):
        await use("n")
        await export_user("alice")
        await erase_user("alice")
        await erase_namespace("n")

with tempfile.TemporaryDirectory() as home:
    asyncio.run(rehearse(home))
if os.geteuid() == 0:
    os.seteuid(int(sys.argv[1]))

async def main():
    for erase in (lambda: erase_user("alice"), lambda: erase_namespace("n")):
        alice, kept = await use("n")
        for mode in (0o500, 0o000):
            kept.chmod(mode)
            for _ in range(2):
                try:
                    await erase()
                except NotWritableError as error:
                    assert error.location.is_relative_to(kept), error.location
                    assert str(error.location) in str(error), error
                    assert not error.not_stored, "other files are gone"
                else:
                    sys.exit("nothing was raised")
        kept.chmod(0o700)
        assert (kept / "file").read_text() == "x"
        await erase()
        assert not kept.exists()
        assert await alice.namespace("n").count() == 0
        print(await users())
        await erase_user("alice")

asyncio.run(main())
"""


def test_files_that_cannot_be_removed(open_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are named by an error, as often as one tries, and go once they can be removed."""
    if os.geteuid() == 0:
        os.chown(open_place, NOBODY, NOBODY)
    monkeypatch.setenv("CAT_HOME", str(open_place / "home"))
    assert printed(UNREMOVABLE, str(NOBODY)) == "[]\n['alice']\n"


# --- export_user and users


class Prefs(pydantic.BaseModel):
    """A model."""

    volume: int
    at: datetime


@dataclasses.dataclass
class Point:
    """A dataclass."""

    x: int


async def test_an_export_holds_everything_of_a_user(home: Path) -> None:
    """Values of every kind and size, of every namespace, in order, and nobody else's."""
    noon = datetime(2025, 8, 12, 12, tzinfo=UTC)
    top = {f"k{number:04}": number for number in range(450)}
    top |= {"é": "\ud800", "A": None, "~": 10**40, " ": -0.0, "\U0010ffff": {"b": 1, "a": [True]}}
    deep = {"large": "x" * 3_000_000, "larger": ["😀" * 1_000_000]}
    alice = for_user("alice")
    await alice.save_many(top)
    await alice.save("model", Prefs(volume=5, at=noon))
    await alice.save("points", [Point(1), {"p": Point(2)}])
    await scope_of("alice", "a/b/c").save_many(deep)
    await scope_of("alice", "a b").save("k", "v")
    for other in (store, for_user("Alice"), for_user("alice "), store.namespace("alice")):
        await other.save("k", "not hers")
        fill(other, "f")
    made = [*fill(alice, "b", "a/z", "a/y", ".hidden"), *fill(scope_of("alice", "a/b/c"), "é", "B")]
    export = await export_user("alice")
    top |= {
        "model": {"volume": 5, "at": "2025-08-12T12:00:00Z"},
        "points": [{"x": 1}, {"p": {"x": 2}}],
    }
    assert export.user == "alice"
    assert export.entries == {"": top, "a b": {"k": "v"}, "a/b/c": deep}
    assert list(export.entries) == sorted(export.entries)
    assert list(export.entries[""]) == sorted(top)
    assert str(export.entries[""][" "]) == "-0.0"
    assert export.files == sorted(made)
    assert all(place.is_absolute() and place.is_file() for place in export.files)
    assert export == await export_user("alice")
    assert await alice.load("model", type=Prefs) == Prefs(volume=5, at=noon)
    erased = await erase_user("alice")
    assert erased.entries == sum(map(len, export.entries.values()))
    assert erased.files == len(made)
    assert await export_user("alice") == Export("alice", {}, [])


async def test_an_export_of_files_alone() -> None:
    """Whoever has files and no values is no entry of `users`, and is exported and erased."""
    made = fill(for_user("alice").namespace("n"), "f")
    assert await users() == []
    assert await export_user("alice") == Export("alice", {}, made)
    assert await erase_user("alice") == Erased(0, 0, 1)


async def test_an_export_does_not_hide_what_cannot_be_read(home: Path) -> None:
    """Text that is not JSON raises and names the entry; erasing goes through all the same."""
    secret = token()
    await for_user("alice").namespace("n").save("the key", 1)
    with closing(sqlite3.connect(home / "cat.db", isolation_level=None)) as connection:
        connection.execute("UPDATE entries SET value = ?", (f"{{{secret}",))
    with pytest.raises(CorruptValueError, match="key 'the key' of user 'alice'") as caught:
        await export_user("alice")
    assert secret not in str(caught.value)
    assert (await erase_user("alice")).entries == 1
    assert traces(home, secret) == []


async def test_users_are_those_who_have_a_value() -> None:
    """Sorted by code point, as text, each once, whatever the namespace; not the global store."""
    assert await users() == []
    await store.save("k", 1)
    await store.namespace("bob").save("k", 1)
    assert await users() == []
    names = ["b", "a", "A", "~", "é", "e\u0301", "\uffff", "😀", "a b", "a/b", " ", "10", "9"]
    for number, name in enumerate(names):
        for namespace in ["", "n", "n/m"][number % 3 :]:
            await scope_of(name, namespace).save_many({"k": 1, "l": 2})
    await for_user(-5).save("k", 1)
    assert await users() == sorted([*names, "-5"])
    assert {type(name) for name in await users()} == {str}
    await for_user(-5).delete("k")
    await erase_user("é")
    assert await users() == sorted(set(names) - {"é"})
    with as_user("b"):
        assert len(await users()) == len(names) - 1
    await asyncio.gather(*(for_user(number).save("k", 1) for number in range(3_000)))
    found = await users()
    assert len(found) == len(names) - 1 + 3_000 - 2
    assert found == sorted(found)
    await erase_namespace("n")
    assert set(names[1::3]).isdisjoint(await users())


# --- info


async def test_info_says_what_is_known() -> None:
    """Sizes are in bytes of JSON, times in UTC, and `None` is for what is not there."""
    assert await store.info("k") is None
    for value in ["é😀", [1, 2.0, None], {"a": "\ud800"}, None, "", 10**40, "x" * 1_000_000]:
        await store.save("k", value)
        info = await store.info("k")
        assert isinstance(info, Info)
        plain = isinstance(value, dict)  # a surrogate is escaped
        assert info.size == (len(r'{"a":"\ud800"}') if plain else size_of(value))
        assert info.expires_at is None
        assert info.created_at.tzinfo is info.updated_at.tzinfo is UTC
    assert await for_user("alice").info("k") is None
    assert await store.namespace("k").info("k") is None
    await store.delete("k")
    assert await store.info("k") is None


async def known(key: str) -> Info:
    """Return what is known of a key that is there."""
    found = await store.info(key)
    assert found is not None
    return found


async def test_info_follows_every_write() -> None:
    """A revision never repeats; `created_at` stays as long as the entry does."""

    async def edited() -> None:
        async with store.edit("k", {}) as value:
            value["edited"] = True

    started = datetime.now(UTC)
    await store.save("k", 1)
    first = await known("k")
    assert started <= first.created_at == first.updated_at <= datetime.now(UTC)
    revisions = {first.revision}
    writes: list[Callable[[], Any]] = [
        lambda: store.save("k", 1),
        lambda: store.save("k", 1),
        lambda: store.increment("k"),
        lambda: store.modify("k", lambda _: {}),
        edited,
        edited,
        lambda: store.expire("k", 3600),
        lambda: store.expire("k", None),
        lambda: store.save_many({"k": 1, "l": 2}),
    ]
    last = first
    for write in writes:
        await write()
        info = await known("k")
        assert info.revision not in revisions
        assert info.created_at == first.created_at
        assert last.updated_at <= info.updated_at <= datetime.now(UTC)
        revisions.add(info.revision)
        last = info
    for read in [store.load("k"), store.exists("k"), store.items(), store.create("k", 2)]:
        await read
        assert await known("k") == last
    await store.delete("k")
    await store.save("k", 1)
    anew = await known("k")
    assert anew.revision not in revisions
    assert anew.created_at >= last.updated_at


async def test_info_tells_the_expiry() -> None:
    """`expires_at` is the moment that was asked for, kept by changes and cleared by `save`."""
    for given in (60, 60.0, timedelta(minutes=1)):
        before = datetime.now(UTC)
        await store.save("k", [], expires_in=given)
        after = datetime.now(UTC)
        found = (await known("k")).expires_at
        assert found is not None
        second = timedelta(seconds=1)
        assert before - second < found - timedelta(minutes=1) < after + second
        async with store.edit("k") as value:
            value.append(1)
        await store.modify("k", lambda old: old)
        assert (await known("k")).expires_at == found
    await store.save("k", [])
    assert (await known("k")).expires_at is None
    await store.save("k", [], expires_in=0.05)
    await until(lambda: _none_of("k", store))
    assert await store.info("k") is None


async def test_info_needs_no_value_that_can_be_read(home: Path) -> None:
    """It reads no value, so one that is not JSON does not matter, however long."""
    await store.save("k", "x" * 1_000_000)
    before = await known("k")
    with closing(sqlite3.connect(home / "cat.db", isolation_level=None)) as connection:
        connection.execute("UPDATE entries SET value = '{'")
    assert await known("k") == before
