"""How it is measured: turns, statistics, and what is to be reached."""

import random
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

Series = dict[str, list[float]]  # a number for each round, by what was measured


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    rounds: int
    slices: int  # of a round
    large: int  # values of 1 MB in a slice
    starts: int  # of a program in a round
    seconds: float  # of what runs for a time
    lag: float  # seconds of traffic, of which one tick in a thousand is to be told
    keys: tuple[int, int]  # from so many to so many
    users: tuple[int, int]
    saves: int  # at once, for the memory


FULL = Scale(
    rounds=7,
    slices=20,
    large=2,
    starts=5,
    seconds=2.0,
    lag=5.0,
    keys=(10**3, 10**6),
    users=(10, 10**5),
    saves=1000,
)
QUICK = Scale(
    rounds=1,
    slices=1,
    large=2,
    starts=1,
    seconds=0.1,
    lag=0.2,
    keys=(10**2, 10**4),
    users=(10, 10**2),
    saves=1000,
)


@dataclass
class Case:
    """One of those who take turns."""

    key: str  # of its series
    work: Callable[[], Awaitable[Any]]  # a slice
    operations: int  # in a slice
    every: int = 1  # takes part in one of so many slices
    tells: bool = False  # whether `work` returns the seconds that it took


@dataclass
class Turns:
    """Cases that take turns in each slice of a round, in an order that chance decides."""

    cases: list[Case]
    slices: int
    remarks: list[str] = field(default_factory=list)

    async def __call__(self) -> dict[str, float]:
        """Measure one round, and return the seconds that an operation took each."""
        spent = {case.key: 0.0 for case in self.cases}
        done = dict.fromkeys(spent, 0)
        for number in range(self.slices):
            for case in random.sample(self.cases, len(self.cases)):
                if number % case.every == 0:
                    spent[case.key] += await self.slice(case)
                    done[case.key] += case.operations
        return {case.key: spent[case.key] / done[case.key] for case in self.cases}

    async def warm_up(self) -> None:
        """Let each do a slice that does not count."""
        for case in [*self.cases]:
            await self.slice(case)

    async def slice(self, case: Case) -> float:
        """Return the seconds of one slice; who has ended takes no more part."""
        started = perf_counter()
        try:
            told = await case.work()
        except EOFError as ended:
            self.cases.remove(case)
            self.remarks.append(f"{case.key}: ended: {ended}")
            return 0.0
        return told if case.tells else perf_counter() - started


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    low: float
    middle: float
    high: float


def spread(numbers: list[float]) -> Spread:
    """Return the median of the rounds, and the quartiles."""
    if len(numbers) == 1:
        return Spread(numbers[0], numbers[0], numbers[0])
    return Spread(*statistics.quantiles(numbers, n=4, method="inclusive"))


def ratio(series: Series, ours: str, other: str) -> Spread | None:
    """Return the spread of the ratios of the rounds, or None if one was not measured."""
    if ours not in series or other not in series:
        return None
    pairs = zip(series[ours], series[other], strict=True)
    return spread([mine / theirs for mine, theirs in pairs])


@dataclass(frozen=True)
class Target:
    """A figure to reach.

    With `other` it is the ratio of the times of two series, or of their rates if it is to be
    `at_least` so much; without, the number itself, which is to be at most so much.
    """

    line: str  # of the table
    reach: str  # in words
    ours: str
    other: str | None
    limit: float
    at_least: bool = False
    unit: str = "×"

    def figure(self, series: Series) -> Spread | None:
        """Return what was measured."""
        if self.other is None:
            return spread(series[self.ours]) if self.ours in series else None
        if self.at_least:
            return ratio(series, self.other, self.ours)
        return ratio(series, self.ours, self.other)

    def missed(self, figure: Spread) -> float:
        """Return by which part of the limit it was missed; 0 or less if it was met."""
        if self.at_least:
            return 1 - figure.middle / self.limit
        return figure.middle / self.limit - 1 if self.limit else figure.middle


def at_most(line: str, reach: str, ours: str, other: str, limit: float) -> Target:
    """Return a target for how many times as long as another it may take."""
    return Target(line, reach, ours, other, limit)


def at_least(
    line: str, reach: str, ours: str, other: str, limit: float, *, unit: str = "×"
) -> Target:
    """Return a target for how many times as fast as another it has to be."""
    return Target(line, reach, ours, other, limit, at_least=True, unit=unit)


def number(line: str, reach: str, ours: str, limit: float, unit: str) -> Target:
    """Return a target for a number that is compared with nothing else."""
    return Target(line, reach, ours, None, limit, unit=unit)


def large_targets() -> list[Target]:
    """Return those for a value of 1 MB, as a document and as one text."""
    line = "a value of 1 MB"
    rows = [
        at_most(
            line,
            f"{verb} of a {form} ≤ 1.3 × plain sqlite3 with json",
            f"{verb} {form}: catstore",
            f"{verb} {form}: sqlite3",
            1.3,
        )
        for form in ("document", "text")
        for verb in ("save", "load")
    ]
    reach = "event loop never held > 10 ms beyond coding"
    held = [
        number(line, f"{reach}, {form}", f"held {form}", 10, "ms") for form in ("document", "text")
    ]
    return rows + held


def growth_targets() -> list[Target]:
    """Return those for more keys and for more users."""
    steps = {"keys": "10³ → 10⁶ keys in a scope", "users": "10 → 10⁵ users"}
    return [
        at_most(
            f"growth, {step}",
            f"{verb} ≤ 1.5 ×",
            f"{verb}, {what}: large",
            f"{verb}, {what}: small",
            1.5,
        )
        for what, step in steps.items()
        for verb in ("load", "save", "page of keys")
    ]


LOAD = "`store.load`, small value, one at a time"
SAVE = "`store.save`, durable, one at a time"
SAVES = "100 concurrent durable saves"
LOADS = "100 concurrent loads"
ONE_KEY = "100 concurrent changes of one key"
CHANGES = "`modify`, `edit`, one at a time"
EDITS = "100 concurrent `edit`s of one key"
FOUR = "4 processes saving 100-way"
MEMORY = "memory, 1,000 concurrent saves"
FIRST = "first `save` in a new directory, to exit of the process"
HUNDRED = "≥ the rate of 100 saves of 100 keys"

TARGETS = [
    at_most(LOAD, "≤ 1.2 × plain sqlite3 with json.loads", "load: catstore", "load: sqlite3", 1.2),
    at_least(LOAD, "≥ 10 × faster than aiosqlite", "load: catstore", "load: aiosqlite", 10),
    at_least(LOAD, "faster than diskcache", "load: catstore", "load: diskcache", 1),
    at_most("`user.load`", "≤ 1.05 × `store.load`", "user.load: catstore", "load: catstore", 1.05),
    at_most(SAVE, "≤ 1.15 × one aiosqlite upsert", "save: catstore", "save: aiosqlite", 1.15),
    at_least(SAVES, "≥ 10 × aiosqlite's rate", "100 saves: catstore", "100 saves: aiosqlite", 10),
    at_least(
        SAVES,
        "≥ 55 % of plain sqlite3 in one transaction",
        "100 saves: catstore",
        "100 saves: sqlite3",
        0.55,
        unit="%",
    ),
    at_most(LOADS, "≤ 1.25 × plain sqlite3", "100 loads: catstore", "100 loads: sqlite3", 1.25),
    at_least(LOADS, "≥ 4 × aiosqlite's rate", "100 loads: catstore", "100 loads: aiosqlite", 4),
    at_least(
        ONE_KEY, f"`increment`: {HUNDRED}", "100 increments: catstore", "100 saves: catstore", 1
    ),
    at_least(ONE_KEY, f"`modify`: {HUNDRED}", "100 modifies: catstore", "100 saves: catstore", 1),
    at_most(CHANGES, "`modify` ≤ 1.3 × `save`", "modify: catstore", "save: catstore", 1.3),
    at_most(CHANGES, "`edit` ≤ 1.5 × `save`", "edit: catstore", "save: catstore", 1.5),
    at_least(
        EDITS, "≥ 5 × the rate of one at a time", "100 edits: catstore", "lone edits: catstore", 5
    ),
    number(FOUR, "no error", "four processes: failed", 0, "errors"),
    at_least(FOUR, "sum ≥ one process's rate", "four processes: sum", "one process", 1),
    at_least(
        FOUR,
        "slowest ≥ half the fastest",
        "four processes: slowest",
        "four processes: fastest",
        0.5,
        unit="%",
    ),
    *large_targets(),
    number("event-loop lag with 100-way traffic", "99.9 % < 5 ms", "lag, store: 99.9 %", 5, "ms"),
    *growth_targets(),
    number(MEMORY, "≤ 3 threads", "memory: threads", 3, "threads"),
    number(MEMORY, "≤ 20 MB above the idle process", "memory: megabytes", 20, "MB"),
    at_most(
        "`from cat import store, user`",
        "≤ 1.1 × `import aiosqlite`",
        "import: catstore",
        "import: aiosqlite",
        1.1,
    ),
    at_most(
        FIRST, "≤ 1.3 × the same by hand with aiosqlite", "first: catstore", "first: aiosqlite", 1.3
    ),
]
