"""The contract of `cat.backends.Backend`, in one file without branches: every backend passes it."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cat import backends, settings
from cat.backends import Backend
from cat.entry import (
    ABSENT,
    UNKNOWN,
    Answer,
    Change,
    Clear,
    ClearNamespace,
    ClearOwner,
    Delete,
    Expire,
    Meta,
    Put,
    Range,
    Removed,
    Row,
)
from cat.errors import ConflictError, KeyBusyError
from cat.scope import GLOBAL, Scope
from children import beside, printed

ALICE = Scope("alice", "")
LAST = "\U0010ffff"


def meta(
    *, size: int = 1, revision: int = 7, at: float = 1000.5, expires: float | None = None
) -> Meta:
    """Return the columns of an entry that is written at `at` seconds."""
    return Meta(size, revision, at, at, expires)


async def fill(backend: Backend, scope: Scope, keys: list[str], **columns: Any) -> None:
    """Put an entry under each key, which has its own text for a value."""
    puts = [Put(scope, key, key, meta(**columns)) for key in keys]
    await backend.write(puts, 0.0)


async def everything(backend: Backend, *scopes: Scope) -> list[dict[str, Row]]:
    """Return what each scope holds, live or not."""
    found = [await backend.scan(Range(scope), -1e9) for scope in scopes]
    return [dict(page) for page in found]


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


async def test_peek(backend: Backend) -> None:
    """It returns what `get` does, or that it does not know, and never waits or opens anything."""
    assert backend.peek(ALICE, "k") is UNKNOWN
    await fill(backend, ALICE, ["k", "gone", "old"])
    await fill(backend, ALICE, ["old"], expires=2.0)
    await backend.write([Delete(ALICE, "gone")], 0.0)
    large = "x" * 5_000_000
    await backend.write([Put(ALICE, "large", large, meta(size=len(large)))], 0.0)
    for key in ("k", "gone", "none", "old", "large"):
        row = await backend.get(ALICE, key)
        assert backend.peek(ALICE, key) in (row, UNKNOWN)
    await backend.close()
    assert backend.peek(ALICE, "k") is UNKNOWN


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


# --- What a change expects.


async def test_put_over_the_expected_revision(backend: Backend) -> None:
    """It replaces the entry of that revision, and no other."""
    await backend.write([Put(ALICE, "k", "1", meta(at=1.0, expires=9.0))], 0.0)
    change = Put(ALICE, "k", "22", meta(size=2, revision=8, at=5.0, expires=8.0), 7)
    assert await backend.write([change], 5.0) == [None]
    assert await backend.get(ALICE, "k") == Row("22", 8, 8.0)
    assert await backend.stat(ALICE, "k") == Meta(2, 8, 1.0, 5.0, 8.0)
    for expected in (7, 9, -8, 2**62):
        with pytest.raises(ConflictError, match="'k' of user 'alice'") as caught:
            await backend.write([Put(ALICE, "k", "3", meta(revision=10), expected)], 6.0)
        assert caught.value.not_stored
    assert await backend.get(ALICE, "k") == Row("22", 8, 8.0)


async def test_put_over_a_revision_of_nothing(backend: Backend) -> None:
    """An entry that is not there has no revision, whatever others have."""
    await fill(backend, GLOBAL, ["k"])
    await fill(backend, ALICE, ["other"])
    with pytest.raises(ConflictError):
        await backend.write([Put(ALICE, "k", "1", meta(revision=8), 7)], 0.0)
    assert await backend.get(ALICE, "k") is None
    assert await backend.get(GLOBAL, "k") == Row("k", 7, None)


async def test_put_where_nothing_is_expected(backend: Backend) -> None:
    """It is stored if there is no entry, or one that had expired, which it replaces whole."""
    new = Put(ALICE, "k", "1", meta(at=1.0, expires=5.0), ABSENT)
    assert await backend.write([new], 1.0) == [None]
    for at in (1.0, 4.999):
        with pytest.raises(ConflictError):
            await backend.write([Put(ALICE, "k", "2", meta(revision=8, at=at), ABSENT)], at)
        assert await backend.get(ALICE, "k") == Row("1", 7, 5.0)
    late = Put(ALICE, "k", "3", meta(revision=9, at=5.0), ABSENT)
    assert await backend.write([late], 5.0) == [None]
    assert await backend.stat(ALICE, "k") == Meta(1, 9, 5.0, 5.0, None)
    with pytest.raises(ConflictError):
        await backend.write([Put(ALICE, "k", "4", meta(revision=10, at=1e12), ABSENT)], 1e12)
    assert await backend.get(ALICE, "k") == Row("3", 9, None)


async def test_delete_of_the_expected_revision(backend: Backend) -> None:
    """It removes the entry of that revision, expired or not, and no other."""
    await fill(backend, ALICE, ["k"], expires=5.0)
    for expected in (8, ABSENT):
        with pytest.raises(ConflictError, match="'k' of user 'alice'"):
            await backend.write([Delete(ALICE, "k", expected)], 1.0)
    assert await backend.get(ALICE, "k") == Row("k", 7, 5.0)
    assert await backend.write([Delete(ALICE, "k", 7)], 4.0) == [meta(expires=5.0)]
    with pytest.raises(ConflictError):
        await backend.write([Delete(ALICE, "k", 7)], 4.0)
    await fill(backend, ALICE, ["k"], expires=5.0)
    assert await backend.write([Delete(ALICE, "k", 7)], 9.0) == [meta(expires=5.0)]


@pytest.mark.parametrize(
    "first",
    [
        Put(ALICE, "k", "bad", meta(revision=8), 6),
        Put(ALICE, "k", "bad", meta(revision=8), ABSENT),
        Put(ALICE, "none", "bad", meta(revision=8), 7),
        Delete(ALICE, "k", 6),
        Delete(ALICE, "none", 7),
    ],
    ids=str,
)
async def test_a_conflict_leaves_everything_as_it_was(first: Any, backend: Backend) -> None:
    """None of the changes of that call is made, and those of the calls beside it are."""
    await fill(backend, ALICE, ["k", "a", "b"])
    await fill(backend, GLOBAL, ["k"])
    others: list[Change] = [
        Put(ALICE, "new", "bad", meta(revision=9)),
        Put(ALICE, "a", "bad", meta(revision=9)),
        Delete(ALICE, "b"),
        Expire(ALICE, "a", 9, 1.0),
        Clear(Range(ALICE)),
        ClearOwner(""),
        ClearNamespace("n"),
    ]
    before = await everything(backend, ALICE, GLOBAL)
    answers = await asyncio.gather(
        backend.write([Put(GLOBAL, "before", "1", meta())], 0.0),
        backend.write([first, *others], 0.0),
        backend.write([Put(GLOBAL, "after", "1", meta())], 0.0),
        return_exceptions=True,
    )
    assert isinstance(answers[1], ConflictError)
    assert answers[1].not_stored
    assert [answers[0], answers[2]] == [[None], [None]]
    before[1] |= {"before": Row("1", 7, None), "after": Row("1", 7, None)}
    assert await everything(backend, ALICE, GLOBAL) == before


async def test_writes_take_effect_in_the_order_of_their_calls(backend: Backend) -> None:
    """Each can build on the one before it, whose answer has not come yet."""
    writes = [
        backend.write([Put(ALICE, "k", str(n), meta(revision=n), n - 1)], 0.0)
        for n in range(1, 200)
    ]
    writes.append(backend.write([Delete(ALICE, "k", 199)], 0.0))
    writes.append(backend.write([Put(ALICE, "k", "last", meta(revision=200), ABSENT)], 0.0))
    answers = await asyncio.gather(*writes)
    assert answers == [[None]] * 199 + [[meta(revision=199)]] + [[None]]
    assert await backend.get(ALICE, "k") == Row("last", 200, None)


async def test_a_revision_is_that_of_its_own_key(backend: Backend) -> None:
    """Two keys may have the same, and to know one's is not to know the other's."""
    answers = await asyncio.gather(
        backend.write([Put(GLOBAL, "first", "1", meta())], 0.0),
        backend.write([Put(ALICE, "a", "1", meta(revision=1), ABSENT)], 0.0),
        backend.write([Put(ALICE, "b", "bad", meta(revision=2), 1)], 0.0),
        backend.write([Put(ALICE, "a", "2", meta(revision=2), 1)], 0.0),
        backend.write([Put(GLOBAL, "a", "bad", meta(revision=3), 2)], 0.0),
        backend.write([Put(Scope("alice", "n"), "a", "bad", meta(revision=3), 2)], 0.0),
        backend.write([Put(ALICE, "a", "3", meta(revision=1), 2)], 0.0),
        return_exceptions=True,
    )
    kinds = [type(answer) for answer in answers]
    assert kinds == [list, list, ConflictError, list, ConflictError, ConflictError, list]
    found = await everything(backend, ALICE, GLOBAL, Scope("alice", "n"))
    assert found == [{"a": Row("3", 1, None)}, {"first": Row("1", 7, None)}, {}]


class Model:
    """What a backend does, with a dict; nothing expires in it."""

    def __init__(self) -> None:
        self.entries: dict[tuple[Scope, str], tuple[str, Meta]] = {}

    def write(self, changes: list[Change], now: float) -> list[Answer] | None:
        """Make all changes and return the answers, or `None` where it is a conflict."""
        answers: list[Answer] = []
        for change in changes:
            if isinstance(change, Put | Delete):
                old = self.entries.get((change.scope, change.key))
                revision = old[1].revision if old else ABSENT
                if change.expected is not None and change.expected != revision:
                    return None
                if isinstance(change, Delete):
                    self.entries.pop((change.scope, change.key), None)
                    answers.append(old and old[1])
                else:
                    created = old[1].created if old else change.meta.created
                    columns = change.meta._replace(created=created)
                    self.entries[change.scope, change.key] = (change.value, columns)
                    answers.append(None)
            elif isinstance(change, Expire):
                old = self.entries.get((change.scope, change.key))
                if old:
                    columns = old[1]._replace(
                        revision=change.revision, updated=now, expires=change.expires
                    )
                    self.entries[change.scope, change.key] = (old[0], columns)
                answers.append(old is not None)
            else:
                assert isinstance(change, Clear)
                scope, start, end = change.range
                gone = [
                    (s, key)
                    for s, key in self.entries
                    if s == scope and start <= key and (end is None or key < end)
                ]
                sizes = [self.entries.pop(place)[1].size for place in gone]
                answers.append(Removed(len(sizes), sum(sizes)))
        return answers

    def revision(self, scope: Scope, key: str) -> int:
        """Return the revision of an entry, or `ABSENT`."""
        return self.entries[scope, key][1].revision if (scope, key) in self.entries else ABSENT


def random_call(chosen: random.Random, model: Model, number: int, now: float) -> list[Change]:
    """Return the changes of a call; those that expect something are right more often than not."""
    scope = chosen.choice((GLOBAL, ALICE))
    changes: list[Change] = []
    for count in range(chosen.choice((1, 1, 1, 1, 2, 5, 70))):
        key = chosen.choice("abc")
        expected = None
        if count == 0 and chosen.random() < 0.6:
            right = model.revision(scope, key)
            expected = chosen.choice((right, right, right, right, ABSENT, number))
        columns = Meta(number % 9, 1000 * number + count, now, now, chosen.choice((None, now + 9)))
        kind = chosen.random()
        if kind < 0.75:
            changes.append(Put(scope, key, f"{number}.{count}", columns, expected))
        elif kind < 0.9:
            changes.append(Delete(scope, key, expected if expected != ABSENT else None))
        elif kind < 0.97:
            changes.append(Expire(scope, key, columns.revision, columns.expires))
        else:
            changes.append(
                Clear(Range(scope, chosen.choice(("", "b")), chosen.choice((None, "c"))))
            )
    return changes


async def test_any_mix_of_changes_is_as_if_one_came_after_another(backend: Backend) -> None:
    """However calls are put together, each has the answer of its turn, as has each read."""
    chosen = random.Random(1)  # noqa: S311  # not a secret
    model = Model()
    number = 0
    for turn in range(120):
        now = 1000.0 + turn % 5 / 10
        calls: list[list[Change]] = []
        expected = []
        for _ in range(chosen.choice((1, 5, 60))):
            number += 1
            call = random_call(chosen, model, number, now)
            answers = model.write(call, now)
            calls.append(call)
            expected.append(answers)
        writes = [backend.write(call, now) for call in calls]
        found = await asyncio.gather(*writes, return_exceptions=True)
        answers_found = [None if isinstance(a, ConflictError) else a for a in found]
        assert answers_found == expected, turn
        for scope in (GLOBAL, ALICE):
            for key in "abc":
                value, columns = model.entries.get((scope, key), ("", None))
                assert await backend.stat(scope, key) == columns
                row = columns and Row(value, columns.revision, columns.expires)
                assert await backend.get(scope, key) == row
                assert backend.peek(scope, key) in (row, UNKNOWN)


# --- Changes and their answers.


async def test_each_change_has_its_answer(backend: Backend) -> None:
    """Changes of one call are made in order, and each sees those before it."""
    answers = await backend.write(
        [
            Put(ALICE, "a", "1", meta(size=3)),
            Put(ALICE, "b", "1", meta(size=5)),
            Put(ALICE, "b", "2", meta(size=6, revision=8)),
            Delete(ALICE, "b"),
            Delete(ALICE, "b"),
            Expire(ALICE, "a", 9, 50.0),
            Expire(ALICE, "b", 9, 50.0),
            Clear(Range(ALICE)),
            Clear(Range(ALICE)),
            Put(ALICE, "c", "1", meta(size=4)),
            ClearOwner("alice"),
            Put(GLOBAL, "d", "1", meta(size=2)),
        ],
        1.0,
    )
    assert answers == [
        None,
        None,
        None,
        meta(size=6, revision=8),
        None,
        True,
        False,
        Removed(1, 3),
        Removed(0, 0),
        None,
        Removed(1, 4),
        None,
    ]
    assert await everything(backend, ALICE, GLOBAL) == [{}, {"d": Row("1", 7, None)}]


async def test_a_write_of_very_many_changes(backend: Backend) -> None:
    """All of them are made, and each is answered."""
    keys = [f"k{n:05}" for n in range(5000)]
    puts = [Put(ALICE, key, key, meta(size=n)) for n, key in enumerate(keys)]
    assert await backend.write(puts, 0.0) == [None] * 5000
    answers = await backend.write([Delete(ALICE, key) for key in keys], 0.0)
    assert answers == [meta(size=n) for n in range(5000)]


async def test_expire(backend: Backend) -> None:
    """It gives an entry that is live another expiry and revision, and touches nothing else."""
    await backend.write([Put(ALICE, "k", "1", meta(at=1.0, expires=9.0))], 1.0)
    for number, expires in enumerate([20.0, 10.0, None, 30.0], start=8):
        assert await backend.write([Expire(ALICE, "k", number, expires)], 8.0) == [True]
        assert await backend.get(ALICE, "k") == Row("1", number, expires)
    found = await backend.stat(ALICE, "k")
    assert found is not None
    assert (found.size, found.created) == (1, 1.0)


async def test_expire_of_what_is_not_live(backend: Backend) -> None:
    """It changes nothing, and says so; at its last moment an entry is not live."""
    assert await backend.write([Expire(ALICE, "k", 8, 20.0)], 0.0) == [False]
    assert await backend.get(ALICE, "k") is None
    for now in (5.0, 6.0):
        await fill(backend, ALICE, ["k"], expires=5.0)
        assert await backend.write([Expire(ALICE, "k", 8, None)], now) == [False]
        assert await backend.get(ALICE, "k") in (Row("k", 7, 5.0), None)


async def test_a_cancelled_write(backend: Backend) -> None:
    """It is made as a whole or not at all, and those after it are made."""
    keys = [f"k{n:03}" for n in range(90)]
    for turn in range(20):
        write = backend.write([Put(ALICE, key, str(turn), meta()) for key in keys], 0.0)
        for _ in range(turn % 5):
            await asyncio.sleep(0)
        write.cancel()
        after = await backend.write([Put(ALICE, "z", str(turn), meta())], 0.0)
        assert after == [None]
        [found] = await everything(backend, ALICE)
        assert found.pop("z").value == str(turn)
        assert len(found) in (0, 90)
        assert len({row.value for row in found.values()}) <= 1


async def test_what_has_expired_goes_in_the_course_of_writes(backend: Backend) -> None:
    """A few at a time, sooner or later all of it; what is live at that time stays."""
    keys = [f"k{n:04}" for n in range(2000)]
    await fill(backend, ALICE, keys, expires=5.0)
    await fill(backend, GLOBAL, ["later"], expires=5.5)
    await fill(backend, GLOBAL, ["never"])
    gone = 0
    for number in range(2000):
        await backend.write([Put(GLOBAL, "other", str(number), meta())], 5.0)
        found = await backend.pick(ALICE, keys)
        assert 2000 - len(found) - gone < 1000
        gone = 2000 - len(found)
        if gone == 2000:
            break
    assert gone == 2000
    [found] = await everything(backend, GLOBAL)
    assert list(found) == ["later", "never", "other"]


# --- Clearing.

PLACES = [Scope(o, n) for o in ("", "a", "A", "ab", "a/n") for n in ("", "n", "n/a", "n/a/b", "n0")]
PLACES += [
    Scope(o, n) for o in ("", "a") for n in ("n-", "nn", "N", "m/n", f"n/{LAST}", "n.", "a/n")
]


def below(namespace: str, name: str) -> bool:
    """Tell whether a namespace is another or below it."""
    return namespace == name or namespace.startswith(f"{name}/")


@pytest.mark.parametrize(
    ("change", "meant"),
    [
        (Clear(Range(Scope("a", "n"))), lambda s, _: s == ("a", "n")),
        (Clear(Range(GLOBAL)), lambda s, _: s == ("", "")),
        (Clear(Range(Scope("a", "n"), "k")), lambda s, k: s == ("a", "n") and k >= "k"),
        (
            Clear(Range(Scope("a", "n"), "k", "kz")),
            lambda s, k: s == ("a", "n") and k in ("k", "kk"),
        ),
        (Clear(Range(Scope("a", "n"), "k", "k")), lambda _, __: False),
        (Clear(Range(Scope("a", "n"), "z", "a")), lambda _, __: False),
        (Clear(Range(GLOBAL, LAST)), lambda s, k: s == ("", "") and k == LAST),
        (ClearOwner("a"), lambda s, _: s.owner == "a"),
        (ClearOwner(""), lambda s, _: s.owner == ""),
        (ClearOwner("nobody"), lambda _, __: False),
        (ClearNamespace("n"), lambda s, _: below(s.namespace, "n")),
        (ClearNamespace("n/a"), lambda s, _: below(s.namespace, "n/a")),
        (ClearNamespace("a"), lambda s, _: below(s.namespace, "a")),
        (ClearNamespace("none"), lambda _, __: False),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else "",
)
async def test_clearing(change: Any, meant: Any, backend: Backend) -> None:
    """What is meant is removed, expired or not; what was live is counted; all else stays."""
    keys = ["a", "k", "kk", "kz", LAST]
    for scope in PLACES:
        for number, key in enumerate(keys):
            expires = 5.0 if key == "kk" else 5.5 if key == "a" else None
            put = Put(scope, key, key, meta(size=10**number, expires=expires))
            await backend.write([put], 0.0)
    before = await everything(backend, *PLACES)
    gone = [(scope, key) for scope in PLACES for key in keys if meant(scope, key)]
    live = [10 ** keys.index(key) for _, key in gone if key != "kk"]
    assert await backend.write([change], 5.0) == [Removed(len(live), sum(live))]
    assert await backend.write([change], 5.0) == [Removed(0, 0)]
    after = await everything(backend, *PLACES)
    for scope, held, left in zip(PLACES, before, after, strict=True):
        wanted = {key: row for key, row in held.items() if not meant(scope, key)}
        left.setdefault("kk", wanted.get("kk", Row("", 0, 0)))  # expired: it may be gone on the way
        wanted.setdefault("kk", Row("", 0, 0))
        assert left == wanted


# --- Reading many.


async def test_pick(backend: Backend) -> None:
    """It returns what is there of the keys, expired or not, of this scope."""
    texts = [
        "a",
        "é",
        "e\u0301",
        "😀",
        LAST,
        "\uffff",
        "\x01",
        "\x7f",
        "'",
        '"',
        "\\",
        "1",
        "[",
        "%",
    ]
    await fill(backend, ALICE, texts[::2], expires=5.0)
    await fill(backend, GLOBAL, texts[1::2])
    assert await backend.pick(ALICE, texts) == {text: Row(text, 7, 5.0) for text in texts[::2]}
    assert await backend.pick(GLOBAL, texts) == {text: Row(text, 7, None) for text in texts[1::2]}
    assert await backend.pick(ALICE, []) == {}
    assert await backend.pick(Scope("alice", "n"), texts) == {}


async def test_pick_of_very_many(backend: Backend) -> None:
    """There is no bound to the keys that can be asked for."""
    keys = [f"k{n}" for n in range(5000)]
    await fill(backend, ALICE, keys[1000:])
    assert await backend.pick(ALICE, keys) == {key: Row(key, 7, None) for key in keys[1000:]}


RANGES = [
    ("", None),
    ("b", None),
    ("b", "c"),
    ("b", "b\U0010ffff"),
    ("b\0", "c"),
    ("a5", "b5"),
    ("\ue000", None),
    ("\ud7ff", "\ue000"),
    ("z", "a"),
    ("b", "b"),
]


@pytest.mark.parametrize(("start", "end"), RANGES, ids=ascii)
async def test_a_range(start: str, end: str | None, backend: Backend) -> None:
    """`keys`, `scan` and `count` agree on what is live in it, in order of code points."""
    keys = [f"{c}{n}" for c in ("a", "b", "B", "é", "\ud7ff", "\ue000", LAST) for n in range(10)]
    keys += ["a", "b", "c", f"b{LAST}", "b" * 400]
    await fill(backend, ALICE, keys[::-1])
    await fill(backend, ALICE, keys[::5], expires=5.0)
    await fill(backend, Scope("alice", "n"), ["b0"])
    await fill(backend, GLOBAL, ["b0", "z"])
    within = Range(ALICE, start, end)
    for now, there in [(4.999, keys), (5.0, [key for key in keys if key not in keys[::5]])]:
        expected = sorted(key for key in there if start <= key and (end is None or key < end))
        assert await backend.keys(within, now, None) == expected
        for limit in (0, 1, 3, 10_000):
            assert await backend.keys(within, now, limit) == expected[:limit]
        assert await backend.count(within, now) == len(expected)
        found = []
        rest = within
        while page := await backend.scan(rest, now):
            found += page
            rest = rest._replace(start=page[-1][0] + "\0")
        assert [key for key, _ in found] == expected
        assert all(row.value == key and row.revision == 7 for key, row in found)


async def test_a_page_is_empty_only_at_the_end(backend: Backend) -> None:
    """However many have expired in between, the next that is live is found."""
    await fill(backend, ALICE, [f"k{n:04}" for n in range(1000)], expires=5.0)
    await fill(backend, ALICE, ["k0500", "z"])
    assert [key for key, _ in await backend.scan(Range(ALICE, "k0100"), 5.0)] == ["k0500", "z"]
    assert await backend.keys(Range(ALICE), 5.0, 1) == ["k0500"]


async def test_a_page_of_large_values(backend: Backend) -> None:
    """Each page has at least one entry, and all pages have them all."""
    texts = {f"k{n}": chr(97 + n) * 3_000_000 for n in range(4)} | {"s": "", "t": "x"}
    for key, text in texts.items():
        await backend.write([Put(ALICE, key, text, meta(size=len(text)))], 0.0)
    found: dict[str, str] = {}
    while page := await backend.scan(Range(ALICE, max(found, default="") + "\0"), 0.0):
        found |= {key: row.value for key, row in page}
    assert found == texts


async def test_namespaces_and_owners(backend: Backend) -> None:
    """Those that hold something live are named, once, in order; the global store is no owner."""
    assert await backend.owners(0.0) == await backend.namespaces("", 0.0) == []
    names = ["", "a", "a-", "a/b", "a0", "é", LAST]
    for number, owner in enumerate(["", "alice", "Bob", "é", LAST]):
        for name in names[number:]:
            await fill(backend, Scope(owner, name), ["a", "b"], expires=5.0)
            await fill(backend, Scope(owner, name), ["c", "d"], expires=6.0 + number)
    await fill(backend, Scope("late", "x"), ["a"], expires=5.0)
    assert await backend.owners(4.0) == ["Bob", "alice", "late", "é", LAST]
    for number, owner in enumerate(["", "alice", "Bob", "é", LAST]):
        assert await backend.namespaces(owner, 4.0) == names[number:]
        assert await backend.namespaces(owner, 5.5) == names[number:]
        assert await backend.namespaces(owner, 6.0 + number) == []
    assert await backend.owners(5.0) == ["Bob", "alice", "é", LAST]
    assert await backend.owners(8.0) == ["é", LAST]
    assert await backend.owners(10.0) == []
    assert await backend.namespaces("ali", 0.0) == []


# --- Locks.


@pytest.fixture
async def impatient(url: str) -> AsyncIterator[Backend]:
    """One more object for the database, which waits for a fifth of a second."""
    made = backends.connect(settings.read({"CAT_URL": url, "CAT_TIMEOUT": "0.2"}))
    yield made
    await made.close()


async def test_a_lock_keeps_others_out(
    backend: Backend, other: Backend, impatient: Backend
) -> None:
    """While one object has locked a key, others wait for it, and raise after their time."""
    free = await backend.lock(ALICE, "k", "me")
    with pytest.raises(KeyBusyError, match=r"'k' of user 'alice'.* 0\.2 seconds"):
        await impatient.lock(ALICE, "k", "other")
    waiting = asyncio.ensure_future(other.lock(ALICE, "k", "other"))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    free()
    free_other = await waiting
    taking = asyncio.ensure_future(backend.lock(ALICE, "k", "me"))
    await asyncio.sleep(0.01)
    assert not taking.done()
    free_other()
    (await taking)()


async def test_a_lock_hinders_nothing_but_locks(backend: Backend, other: Backend) -> None:
    """Whoever reads or writes the key goes on, and other keys can be locked."""
    free = await backend.lock(ALICE, "k", "me")
    assert await other.write([Put(ALICE, "k", "1", meta())], 0.0) == [None]
    assert await other.get(ALICE, "k") == Row("1", 7, None)
    assert await other.write([Delete(ALICE, "k")], 0.0) == [meta()]
    for scope, key in [(GLOBAL, "k"), (Scope("alice", "n"), "k"), (ALICE, "K"), (ALICE, "é" * 256)]:
        (await other.lock(scope, key, "other"))()
    free()


async def test_one_holder_of_several_locks(backend: Backend, impatient: Backend) -> None:
    """It never waits for itself, and each lock is free when it was freed as often as taken."""
    keys = [f"k{n}" for n in range(100)]
    frees = [await backend.lock(ALICE, key, "me") for key in [*keys, *keys]]
    for free in frees[:100]:
        free()
    with pytest.raises(KeyBusyError):
        await impatient.lock(ALICE, "k0", "other")
    for free in frees[100:]:
        free()
    for key in keys:
        (await impatient.lock(ALICE, key, "other"))()


async def test_several_holders_in_one_object(backend: Backend, impatient: Backend) -> None:
    """The key is locked for others until the last of them has freed it."""
    first = await backend.lock(ALICE, "k", "one")
    second = await backend.lock(ALICE, "k", "two")
    first()
    with pytest.raises(KeyBusyError):
        await impatient.lock(ALICE, "k", "other")
    second()
    (await impatient.lock(ALICE, "k", "other"))()


async def test_a_cancelled_lock(backend: Backend, other: Backend) -> None:
    """Who gives up waiting leaves nothing locked."""
    free = await backend.lock(ALICE, "k", "me")
    waiting = asyncio.ensure_future(other.lock(ALICE, "k", "other"))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    free()
    (await backend.lock(ALICE, "k", "me"))()
    (await other.lock(ALICE, "k", "other"))()


async def test_to_close_frees_locks(backend: Backend, other: Backend) -> None:
    """What an object had locked when it was closed is free."""
    await backend.lock(ALICE, "k", "me")
    await backend.close()
    (await other.lock(ALICE, "k", "other"))()


HOLDS = """
import asyncio
from cat import for_user

async def main():
    async with for_user("alice").edit("k", default=[]):
        print("ready", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_the_end_of_a_process_frees_locks(
    url: str, impatient: Backend, other: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that a process has locked is free as soon as the process is killed."""
    monkeypatch.setenv("CAT_URL", url)
    with beside(HOLDS) as child:
        with pytest.raises(KeyBusyError):
            await impatient.lock(ALICE, "k", "other")
        child.kill()
        child.wait()
        (await other.lock(ALICE, "k", "other"))()


# --- Leaving nothing.

FINDS = """
import os, pathlib

files = [file for file in pathlib.Path(os.environ["CAT_HOME"]).rglob("*") if file.is_file()]
print(sum(b"s3cret" in file.read_bytes() for file in files))
"""


async def test_scrub(backend: Backend, home: Path) -> None:
    """Nothing of what was removed or replaced is left in any file, and the rest is there."""
    secret = "s3cret" * 20_000
    await fill(backend, GLOBAL, [f"k{n}" for n in range(100)])
    await backend.write([Put(ALICE, "large", secret, meta())], 0.0)
    await backend.write([Put(ALICE, f"s{n}", "s3cret", meta()) for n in range(100)], 0.0)
    await backend.write([Put(GLOBAL, "k5", "s3cret", meta())], 0.0)
    # Another process reads the files: to close one here would drop this one's locks.
    assert int(printed(FINDS)) > 0
    await backend.write([ClearOwner("alice")], 0.0)
    await backend.write([Put(GLOBAL, "k5", "k5", meta())], 0.0)
    await backend.scrub()
    assert int(printed(FINDS)) == 0
    [found] = await everything(backend, GLOBAL)
    assert found == {f"k{n}": Row(f"k{n}", 7, None) for n in range(100)}
    await asyncio.gather(
        backend.scrub(), backend.write([Put(ALICE, "k", "1", meta())], 0.0), backend.scrub()
    )
    assert await backend.get(ALICE, "k") == Row("1", 7, None)


async def test_scrub_of_nothing(backend: Backend) -> None:
    """It may be the first that is asked of a backend."""
    await backend.scrub()
    assert await backend.owners(0.0) == []


# --- Several objects, and forks.


async def test_each_object_sees_the_writes_of_others(backend: Backend, other: Backend) -> None:
    """What a write has stored, every read of another object finds at once."""
    for number in range(1, 30):
        here, there = (backend, other)[:: 1 if number % 2 else -1]
        await here.write([Put(ALICE, "k", str(number), meta(revision=number), number - 1)], 0.0)
        row = Row(str(number), number, None)
        assert await there.get(ALICE, "k") == row
        assert await there.pick(ALICE, ["k"]) == {"k": row}
        assert await there.scan(Range(ALICE), 0.0) == [("k", row)]
        with pytest.raises(ConflictError):
            await there.write([Put(ALICE, "k", "bad", meta(), number - 1)], 0.0)


async def test_hold_and_release(backend: Backend) -> None:
    """After it was held for a fork, everything goes on, what was on its way too."""
    backend.hold()
    backend.release()
    await fill(backend, ALICE, ["a"])
    free = await backend.lock(ALICE, "a", "me")
    for number in range(5):
        write = backend.write([Put(ALICE, "b", str(number), meta(revision=8 + number))], 0.0)
        backend.hold()
        backend.release()
        assert await write == [None]
        assert await backend.get(ALICE, "b") == Row(str(number), 8 + number, None)
        assert await backend.keys(Range(ALICE), 0.0, None) == ["a", "b"]
    free()
