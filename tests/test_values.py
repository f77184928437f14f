"""Values: what goes in comes out with its type, or is refused before anything is written."""

import collections
import dataclasses
import enum
import math
import random
import sqlite3
import traceback
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import pytest
from typing_extensions import TypedDict

from cat import for_user, store
from cat.errors import CorruptValueError, InvalidValueError, UnstorableValueError
from equality import same

LONGEST_INT = 10**4300 - 1
SECRET = "2retnuh"[::-1]  # no source line that a traceback quotes has it


def nested(levels: int, value: Any = None) -> Any:
    """Return `value` inside lists and dicts in turn, `levels` of them."""
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def told(error: BaseException) -> str:
    """Return all that a log of `error` would hold, causes included."""
    return "".join(traceback.format_exception(error)) + repr(error)


class Level(enum.IntEnum):
    """A number with a name."""

    HIGH = 9


class Colour(enum.StrEnum):
    """A text with a name."""

    DARK = "dark"


class Mixed(str, enum.Enum):  # noqa: UP042  # the older kind of text with a name
    """A text that prints as `Mixed.RED`."""

    RED = "red"


class Text(str):
    """Text that says something else when asked."""

    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class Number(int):
    """A number that prints as something else."""

    def __repr__(self) -> str:
        return "something else"


class Real(float):
    """A float that prints as something else."""

    def __repr__(self) -> str:
        return "something else"


class Rows(list[Any]):
    """A list of another type."""


class Point(NamedTuple):
    """A tuple with names."""

    x: int
    y: float


ROUND_TRIPS: dict[str, Any] = {
    "none": None,
    "true": True,
    "false": False,
    "zero": 0,
    "one": 1,
    "nine": 9,
    "minus one": -1,
    "2**31": 2**31,
    "2**53": 2**53,
    "2**53+1": 2**53 + 1,
    "2**63-1": 2**63 - 1,
    "2**63": 2**63,
    "-2**63": -(2**63),
    "-2**63-1": -(2**63) - 1,
    "2**64": 2**64,
    "10**40": 10**40,
    "-10**40": -(10**40),
    "640 digits": 10**640 - 7,
    "4,299 digits": 10**4298 + 1,
    "4,300 digits": LONGEST_INT,
    "-4,300 digits": -LONGEST_INT,
    "4,300 digits, nested": {"a": [LONGEST_INT, -LONGEST_INT]},
    "nine point zero": 9.0,
    "zero point zero": 0.0,
    "minus zero": -0.0,
    "minus zero, nested": {"a": [-0.0, 0.0, 0]},
    "smallest float": 5e-324,
    "largest float": 1.7976931348623157e308,
    "1e308": 1e308,
    "-1e308": -1e308,
    "0.1+0.2": 0.1 + 0.2,
    "1e15": 1e15,
    "1e16": 1e16,
    "1e22": 1e22,
    "1e23": 1e23,
    "2.0**53": 2.0**53,
    "2.0**63": 2.0**63,
    "a third": 1 / 3,
    "a time": 1755000000.1234567,
    "pi": math.pi,
    "below one": 1 - 2**-53,
    "subnormal": 2.2250738585072011e-308,
    "empty text": "",
    "a space": " ",
    "text": "dark",
    "digits": "9",
    "digits with a point": "9.0",
    "an exponent": "1e400",
    "many digits": "9" * 5000,
    "null as text": "null",
    "true as text": "true",
    "nan as text": "NaN",
    "json as text": '{"a": [1, "]"]}',
    "quotes and backslashes": "\"'\\/\\u0041`",
    "NUL": "\0",
    "NUL inside": "before\0after",
    "every control character": "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "line separators": "\n\r\n\u2028\u2029\x85",
    "accents, composed and not": "é e\u0301",
    "emoji": "😀👩‍👩‍👧‍👦🇮🇹",
    "the last code point": "\U0010ffff",
    "non-characters": "\ufffe\uffff\ufdd0",
    "a byte order mark": "\ufeffx",
    "right to left": "\u202eabc",
    "a lone high surrogate": "\ud800",
    "a lone low surrogate": "\udfff",
    "a lone surrogate in text": "a\udc80b",
    "a lone surrogate among accents": "é\ud83dü",
    "a lone surrogate before an emoji": "\ud83d😀",
    "a lone surrogate after an emoji": "😀\ude00",
    "low before high": "\ude00\ud83d",
    "high before high": "\ud83d\ud83d",
    "a lone surrogate in a key": {"\udcff": 1, "é": "\udcff", "😀": [2]},
    "escapes that only look like surrogates": "\\ud83d\\ude00",
    "10 MB of text": "x" * 10_000_000,
    "9 MB of emoji": "😀" * 2_250_000,
    "empty list": [],
    "empty dict": {},
    "empties": [[], {}, "", None, 0, 0.0, False],
    "one, true and 1.0": [1, True, 1.0, "1", 0, False, 0.0, -0.0],
    "an empty key": {"": 1},
    "keys in an order of their own": {"z": 1, "a": 2, "10": 3, "9": 4, "A": 5, "": 6},
    "keys that look like numbers": {"1": 1, "1.0": 2, "01": 3, "true": 4, "null": 5, "None": 6},
    "keys that differ in form only": {"é": 1, "e\u0301": 2, "É": 3, "e": 4},
    "a dunder key": {"__class__": "x", "$ref": "#", "$": 1},
    "a dict of lists of dicts": {"stops": [{"at": "10:00", "tags": []}, {"at": None}]},
    "a long list": list(range(10_000)),
    "a wide dict": {f"key {n}": n for n in range(10_000)},
    "the same object twice": [[1], [1]],
    "99 levels": nested(99),
    "100 levels": nested(100),
    "100 levels around text": nested(100, "é"),
}


@pytest.mark.parametrize("value", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
async def test_a_value_comes_back_as_it_was(value: Any) -> None:
    """What JSON holds comes back equal in value, type, bits and order."""
    await store.save("k", value)
    assert same(await store.load("k"), value)


async def test_all_values_at_once() -> None:
    """Values of all kinds side by side in one dict come back too."""
    small = {name: value for name, value in ROUND_TRIPS.items() if len(str(value)) < 5_000}
    assert len(small) > 70
    shallow = {name: value for name, value in small.items() if "levels" not in name}
    await for_user("alice").save("k", shallow)
    assert same(await for_user("alice").load("k"), shallow)


def times() -> list[float]:
    """Return 20,000 floats as `time.time()` makes them, and others of every size."""
    source = random.Random(20250812)  # noqa: S311  # not a secret
    clock = [1_700_000_000 + source.random() * 2e8 for _ in range(20_000)]
    return clock + [math.ldexp(source.uniform(-1, 1), n) for n in range(-1074, 1024)]


async def test_floats_are_exact_to_the_bit() -> None:
    """No float moves by a bit: 22,000 in one list, and 300 as a value each."""
    floats = times()
    await store.save("all", floats)
    assert same(await store.load("all"), floats)
    for number in floats[:: len(floats) // 300]:
        await store.save("one", number)
        assert same(await store.load("one"), number)


COERCED: dict[str, tuple[Any, Any]] = {
    "tuple": ((1, "a", None), [1, "a", None]),
    "empty tuple": ((), []),
    "tuple in a dict": ({"a": (1, (2.0, ()))}, {"a": [1, [2.0, []]]}),
    "int keys": ({1: "a", -5: "b", 10**40: "c"}, {"1": "a", "-5": "b", str(10**40): "c"}),
    "float keys": ({1.5: 1, -0.0: 2, 1e300: 3}, {"1.5": 1, "-0.0": 2, "1e+300": 3}),
    "bool keys": ({True: 1, False: 0}, {"true": 1, "false": 0}),
    "None key": ({None: 1}, {"null": 1}),
    "keys of all kinds": (
        {"a": 1, 2: 2, 3.5: 3, True: 4, None: 5},
        {"a": 1, "2": 2, "3.5": 3, "true": 4, "null": 5},
    ),
    "int and float keys that JSON tells apart": ({2: "i", "2.0": "f"}, {"2": "i", "2.0": "f"}),
    "nested keys": ([{1: {2: (3,)}}], [{"1": {"2": [3]}}]),
    "4,300 digits as a key": ({LONGEST_INT: 1}, {str(LONGEST_INT): 1}),
    "IntEnum": (Level.HIGH, 9),
    "IntEnum as a key": ({Level.HIGH: Level.HIGH}, {"9": 9}),
    "StrEnum": (Colour.DARK, "dark"),
    "StrEnum as a key": ({Colour.DARK: [Colour.DARK]}, {"dark": ["dark"]}),
    "str and Enum": ({Mixed.RED: Mixed.RED}, {"red": "red"}),
    "str subclass": (Text("é"), "é"),
    "str subclass as a key": ({Text("é"): Text("a")}, {"é": "a"}),
    "str subclass with a surrogate": ([Text("\ud800")], ["\ud800"]),
    "int subclass": ([Number(7)], [7]),
    "int subclass as a key": ({Number(7): 1}, {"7": 1}),
    "float subclass": ([Real(-0.0)], [-0.0]),
    "float subclass as a key": ({Real(1.5): 1}, {"1.5": 1}),
    "named tuple": (Point(1, 2.0), [1, 2.0]),
    "defaultdict": (collections.defaultdict(list, {"b": [1], "a": []}), {"b": [1], "a": []}),
    "OrderedDict": (collections.OrderedDict([("b", 1), ("a", 2)]), {"b": 1, "a": 2}),
    "Counter": (collections.Counter("aab"), {"a": 2, "b": 1}),
    "list subclass": (Rows([1, Rows([2])]), [1, [2]]),
    "subclasses in 100 levels": (nested(99, Rows([1])), nested(99, [1])),
    "a number with a name in 100 levels": (nested(100, Level.HIGH), nested(100, 9)),
}


@pytest.mark.parametrize(("value", "expected"), COERCED.values(), ids=COERCED)
async def test_coercions_are_those_of_json(value: Any, expected: Any) -> None:
    """Tuples become lists, plain keys become text, and subclasses what they are made of."""
    await store.save("k", value)
    assert same(await store.load("k"), expected)


# --- Models and dataclasses


class Stop(pydantic.BaseModel):
    """A model with an alias, a computed field, a time and a set."""

    model_config = pydantic.ConfigDict(populate_by_name=True)

    name: str = pydantic.Field(alias="theName")
    at: datetime
    tags: set[int] = set()
    size: Decimal = Decimal("1.50")

    @pydantic.computed_field
    def shout(self) -> str:
        """Return the name in capitals."""
        return self.name.upper()


@dataclasses.dataclass
class Trip:
    """A plain dataclass that holds models, a date and a tuple."""

    day: date
    stops: list[Stop]
    pair: tuple[int, str] = (1, "a")


@pydantic.dataclasses.dataclass(frozen=True)
class Seat:
    """A dataclass of pydantic's."""

    row: int
    id: uuid.UUID


class Strict(pydantic.BaseModel):
    """A model that forbids what it does not know."""

    model_config = pydantic.ConfigDict(extra="forbid")

    x: float = 0.0


class Pair(pydantic.BaseModel):
    """A model that computes a field and forbids what it does not know."""

    model_config = pydantic.ConfigDict(extra="forbid")

    left: int

    @pydantic.computed_field
    def right(self) -> int:
        """Return one more."""
        return self.left + 1


class Open(pydantic.BaseModel):
    """A model with a field of any kind."""

    any: Any = None


@dataclasses.dataclass
class Anything:
    """A dataclass with a field of any kind."""

    any: Any


class Table(pydantic.RootModel[dict[str, list[int]]]):
    """A model that is a dict."""


NOON = datetime(2025, 8, 12, 12, 0, 0, 123456, tzinfo=UTC)
STOP = Stop(theName="Oslo", at=NOON, tags={3})
TRIP = Trip(NOON.date(), [STOP, STOP.model_copy(update={"name": "Bergen"})])
SEAT = Seat(3, uuid.UUID(int=7))

MODELS: dict[str, tuple[Any, Any]] = {
    "model": (STOP, Stop),
    "model without a set field": (Strict(x=-0.0), Strict),
    "model with a computed field": (Pair(left=1), Pair),
    "model of anything": (Open(any=[1, {"a": None}]), Open),
    "root model": (Table({"b": [1], "a": []}), Table),
    "dataclass": (TRIP, Trip),
    "dataclass of pydantic": (SEAT, Seat),
    "list of models": ([STOP, STOP], list[Stop]),
    "dict of dataclasses": ({"a": TRIP, "b": TRIP}, dict[str, Trip]),
    "tuple of both": ((STOP, TRIP), tuple[Stop, Trip]),
}


@pytest.mark.parametrize(("value", "wanted"), MODELS.values(), ids=MODELS)
async def test_models_come_back_as_their_type(value: Any, wanted: Any) -> None:
    """A model or a dataclass, at the top or nested, comes back equal with `type=`."""
    assert await store.save("k", value) is value
    loaded = await store.load("k", type=wanted)
    assert loaded == value
    assert type(loaded) is type(value)


async def test_models_are_stored_in_their_json_form() -> None:
    """Without `type=`, a model is a dict of JSON: aliases, texts for times, lists for sets."""
    await store.save("k", {"stops": [STOP], "seat": SEAT, "deep": {"er": (Strict(),)}})
    stop = {"theName": "Oslo", "at": "2025-08-12T12:00:00.123456Z", "tags": [3], "size": "1.50"}
    loaded = await store.load("k")
    assert loaded == {
        "stops": [stop],
        "seat": {"row": 3, "id": "00000000-0000-0000-0000-000000000007"},
        "deep": {"er": [{"x": 0.0}]},
    }


# --- What save returns and load gives


async def test_save_returns_the_object_it_was_given() -> None:
    """`save` returns the very object, unchanged, even where its JSON form is another."""
    for value in [{"a": (1, 2)}, (1,), STOP, TRIP, Rows([1]), None, "x" * 100]:
        assert await store.save("k", value) is value
    kept = {"a": (1, [Colour.DARK]), 2: STOP}
    await store.save("k", kept)
    assert kept == {"a": (1, [Colour.DARK]), 2: STOP}
    assert type(kept["a"]) is tuple


async def test_load_gives_a_fresh_value_each_time() -> None:
    """No two loads share anything with each other or with what was saved."""
    given = {"list": [1, [2]], "dict": {"a": {}}}
    await store.save("k", given)
    given["list"].append("later")
    first = await store.load("k")
    first["list"][1].append("mine")
    first["dict"]["a"]["b"] = "mine"
    second = await store.load("k")
    assert second == {"list": [1, [2]], "dict": {"a": {}}}
    assert await store.load("k", type=dict) is not await store.load("k", type=dict)


@pytest.mark.parametrize("wanted", [None, int, list[int], Stop], ids=str)
async def test_the_default_is_returned_itself(wanted: Any) -> None:
    """A default comes back as the very object, untouched, never copied or checked."""
    for default in [object(), [], {"a": {1}}, "no int", None, math.nan, STOP]:
        assert await store.load("absent", default, type=wanted) is default
    assert await store.load("absent") is None
    assert not await store.exists("absent")


async def test_a_stored_none_is_not_the_default() -> None:
    """A stored `None` is loaded as `None`, whatever the default."""
    await store.save("k", None)
    assert await store.load("k", "default") is None
    assert await store.load("k", "default", type=int | None) is None


async def test_a_save_replaces_and_never_merges() -> None:
    """A value of one type replaces one of another, and nothing of it stays."""
    for value in [{"a": 1, "b": 2}, {"b": 3}, [1], "text", None, 9, 9.0, True]:
        await store.save("k", value)
        assert same(await store.load("k"), value)


# --- Loading as a type


class Place(TypedDict):
    """A dict with known keys."""

    city: str
    at: list[int]


MATCHES: dict[str, tuple[Any, Any, Any]] = {
    "int": (9, int, 9),
    "int of 4,300 digits": (LONGEST_INT, int, LONGEST_INT),
    "whole number as a float": (9, float, 9.0),
    "float": (0.1 + 0.2, float, 0.1 + 0.2),
    "minus zero": (-0.0, float, -0.0),
    "str": ("9", str, "9"),
    "str with NUL": ("\0é😀", str, "\0é😀"),
    "bool": (True, bool, True),
    "list of int": ([1, 2], list[int], [1, 2]),
    "list of anything": ([1, "a", None], list, [1, "a", None]),
    "dict": ({"b": 1, "a": 2}, dict[str, int], {"b": 1, "a": 2}),
    "dict with int keys": ({1: "a"}, dict[int, str], {1: "a"}),
    "typed dict": ({"city": "Oslo", "at": [1]}, Place, {"city": "Oslo", "at": [1]}),
    "union, first": (1, int | str, 1),
    "union, second": ("1", int | str, "1"),
    "literal": ("dark", Literal["dark", "light"], "dark"),
    "enum": ("dark", Colour, Colour.DARK),
    "date and time": (NOON.isoformat(), datetime, NOON),
    "tuple": ((1, "a"), tuple[int, str], (1, "a")),
    "set": ([1, 2], set[int], {1, 2}),
    "uuid": (str(uuid.UUID(int=7)), uuid.UUID, uuid.UUID(int=7)),
    "decimal": ("1.50", Decimal, Decimal("1.50")),
    "named tuple": ([1, 2.0], Point, Point(1, 2.0)),
    "constrained": (5, Annotated[int, pydantic.Field(gt=0)], 5),
    "a type without a hash": (5, Annotated[int, []], 5),
    "100 levels": (nested(100, 1), list, nested(100, 1)),
}


@pytest.mark.parametrize(("value", "wanted", "expected"), MATCHES.values(), ids=MATCHES)
async def test_a_matching_type_is_given(value: Any, wanted: Any, expected: Any) -> None:
    """`type=` gives what pydantic reads from the stored JSON in strict mode."""
    await store.save("k", value)
    loaded = await store.load("k", "default", type=wanted)
    assert loaded == expected
    assert type(loaded) is type(expected)
    if isinstance(expected, float):
        assert loaded.hex() == expected.hex()


MATCHES_WITH_SURROGATES: dict[str, tuple[Any, Any]] = {
    "list of anything": (["\ud800"], list),
    "dict with any values": ({"a": "x\udfffé"}, dict[str, Any]),
    "anything": ("\ud800", object),
}


@pytest.mark.parametrize(
    ("value", "wanted"), MATCHES_WITH_SURROGATES.values(), ids=MATCHES_WITH_SURROGATES
)
async def test_what_save_accepts_load_can_read(value: Any, wanted: Any) -> None:
    """A lone surrogate, which `save` accepts, does not stop `type=` from reading the value."""
    await store.save("k", value)
    assert same(await store.load("k", type=wanted), value)


MISMATCHES: dict[str, tuple[Any, Any, str, str]] = {
    "digits are no int": ("9", int, "$", "int"),
    "float is no int": (9.0, int, "$", "int"),
    "bool is no int": (True, int, "$", "int"),
    "int is no bool": (1, bool, "$", "bool"),
    "int is no str": (9, str, "$", "str"),
    "digits are no float": ("9.0", float, "$", "float"),
    "None is no int": (None, int, "$", "int"),
    "text": (SECRET, int, "$", "int"),
    "dict is no list": ({"a": SECRET}, list, "$", "list"),
    "item of a list": ([1, 2, SECRET], list[int], "$[2]", "list"),
    "value of a dict": ({"a": 1, "b c": SECRET}, dict[str, int], "$['b c']", "dict"),
    "field of a typed dict": ({"city": "x", "at": [1, SECRET]}, Place, "$.at[1]", "Place"),
    "missing from a typed dict": ({"city": SECRET}, Place, "$.at", "Place"),
    "field of a dataclass": ({"row": SECRET, "id": str(uuid.UUID(int=1))}, Seat, "$.row", "Seat"),
    "field of a model": ({"x": SECRET}, Strict, "$.x", "Strict"),
    "unknown to a model": ({"x": 1.0, "y": SECRET}, Strict, "$.y", "Strict"),
    "neither of a union": ([SECRET], int | str, "$", "int"),
    "literal": (SECRET, Literal["dark", "light"], "$", "Literal"),
    "enum": (SECRET, Colour, "$", "Colour"),
    "constraint": (-5, Annotated[int, pydantic.Field(gt=0)], "$", ""),
    "not a time": (SECRET, datetime, "$", "datetime"),
}


@pytest.mark.parametrize(("value", "wanted", "path", "name"), MISMATCHES.values(), ids=MISMATCHES)
async def test_another_type_is_refused(value: Any, wanted: Any, path: str, name: str) -> None:
    """A mismatch raises with scope, key, path and type, and without the value; nothing changes."""
    weather = for_user("alice").namespace("weather")
    await weather.save("the key", value)
    with pytest.raises(InvalidValueError) as caught:
        await weather.load("the key", 7, type=wanted)
    message = str(caught.value)
    assert "key 'the key' of user 'alice', namespace 'weather'" in message
    assert f" at {path}" in message
    assert name in message
    assert any(place.startswith(path) for place, _ in caught.value.problems)
    assert SECRET not in told(caught.value)
    assert isinstance(caught.value, ValueError)
    assert same(await weather.load("the key"), value)


# --- What another program wrote


NOT_JSON = {
    "text": "not JSON",
    "nothing": "",
    "a space": " ",
    "NaN": "NaN",
    "infinity": "Infinity",
    "minus infinity": "-Infinity",
    "NaN in a list": "[1.0, NaN]",
    "infinity in a dict": '{"a": Infinity}',
    "cut short": '{"a": [1',
    "two values": "1 2",
    "single quotes": "{'a': 1}",
    "a comma too many": "[1,]",
    "a leading zero": "01",
    "a control character": '"a\nb"',
    "too deep to read": "[" * 100_000,
}


def overwrite(home: Path, sql: str, *parameters: object) -> None:
    """Change every entry behind the library's back."""
    connection = sqlite3.connect(home / "cat.db")
    try:
        connection.execute(f"UPDATE entries SET value = {sql}", parameters)  # noqa: S608  # a constant
        connection.commit()
    finally:
        connection.close()


@pytest.mark.parametrize("text", NOT_JSON.values(), ids=NOT_JSON)
@pytest.mark.parametrize("wanted", [None, float, dict, object], ids=str)
async def test_what_is_not_json_is_corrupt(home: Path, text: str, wanted: Any) -> None:
    """Text that is not JSON raises, with `type=` too, names the entry, and is left as it is."""
    await store.save("the key", 1)
    overwrite(home, "?", text + SECRET if text == "not JSON" else text)
    for _ in range(2):
        with pytest.raises(CorruptValueError) as caught:
            await store.load("the key", 0.0, type=wanted)
        assert "key 'the key' of the global store" in str(caught.value)
        assert SECRET not in told(caught.value)
        assert isinstance(caught.value, ValueError)
    assert await store.exists("the key")
    await store.save("the key", 2)
    assert await store.load("the key") == 2


@pytest.mark.parametrize("wanted", [None, str], ids=str)
async def test_what_is_not_text_is_corrupt(home: Path, wanted: Any) -> None:
    """Bytes that are not UTF-8 raise the same, and are not quoted."""
    await store.save("the key", 1)
    overwrite(home, "CAST(? AS TEXT)", b'"' + SECRET.encode() + b'\xff"')
    with pytest.raises(CorruptValueError) as caught:
        await store.load("the key", type=wanted)
    assert SECRET not in told(caught.value)


# --- What JSON cannot hold


def self_list() -> list[Any]:
    """Return a list that is an item of itself, not the first."""
    value: list[Any] = [SECRET]
    value.append(value)
    return value


def self_dict() -> dict[str, Any]:
    """Return a dict that is a value of itself, not the first."""
    value: dict[str, Any] = {"first": SECRET, "second": {}}
    value["me"] = value
    value["last"] = 1
    return value


def indirect() -> dict[str, Any]:
    """Return a dict below which a list leads back to a dict below the top."""
    inner: dict[str, Any] = {"name": SECRET}
    inner["list"] = [1, ({"x": inner},)]
    return {"outer": [inner]}


def self_rows() -> Rows:
    """Return a list of another type that is an item of itself."""
    value = Rows([SECRET])
    value.append(value)
    return value


class Awaitable:
    """Something to await that is no coroutine."""

    def __await__(self) -> Iterator[None]:
        yield


class Plain:
    """An object with an attribute, which says it when printed."""

    def __init__(self) -> None:
        self.secret = SECRET

    def __repr__(self) -> str:
        return self.secret


class Kind(type):
    """A class of classes that have no hash."""

    def __eq__(cls, other: object) -> bool:
        return cls is other

    __hash__ = None  # type: ignore[assignment]  # what Python does with an __eq__


class Odd(metaclass=Kind):
    """An object of such a class."""


class Silent:
    """An object that cannot be printed."""

    def __repr__(self) -> str:
        raise RuntimeError(SECRET)


def wrong_model() -> Strict:
    """Return a model whose field holds another type."""
    return Strict.model_construct(x=SECRET)


PAIR = "\ud83d\ude00"
DIGITS = "has more than 4,300 digits", "hex("
NOT_HELD = "which JSON cannot hold"

# Of each: a value, its path, what the message says is wrong, and the cure it names.
REFUSED: dict[str, tuple[Any, str, str, str]] = {
    "set": ({SECRET}, "$", "is a set, " + NOT_HELD, "list("),
    "set in a dict": ({"a": [0, {SECRET}]}, "$.a[1]", "is a set, " + NOT_HELD, "list("),
    "frozenset": (frozenset([SECRET]), "$", "is a frozenset, " + NOT_HELD, "list("),
    "bytes": (SECRET.encode(), "$", "is a bytes, " + NOT_HELD, "base64"),
    "bytearray": ([bytearray(SECRET.encode())], "$[0]", "is a bytearray, ", "base64"),
    "memoryview": ([memoryview(b"x")], "$[0]", "is a memoryview, ", "store "),
    "datetime": ({"at": NOON}, "$.at", "is a datetime, " + NOT_HELD, ".isoformat()"),
    "date": ([NOON.date()], "$[0]", "is a date, " + NOT_HELD, ".isoformat()"),
    "time": ([time(12, 0)], "$[0]", "is a time, " + NOT_HELD, ".isoformat()"),
    "timedelta": (timedelta(1), "$", "is a timedelta, " + NOT_HELD, ".total_seconds()"),
    "Decimal": (Decimal(1), "$", "is a Decimal, " + NOT_HELD, "str("),
    "Fraction": (Fraction(1, 3), "$", "is a Fraction, " + NOT_HELD, "store "),
    "complex": (1j, "$", "is a complex, " + NOT_HELD, ".real"),
    "UUID": ({"id": uuid.UUID(int=1)}, "$.id", "is a UUID, " + NOT_HELD, "str("),
    "path": (Path(SECRET), "$", "Path, " + NOT_HELD, "str("),
    "pure path": (PurePosixPath(SECRET), "$", "is a PurePosixPath, ", "store "),
    "range": (range(3), "$", "is a range, " + NOT_HELD, "store "),
    "deque": (collections.deque([SECRET]), "$", "is a deque, " + NOT_HELD, "store "),
    "dict keys": ({SECRET: 1}.keys(), "$", "is a dict_keys, " + NOT_HELD, "list("),
    "dict view": (MappingProxyType({"a": SECRET}), "$", "is a mappingproxy, ", "store "),
    "plain enum": (enum.Enum("Kind", "A").A, "$", "is a Kind, " + NOT_HELD, "store "),
    "ellipsis": (..., "$", "is an ellipsis, " + NOT_HELD, "store "),
    "NaN": (math.nan, "$", "is nan, " + NOT_HELD, "store None or a str"),
    "NaN in a list": ([1.0, math.nan], "$[1]", "is nan, " + NOT_HELD, "store None"),
    "infinity": ({"a": math.inf}, "$.a", "is inf, " + NOT_HELD, "store None"),
    "minus infinity": ((-math.inf,), "$[0]", "is -inf, " + NOT_HELD, "store None"),
    "NaN of another type": ([Real("nan")], "$[0]", "is nan, " + NOT_HELD, "store None"),
    "object": ({"x": Plain()}, "$.x", "is a Plain, " + NOT_HELD, "pydantic model"),
    "object of a class without a hash": ({"x": [Odd()]}, "$.x[0]", "is an Odd, " + NOT_HELD, "."),
    "object that cannot be printed": (Silent(), "$", "is a Silent, " + NOT_HELD, "store "),
    "class": ([Plain], "$[0]", "is a type, " + NOT_HELD, "store "),
    "class of a model": ([Strict], "$[0]", "is a ModelMetaclass, " + NOT_HELD, "store "),
    "class of a dataclass": ([Trip], "$[0]", "is a type, " + NOT_HELD, "store "),
    "function": (nested, "$", "is a function, " + NOT_HELD, "store "),
    "module": (math, "$", "is a module, " + NOT_HELD, "store "),
    "generator": ((x for x in SECRET), "$", "is a generator, " + NOT_HELD, "list("),
    "map": (map(str, [SECRET]), "$", "is a map, " + NOT_HELD, "store "),
    "awaitable": ({"a": Awaitable()}, "$.a", "is an Awaitable, " + NOT_HELD, "store "),
    "list in itself": (self_list(), "$", "contains itself, " + NOT_HELD, "break the cycle"),
    "dict in itself": (self_dict(), "$", "contains itself, " + NOT_HELD, "break the cycle"),
    "cycle below the top": (indirect(), "$.outer[0]", "contains itself, ", "break the cycle"),
    "list of another type in itself": (self_rows(), "$", "contains itself, ", "break the cycle"),
    "101 levels": (nested(101), "$", "nested deeper than 100 levels", "flatten it"),
    "1,000 levels": (nested(1_000), "$", "nested deeper than 100 levels", "flatten it"),
    "100,000 levels": (nested(100_000), "$", "nested deeper than 100 levels", "flatten it"),
    "4,301 digits": (10**4300, "$", *DIGITS),
    "-4,301 digits": (-(10**4300), "$", *DIGITS),
    "4,301 digits, nested": ({"a": [10**4300]}, "$.a[0]", *DIGITS),
    "4,301 digits of another type": ([Number(10**4300)], "$[0]", *DIGITS),
    "100,000 digits": ([10**100_000], "$[0]", *DIGITS),
    "4,301 digits as a key": ({10**4300: 1}, "$", *DIGITS),
    "-4,301 digits as a key": ([{-(10**4300): 1}], "$[0]", *DIGITS),
    "surrogate pair": ({"a": "x" + PAIR + SECRET}, "$.a", "a pair of surrogate", "utf-16"),
    "surrogate pair of another type": ([Text(PAIR)], "$[0]", "a pair of surrogate", "utf-16"),
    "surrogate pair in a key": ({"a": {PAIR: SECRET}}, "$.a", "a pair of surrogate", "utf-16"),
    "surrogate pair in another type's key": ({Text(PAIR): 1}, "$", "a pair of surr", "utf-16"),
    "tuple key": ({"a": {(1, 2): SECRET}}, "$.a", "has a key of type tuple", "use a str"),
    "tuple key with a huge int": ({(10**5000,): 1}, "$", "a key of type tuple", "use a str"),
    "bytes key": ({b"k": SECRET}, "$", "has a key of type bytes", "use a str"),
    "frozenset key": ({frozenset(): SECRET}, "$", "a key of type frozenset", "use a str"),
    "date key": ({NOON.date(): SECRET}, "$", "has a key of type date", "use a str"),
    "object key": ({Plain: SECRET}, "$", "has a key of type type", "use a str"),
    "key that cannot be printed": ({Silent(): 1}, "$", "has a key of type Silent", "use a str"),
    "NaN key": ({math.nan: SECRET}, "$", "is nan, " + NOT_HELD, "store "),
    "infinite key": ([{-math.inf: SECRET}], "$[0]", "is -inf, " + NOT_HELD, "store "),
    "1 and '1'": ({1: SECRET, "1": 2}, "$", "writes as '1'", "use str keys"),
    "'1' and 1": ({"a": {"1": SECRET, 1: 2}}, "$.a", "writes as '1'", "use str keys"),
    "True and 'true'": ([{True: SECRET, "true": 2}], "$[0]", "writes as 'true'", "use str keys"),
    "False and 'false'": ({False: SECRET, "false": 2}, "$", "writes as 'false'", "use str keys"),
    "None and 'null'": ({None: SECRET, "null": 2}, "$", "writes as 'null'", "use str keys"),
    "1.0 and '1.0'": ({1.0: SECRET, "1.0": 2}, "$", "writes as '1.0'", "use str keys"),
    "1e16 and '1e+16'": ({1e16: SECRET, "1e+16": 2}, "$", "writes as '1e+16'", "use str keys"),
    "IntEnum and its text": ({Level.HIGH: SECRET, "9": 2}, "$", "writes as '9'", "use str keys"),
    "model with NaN": (Strict(x=math.nan), "$.x", "is nan, " + NOT_HELD, "store "),
    "model with infinity": ({"m": [Strict(x=math.inf)]}, "$.m[0].x", "is inf, ", "store "),
    "model with a wrong type": ([wrong_model()], "$[0]", "is a Strict", "check its fields"),
    "model with an object": ({"a": Open(any=Plain())}, "$.a", "Open without a JSON", "check"),
    "dataclass with a wrong type": (Trip(SECRET, []), "$", "is a Trip", "check its fields"),
    "dataclass with NaN in a list": ([Trip(NOON, [math.nan])], "$[0]", "is a Trip", "check"),
}


@pytest.mark.parametrize(("value", "path", "what", "cure"), REFUSED.values(), ids=REFUSED)
async def test_what_json_cannot_hold_is_refused(
    value: Any, path: str, what: str, cure: str
) -> None:
    """The error names path, type and cure and no value, and the old value stays."""
    await store.save("k", ["old"])
    with pytest.raises(UnstorableValueError) as caught:
        await store.save("k", value)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)
    message = str(caught.value)
    assert caught.value.path.startswith(path)
    assert message.startswith(f"{caught.value.path} ")
    assert what in message
    assert cure in message
    assert message.isascii()
    assert len(message) < 400
    assert SECRET not in told(caught.value)
    assert caught.value.not_stored
    assert await store.load("k") == ["old"]


LOSSY_MODELS = {
    "NaN": Open(any=math.nan),
    "infinity in a list": Open(any=[1.0, math.inf]),
    "colliding keys": Open(any={1: SECRET, "1": 2}),
    "dataclass with NaN": Anything({"a": math.nan}),
    "dataclass with colliding keys": [Anything({True: SECRET, "true": 2})],
}


@pytest.mark.parametrize("value", LOSSY_MODELS.values(), ids=LOSSY_MODELS)
async def test_a_model_loses_nothing_in_silence(value: Any) -> None:
    """What JSON would lose is refused in a field of any kind as it is in a plain dict."""
    await store.save("k", ["old"])
    with pytest.raises(UnstorableValueError) as caught:
        await store.save("k", value)
    assert SECRET not in told(caught.value)
    assert await store.load("k") == ["old"]


async def test_a_refused_value_opens_nothing(home: Path) -> None:
    """What cannot be stored is refused before there is a database."""
    with pytest.raises(UnstorableValueError):
        await store.save("k", {1, 2})
    assert not home.exists()  # noqa: ASYNC240  # nothing else is running


async def test_the_message_of_the_design() -> None:
    """The message reads as the documents promise, to the letter."""
    trip = {"stops": [{"at": "10:00"}, {"at": None}, {"at": NOON}]}
    with pytest.raises(UnstorableValueError) as caught:
        await store.save("trip", trip)
    assert str(caught.value) == (
        "$.stops[2].at is a datetime, which JSON cannot hold; "
        "store .isoformat() or a pydantic model"
    )
    assert caught.value.path == "$.stops[2].at"


PATHS: dict[str, tuple[Any, str]] = {
    "names": ({"a": {"b_2": {1}}}, "$.a.b_2"),
    "names that need quotes": ({"a b": {"é": {1}}}, r"$['a b']['\xe9']"),
    "names that look like numbers": ({"0": {"1": {1}}}, "$['0']['1']"),
    "an empty name": ({"": {1}}, "$['']"),
    "int keys": ({5: {1}}, "$[5]"),
    "bool and None keys": ({True: {None: {1}}}, "$[True][None]"),
    "float keys": ({1.5: {1}}, "$[1.5]"),
    "items": ([[0, ({1},)]], "$[0][1][0]"),
    "a text with a name": ({Colour.DARK: {1}}, "$.dark"),
    "an older text with a name": ({Mixed.RED: {1}}, "$.red"),
}


@pytest.mark.parametrize(("value", "path"), PATHS.values(), ids=PATHS)
async def test_a_path_reads_as_one_would_write_it(value: Any, path: str) -> None:
    """A path is made of `.name` and `[index]`, quoted where it has to be."""
    with pytest.raises(UnstorableValueError) as caught:
        await store.save("k", value)
    assert caught.value.path == path


async def test_a_long_path_is_cut() -> None:
    """A path is at most 80 characters, with both its ends."""
    value: Any = {1}
    for number in range(50):
        value = {f"name{number}": value}
    with pytest.raises(UnstorableValueError) as caught:
        await store.save("k", value)
    assert len(caught.value.path) <= 80
    assert caught.value.path.startswith("$.name49.name48")
    assert caught.value.path.endswith("name1.name0")


# --- How large a value may be

EXACTLY_100 = {
    "ASCII": "x" * 98,
    "two bytes each": "é" * 49,
    "three bytes each": "€" * 32 + "xx",
    "four bytes each": "😀" * 24 + "xx",
    "escaped": "\0" * 16 + "xx",
    "a lone surrogate, escaped": "\ud800" * 16 + "xx",
    "a list": [1234567] * 12 + [12],
    "a dict": {"k": "é" * 46},
}


def longer(value: Any) -> Any:
    """Return `value` with one more byte of JSON."""
    if isinstance(value, str):
        return value + "x"
    return [*value[:-1], 123] if isinstance(value, list) else {"k": value["k"] + "x"}


@pytest.mark.parametrize("value", EXACTLY_100.values(), ids=EXACTLY_100)
async def test_size_is_counted_in_bytes_of_json(
    value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many bytes of UTF-8 as the setting allows are stored, and one more is refused."""
    monkeypatch.setenv("CAT_MAX_VALUE_BYTES", "100")
    await store.save("k", value)
    assert same(await store.load("k"), value)
    with pytest.raises(UnstorableValueError) as caught:
        await store.save("k", longer(value))
    assert str(caught.value).startswith("$ has 101 bytes of JSON and the limit is 100 ")
    assert "CAT_MAX_VALUE_BYTES" in str(caught.value)
    assert same(await store.load("k"), value)


async def test_size_is_16_mb_by_default() -> None:
    """Without a setting, 16 MiB of JSON are stored, and one byte more is refused."""
    most = "x" * (16 * 1024 * 1024 - 2)
    await store.save("k", most)
    with pytest.raises(UnstorableValueError, match=r"16,777,217 bytes .* limit is 16,777,216"):
        await store.save("k", most + "x")
    assert await store.load("k") == most
