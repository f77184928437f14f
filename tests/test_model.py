"""All verbs at random, alone and at the same time, against a plain dict: nothing differs.

`CAT_TEST_EXAMPLES` is the number of runs, 200 by default, of about 30 steps
each. Every run has a home and an event loop of its own, and a clock that moves
when the run says so. After each step the entries are compared: value, type,
bits, size and times, and that a revision is another one exactly if the entry
was written.

Calls that are made at once have to answer as if they had been made one after
the other, in some order; those that do not read first, in the order of the calls.
"""

# ruff: noqa: A002, D102  # the verbs have the names and the words of `cat.Store`
import asyncio
import copy
import dataclasses
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from cat import (
    Erased,
    Store,
    as_user,
    context,
    erase_namespace,
    erase_user,
    errors,
    export_user,
    for_user,
    store,
    user,
    users,
)
from cat.repository import Repository
from cat.scope import Scope
from equality import same

# Read at import: the `home` fixture takes every CAT_ variable away.
EXAMPLES = int(os.environ.get("CAT_TEST_EXAMPLES", "200"))
STEPS = 30

START = 1_755_000_000.0  # and all periods are in eighths of a second: floats add them exactly
MISSING: Any = object()


@dataclasses.dataclass
class Point:
    """What `type=` asks for, and what is stored as a dict."""

    x: int


class BoomError(Exception):
    """What a caller's own code raises."""


# --- What is drawn.

OWNERS = ["", "ann", "Ann", "ann/a"]
# Those of one run: below one another, or alike.
NAMESPACES = [("", "a", "a/b"), ("a", "a/b", "a0"), ("a", "ab", "A"), ("a/b", "b", "a/b/c"), ("",)]
PLAIN_KEYS = ["a", "ab", "B", "b"]
ODD_KEYS = [
    *("A", "a/", "a/b", "a%", "a_", "%", "_", "*", "?", "[a]", "'", '"', "\\", " ", "a ", "\x01"),
    *("é", "e\u0301", "\ud7ff", "\ue000", "\uffff", "😀", "\U0010ffff", "\U0010ffff\U0010ffff"),
    *("9", "9.0", "a\x7f", "k" * 512),
]
NO_KEYS = ["", "a\0", "\ud800", "k" * 513, "é" * 257, b"a", 9, None]
NO_PERIODS = [0, -1, 0.0, math.nan, math.inf, 1e12, True, "1", timedelta(0), timedelta(-1)]
NO_JSON = [{1}, [b"a"], {"a": math.nan}, {(): 1}, Decimal(1)]

PERIODS = [0.125, 1, 2.5, 60, 90000, timedelta(seconds=1), timedelta(days=1)]
EXPIRIES = st.sampled_from([None] * 7 + PERIODS)
# A high surrogate alone: two that make a pair are refused.
TEXTS = st.text('aé😀\0\ud800"', max_size=4)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from([2**63, -(10**40)]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.just(-0.0),
    TEXTS,
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
INTS = st.integers(-5, 5)
LISTS = st.lists(INTS, max_size=3)
VALUES = st.one_of(
    INTS,
    st.sampled_from([True, 1.0, None, "1"]),
    LISTS,
    LISTS,
    st.dictionaries(st.sampled_from("xyz"), INTS, max_size=3),
    st.builds(Point, INTS),
    st.tuples(INTS, TEXTS),
    JSON,
)
TYPES = st.sampled_from([*[None] * 6, int, list[int], dict[str, int], list[int] | int, Point])
DEFAULTS = st.sampled_from(
    [[], [], [], {}, {}, [1, "a"], {"x": 1}, Point(7), Point(7), MISSING, MISSING, 5, None]
)


class Place(NamedTuple):
    """A scope; if `bound`, reached by way of the current user."""

    owner: str
    namespace: str
    bound: bool

    @property
    def scope(self) -> Scope:
        """Whose entries these are."""
        return Scope(self.owner, self.namespace)

    @property
    def store(self) -> Store:
        """The object that the verbs are called on."""
        if self.owner:
            found: Store = user if self.bound else for_user(self.owner)
        else:
            found = store
        for name in filter(None, self.namespace.split("/")):
            found = found.namespace(name)
        return found


PLACES = st.builds(
    lambda owners, names, bound: [Place(*pair, bound) for pair in itertools.product(owners, names)],
    st.lists(st.sampled_from(OWNERS), min_size=1, max_size=2, unique=True),
    st.sampled_from(NAMESPACES),
    st.booleans(),
)


@dataclasses.dataclass(frozen=True)
class Function:
    """What `modify` is given."""

    how: str
    new: Any

    def __call__(self, old: Any) -> Any:
        """Return what becomes of `old`."""
        if self.how == "raise":
            raise BoomError
        if self.how == "replace":
            return copy.deepcopy(self.new)
        if self.how == "spoil":
            return [{1}]
        if isinstance(old, list):
            old.append(self.new)
        return None if self.how == "forget" else old if isinstance(old, list) else [old, self.new]


FUNCTIONS = st.builds(
    Function, st.sampled_from(["append", "append", "replace", "forget", "raise", "spoil"]), VALUES
)


@dataclasses.dataclass
class Factory:
    """What `load_or_create` is given."""

    value: Any
    how: str = "plain"
    calls: int = 0

    def __call__(self) -> Any:
        """Return a value, or what gives one when awaited."""
        self.calls += 1
        if self.how == "raise":
            raise BoomError
        return copy.deepcopy(self.value) if self.how == "plain" else self._later()

    async def _later(self) -> Any:
        await asyncio.sleep(0)
        return copy.deepcopy(self.value)


# What a block of `edit` does beside changing the value.
HOW = [*["change"] * 6, "leave", "raise", "cancel", "spoil", "rebind", "nest"]


class Block(NamedTuple):
    """What is done to a value inside `edit`."""

    how: str
    new: Any


BLOCKS = st.builds(Block, st.sampled_from(HOW), VALUES)


# Calls for one key, but for the key.
CHANGES = st.one_of(
    st.tuples(st.just("increment"), INTS),
    st.tuples(st.just("modify"), FUNCTIONS, LISTS | VALUES),
    st.tuples(st.just("edit"), BLOCKS, DEFAULTS, st.none()),
    st.tuples(st.just("pop")),
    st.tuples(st.just("load")),
    st.tuples(st.just("save"), VALUES),
    st.tuples(st.just("create"), VALUES),
    st.tuples(st.just("delete")),
    st.tuples(st.just("load_or_create"), st.builds(Factory, VALUES)),
    st.tuples(st.just("expire"), EXPIRIES),
)


def change(value: Any, new: Any) -> None:
    """Change a list, a dict or a `Point` in place."""
    if isinstance(value, list):
        value.append(new)
    elif isinstance(value, dict):
        value["x"] = new
    else:
        value.x = 1 if type(new) is not set else new


class Call(NamedTuple):
    """One verb with what it is given."""

    place: Place
    verb: str
    args: tuple[Any, ...]
    given: dict[str, Any] = {}  # noqa: RUF012  # never changed


def refusals(key: str, no_key: Any, no_period: Any, no_json: Any) -> list[Any]:
    """Return verbs with what they raise and what they are given."""
    factory, late = Factory(1), {"expires_in": no_period}
    refused: dict[type[Exception], list[Any]] = {
        errors.InvalidKeyError: [
            *[(verb, no_key) for verb in ("load", "exists", "delete", "pop", "info", "increment")],
            *[("save", no_key, 1), ("create", no_key, 1), ("load_or_create", no_key, factory)],
            *[("expire", no_key, 1), ("modify", no_key, repr), ("save_many", {key: 1, no_key: 2})],
            *[("load_many", [key, no_key]), ("delete_many", [key, no_key])],
            ("edit", no_key, Block("leave", 1), [], None),
        ],
        errors.InvalidExpiryError: [
            *[("save", key, 1), ("create", key, 1), ("load_or_create", key, factory)],
            *[("increment", key, 1), ("save_many", {key: 1}), ("expire", key)],
        ],
        errors.UnstorableValueError: [
            *[("save", key, no_json), ("create", key, no_json), ("save_many", {key: no_json})],
            ("modify", key, lambda _: no_json),
        ],
        errors.InvalidArgumentError: [
            *[("keys", 1), ("scan", b"a"), ("items", "\ud800"), ("count", None), ("clear", "")],
            *[("load_many", "ab"), ("save_many", ["a"]), ("delete_many", b"a")],
            *[("increment", key, by) for by in (1.0, True, None)],
            *[("modify", key, 5), ("load_or_create", key, 5)],
        ],
    }
    found = [
        (kind, verb, tuple(args), late if kind is errors.InvalidExpiryError else {})
        for kind, calls in refused.items()
        for verb, *args in calls
    ]
    wrong = [{"limit": -1}, {"limit": True}, {"limit": 1.0}, {"after": 1}]
    return found + [(errors.InvalidArgumentError, "keys", (), given) for given in wrong]


# --- The model.


class RefusedError(Exception):
    """The model says that the library raises an error of this kind."""


class Entry(NamedTuple):
    """What the model keeps; `write` is another number after every write."""

    value: Any
    created: float
    updated: float
    expires: float | None
    write: int


WRITES = itertools.count()


def as_json(value: Any) -> Any:
    """Return what comes back of a value, or refuse it."""
    if isinstance(value, set):
        raise RefusedError(errors.UnstorableValueError)
    if isinstance(value, Point):
        return as_json(vars(value))
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return value


def size(value: Any) -> int:
    """Return the bytes of the shortest JSON, with escapes if UTF-8 cannot hold it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return len(json.dumps(value, separators=(",", ":")))


def as_type(value: Any, wanted: Any) -> Any:
    """Return what `type=` makes of a stored value, or refuse it."""
    ints = isinstance(value, list) and all(type(item) is int for item in value)
    named = isinstance(value, dict) and all(type(item) is int for item in value.values())
    fits: dict[Any, bool] = {
        None: True,
        int: type(value) is int,
        list[int]: ints,
        dict[str, int]: named,
        list[int] | int: ints or type(value) is int,
        Point: isinstance(value, dict) and type(value.get("x")) is int,
    }
    if not fits[wanted]:
        raise RefusedError(errors.InvalidValueError)
    return Point(value["x"]) if wanted is Point else value


def seconds(period: Any) -> float:
    """Return a period in seconds."""
    return period.total_seconds() if isinstance(period, timedelta) else period


class World:
    """Everything that is stored."""

    def __init__(self) -> None:
        self.now = START
        self.entries: dict[Scope, dict[str, Entry]] = {}
        self.files: dict[Scope, set[Path]] = {}

    def copy(self) -> "World":
        """Return another of the same contents."""
        other = World()
        other.now = self.now
        other.entries = {scope: dict(found) for scope, found in self.entries.items()}
        other.files = self.files
        return other

    def live(self, scope: Scope) -> dict[str, Entry]:
        """Return the entries of a scope, in order, without those that expired."""
        found = self.entries.get(scope, {})
        self.entries[scope] = {
            key: entry
            for key, entry in sorted(found.items())
            if entry.expires is None or self.now < entry.expires
        }
        return self.entries[scope]

    def erase(self, belongs: Callable[[Scope], bool]) -> list[Any]:
        """Remove all that belongs, and say how much it was."""
        gone = [e for scope in self.entries if belongs(scope) for e in self.live(scope).values()]
        files = sum(len(found) for scope, found in self.files.items() if belongs(scope))
        self.entries = {s: found for s, found in self.entries.items() if not belongs(s)}
        self.files = {s: found for s, found in self.files.items() if not belongs(s)}
        return [*Erased(len(gone), sum(size(entry.value) for entry in gone), files)]


class Model:
    """The verbs, over a plain dict; arguments that are refused at once are not its business."""

    def __init__(self, world: World, scope: Scope) -> None:
        self.world = world
        self.scope = scope

    @property
    def live(self) -> dict[str, Entry]:
        """The entries of this scope."""
        return self.world.live(self.scope)

    def put(self, key: str, value: Any, expires: float | None) -> None:
        """Write an entry."""
        value = as_json(value)
        old = self.live.get(key)
        created = old.created if old else self.world.now
        self.live[key] = Entry(value, created, self.world.now, expires, next(WRITES))

    def until(self, expires_in: Any) -> float | None:
        """Return when a period ends."""
        return None if expires_in is None else self.world.now + seconds(expires_in)

    def save(self, key: str, value: Any, *, expires_in: Any = None) -> Any:
        self.put(key, value, self.until(expires_in))
        return value

    def load(self, key: str, default: Any = None, *, type: Any = None) -> Any:
        entry = self.live.get(key)
        return as_type(entry.value, type) if entry else default

    def exists(self, key: str) -> bool:
        return key in self.live

    def delete(self, key: str) -> bool:
        return self.live.pop(key, None) is not None

    def pop(self, key: str, default: Any = None) -> Any:
        entry = self.live.pop(key, None)
        return entry.value if entry else default

    def create(self, key: str, value: Any, *, expires_in: Any = None) -> bool:
        as_json(value)
        if key in self.live:
            return False
        self.save(key, value, expires_in=expires_in)
        return True

    def load_or_create(self, key: str, factory: Factory, *, expires_in: Any = None) -> Any:
        if key not in self.live:
            if factory.how == "raise":
                raise BoomError
            self.save(key, factory.value, expires_in=expires_in)
        return self.load(key)

    def expire(self, key: str, expires_in: Any) -> bool:
        entry = self.live.get(key)
        if entry:
            self.put(key, entry.value, self.until(expires_in))
        return entry is not None

    def info(self, key: str) -> Any:
        entry = self.live.get(key)
        if entry is None:
            return None
        times = (entry.created, entry.updated, entry.expires)
        return [size(entry.value), 0, *(t and datetime.fromtimestamp(t, UTC) for t in times)]

    def edit(self, key: str, block: Block, default: Any, type: Any) -> None:
        editable = (list, dict, Point)
        if default is not MISSING and not isinstance(default, editable):
            raise RefusedError(errors.NotEditableError)
        entry = self.live.get(key)
        if entry is None and default is MISSING:
            raise RefusedError(errors.KeyNotFoundError)
        value = copy.deepcopy(as_type(entry.value, type) if entry else default)
        if not isinstance(value, editable):
            raise RefusedError(errors.NotEditableError)
        kinds = {
            "cancel": asyncio.CancelledError,
            "rebind": errors.ReboundError,
            "nest": errors.NestedEditError,
            "raise": BoomError,
        }
        if block.how in kinds:
            raise RefusedError(kinds[block.how])
        if block.how != "leave":
            change(value, {1} if block.how == "spoil" else block.new)
        if block.how == "overtake":
            self.save(key, block.new)
        as_type(as_json(value), type)
        if block.how == "overtake":
            raise RefusedError(errors.ConflictError)
        self.put(key, value, entry.expires if entry else None)

    def modify(self, key: str, fn: Function, default: Any = None) -> Any:
        entry = self.live.get(key)
        old = copy.deepcopy(entry.value if entry else default)
        new = fn(copy.deepcopy(old))
        if new is None and old is not None:
            raise RefusedError(errors.InvalidResultError)
        self.put(key, new, entry.expires if entry else None)
        return new

    def increment(self, key: str, by: int = 1, *, expires_in: Any = None) -> int:
        entry = self.live.get(key)
        old = entry.value if entry else 0
        if type(old) is not int:
            raise RefusedError(errors.InvalidValueError)
        self.put(key, old + by, entry.expires if entry else self.until(expires_in))
        return int(old + by)

    def load_many(self, keys: list[str]) -> dict[str, Any]:
        return {key: self.live[key].value for key in keys if key in self.live}

    def save_many(self, mapping: dict[str, Any], *, expires_in: Any = None) -> None:
        as_json(mapping)
        for key, value in mapping.items():
            self.save(key, value, expires_in=expires_in)

    def delete_many(self, keys: list[str]) -> int:
        return sum(self.delete(key) for key in keys)

    def keys(
        self, prefix: str = "", *, after: str | None = None, limit: int | None = None
    ) -> list[str]:
        found = [key for key in self.live if key.startswith(prefix)]
        return [key for key in found if after is None or key > after][:limit]

    def scan(self, prefix: str = "") -> list[Any]:
        return [[key, self.live[key].value] for key in self.keys(prefix)]

    def items(self, prefix: str = "") -> dict[str, Any]:
        return {key: self.live[key].value for key in self.keys(prefix)}

    def count(self, prefix: str = "") -> int:
        return len(self.keys(prefix))

    def clear(self, prefix: str) -> int:
        return self.delete_many(self.keys(prefix))

    def clear_all(self) -> int:
        return self.delete_many(self.keys())

    def namespaces(self) -> list[str]:
        above = f"{self.scope.namespace}/" if self.scope.namespace else ""
        found = {
            scope.namespace.removeprefix(above).split("/")[0]
            for scope in list(self.world.entries)
            if scope.owner == self.scope.owner
            and scope.namespace.startswith(above)
            and self.world.live(scope)
        }
        return sorted(found - {""})

    def users(self) -> list[str]:
        found = {scope.owner for scope in list(self.world.entries) if self.world.live(scope)}
        return sorted(found - {""})

    def export_user(self, owner: str) -> list[Any]:
        entries = {
            scope.namespace: Model(self.world, scope).items()
            for scope in sorted(self.world.entries)
            if scope.owner == owner and self.world.live(scope)
        }
        files = [
            f for scope, found in self.world.files.items() if scope.owner == owner for f in found
        ]
        return [owner, entries, sorted(files)]

    def erase_user(self, owner: str) -> list[Any]:
        return self.world.erase(lambda scope: scope.owner == owner)

    def erase_namespace(self, name: str) -> list[Any]:
        return self.world.erase(lambda scope: f"{scope.namespace}/".startswith(f"{name}/"))


# --- The library, with a coroutine for each verb of the model that is none in it.


async def edit(s: Store, key: str, block: Block, default: Any, type: Any) -> None:
    """Edit a key in a block of that kind."""
    given = {} if default is MISSING else {"default": default}
    async with s.edit(key, type=type, **given) as value:
        await asyncio.sleep(0)
        if block.how != "leave":
            change(value, {1} if block.how == "spoil" else block.new)
        if block.how == "raise":
            raise BoomError
        if block.how == "cancel":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        if block.how == "rebind":
            value = [block.new]  # noqa: PLW2901  # what nobody should do
        if block.how == "nest":
            async with s.edit(key, default=[]):
                pass
        if block.how == "overtake":
            await s.save(key, block.new)


async def scan(s: Store, prefix: str) -> list[Any]:
    """Return all that a scan yields."""
    return [[key, value] async for key, value in s.scan(prefix)]


async def info(s: Store, key: str) -> Any:
    """Return what `info` says, but for the revision."""
    found = await s.info(key)
    return found and [*found._replace(revision=0)]


async def all_of(verb: Any, _: Store, *args: Any) -> Any:
    """Return a module's answer as a list, of which each part is compared."""
    return [*await verb(*args)]


VERBS: dict[str, Any] = {
    "edit": edit,
    "scan": scan,
    "info": info,
    **{
        verb.__name__: partial(all_of, verb)
        for verb in (users, export_user, erase_user, erase_namespace)
    },
}
# They join the line of writes at once, so they come in the order of the calls.
DIRECT = {"save", "delete", "delete_many", "create", "expire", "clear", "clear_all"}
# And these write later than they are called, and wait for no edit either.
LATE = {"pop", "save_many", "load_or_create"}
# After these, and when time has passed, every scope is looked at, and else those of the calls.
REACHING_OTHERS = {"clear", "clear_all", "erase_user", "erase_namespace", "export_user"}


class Seen(NamedTuple):
    """What the library says of an entry."""

    value: Any
    info: Any
    revision: int


def told(error: BaseException | type[BaseException]) -> list[Any]:
    """Return an error as an outcome."""
    return ["raises", (error if isinstance(error, type) else type(error)).__name__]


def predicted(world: World, call: Call) -> list[Any]:
    """Make a call in the model, and return its outcome."""
    try:
        model = Model(world, call.place.scope)
        return ["returns", getattr(model, call.verb)(*call.args, **call.given)]
    except RefusedError as error:
        return told(error.args[0])
    except BoomError as error:
        return told(error)


def orders(calls: list[Call]) -> Iterator[tuple[int, ...]]:
    """Yield the orders in which calls made at once may take effect."""
    for order in itertools.permutations(range(len(calls))):
        direct = [index for index in order if calls[index].verb in DIRECT]
        if direct == sorted(direct):
            yield order


def overtaken(calls: list[Call], index: int) -> bool:
    """Say whether a call is an edit during which others may write: not those called before it."""
    edited = calls[index]
    return edited.verb == "edit" and any(
        other.verb in LATE or (other.verb in DIRECT and place > index)
        for place, other in enumerate(calls)
        if other.place.scope == edited.place.scope
    )


class Against(RuleBasedStateMachine):
    """One run."""

    places: Any = Bundle("places")
    keys: Any = Bundle("keys")
    prefixes = st.just("") | keys | st.sampled_from(["a", "%", "_", "\ud7ff", "\U0010ffff", "a\0"])

    def __init__(self, home: Path, clock: list[World], environ: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.home = home
        self.environ = environ
        environ.setenv("CAT_HOME", str(home))
        self.world = clock[0] = World()
        self.scopes: dict[Scope, Store] = {}
        self.revisions: dict[int, int] = {}  # of each write of the model
        self.spent: set[tuple[Scope, str, int]] = set()
        self.runner = asyncio.Runner()

    def teardown(self) -> None:
        """Close the loop, and with it the database."""
        self.runner.close()
        shutil.rmtree(self.home, ignore_errors=True)

    # --- How a step is made and compared.

    def call(self, place: Place, verb: str, *args: Any, **given: Any) -> None:
        """Make one call in both, and compare."""
        self.at_once([Call(place, verb, args, given)])

    def at_once(self, calls: list[Call], among: Iterable[Sequence[int]] | None = None) -> None:
        """Make calls at once, and find an order in which the model does the same."""
        outcomes, seen = self.runner.run(self.real(calls))
        faults = []
        for order in orders(calls) if among is None else among:
            world = self.world.copy()
            fault = self.replayed(world, calls, outcomes, order)
            fault = fault or self.difference(world, seen)
            if not fault:
                self.world.entries, self.world.files = world.entries, world.files
                self.note(seen)
                return
            faults.append(fault)
        raise AssertionError("\n".join(faults))

    def look_around(self, place: Place) -> None:
        """Compare everything that can be seen from a place."""
        top = place._replace(namespace="")
        calls = [Call(place, verb, ()) for verb in ("count", "items", "namespaces", "users")]
        calls += [Call(top, "namespaces", ()), Call(place, "export_user", (place.owner or "ann",))]
        self.at_once(calls, [range(len(calls))])

    async def real(self, calls: list[Call]) -> tuple[list[list[Any]], Any]:
        """Make calls at once, and return their outcomes and what is stored then."""
        found = await asyncio.gather(*map(self.one, calls), return_exceptions=True)
        assert all(error.not_stored for error in found if isinstance(error, errors.CatError))
        outcomes = [told(r) if isinstance(r, BaseException) else ["returns", r] for r in found]
        wide = any(call.verb in REACHING_OTHERS for call in calls)
        return outcomes, await self.stored(
            self.scopes if wide else {call.place.scope for call in calls}
        )

    async def one(self, call: Call) -> Any:
        """Make one call."""
        place = call.place
        with as_user(place.owner) if place.owner and place.bound else nullcontext():
            if call.verb in VERBS:
                return await VERBS[call.verb](place.store, *call.args, **call.given)
            return await getattr(place.store, call.verb)(*call.args, **call.given)

    async def stored(self, scopes: Iterable[Scope]) -> dict[Scope, dict[str, Seen]]:
        """Return what is stored in some scopes."""
        found: dict[Scope, dict[str, Seen]] = {}
        for scope in scopes:
            s = self.scopes[scope]
            found[scope] = {}
            listed = await s.keys()
            for key in dict.fromkeys(listed + PLAIN_KEYS):
                about = await s.info(key)
                assert (about is not None) == (key in listed), key
                if about is not None:
                    found[scope][key] = Seen(
                        await s.load(key), [*about._replace(revision=0)], about.revision
                    )
        return found

    def replayed(self, world: World, calls: list[Call], outcomes: Any, order: Any) -> str:
        """Make calls in the model in that order, and return what differs."""
        for index in order:
            call, outcome = calls[index], outcomes[index]
            if outcome == told(errors.ConflictError) and overtaken(calls, index):
                continue
            expected = predicted(world, call)
            if not same(outcome, expected):
                return f"{call}\n  {outcome}\n  and not {expected}"
        return ""

    def difference(self, world: World, seen: dict[Scope, dict[str, Seen]]) -> str:
        """Return what of the entries differs."""
        for scope, found in seen.items():
            model = Model(world, scope)
            if not same({key: entry.value for key, entry in found.items()}, model.items()):
                return f"{scope} has {found}\n  and not {model.live}"
            for key, entry in found.items():
                if not same(entry.info, model.info(key)):
                    return f"{key!r} of {scope}: {entry.info}\n  and not {model.info(key)}"
                known = self.revisions.get(model.live[key].write)
                if known is None and (scope, key, entry.revision) in self.spent:
                    return f"{key!r} of {scope} was written and has the revision of before"
                if known not in (None, entry.revision):
                    return f"{key!r} of {scope} has another revision and was not written"
        return ""

    def note(self, seen: dict[Scope, dict[str, Seen]]) -> None:
        """Remember the revisions."""
        for scope, found in seen.items():
            for key, entry in found.items():
                self.revisions[self.world.live(scope)[key].write] = entry.revision
                self.spent.add((scope, key, entry.revision))

    # --- What a run is made of.

    @initialize(
        target=places,
        drawn=PLACES,
        inline=st.sampled_from(["on", "on", "off"]),
        value=VALUES,
        expires_in=EXPIRIES,
    )
    def begin(self, drawn: list[Place], inline: str, value: Any, expires_in: Any) -> Any:
        """Choose the scopes of this run and the way in which it reads, and store something."""
        self.environ.setenv("CAT_INLINE_READS", inline)
        self.scopes = {place.scope: place._replace(bound=False).store for place in drawn}
        for place in drawn:
            self.call(place, "save_many", dict.fromkeys(PLAIN_KEYS, value), expires_in=expires_in)
        return multiple(*drawn)

    @initialize(
        target=keys,
        some=st.lists(st.sampled_from(PLAIN_KEYS), min_size=2, max_size=3, unique=True),
        odd=st.lists(st.sampled_from(ODD_KEYS), max_size=2, unique=True),
    )
    def name(self, some: list[str], odd: list[str]) -> Any:
        """Choose the keys of this run."""
        return multiple(*some, *odd)

    @rule(
        place=places,
        eighths=st.sampled_from([0, 1, 1, 7, 8, 12, 20, 480]),
        restart=st.sampled_from("nnny"),
    )
    def wait(self, place: Place, eighths: int, restart: str) -> None:
        """Let time pass, some of it to the very moment of an expiry, on this loop or another."""
        self.world.now += eighths / 8
        if restart == "y":
            self.runner.close()
            self.runner = asyncio.Runner()
        self.look_around(place)

    @rule(place=places, key=keys, value=VALUES, expires_in=EXPIRIES)
    def save(self, place: Place, key: str, value: Any, expires_in: Any) -> None:
        self.call(place, "save", key, value, expires_in=expires_in)

    @rule(place=places, key=keys, default=VALUES, type=TYPES)
    def load(self, place: Place, key: str, default: Any, type: Any) -> None:
        self.call(place, "load", key, default, type=type)

    @rule(place=places, key=keys)
    def exists(self, place: Place, key: str) -> None:
        self.call(place, "exists", key)

    @rule(place=places, key=keys)
    def delete(self, place: Place, key: str) -> None:
        self.call(place, "delete", key)

    @rule(place=places, key=keys, default=VALUES)
    def pop(self, place: Place, key: str, default: Any) -> None:
        self.call(place, "pop", key, default)

    @rule(place=places, key=keys, value=VALUES, expires_in=EXPIRIES)
    def create(self, place: Place, key: str, value: Any, expires_in: Any) -> None:
        self.call(place, "create", key, value, expires_in=expires_in)

    @rule(
        place=places,
        key=keys,
        value=VALUES,
        how=st.sampled_from(["plain", "later", "raise"]),
        expires_in=EXPIRIES,
    )
    def load_or_create(self, place: Place, key: str, value: Any, how: str, expires_in: Any) -> None:
        factory = Factory(value, how)
        absent = key not in self.world.live(place.scope)
        self.call(place, "load_or_create", key, factory, expires_in=expires_in)
        assert factory.calls == absent

    @rule(place=places, key=keys, expires_in=EXPIRIES)
    def expire(self, place: Place, key: str, expires_in: Any) -> None:
        self.call(place, "expire", key, expires_in)

    @rule(place=places, key=keys)
    def info(self, place: Place, key: str) -> None:
        self.call(place, "info", key)

    @rule(
        place=places,
        key=keys,
        block=st.builds(Block, st.sampled_from([*HOW, "overtake"]), VALUES),
        default=DEFAULTS,
        type=TYPES,
    )
    def edit(self, place: Place, key: str, block: Block, default: Any, type: Any) -> None:
        before = copy.deepcopy(default)
        self.call(place, "edit", key, block, default, type)
        assert default is MISSING or same(default, before)

    @rule(place=places, key=keys, fn=FUNCTIONS, default=LISTS | VALUES)
    def modify(self, place: Place, key: str, fn: Function, default: Any) -> None:
        before = copy.deepcopy(default)
        self.call(place, "modify", key, fn, default)
        assert same(default, before)

    @rule(place=places, key=keys, by=INTS | st.just(2**70), expires_in=EXPIRIES)
    def increment(self, place: Place, key: str, by: int, expires_in: Any) -> None:
        self.call(place, "increment", key, by, expires_in=expires_in)

    @rule(place=places, names=st.lists(keys, max_size=5))
    def load_many(self, place: Place, names: list[str]) -> None:
        self.call(place, "load_many", names)

    @rule(
        place=places,
        mapping=st.dictionaries(keys, VALUES, min_size=1, max_size=4),
        expires_in=EXPIRIES,
    )
    def save_many(self, place: Place, mapping: dict[str, Any], expires_in: Any) -> None:
        self.call(place, "save_many", mapping, expires_in=expires_in)

    @rule(place=places, mapping=st.dictionaries(keys, VALUES, min_size=2, max_size=4))
    def fill(self, place: Place, mapping: dict[str, Any]) -> None:
        self.call(place, "save_many", mapping)

    @rule(place=places, value=VALUES)
    def fill_all(self, place: Place, value: Any) -> None:
        self.call(place, "save_many", dict.fromkeys(PLAIN_KEYS, value))

    @rule(place=places, names=st.lists(keys, max_size=4))
    def delete_many(self, place: Place, names: list[str]) -> None:
        self.call(place, "delete_many", names)

    @rule(
        place=places,
        prefix=prefixes,
        after=st.none() | prefixes,
        limit=st.none() | st.integers(0, 4) | st.just(10**30),
    )
    def list_keys(self, place: Place, prefix: str, after: str | None, limit: int | None) -> None:
        self.call(place, "keys", prefix, after=after, limit=limit)

    @rule(place=places, prefix=prefixes, verb=st.sampled_from(["scan", "items", "count"]))
    def list_more(self, place: Place, prefix: str, verb: str) -> None:
        self.call(place, verb, prefix)

    @rule(
        place=places,
        key=keys,
        verb=st.sampled_from(["clear", "clear_all", "erase_user"]),
    )
    def remove_many(self, place: Place, key: str, verb: str) -> None:
        args = {"clear": [key], "clear_all": [], "erase_user": [place.owner or "ann"]}
        self.call(place, verb, *args[verb])

    @rule(place=places, whole=st.booleans())
    def erase_namespace(self, place: Place, whole: bool) -> None:  # noqa: FBT001  # drawn
        name = place.namespace if whole else place.namespace.split("/")[0]
        self.call(place, "erase_namespace", name or "a")

    @rule(place=places, name=st.sampled_from(["x", "y", "folder"]))
    def write_file(self, place: Place, name: str) -> None:
        path = self.scopes[place.scope].folder / name
        path.touch()
        self.world.files.setdefault(place.scope, set()).add(path)

    @rule(
        place=places,
        key=keys,
        no_key=st.sampled_from(NO_KEYS),
        no_period=st.sampled_from(NO_PERIODS),
        no_json=st.sampled_from(NO_JSON),
    )
    def refuse(self, place: Place, key: str, no_key: Any, no_period: Any, no_json: Any) -> None:
        """Do what raises, each verb in each way, and changes nothing."""
        refused = [
            (kind, Call(place, verb, args, given))
            for kind, verb, args, given in refusals(key, no_key, no_period, no_json)
        ]
        outcomes, seen = self.runner.run(self.real([call for _, call in refused]))
        for (kind, call), outcome in zip(refused, outcomes, strict=True):
            assert outcome == told(kind), call
        fault = self.difference(self.world, seen)
        assert not fault, fault

    # --- At the same time.

    direct = st.one_of(
        st.builds(lambda p, k, v: Call(p, "save", (k, v)), places, keys, VALUES),
        st.builds(
            lambda p, k, v, e: Call(p, "save", (k, v), {"expires_in": e}),
            *(places, keys, VALUES, EXPIRIES),
        ),
        st.builds(lambda p, k, v: Call(p, "create", (k, v)), places, keys, VALUES),
        st.builds(lambda p, k: Call(p, "delete", (k,)), places, keys),
        st.builds(lambda p, k, e: Call(p, "expire", (k, e)), places, keys, EXPIRIES),
        st.builds(lambda p, k: Call(p, "clear", (k,)), places, keys),
        st.builds(lambda p, k: Call(p, "delete_many", (k,)), places, st.lists(keys, max_size=3)),
        st.builds(lambda p: Call(p, "clear_all", ()), places),
    )

    @rule(calls=st.lists(direct, min_size=2, max_size=8))
    def in_order(self, calls: list[Call]) -> None:
        """Make calls that take effect in their order."""
        self.at_once(calls)

    @rule(
        place=places,
        key=keys,
        first=st.sampled_from([[], ["save"]]),
        value=LISTS | VALUES,
        calls=st.lists(CHANGES, min_size=2, max_size=3),
    )
    def at_one_key(
        self, place: Place, key: str, first: list[str], value: Any, calls: list[tuple[Any, ...]]
    ) -> None:
        """Make calls for one key that take effect in some order."""
        calls = [(verb, value) for verb in first] + calls
        self.at_once([Call(place, verb, (key, *args)) for verb, *args in calls])

    @rule(place=places, key=keys, value=VALUES, calls=st.lists(CHANGES, min_size=1, max_size=2))
    def outlive(self, place: Place, key: str, value: Any, calls: list[tuple[Any, ...]]) -> None:
        """Make calls for a key whose row is still there and has expired."""
        self.call(place, "save", key, value, expires_in=1)
        self.world.now += 1
        self.at_once([Call(place, verb, (key, *args)) for verb, *args in calls])

    @rule(
        place=places,
        key=keys,
        steps=st.lists(st.tuples(INTS, EXPIRIES), min_size=2, max_size=12),
    )
    def add_up(self, place: Place, key: str, steps: list[tuple[int, Any]]) -> None:
        """Increments lose nothing, however many there are."""
        entry = self.world.live(place.scope).get(key)
        if entry is not None and type(entry.value) is not int:
            self.call(place, "delete", key)
        calls = [Call(place, "increment", (key, by), {"expires_in": e}) for by, e in steps]
        self.at_once(calls, [range(len(calls))])

    @rule(place=places, key=keys, values=st.lists(VALUES, min_size=2, max_size=6))
    def compute_once(self, place: Place, key: str, values: list[Any]) -> None:
        """Of many factories one is asked, if any."""
        factories = [Factory(value, "later") for value in values]
        absent = key not in self.world.live(place.scope)
        calls = [Call(place, "load_or_create", (key, factory)) for factory in factories]
        each = range(len(calls))
        self.at_once(calls, [sorted(each, key=first.__ne__) for first in each])
        assert sum(factory.calls for factory in factories) == absent


def test_all_verbs_against_a_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer, no error and no entry differs from a plain dict's."""
    clock = [World()]
    monkeypatch.setattr(context, "Repository", partial(Repository, now=lambda: clock[0].now))
    numbers = itertools.count()

    def run() -> Any:
        return Against(tmp_path / str(next(numbers)), clock, monkeypatch)

    run_state_machine_as_test(
        run,  # type: ignore[arg-type]  # it is called, and need not be a class
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
