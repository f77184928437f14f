"""Keys: any text within the limit is taken as it is; anything else is refused at the door."""

import enum
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cat import Store, for_user, store
from cat.errors import InvalidKeyError


async def edited(scope: Store, key: Any) -> None:
    """Edit a key and change nothing."""
    async with scope.edit(key, []) as _:
        pass


VERBS: dict[str, Callable[[Store, Any], Awaitable[Any]]] = {
    "save": lambda s, key: s.save(key, 1),
    "load": lambda s, key: s.load(key),
    "exists": lambda s, key: s.exists(key),
    "delete": lambda s, key: s.delete(key),
    "pop": lambda s, key: s.pop(key),
    "create": lambda s, key: s.create(key, 1),
    "load_or_create": lambda s, key: s.load_or_create(key, lambda: 1),
    "expire": lambda s, key: s.expire(key, 60),
    "info": lambda s, key: s.info(key),
    "edit": edited,
    "modify": lambda s, key: s.modify(key, lambda _: 1),
    "increment": lambda s, key: s.increment(key),
    "load_many": lambda s, key: s.load_many(["a", key, "b"]),
    "load_many, from a generator": lambda s, key: s.load_many(one for one in ("a", key)),
    "save_many": lambda s, key: s.save_many(Pairs(["a", key, "b"])),
    "delete_many": lambda s, key: s.delete_many(["a", key, "b"]),
}
# Those that find what another spelling of the key stored.
OF_ONE = ["save", "modify", "increment", "expire", "create", "load_or_create", "info", "pop"]


class Pairs(Mapping[Any, int]):
    """A mapping of keys to 1, of any keys: those of a dict must have a hash."""

    def __init__(self, keys: list[Any]) -> None:
        self._keys = keys

    def __getitem__(self, key: Any) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class Setting(enum.StrEnum):
    """Keys with names."""

    THEME = "theme"


class Level(enum.IntEnum):
    """Numbers with names, which are no keys."""

    HIGH = 9


class Text(str):
    """Text that says something else when asked."""

    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


BAD_KEYS: dict[str, Any] = {
    "None": None,
    "int": 5,
    "zero": 0,
    "float": 5.0,
    "True": True,
    "False": False,
    "bytes": b"k",
    "empty bytes": b"",
    "bytearray": bytearray(b"k"),
    "memoryview": memoryview(b"k"),
    "tuple": ("a", "b"),
    "list": ["a"],
    "empty list": [],
    "dict": {"a": 1},
    "set": {"a"},
    "object": object(),
    "class": str,
    "function": len,
    "path": Path("k"),
    "IntEnum": Level.HIGH,
    "enum class": Setting,
    "complex": 1j,
    "ellipsis": ...,
    "generator": (x for x in "k"),
    "exception": ValueError("k"),
    "empty": "",
    "empty subclass": Text(""),
    "NUL": "\0",
    "NUL first": "\0k",
    "NUL inside": "a\0b",
    "NUL last": "k\0",
    "NUL in a subclass": Text("a\0b"),
    "NUL in text that is not ASCII": "é\0",
    "lone high surrogate": "\ud800",
    "lone low surrogate": "\udfff",
    "last high surrogate": "\udbff",
    "first low surrogate": "\udc00",
    "surrogate in text": "a\udc80b",
    "surrogate among accents": "éé\ud83dé",
    "pair of surrogates": "\ud83d\ude00",
    "surrogate in a subclass": Text("\ud800"),
    "513 bytes": "k" * 513,
    "513 bytes in a subclass": Text("k" * 513),
    "514 bytes in 257 characters": "é" * 257,
    "513 bytes in 171 characters": "€" * 171,
    "516 bytes in 129 characters": "😀" * 129,
    "513 bytes in 512 characters": "é" + "k" * 511,
    "a million bytes": "k" * 1_000_000,
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS)
async def test_a_bad_key_is_refused_and_nothing_opened(verb: Any, key: Any, home: Path) -> None:
    """Every verb refuses it with a message that says what a key is, before there is a database."""
    with pytest.raises(InvalidKeyError) as caught:
        await verb(store, key)
    assert isinstance(caught.value, ValueError)
    message = str(caught.value)
    assert "give a non-empty str without NUL of at most 512 bytes of UTF-8" in message
    assert message.isascii()
    assert len(message) < 300
    assert caught.value.not_stored
    assert not home.exists()  # noqa: ASYNC240  # nothing else is running


def test_every_verb_that_takes_a_key_is_in_the_table() -> None:
    """No verb is forgotten above: a new one is added there with its first commit."""
    methods = inspect.getmembers(Store, inspect.isfunction)
    takes = [set(inspect.signature(method).parameters) for _, method in methods]
    wanted = {"key", "keys", "mapping"}
    verbs = {name for (name, _), names in zip(methods, takes, strict=True) if names & wanted}
    assert verbs == {label.split(",")[0] for label in VERBS}


@pytest.mark.parametrize("key", ["", "a\0b", "k" * 513, "\ud800", 5, None], ids=ascii)
async def test_one_bad_key_among_good_ones_changes_nothing(key: Any) -> None:
    """A bad key among many is refused for all: nothing is stored, nothing removed."""
    before = {"a": "old", "b": "old"}
    await store.save_many(before)
    for label in ["load_many", "save_many", "delete_many"]:
        with pytest.raises(InvalidKeyError):
            await VERBS[label](store, key)
    assert await store.items() == before


async def test_a_bad_key_runs_nothing_of_the_caller() -> None:
    """A function or a block that was given with a bad key is not even begun."""
    with pytest.raises(InvalidKeyError):
        await store.modify("", lambda _: pytest.fail("it ran"))
    with pytest.raises(InvalidKeyError):
        await store.load_or_create("", lambda: pytest.fail("it ran"))
    with pytest.raises(InvalidKeyError):
        async with store.edit("", []):
            pytest.fail("the block was entered")


@pytest.mark.parametrize("key", ["", "k" * 513, None], ids=["empty", "too long", "None"])
async def test_a_bad_key_is_refused_in_every_scope(key: Any, home: Path) -> None:
    """A user's store and namespaces check keys as the global store does."""
    for scope in [for_user("alice"), store.namespace("a"), for_user(1).namespace("a")]:
        for verb in VERBS.values():
            with pytest.raises(InvalidKeyError):
                await verb(scope, key)
    assert not home.exists()  # noqa: ASYNC240  # nothing else is running


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (5, "is of type int"),
        (None, "is of type NoneType"),
        ("", "is empty"),
        ("a\0b", r"holds a NUL: 'a\x00b'"),
        ("a\ud800", r"holds a lone surrogate: 'a\ud800'"),
        ("k" * 513, "has 513 bytes: 'kkkkk"),
        ("é" * 257, "has 514 bytes: "),
    ],
)
async def test_a_message_says_what_is_wrong_with_a_key(key: Any, reason: str) -> None:
    """The message names the fault, and the key escaped and cut."""
    with pytest.raises(InvalidKeyError) as caught:
        await store.save(key, 1)
    assert str(caught.value).startswith(f"this key {reason}")


GOOD_KEYS: list[str] = [
    *map(chr, range(32, 127)),  # every printable ASCII character, with % _ * ? and quotes
    *map(chr, range(1, 32)),
    "k" * 512,
    "k" * 511,
    "é" * 256,
    "€" * 170 + "kk",
    "😀" * 128,
    "%%",
    "a%",
    "a_c",
    "abc",
    "a*",
    "a?c",
    "[a-c]",
    "a' OR '1'='1",
    "'; DROP TABLE entries; --",
    '"; DELETE FROM entries; --',
    "a'b",
    'a"b',
    "a\\b",
    "$1",
    ":key",
    "?1",
    "a;b",
    " k",
    "k ",
    "\tk",
    "k\n",
    "k\r\n",
    "a\nb",
    "  ",
    "é",
    "e\u0301",
    "É",
    "\u212b",  # the Ångström sign, which normalises to the next
    "\u00c5",
    "ß",
    "ss",
    "ﬁ",
    "fi",
    "\u0131",
    "İ",
    "\u200b",
    "k\u200b",
    "\u00a0",
    "\ufeffk",
    "\u202ek",
    "\u2028",
    "\ufffe",
    "\uffff",
    "\U0010ffff",
    "😀",
    "👩‍👩‍👧",
    "ключ",
    "鍵",
    "05",
    "5.0",
    "5e0",
    "+5",
    "1e400",
    "9" * 400,
    "None",
    "null",
    "NULL",
    "true",
    "True",
    "../..",
    "/etc/passwd",
    "a/b",
    "a:b",
    "a\x1fb",
    "\x7f",
    "\x80",
]


async def test_any_other_text_is_a_key_of_its_own() -> None:
    """Nothing in a key is special, folded, trimmed or normalised: no two ever meet."""
    assert len(set(GOOD_KEYS)) == len(GOOD_KEYS)
    for number, key in enumerate(GOOD_KEYS):
        assert not await store.exists(key)
        await store.save(key, number)
    for number, key in enumerate(GOOD_KEYS):
        assert await store.load(key) == number
    for key in GOOD_KEYS[::2]:
        assert await store.delete(key)
        assert not await store.delete(key)
    left = [key for key in GOOD_KEYS if await store.exists(key)]
    assert left == GOOD_KEYS[1::2]


@pytest.mark.parametrize(
    ("key", "text"),
    [(Setting.THEME, "theme"), (Text("theme"), "theme"), (Text("é\n"), "é\n")],
    ids=["StrEnum", "subclass", "subclass, not ASCII"],
)
async def test_a_str_subclass_is_the_text_it_holds(key: str, text: str) -> None:
    """A `StrEnum` or another kind of `str` is the same key as its text, in every verb."""
    await store.save(key, 1)
    assert await store.load(text) == 1
    await store.save(text, 2)
    assert await store.load(key) == 2
    assert await store.exists(key)
    assert await store.delete(key)
    assert not await store.exists(text)
    for label, verb in VERBS.items():
        await verb(store, key)
        assert await store.keys() in ([], [text], sorted(["a", text, "b"])), label
        assert {type(found) for found in await store.keys()} <= {str}
        await store.clear_all()
    for label in OF_ONE:
        await store.save(text, 1)
        await VERBS[label](store, key)
        assert await store.keys() == ([] if label == "pop" else [text]), label
    await store.save(text, [])
    async with store.edit(key) as value:
        value.append(1)
    assert await store.load(text) == [1]
    [found] = await store.load_many([key, text])
    assert (found, type(found)) == (text, str)
    assert await store.delete_many([key, text]) == 1


async def test_a_number_is_no_key_even_where_its_text_is_one() -> None:
    """`5` never finds what is under `"5"`."""
    await store.save("5", "five")
    for number in [5, 5.0]:
        with pytest.raises(InvalidKeyError):
            await store.load(number)  # type: ignore[arg-type]
    assert await store.load("5") == "five"


@pytest.mark.parametrize(
    ("limit", "good", "bad"),
    [
        ("1", "k", "kk"),
        ("1", "k", "é"),
        ("4", "😀", "😀k"),
        ("10", "é" * 5, "é" * 5 + "k"),
        ("1000", "k" * 1000, "k" * 1001),
        ("65536", "é" * 32768, "é" * 32768 + "k"),
    ],
)
async def test_the_limit_is_a_setting(
    limit: str, good: str, bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`CAT_MAX_KEY_BYTES` counts bytes of UTF-8: as many are taken, one more is refused."""
    monkeypatch.setenv("CAT_MAX_KEY_BYTES", limit)
    await store.save(good, 1)
    assert await store.load(good) == 1
    for verb in VERBS.values():
        with pytest.raises(InvalidKeyError, match=f"at most {limit} bytes"):
            await verb(store, bad)
    assert await store.delete(good)
