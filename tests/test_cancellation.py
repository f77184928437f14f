"""A cancelled call is made or not made, holds no lock, and harms nobody else.

Each verb is cancelled at every point at which it can be, alone and among the
calls of others; then whole schedules are made up at random.
"""

# ruff: noqa: S311  # a seed that tells a schedule is no secret

import asyncio
import collections
import importlib.util
import random
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import cat
from cat import store
from cat.errors import DatabaseBusyError, UnstorableValueError
from children import lock_holder

LARGE = "x" * 400_000  # more than is read on the loop's own thread
SEEDS = 200
ABSENT = None


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.SelectorEventLoop}
if importlib.util.find_spec("uvloop"):
    LOOPS["uvloop"] = _uvloop


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Return `asyncio.run`, on each kind of loop that is installed."""

    def run_one(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(main)

    return run_one


def assert_unlocked(home: Path) -> None:
    """Another connection, which knows nothing of us, can write at once."""
    connection = sqlite3.connect(home / "cat.db", timeout=1, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    finally:
        connection.close()


async def within(awaitable: Awaitable[Any]) -> Any:
    """Return what comes of `awaitable`, which must not take long."""
    async with asyncio.timeout(5):
        return await awaitable


# --- Where a call is cancelled.


class Cut:
    """Runs a coroutine, and cancels it at its suspension number `at`, counted from 0.

    With `thrown`, the exception is thrown into it there and then, and what it
    waits for is left as it is; else its task is cancelled, and with it what it
    waits for. `reached` says whether it was suspended so often.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int, *, thrown: bool) -> None:
        self.reached = False
        self._coroutine = coroutine
        self._at = at
        self._thrown = thrown

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = lambda: self._coroutine.send(None)  # noqa: E731
        count = 0
        while True:
            try:
                waits_for = step()
                if count == self._at:
                    self.reached = True
                    if self._thrown:
                        waits_for = self._coroutine.throw(asyncio.CancelledError())
                    else:
                        asyncio.current_task().cancel()
            except StopIteration as end:
                return end.value
            count += 1
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001  # handed on
                step = lambda error=error: self._coroutine.throw(error)  # noqa: E731
            else:
                step = lambda: self._coroutine.send(None)  # noqa: E731


async def cut_at_suspension(
    coroutine: Coroutine[Any, Any, Any], at: int, *, thrown: bool
) -> tuple[bool, object]:
    """Run a coroutine with a cut; return whether it was reached, and the outcome."""
    cut = Cut(coroutine, at, thrown=thrown)

    async def wrapped() -> Any:
        return await cut

    [outcome] = await within(asyncio.gather(asyncio.create_task(wrapped()), return_exceptions=True))
    return cut.reached, outcome


async def cut_after_turns(coroutine: Coroutine[Any, Any, Any], count: int) -> tuple[bool, object]:
    """Cancel a task after `count` turns of the loop; return whether it was still running."""
    task = asyncio.create_task(coroutine)
    for _ in range(count):
        await asyncio.sleep(0)
    running = not task.done()
    task.cancel()
    [outcome] = await within(asyncio.gather(task, return_exceptions=True))
    return running, outcome


CUTS: dict[str, Callable[..., Awaitable[tuple[bool, object]]]] = {
    "thrown at each suspension": lambda call, at: cut_at_suspension(call, at, thrown=True),
    "cancelled at each suspension": lambda call, at: cut_at_suspension(call, at, thrown=False),
    "cancelled after each turn": cut_after_turns,
}


def places(cut: str) -> Iterator[int]:
    """Every place in turn; a call may take thousands of turns, most of them alike."""
    place = 0
    while True:
        yield place
        place += 1 if "suspension" in cut or place < 12 else place // 2


# --- What is cancelled: a verb, and what may then be found under its key.

VERBS: dict[str, tuple[Callable[[], Coroutine[Any, Any, Any]], object]] = {
    "save": (lambda: store.save("k", "new"), "new"),
    "save a large value": (lambda: store.save("k", LARGE), LARGE),
    "load": (lambda: store.load("k"), "old"),
    "load a large value": (lambda: store.load("large"), "old"),
    "exists": (lambda: store.exists("k"), "old"),
    "delete": (lambda: store.delete("k"), ABSENT),
}
ANSWERS = {
    "save": "new",
    "save a large value": LARGE,
    "load": "old",
    "load a large value": LARGE,
    "exists": True,
    "delete": True,
}


async def prepare() -> None:
    """Store what the verbs then find."""
    await store.save("k", "old")
    await store.save("large", LARGE)
    for number in range(3):
        await store.save(f"gone{number}", number)


async def assert_as_if_whole(home: Path, verb: str, outcome: object) -> None:
    """Assert that the key has its old value or its new one, by the outcome, and all goes on."""
    assert_unlocked(home)
    found = await within(store.load("k"))
    if isinstance(outcome, asyncio.CancelledError):
        assert found in ("old", VERBS[verb][1])
    else:
        assert outcome == ANSWERS[verb]
        assert found == VERBS[verb][1]
    assert await within(store.load("large")) == LARGE
    await within(store.save("k", "later"))
    await asyncio.sleep(0.001)
    assert await within(store.load("k")) == "later"
    assert_unlocked(home)


def neighbours(side: str) -> list[asyncio.Task[Any]]:
    """Let others write at the same time: what they store, remove, and may not store."""
    return [
        *(asyncio.create_task(store.save(f"{side}{n}", n)) for n in range(3)),
        asyncio.create_task(store.delete("gone0" if side == "before" else "gone1")),
        asyncio.create_task(store.delete("never there")),
        asyncio.create_task(store.save(f"{side} bad", {1, 2})),
    ]


async def assert_answered(side: str, tasks: list[asyncio.Task[Any]]) -> None:
    """Each of the neighbours got its own answer or its own error."""
    *good, bad = await within(asyncio.gather(*tasks, return_exceptions=True))
    assert good == [0, 1, 2, True, False]
    assert isinstance(bad, UnstorableValueError)
    assert [await store.load(f"{side}{n}") for n in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("verb", VERBS)
def test_alone(verb: str, cut: str, run: Callable[..., Any], home: Path) -> None:
    """Cancelled at any await, a verb leaves the old value or the new one, and no lock."""

    async def main() -> None:
        for place in places(cut):
            await prepare()
            reached, outcome = await CUTS[cut](VERBS[verb][0](), place)
            await assert_as_if_whole(home, verb, outcome)
            if not reached:
                return

    run(main())


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("verb", VERBS)
def test_inside_a_group(verb: str, cut: str, run: Callable[..., Any], home: Path) -> None:
    """Cancelled among others whose writes share its commit, a verb fails none of them."""

    async def main() -> None:
        for place in places(cut):
            await prepare()
            before = neighbours("before")
            await asyncio.sleep(0)  # the first of them is under way: the rest are a group
            both = asyncio.create_task(CUTS[cut](VERBS[verb][0](), place))
            after = neighbours("after")
            reached, outcome = await within(both)
            await assert_answered("before", before)
            await assert_answered("after", after)
            await assert_as_if_whole(home, verb, outcome)
            if not reached:
                return

    run(main())


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("company", ["alone", "others wait too"])
@pytest.mark.parametrize("verb", VERBS)
def test_the_verb_that_opens(
    verb: str, company: str, cut: str, run: Callable[..., Any], home: Path
) -> None:
    """Cancelled while it opens the database, a verb leaves it openable by those who wait too."""
    run(prepare())

    async def main(place: int) -> bool:
        others = [] if company == "alone" else neighbours("before")
        call = asyncio.create_task(CUTS[cut](VERBS[verb][0](), place))
        others_after = [] if company == "alone" else neighbours("after")
        reached, outcome = await within(call)
        if others:
            await assert_answered("before", others)
            await assert_answered("after", others_after)
        await assert_as_if_whole(home, verb, outcome)
        await prepare()
        return reached

    for place in places(cut):
        if not run(main(place)):
            return


@pytest.mark.parametrize("cut", CUTS)
def test_connect(cut: str, run: Callable[..., Any], home: Path) -> None:
    """Cancelled on its way in, inside or on its way out, a block lets go of all it has."""

    async def block() -> str:
        async with cat.connect(home=home):
            await store.save("k", "new")
            await store.load("large")
        return "left"

    async def main() -> None:
        for place in places(cut):
            async with cat.connect(home=home):
                await prepare()
            reached, outcome = await CUTS[cut](block(), place)
            assert outcome == "left" or isinstance(outcome, asyncio.CancelledError)
            async with cat.connect(home=home.parent / "other"):  # or this would be refused
                await within(store.save("k", "other"))
            assert_unlocked(home)
            async with cat.connect(home=home):
                assert await within(store.load("k")) in (
                    ("new",) if outcome == "left" else ("old", "new")
                )
            if not reached:
                return

    run(main())


def test_all_of_a_group(run: Callable[..., Any], home: Path) -> None:
    """When every caller of a group is cancelled, what was begun is whole and the rest is not."""

    async def main() -> None:
        for turns in range(12):
            await prepare()
            tasks = [asyncio.create_task(store.save(f"all{n}", turns)) for n in range(20)]
            tasks.append(asyncio.create_task(store.save("k", "new")))
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await within(asyncio.gather(*tasks, return_exceptions=True))
            outcome = await asyncio.gather(tasks[-1], return_exceptions=True)
            await assert_as_if_whole(home, "save", outcome[0])

    run(main())


# --- Waiting for another process.


@pytest.fixture
def locked(home: Path) -> Iterator[Callable[[str], None]]:
    """Return what tells another process to `hold` the write lock, or to `release` it."""
    process = lock_holder()

    def tell(line: str) -> None:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"

    yield tell
    process.communicate(timeout=10)


async def save_for(seconds: float, key: str, value: object) -> None:
    """Save, but give up after so many seconds."""
    async with asyncio.timeout(seconds):
        await store.save(key, value)


def test_a_timeout_while_another_process_writes(
    run: Callable[..., Any], home: Path, locked: Callable[[str], None]
) -> None:
    """A save given up while it waits is never made later, unless it had begun to be written."""

    async def main() -> None:
        await prepare()
        locked("hold")
        begun = asyncio.create_task(save_for(0.05, "k", "new"))
        await asyncio.sleep(0)
        never = [asyncio.create_task(save_for(0.05, f"never{n}", n)) for n in range(20)]
        never.append(asyncio.create_task(save_for(0.05, "k", "never")))
        patient = asyncio.create_task(store.save("patient", 1))
        outcomes = await within(asyncio.gather(begun, *never, return_exceptions=True))
        assert {type(outcome) for outcome in outcomes} == {TimeoutError}
        assert await store.load("k") == "old"
        assert not patient.done()
        locked("release")
        await within(patient)
        assert await store.load("k") in ("old", "new")
        assert [await store.exists(f"never{n}") for n in range(20)] == [False] * 20
        await store.save("k", "later")
        await asyncio.sleep(0.05)
        assert await store.load("k") == "later"
        assert_unlocked(home)

    run(main())


def test_a_timeout_of_the_first_verb(
    run: Callable[..., Any], home: Path, locked: Callable[[str], None]
) -> None:
    """A first verb given up while another process writes leaves a store that works."""
    run(prepare())
    locked("hold")

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await save_for(0.1, "k", "new")
        assert await within(store.load("k")) == "old"
        locked("release")
        await within(store.save("other", 1))
        assert await store.load("k") in ("old", "new")
        assert_unlocked(home)

    run(main())


def test_giving_up_by_oneself(
    run: Callable[..., Any],
    home: Path,
    locked: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After `CAT_TIMEOUT` every caller is told that nothing was stored, and that is so."""
    monkeypatch.setenv("CAT_TIMEOUT", "0.2")
    run(prepare())

    async def main() -> None:
        await store.load("k")
        locked("hold")
        calls = [store.save("k", "never"), *(store.save(f"never{n}", n) for n in range(20))]
        given_up = store.save("given up", 1)
        tasks = [asyncio.create_task(call) for call in [*calls, given_up]]
        await asyncio.sleep(0.05)
        tasks[-1].cancel()
        outcomes = await within(asyncio.gather(*tasks, return_exceptions=True))
        assert {type(outcome) for outcome in outcomes[:-1]} == {DatabaseBusyError}
        assert all(outcome.not_stored for outcome in outcomes[:-1])
        locked("release")
        await asyncio.sleep(0.05)
        assert await store.load("k") == "old"
        assert not any([await store.exists(f"never{n}") for n in range(20)])
        await store.save("k", "later")
        assert_unlocked(home)

    run(main())


# --- Order, at random.


class ShuffleLoop(asyncio.SelectorEventLoop):
    """Runs of what is ready a random part each turn, the rest later: a seed is a schedule."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)

    def _run_once(self) -> None:
        ready = list(self._ready)
        self._random.shuffle(ready)
        count = self._random.randint(1, len(ready)) if ready else 0
        self._ready.clear()
        self._ready.extend(ready[:count])
        super()._run_once()
        self._ready.extend(ready[count:])


class History:
    """Writes and reads of one key, in the order in which they were called."""

    def __init__(self) -> None:
        self.writes: list[list[Any]] = []  # kind, value, outcome; None while it is not known
        self.reads: list[tuple[int, int, object]] = []

    async def write(self, kind: str, key: str, value: object) -> None:
        """Save or delete, and note the call and its outcome."""
        entry = [kind, value, None]
        self.writes.append(entry)
        try:
            if kind == "save":
                await store.save(key, value)
                entry[2] = "saved"
            else:
                entry[2] = await store.delete(key)
        except asyncio.CancelledError:
            entry[2] = "cancelled"
            raise

    async def read(self, key: str) -> None:
        """Load, and note between which writes."""
        known = [number for number, write in enumerate(self.writes) if write[2] not in NOT_KNOWN]
        found = await store.load(key)
        self.reads.append((max(known, default=-1), len(self.writes), found))

    def check(self, last: object) -> None:
        """Raise unless every answer is right if the calls took effect in their order."""
        may_be: set[object] = {ABSENT}
        after = [may_be]  # what there may be after so many writes
        for kind, value, outcome in self.writes:
            made = {value} if kind == "save" else {ABSENT}
            if outcome == "cancelled":
                may_be = may_be | made
            else:
                if outcome is True:
                    assert may_be - {ABSENT}, "a delete removed what was not there"
                if outcome is False:
                    assert ABSENT in may_be, "a delete did not find what was there"
                may_be = made
            after.append(may_be)
        for known, called, found in self.reads:
            assert found in set().union(*after[known + 1 : called + 1]), "a read of another time"
        assert last in may_be


NOT_KNOWN = (None, "cancelled")


@pytest.mark.parametrize("part", range(4))
def test_any_schedule(part: int, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the schedule, saves, deletes and reads of a key keep the order of their calls."""
    kinds: collections.Counter[str] = collections.Counter()

    async def main(seed: int) -> None:
        chance = random.Random(seed)
        histories = {key: History() for key in (f"{seed}a", f"{seed}b", f"{seed}c")}
        await store.exists("open")
        tasks = []
        for number in range(60):
            key = chance.choice(list(histories))
            kind = chance.choice(["save", "save", "delete", "read", "read"])
            if kind == "read":
                call = histories[key].read(key)
            else:
                call = histories[key].write(kind, key, number)
            tasks.append(asyncio.create_task(call))
            if chance.random() < 0.3:
                chance.choice(tasks).cancel()
            if chance.random() < 0.2:
                await asyncio.sleep(chance.choice([0, 0, 0.001]))
        for task in chance.sample(tasks, 5):
            task.cancel()
        done = await within(asyncio.gather(*tasks, return_exceptions=True))
        assert {type(one) for one in done} <= {type(None), asyncio.CancelledError}
        for key, history in histories.items():
            history.check(await store.load(key))
            kinds.update(str(write[2]) for write in history.writes)

    for seed in range(part, SEEDS, 4):
        with asyncio.Runner(loop_factory=lambda seed=seed: ShuffleLoop(seed)) as runner:
            runner.run(main(seed))
    assert min(kinds[kind] for kind in ("saved", "cancelled", "True", "False")) > 20, kinds
    assert_unlocked(home)


def test_the_harness_finds_a_wrong_order() -> None:
    """The check of a history is able to fail."""
    history = History()
    history.writes = [["save", 1, "saved"], ["save", 2, "saved"], ["delete", None, "cancelled"]]
    history.reads = [(1, 2, 2)]
    history.check(2)
    history.check(ABSENT)
    with pytest.raises(AssertionError):
        history.check(1)
    history.reads = [(1, 2, 1)]
    with pytest.raises(AssertionError):
        history.check(2)
    history.reads = []
    history.writes[2][2] = False
    with pytest.raises(AssertionError):
        history.check(ABSENT)


def test_order_while_the_database_opens(run: Callable[..., Any], home: Path) -> None:
    """Calls made before, while and after the database opens take effect in their order."""

    async def main() -> None:
        tasks = []
        for _ in range(20):  # a save and a delete each turn: none may overtake another
            for _ in range(100):
                tasks.append(asyncio.create_task(store.save("k", "v")))
                await asyncio.sleep(0)
                tasks.append(asyncio.create_task(store.delete("k")))
                await asyncio.sleep(0)
            if tasks[-1].done():
                break
        answers = await within(asyncio.gather(*tasks))
        assert answers == ["v", True] * (len(answers) // 2)

    for _ in range(5):
        run(main())
