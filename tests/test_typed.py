"""Typed values: what `type=` gives and takes, by `load` and by `edit`, and what a mismatch says."""

import dataclasses
import secrets
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypeVar
from uuid import UUID

import pydantic
import pytest
from typing_extensions import TypedDict

from cat import codec, for_user, store
from cat.errors import (
    CorruptValueError,
    InvalidValueError,
    KeyNotFoundError,
    NotEditableError,
    UnstorableValueError,
)

T = TypeVar("T")

# Made anew in each run, so that no source line in a traceback holds it.
SECRET = f"secret{secrets.token_hex(8)}"
NUMBER = int.from_bytes(secrets.token_bytes(7)) | 1 << 55
NOON = datetime(2025, 8, 12, 12, 0, tzinfo=UTC)


class Stop(pydantic.BaseModel):
    """A model with a time and a set."""

    name: str
    at: datetime = NOON
    tags: set[int] = set()


class Route(pydantic.BaseModel):
    """A model of models, with names of its own in JSON."""

    model_config = pydantic.ConfigDict(populate_by_name=True)

    first: Stop = pydantic.Field(alias="from")
    stops: list[Stop] = []
    named: dict[str, Stop] = {}
    pause: timedelta | None = None


class Page(pydantic.BaseModel, Generic[T]):
    """A generic model."""

    items: list[T]
    total: int = 0


class Names(pydantic.RootModel[list[str]]):
    """A model that is a list."""


class Seats(pydantic.RootModel[dict[str, list[int]]]):
    """A model that is a dict."""


class Closed(pydantic.BaseModel):
    """A model that forbids what it does not know, and checks what is assigned."""

    model_config = pydantic.ConfigDict(extra="forbid", validate_assignment=True)

    volume: int


@dataclasses.dataclass
class Point:
    """A dataclass."""

    x: int
    y: float = 0.0


@dataclasses.dataclass
class Line:
    """A dataclass of dataclasses and a model."""

    ends: list[Point]
    stop: Stop | None = None


@pydantic.dataclasses.dataclass
class Seat:
    """A dataclass of pydantic's."""

    row: int = pydantic.Field(gt=0)
    id: UUID = UUID(int=7)


class Todo(TypedDict):
    """A typed dict with a key that may be missing."""

    text: str
    done: NotRequired[bool]


class Pair(NamedTuple):
    """A tuple with names."""

    name: str
    count: int


class Cat(pydantic.BaseModel):
    """One kind of pet."""

    kind: Literal["cat"] = "cat"
    lives: int


class Dog(pydantic.BaseModel):
    """Another kind of pet."""

    kind: Literal["dog"] = "dog"
    tricks: list[str]


Pet = Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
Positive = Annotated[int, pydantic.Field(gt=0)]
OSLO = Stop(name="Oslo", tags={3})


class Case(NamedTuple):
    """A type, a value of it, and JSON that is not of it, with the paths of what is wrong."""

    wanted: Any
    value: Any
    bad: Any
    paths: list[str]


CASES = {
    "model": Case(Stop, OSLO, {"name": NUMBER, "at": SECRET}, ["$.name", "$.at"]),
    "model, nested": Case(
        Route,
        Route(first=OSLO, stops=[OSLO, Stop(name="Bergen")], named={"a": OSLO}),
        {"from": {"name": 1}, "stops": [{"name": SECRET}, {"at": SECRET}], "named": [SECRET]},
        ["$.from.name", "$.stops[1].name", "$.stops[1].at", "$.named"],
    ),
    "model with a period": Case(
        Route,
        Route(first=OSLO, pause=timedelta(minutes=5)),
        {"from": {"name": SECRET}, "pause": [SECRET]},
        ["$.pause"],
    ),
    "model that forbids": Case(
        Closed, Closed(volume=5), {"volume": 5, "other": SECRET}, ["$.other"]
    ),
    "generic model": Case(
        Page[Stop],
        Page[Stop](items=[OSLO], total=1),
        {"items": [{"name": "x"}, SECRET]},
        ["$.items[1]"],
    ),
    "generic model of int": Case(
        Page[int], Page[int](items=[1, 2]), {"items": [1, SECRET], "total": "9"}, ["$.items[1]"]
    ),
    "root model, a list": Case(Names, Names(["a"]), ["a", NUMBER], ["$[1]"]),
    "root model, a dict": Case(Seats, Seats({"a": [1]}), {"a": [SECRET]}, ["$.a[0]"]),
    "dataclass": Case(Point, Point(1, 2.5), {"x": SECRET, "y": None}, ["$.x", "$.y"]),
    "dataclass, nested": Case(
        Line,
        Line([Point(1), Point(2)], OSLO),
        {"ends": [{"x": 1}, {"y": 2.0}, SECRET], "stop": None},
        ["$.ends[1].x", "$.ends[2]"],
    ),
    "dataclass of pydantic": Case(Seat, Seat(3), {"row": -NUMBER, "id": SECRET}, ["$.row"]),
    "typed dict": Case(
        Todo, {"text": "milk", "done": True}, {"text": NUMBER, "done": SECRET}, ["$.text", "$.done"]
    ),
    "typed dict, shorter": Case(Todo, {"text": "milk"}, {"done": True, "x": SECRET}, ["$.text"]),
    "list of typed dicts": Case(
        list[Todo], [{"text": "milk"}], [{"text": "a"}, {"text": [SECRET]}], ["$[1].text"]
    ),
    "named tuple": Case(Pair, Pair("a", 1), ["a", SECRET], ["$"]),
    "list of int": Case(list[int], [1, 2], [1, SECRET, 2, 3.5, "4"], ["$[1]", "$[3]", "$[4]"]),
    "list of lists": Case(list[list[int]], [[1], []], [[1], [2, SECRET]], ["$[1][1]"]),
    "dict of models": Case(
        dict[str, Stop], {"a b": OSLO, "c": OSLO}, {"a b": {"name": NUMBER}}, ["$['a b'].name"]
    ),
    "dict with int keys": Case(dict[int, str], {1: "a"}, {"1": "a", "2": NUMBER}, ["$['2']"]),
    "tuple": Case(tuple[int, Stop], (1, OSLO), [1, {"name": NUMBER}], ["$[1].name"]),
    "set": Case(set[int], {1, 2}, [1, SECRET], ["$[1]"]),
    "union": Case(Stop | Point | int, Point(1), {"other": SECRET}, ["$"]),
    "union, a number": Case(Stop | Point | int, 9, SECRET, ["$"]),
    "union in a list": Case(list[Cat | Dog], [Cat(lives=9)], [{"lives": SECRET}], ["$[0]"]),
    "optional": Case(Stop | None, OSLO, {"name": NUMBER}, ["$.name"]),
    "optional, None": Case(Stop | None, None, SECRET, ["$"]),
    "literal": Case(Literal["dark", "light"], "dark", SECRET, ["$"]),
    "literal, a number": Case(Literal[1, 2], 2, NUMBER, ["$"]),
    "annotated": Case(Positive, 5, -NUMBER, ["$"]),
    "list of annotated": Case(list[Positive], [5], [5, -NUMBER], ["$[1]"]),
    "told apart by a field": Case(
        Pet, Dog(tricks=["sit"]), {"kind": "cat", "lives": SECRET}, ["$.cat.lives"]
    ),
    "told apart, of no kind": Case(
        list[Pet], [Cat(lives=9), Dog(tricks=[])], [{"kind": SECRET, "lives": 1}], ["$[0]"]
    ),
}
EDITABLE = (list, dict, pydantic.BaseModel, Point, Line, Seat)


def texts(error: BaseException) -> Iterator[str]:
    """Return all that may be printed of an exception, its causes and its contexts."""
    yield "".join(traceback.format_exception(error))
    seen: list[BaseException | None] = [None]
    found: list[BaseException | None] = [error]
    while found:
        one = found.pop()
        if one is not None and one not in seen:
            seen.append(one)
            found += [one.__cause__, one.__context__]
            yield from (str(one), repr(one), repr(one.args), repr(vars(one)))


def check_silent(error: BaseException) -> None:
    """Insist that nothing about `error` shows a value."""
    for text in texts(error):
        assert SECRET not in text
        assert str(NUMBER) not in text


async def stored(value: Any) -> Any:
    """Store the JSON of a value of any type under `k`, and return what `load` gives without one."""
    if isinstance(value, set):
        value = sorted(value)
    await store.save("k", value)
    return await store.load("k")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_typed_value_comes_back_equal(case: Case) -> None:
    """It is of the type and equal, in each scope, fresh each time, and stored as plain JSON."""
    plain = await stored(case.value)
    for scope in (store, for_user("alice").namespace("n")):
        await scope.save("k", plain)
        loaded = await scope.load("k", type=case.wanted)
        assert loaded == case.value
        assert type(loaded) is type(case.value)
        again = await scope.load("k", "default", type=case.wanted)
        assert again == loaded
        if isinstance(case.value, (*EDITABLE, set)):
            assert again is not loaded
    assert await store.load("k") == plain
    assert await store.load("nothing", case.wanted, type=case.wanted) is case.wanted
    assert await store.load("nothing", type=case.wanted) is None


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_an_edit_gives_a_value_of_the_type(case: Case) -> None:
    """What cannot be changed in place is refused before the block; nothing else changes."""
    plain = await stored(case.value)
    if isinstance(case.value, EDITABLE):
        async with store.edit("k", type=case.wanted) as value:
            assert value == case.value
            assert type(value) is type(case.value)
    else:
        with pytest.raises(NotEditableError, match="modify"):
            async with store.edit("k", type=case.wanted):
                pytest.fail("the block was entered")
    assert await store.load("k") == plain
    assert await store.load("k", type=case.wanted) == case.value


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_mismatch_names_where_and_no_value(case: Case) -> None:
    """`load` and `edit` raise with scope, key and paths, for a default too; nothing changes."""
    weather = for_user("alice").namespace("weather")
    await weather.save("the key", case.bad)

    async def edited() -> None:
        async with weather.edit("the key", type=case.wanted):
            pytest.fail("the block was entered")

    for verb in (
        weather.load("the key", type=case.wanted),
        weather.load("the key", case.value, type=case.wanted),
        edited(),
    ):
        with pytest.raises(InvalidValueError) as caught:
            await verb
        message = str(caught.value)
        assert "key 'the key' of user 'alice', namespace 'weather'" in message
        found = [path for path, _ in caught.value.problems]
        for path in case.paths:
            assert any(one.startswith(path) for one in found), path
            assert f"{path}" in message
        assert message.isascii()
        assert caught.value.not_stored
        check_silent(caught.value)
    assert await weather.load("the key") == case.bad


async def test_many_problems_are_all_listed_and_some_are_named() -> None:
    """The message names five paths and says how many more there are; `problems` has them all."""
    await store.save("k", [SECRET] * 1_000)
    with pytest.raises(InvalidValueError) as caught:
        await store.load("k", type=list[int])
    assert [path for path, _ in caught.value.problems] == [f"$[{n}]" for n in range(1_000)]
    assert {kind for _, kind in caught.value.problems} == {"int_type"}
    message = str(caught.value)
    assert "$[4] (int_type) and 995 more" in message
    assert "$[5]" not in message
    assert len(message) < 400


NOT_STRICT: dict[str, tuple[Any, Any]] = {
    "digits": ("9", int),
    "a whole float": (9.0, int),
    "a bool as a number": (True, int),
    "a number as a bool": (1, bool),
    "a word as a bool": ("true", bool),
    "a number as text": (9, str),
    "digits in a model": ({"volume": "9"}, Closed),
    "digits in a dataclass": ({"x": "9"}, Point),
    "digits in a typed dict": ([{"text": "a", "done": "yes"}], list[Todo]),
    "digits for a literal": ("1", Literal[1]),
    "None for a model": (None, Stop),
    "a list for a model": ([], Stop),
    "a dict for a list": ({}, list[int]),
}


@pytest.mark.parametrize(("value", "wanted"), NOT_STRICT.values(), ids=NOT_STRICT)
async def test_nothing_is_converted(value: Any, wanted: Any) -> None:
    """Strict mode: no digits for a number, no number for a bool, and no default for a mismatch."""
    await store.save("k", value)
    with pytest.raises(InvalidValueError):
        await store.load("k", 7, type=wanted)
    assert await store.load("k") == value


# --- Editing


def _rename(route: Route) -> None:
    route.first.name = "Bergen"
    route.stops.append(Stop(name="Voss", tags={1, 2}))
    route.named["c"] = OSLO
    route.pause = timedelta(minutes=1)


EDITS: dict[str, tuple[Any, Any, Callable[[Any], object], Any]] = {
    "model": (
        Route,
        Route(first=OSLO),
        _rename,
        Route(
            first=Stop(name="Bergen", tags={3}),
            stops=[Stop(name="Voss", tags={1, 2})],
            named={"c": OSLO},
            pause=timedelta(minutes=1),
        ),
    ),
    "generic model": (
        Page[Stop],
        Page[Stop](items=[]),
        lambda page: page.items.append(OSLO),
        Page[Stop](items=[OSLO]),
    ),
    "root model": (Names, Names(["a"]), lambda names: names.root.append("b"), Names(["a", "b"])),
    "dataclass": (
        Line,
        Line([Point(1)]),
        lambda line: (setattr(line, "stop", OSLO), line.ends.append(Point(2))),
        Line([Point(1), Point(2)], OSLO),
    ),
    "dataclass of pydantic": (Seat, Seat(1), lambda seat: setattr(seat, "row", 2), Seat(2)),
    "typed dict": (Todo, {"text": "a"}, lambda t: t.update(done=True), {"text": "a", "done": True}),
    "list of int": (list[int], [1], lambda numbers: numbers.extend([2, 3]), [1, 2, 3]),
    "list of models": (list[Stop], [], lambda stops: stops.append(OSLO), [OSLO]),
    "dict of models": (
        dict[str, Stop],
        {"a": Stop(name="Voss")},
        lambda stops: stops.update(b=OSLO),
        {"a": Stop(name="Voss"), "b": OSLO},
    ),
    "dict with int keys": (
        dict[int, str],
        {1: "a"},
        lambda d: d.update({2: "b"}),
        {1: "a", 2: "b"},
    ),
    "union": (Cat | Dog, Dog(tricks=[]), lambda dog: dog.tricks.append("sit"), Dog(tricks=["sit"])),
    "optional": (Cat | None, Cat(lives=9), lambda cat: setattr(cat, "lives", 8), Cat(lives=8)),
    "told apart by a field": (
        list[Pet],
        [Cat(lives=9)],
        lambda pets: pets.append(Dog(tricks=[])),
        [Cat(lives=9), Dog(tricks=[])],
    ),
    "list of annotated": (list[Positive], [1], lambda numbers: numbers.append(2), [1, 2]),
}


@pytest.mark.parametrize("stored_before", [True, False], ids=["stored", "default"])
@pytest.mark.parametrize(("wanted", "value", "change", "expected"), EDITS.values(), ids=EDITS)
async def test_an_edit_stores_what_was_changed(
    wanted: Any,
    value: Any,
    change: Callable[[Any], object],
    expected: Any,
    stored_before: bool,  # noqa: FBT001
) -> None:
    """A change deep inside is stored, of a stored value and of a default, which stays as it was."""
    adapter = pydantic.TypeAdapter(wanted)
    before = adapter.dump_json(value)
    if stored_before:
        await store.save("k", value)
        editing = store.edit("k", type=wanted)
    else:
        editing = store.edit("k", value, type=wanted)
    async with editing as found:
        assert found is not value
        change(found)
    loaded = await store.load("k", type=wanted)
    assert loaded == expected
    assert type(loaded) is type(expected)
    assert adapter.dump_json(value) == before


SPOILED: dict[str, tuple[Any, Any, Callable[[Any], object], str]] = {
    "item of a list": (list[int], [1], lambda numbers: numbers.append(SECRET), "$[1]"),
    "value of a dict": (dict[str, int], {"a": 1}, lambda d: d.update(b=SECRET), "$.b"),
    "missing from a typed dict": (Todo, {"text": SECRET}, lambda t: t.clear(), "$.text"),
    "wrong in a typed dict": (Todo, {"text": "a"}, lambda t: t.update(done=SECRET), "$.done"),
    "constraint": (list[Positive], [1], lambda numbers: numbers.append(-NUMBER), "$[1]"),
    "field of a model": (Stop, OSLO, lambda stop: setattr(stop, "name", NUMBER), "$"),
    "field of a model in a list": (
        list[Stop],
        [OSLO],
        lambda stops: setattr(stops[0], "at", SECRET),
        "$[0]",
    ),
    "field of a dataclass": (Point, Point(1), lambda point: setattr(point, "x", SECRET), "$"),
    "constraint of a dataclass": (Seat, Seat(1), lambda s: setattr(s, "row", -NUMBER), "$.row"),
    "no JSON": (list[Any], [1], lambda items: items.append({SECRET}), "$[1]"),
}


@pytest.mark.parametrize(("wanted", "value", "spoil", "path"), SPOILED.values(), ids=SPOILED)
async def test_an_edit_stores_nothing_that_is_not_of_the_type(
    wanted: Any, value: Any, spoil: Callable[[Any], object], path: str
) -> None:
    """What is wrong at the end of the block raises with its path, and the old value stays."""
    plain = await stored(value)
    with pytest.raises((InvalidValueError, UnstorableValueError)) as caught:
        async with store.edit("k", type=wanted) as found:
            spoil(found)
    if isinstance(caught.value, InvalidValueError):
        assert caught.value.problems[0][0] == path
        assert "key 'k' of the global store" in str(caught.value)
    else:
        assert caught.value.path.startswith(path)
    assert caught.value.not_stored
    check_silent(caught.value)
    assert await store.load("k") == plain
    async with store.edit("k", type=wanted) as found:  # and the key is free
        assert found == value


async def test_a_default_of_another_type_is_not_stored() -> None:
    """The default is given as it is, and checked at the end as all that is stored."""
    with pytest.raises(InvalidValueError) as caught:
        async with store.edit("k", [SECRET], type=list[int]) as numbers:
            assert numbers == [SECRET]
    check_silent(caught.value)
    assert not await store.exists("k")
    async with store.edit("k", [SECRET], type=list[int]) as numbers:
        numbers[:] = [1]
    assert await store.load("k") == [1]


async def test_an_edit_of_nothing_needs_a_default_with_a_type_too() -> None:
    """`type=` makes no value: without a default, an absent key raises."""
    with pytest.raises(KeyNotFoundError):
        async with store.edit("k", type=Stop):
            pytest.fail("the block was entered")
    for default in (None, 5, "text", (1,), frozenset(), Stop):
        with pytest.raises(NotEditableError, match="default"):
            async with store.edit("k", default, type=list[int]):
                pytest.fail("the block was entered")
    assert not await store.exists("k")


# --- Saving without a type


async def test_models_and_dataclasses_anywhere_are_stored_as_json() -> None:
    """Nested in lists, dicts, tuples and each other, in every verb that stores."""
    point, seat = {"x": 1, "y": 0.0}, {"row": 3, "id": str(UUID(int=7))}
    stop = {"name": "Oslo", "at": "2025-08-12T12:00:00Z", "tags": [3]}
    value = {
        "a": [OSLO, (Point(1), {"b": Seat(3)})],
        "c": Line([Point(1)], OSLO),
        "d": Names(["x"]),
    }
    expected = {
        "a": [stop, [point, {"b": seat}]],
        "c": {"ends": [point], "stop": stop},
        "d": ["x"],
    }
    assert await store.save("save", value) is value
    assert await store.create("create", value)
    await store.save_many({"save_many": value})
    assert await store.load_or_create("load_or_create", lambda: value) == expected
    assert await store.modify("modify", lambda _: value) is value
    async with store.edit("edit", []) as items:
        items.append(value)
    found = await store.items()
    assert found.pop("edit") == [expected]
    assert len(found) == 5
    for key, loaded in found.items():
        assert loaded == expected, key


async def test_what_a_model_writes_it_reads() -> None:
    """Saved in each way that stores, a model is read by `type=` as it was."""
    route = Route(first=OSLO, stops=[OSLO], pause=timedelta(days=1))
    await store.save_many({"a": route, "b": [route]})
    assert await store.load("a", type=Route) == route
    assert await store.load("b", type=list[Route]) == [route]
    assert await store.create("c", route)
    assert await store.load("c", type=Route) == route
    assert await store.modify("d", lambda old: old, route) == route
    assert await store.load("d", type=Route) == route


# --- Types that are none, and text that is not JSON


@pytest.mark.parametrize("wanted", [5, "no such type", object(), [int]], ids=repr)
async def test_what_is_no_type_is_refused_whether_there_is_a_value(wanted: Any) -> None:
    """The mistake shows at the first call, not when there first is a value."""
    for _ in range(2):
        with pytest.raises(Exception) as caught:  # noqa: PT011  # pydantic's own
            await store.load("k", [], type=wanted)
        check_silent(caught.value)
        with pytest.raises(type(caught.value)):
            async with store.edit("k", [], type=wanted):
                pytest.fail("the block was entered")
        await store.save("k", [SECRET])


@pytest.mark.parametrize("wanted", [Stop, Point, Todo, list[int], Any, Pet], ids=str)
@pytest.mark.parametrize("text", ["{", '{"name": NaN}', "[Infinity]", "x", "", "[1] [2]"])
async def test_what_is_not_json_is_corrupt_for_every_type(
    home: Path, wanted: Any, text: str
) -> None:
    """Text that is not JSON is not taken for a value of another type."""
    await store.save("k", [])
    with closing(sqlite3.connect(home / "cat.db", isolation_level=None)) as connection:
        connection.execute("UPDATE entries SET value = ?", (text + SECRET * (text == "x"),))
    with pytest.raises(CorruptValueError) as caught:
        await store.load("k", type=wanted)
    check_silent(caught.value)
    with pytest.raises(CorruptValueError) as caught:
        async with store.edit("k", type=wanted):
            pytest.fail("the block was entered")
    check_silent(caught.value)


# --- The cost of a type


async def test_an_adapter_is_built_once_per_type() -> None:
    """Building one costs a thousand times its use: each type has one, whatever the verb."""

    class Fresh(pydantic.BaseModel):
        """A model that no other test has met."""

        x: int = 0

    def built() -> int:
        return codec._cached_adapter.cache_info().misses

    before = built()
    for number in range(20):
        await store.save("k", Fresh(x=number))
        assert await store.load("k", type=Fresh) == Fresh(x=number)
        async with store.edit("k", type=Fresh) as value:
            value.x += 1
        await store.save_many({"m": [Fresh()], "n": {"a": Fresh()}})
    assert built() == before + 1
    for _ in range(20):  # an equal type is the same, though made anew
        await store.load("m", type=list[Fresh])
        async with store.edit("m", type=list[Fresh]) as items:
            items.append(Fresh())
    assert built() == before + 2
    await store.save("k", "x")
    for _ in range(20):  # a mismatch builds nothing either
        with pytest.raises(InvalidValueError):
            await store.load("k", type=Fresh)
    assert built() == before + 2


async def test_types_that_only_look_equal_have_an_adapter_each() -> None:
    """To Python two unions are equal in any order; to pydantic the first that fits is meant."""

    class One(pydantic.BaseModel):
        """A model."""

        x: int

    class Other(pydantic.BaseModel):
        """A model of the same shape."""

        x: int

    await store.save("k", {"x": 1})
    for first, second in [(One, Other), (Other, One)]:
        assert type(await store.load("k", type=first | second)) is first
        async with store.edit("k", type=first | second) as value:
            assert type(value) is first
    await store.save("k", [{"x": 1}])
    for first, second in [(One, Other), (Other, One)]:
        [loaded] = await store.load("k", type=list[first | second])  # type: ignore[valid-type]
        assert type(loaded) is first
