"""The contract of `cat.backends.Backend`, in one file without branches: every backend passes it."""

import asyncio

from cat.backends import Backend
from cat.entry import Delete, Meta, Put, Row
from cat.scope import GLOBAL, Scope

ALICE = Scope("alice", "")


def meta(
    *, size: int = 1, revision: int = 7, at: float = 1000.5, expires: float | None = None
) -> Meta:
    """Return the columns of an entry that is written at `at` seconds."""
    return Meta(size, revision, at, at, expires)


async def test_get_of_nothing(backend: Backend) -> None:
    """There is no entry where none was put."""
    assert await backend.get(GLOBAL, "k") is None
    assert await backend.stat(GLOBAL, "k") is None
    assert await backend.write([Delete(GLOBAL, "k")], 0.0) == [None]


async def test_put_then_get(backend: Backend) -> None:
    """What was put is got, column by column, to the bit."""
    put = Meta(3, 2**62 + 1, 1755000000.123456, 1755000000.1234562, 1e10 / 3)
    await backend.write([Put(ALICE, "k", '"x"', put)], 0.0)
    assert await backend.get(ALICE, "k") == Row('"x"', put.revision, put.expires)
    assert await backend.stat(ALICE, "k") == put


async def test_put_replaces(backend: Backend) -> None:
    """A second put replaces everything but the time of creation."""
    await backend.write([Put(ALICE, "k", "1", meta(at=1.0, expires=9.0))], 0.0)
    await backend.write([Put(ALICE, "k", "22", meta(size=2, revision=8, at=5.0))], 0.0)
    assert await backend.get(ALICE, "k") == Row("22", 8, None)
    assert await backend.stat(ALICE, "k") == Meta(2, 8, 1.0, 5.0, None)


async def test_put_over_an_expired_entry_creates(backend: Backend) -> None:
    """An entry that had expired when it was replaced counts as new."""
    await backend.write([Put(ALICE, "k", "1", meta(at=1.0, expires=5.0))], 0.0)
    await backend.write([Put(ALICE, "k", "2", meta(revision=8, at=5.0))], 0.0)
    assert await backend.stat(ALICE, "k") == Meta(1, 8, 5.0, 5.0, None)


async def test_expired_entries_are_returned(backend: Backend) -> None:
    """What expired is for the repository to judge; a backend has no clock."""
    long_ago = meta(at=1.0, expires=2.0)
    await backend.write([Put(ALICE, "k", "1", long_ago)], 0.0)
    assert await backend.get(ALICE, "k") == Row("1", 7, 2.0)
    assert await backend.stat(ALICE, "k") == long_ago
    assert await backend.write([Delete(ALICE, "k")], 0.0) == [long_ago]


async def test_delete(backend: Backend) -> None:
    """A delete removes the entry and returns what it was."""
    await backend.write([Put(ALICE, "k", "1", meta())], 0.0)
    assert await backend.write([Delete(ALICE, "k")], 0.0) == [meta()]
    assert await backend.get(ALICE, "k") is None


async def test_texts_are_kept_as_they_are(backend: Backend) -> None:
    """Digits stay text, and nothing is trimmed, folded or normalised."""
    for number, text in enumerate(["9", "9.0", "1e400", "0" * 40, " ", "", "é", "e\u0301", "😀"]):
        await backend.write([Put(GLOBAL, str(number), text, meta())], 0.0)
        row = await backend.get(GLOBAL, str(number))
        assert row is not None
        assert row.value == text


async def test_scopes_and_keys_are_apart(backend: Backend) -> None:
    """Owner, namespace and key are compared each for itself, byte for byte."""
    places = [
        (Scope(owner, namespace), key)
        for owner in ("", "a", "a:b", "A", "á", "a\u0301")
        for namespace in ("", "b", "b/c", "c")
        for key in ("c", "b:c", "C", "c ")
    ]
    for number, (scope, key) in enumerate(places):
        await backend.write([Put(scope, key, str(number), meta())], 0.0)
    for number, (scope, key) in enumerate(places):
        row = await backend.get(scope, key)
        assert row is not None
        assert row.value == str(number)


async def test_many_tasks_at_once(backend: Backend) -> None:
    """Methods may be called by many tasks together, the first of all too."""
    await asyncio.gather(
        *(backend.write([Put(GLOBAL, str(n), str(n), meta())], 0.0) for n in range(50))
    )
    rows = await asyncio.gather(*(backend.get(GLOBAL, str(n)) for n in range(50)))
    assert [row and row.value for row in rows] == [str(n) for n in range(50)]


async def test_open_and_close_may_be_repeated(backend: Backend) -> None:
    """Opening twice and closing twice are the same as once."""
    await backend.open()
    await backend.open()
    await backend.close()
    await backend.close()
