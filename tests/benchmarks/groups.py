"""What is measured together: for each group, what it needs, and a round of it."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

from contenders import KEYS, WAYS, CatStore, Contender, value
from layers import alone_cases, load_cases, saves
from lines import Child
from measures import Case, Scale, Turns

Round = Callable[[], Awaitable[dict[str, float]]]
HERE = Path(__file__).parent


@dataclass
class Bench:
    """What all groups are built from."""

    contenders: list[Contender]
    scale: Scale
    place: Path  # for databases
    stack: ExitStack  # ends what was started

    @property
    def ours(self) -> CatStore:
        """Return catstore."""
        [one] = [each for each in self.contenders if isinstance(each, CatStore)]
        return one

    def child(self, name: str) -> Child:
        """Start a process that uses catstore in a directory of its own."""
        child = Child(sys.executable, HERE / "child.py", home=self.place / name)
        self.stack.callback(child.close)
        return child

    def turns(self, cases: list[Case]) -> Turns:
        """Return a round of cases that take turns."""
        return Turns(cases, self.scale.slices)


# --- In the process that measures: catstore beside the others.


def once(name: str, function: Callable[..., Any], *arguments: Any) -> Case:
    """Return a case of catstore: a slice of 100."""
    return Case(f"{name}: catstore", lambda: function(*arguments), WAYS)


def twice(function: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[None]]:
    """Return a slice of two gathers of 100."""

    async def work() -> None:
        """Do it again, while everything is warm."""
        await function()
        await function()

    return work


def gathers(name: str, contender: Contender, function: Callable[[], Awaitable[Any]]) -> Case:
    """Return a case of 100 at once: two gathers in a slice, and one of those who are slow."""
    key = f"{name}: {contender.name}"
    if contender.every > 1:
        return Case(key, function, WAYS, contender.every)
    return Case(key, twice(function), 2 * WAYS)


def bump(old: dict[str, Any]) -> dict[str, Any]:
    """Return a value with its number raised."""
    return {**old, "size": old["size"] + 1}


async def load(bench: Bench) -> Round:
    """`load`, one at a time, of everybody."""
    from cat import as_user

    user = bench.ours.user
    with as_user("alice"):
        for key in KEYS:
            await user.save(key, value())

    async def user_load() -> None:
        """Load what is a user's own."""
        with as_user("alice"):
            for key in KEYS:
                await user.load(key)

    cases = [
        Case(f"load: {each.name}", lambda each=each: each.load(KEYS), WAYS, each.every)
        for each in bench.contenders
    ]
    return bench.turns([*cases, once("user.load", user_load)])


async def save(bench: Bench) -> Round:
    """`save`, one at a time, of everybody, and what changes a value."""
    store = bench.ours.store

    async def modify() -> None:
        """Change each key with a function."""
        for key in KEYS:
            await store.modify(key, bump)

    async def edit() -> None:
        """Change each key in place."""
        for key in KEYS:
            async with store.edit(key) as old:
                old["size"] += 1

    cases = [
        Case(f"save: {each.name}", lambda each=each: each.save(KEYS), WAYS, each.every)
        for each in bench.contenders
    ]
    return bench.turns([*cases, once("modify", modify), once("edit", edit)])


async def saves_at_once(bench: Bench) -> Round:
    """100 saves at once of everybody, and 100 changes of one key."""
    ours, store = bench.ours, bench.ours.store
    await store.save("modified", value())

    async def increments() -> None:
        """Count to 100 in 100 tasks."""
        await asyncio.gather(*[store.increment("counted") for _ in KEYS])

    async def modifies() -> None:
        """Change a value in 100 tasks."""
        await asyncio.gather(*[store.modify("modified", bump) for _ in KEYS])

    cases = [gathers("100 saves", each, each.save_at_once) for each in bench.contenders]
    cases.append(gathers("100 increments", ours, increments))
    cases.append(gathers("100 modifies", ours, modifies))
    return bench.turns(cases)


async def loads_at_once(bench: Bench) -> Round:
    """100 loads at once of everybody."""
    return bench.turns([gathers("100 loads", each, each.load_at_once) for each in bench.contenders])


async def layers(bench: Bench) -> Round:
    """Where the time of a load and of a save goes, in catstore itself."""
    store = bench.ours.store
    await bench.ours.save(KEYS)
    await bench.ours.load(KEYS)
    turns = bench.turns([*load_cases(store), *alone_cases()])

    async def measure() -> dict[str, float]:
        """Add the steps of 100 saves."""
        return await turns() | await saves(store, bench.scale.slices)

    return measure


async def edits(bench: Bench) -> Round:
    """100 edits of one key: one at a time, and at once."""
    store = bench.ours.store
    await store.save("edited", value())

    async def edit() -> None:
        """Change the value in place."""
        async with store.edit("edited") as old:
            old["size"] += 1

    async def alone() -> None:
        """Edit one after the other."""
        for _ in KEYS:
            await edit()

    async def together() -> None:
        """Edit in 100 tasks."""
        await asyncio.gather(*[edit() for _ in KEYS])

    return bench.turns([once("lone edits", alone), once("100 edits", together)])


# --- In processes of their own.


def told(key: str, operations: int, child: Child, verb: str, **arguments: object) -> Case:
    """Return a case that a child does, and of which it tells the time."""

    async def work() -> float:
        """Ask, and wait: nobody else is to do anything meanwhile."""
        return child.ask(verb, **arguments)

    return Case(key, work, operations, tells=True)


async def large(bench: Bench) -> Round:
    """Values of 1 MB, of catstore and plain sqlite3."""
    child, times = bench.child("large"), bench.scale.large
    cases = [
        told(
            f"{verb} {form}: {name}",
            times,
            child,
            f"large_{verb}",
            name=name,
            form=form,
            times=times,
        )
        for form in ("document", "text")
        for name in ("catstore", "sqlite3")
        for verb in ("save", "load")
    ]
    return bench.turns(cases)


async def held(bench: Bench) -> Round:
    """For how long a value of 1 MB holds the event loop."""
    child = bench.child("held")
    times = 2 * bench.scale.slices

    async def measure() -> dict[str, float]:
        """Return what it was of each form, of saves or loads, whichever is more."""
        seen = {}
        for form in ("document", "text"):
            answer = child.ask("held", form=form, times=times)
            seen[f"held {form}"] = answer["worst"]
            seen[f"held {form}, mostly"] = answer["mostly"]
        return seen

    return measure


async def lag(bench: Bench) -> Round:
    """How late the event loop is beside 100 tasks that save and load, and beside none."""
    child, scale = bench.child("lag"), bench.scale
    traffics = {"store": scale.lag, "sleep": scale.seconds, "none": scale.seconds}

    async def measure() -> dict[str, float]:
        """Return the shares of each kind of traffic."""
        late = {}
        for traffic, seconds in traffics.items():
            shares = child.ask("lag", traffic=traffic, seconds=seconds)
            late |= {f"lag, {traffic}: {share}": amount for share, amount in shares.items()}
        return late

    return measure


async def growth(bench: Bench) -> Round:
    """`load`, `save` and `keys` where there is little and where there is much."""
    cases = []
    for what, sizes in {"keys": bench.scale.keys, "users": bench.scale.users}.items():
        for size, number in zip(("small", "large"), sizes, strict=True):
            child = bench.child(f"{size}-{what}")
            child.ask(f"build_{what}", number=number)
            for verb, times in {"load": 100, "save": 100, "page of keys": 20}.items():
                key = f"{verb}, {what}: {size}"
                cases.append(told(key, times, child, f"grown_{verb.split()[0]}", times=times))
    return bench.turns(cases)


async def processes(bench: Bench) -> Round:
    """One process that saves 100-way, and four."""
    children = [bench.child("processes") for _ in range(4)]
    for child in children:
        child.ask("burst", seconds=0)
    turn = count()

    def together(chosen: list[Child]) -> list[dict[str, float]]:
        """Start all, and return what each did."""
        for child in chosen:
            child.tell("burst", seconds=bench.scale.seconds)
        return [child.hear() for child in chosen]

    async def measure() -> dict[str, float]:
        """Return the seconds that a save took, of one and of all."""
        [alone] = together([children[next(turn) % 4]])
        four = together(children)
        rates = sorted(one["saved"] / one["seconds"] for one in four)
        return {
            "one process": alone["seconds"] / alone["saved"],
            "four processes: sum": 1 / sum(rates),
            "four processes: slowest": 1 / rates[0],
            "four processes: fastest": 1 / rates[-1],
            "four processes: failed": sum(one["failed"] for one in [alone, *four]),
        }

    return measure


async def memory(bench: Bench) -> Round:
    """How much memory and how many threads 1,000 saves at once want."""
    number = count()

    async def measure() -> dict[str, float]:
        """Ask a new process."""
        child = bench.child(f"memory-{next(number)}")
        seen = child.ask("memory", saves=bench.scale.saves) or {}
        child.close()
        return {f"memory: {what}": amount for what, amount in seen.items()}

    return measure


# --- Whole processes.

TIMED = "from time import perf_counter as t; a = t(); {}; print(t() - a)"


def python(*words: str | Path, home: Path) -> tuple[float, str]:
    """Run a Python program to its end; return the seconds, and what it printed."""
    environment = os.environ | {"CAT_HOME": str(home)}
    started = perf_counter()
    done = subprocess.run(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
        cwd=home.parent,
    )
    return perf_counter() - started, done.stdout


async def imports(bench: Bench) -> Round:
    """Import in a new process: what the whole process takes, and the import inside it."""
    programs = {"catstore": "from cat import store, user", "aiosqlite": "import aiosqlite"}
    inside = dict.fromkeys(programs, 0.0)

    def case(name: str, program: str) -> Case:
        """Return one that runs a program."""

        async def work() -> float:
            """Run it, and sum what it says of itself."""
            seconds, said = python("-c", TIMED.format(program), home=bench.place / "none")
            inside[name] += float(said)
            return seconds

        return Case(f"import: {name}", work, 1, tells=True)

    turns = Turns([case(*each) for each in programs.items()], bench.scale.starts)
    await turns.warm_up()  # bytecode is written

    async def measure() -> dict[str, float]:
        """Add what was seen from inside."""
        inside.update(dict.fromkeys(inside, 0.0))
        seconds = await turns()
        told = {f"import alone: {name}": spent / turns.slices for name, spent in inside.items()}
        return seconds | told

    return measure


async def first(bench: Bench) -> Round:
    """Save in a new directory for the first time, to the exit of the process."""
    number = count()

    def case(name: str) -> Case:
        """Return one that runs a program in a directory of its own."""

        async def work() -> float:
            """Run it."""
            home = bench.place / f"first-{next(number)}"
            return python(HERE / f"first_save_{name}.py", home=home)[0]

        return Case(f"first: {name}", work, 1, tells=True)

    return Turns([case("catstore"), case("aiosqlite")], bench.scale.starts)


GROUPS: dict[str, Callable[[Bench], Awaitable[Round]]] = {
    "load": load,
    "save": save,
    "loads": loads_at_once,
    "saves": saves_at_once,
    "edits": edits,
    "layers": layers,
    "processes": processes,
    "large": large,
    "held": held,
    "lag": lag,
    "growth": growth,
    "memory": memory,
    "import": imports,
    "first": first,
}
