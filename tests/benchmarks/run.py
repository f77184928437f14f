"""What the verbs cost beside what a user would otherwise pick: `tox -e bench`.

    python tests/benchmarks/run.py [--quick] [--only GROUP]… [--directory DIR] [--rounds N]
                                   [--no-write]

It starts itself twice, free and pinned to one core, and each time measures everything in rounds:
in a slice of a round all take a turn, in an order that chance decides. A ratio is that of the times
of a round, and a figure the median of the rounds with its quartiles.
"""

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import machine
import report
from contenders import CONTENDERS, KEYS, AbsentError, CheshireCat, Contender
from groups import GROUPS, Bench, Round
from measures import FULL, QUICK, Scale, Series, Turns

ROOT = Path(__file__).parents[2]
PASSES = ("free", "pinned")
BEGAN = monotonic()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds' worth: a smoke test")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(GROUPS),
        metavar="GROUP",
        help=f"measure this alone, and write nothing: {', '.join(GROUPS)}",
    )
    parser.add_argument("--directory", type=Path, help="where databases go (default: the checkout)")
    parser.add_argument("--rounds", type=int, help=f"how many (default: {FULL.rounds})")
    parser.add_argument("--no-write", action="store_true", help="leave README.md and docs alone")
    for name in ("json", "cheshire-cat", "why-not", "label"):  # for itself: see `measure_apart`
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser.parse_args()


def scale(options: argparse.Namespace) -> Scale:
    """Return how much is to be done."""
    chosen = QUICK if options.quick else FULL
    return replace(chosen, rounds=options.rounds) if options.rounds else chosen


def say(text: str, end: str = "\n") -> None:
    """Tell whoever waits."""
    print(text, end=end, file=sys.stderr, flush=True)


# --- The process that measures.


async def opened(place: Path, stack: AsyncExitStack) -> tuple[list[Contender], dict[str, str]]:
    """Return the contenders that are there, and why the others are not."""
    present, absent = [], {}
    for kind in CONTENDERS:
        contender, home = kind(), place / kind.__name__.lower()
        home.mkdir(mode=0o700)
        stack.push_async_callback(contender.close)
        try:
            await contender.open(home)
            await prove(contender)
        except ImportError as missing:
            absent[kind.name] = f"it is not installed ({missing.name})"
        except AbsentError as reason:
            absent[kind.name] = str(reason)
        else:
            present.append(contender)
    return present, absent


async def prove(contender: Contender) -> None:
    """Save and load, and insist that what comes back is what was given."""
    await contender.save(KEYS)
    loaded = await contender.load(KEYS)
    if set(loaded) != {"color", "size", "tags"} or loaded["tags"] != ["a", "b"]:
        raise AbsentError("it does not load what it saved")


async def measure(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Measure all groups, round by round, and return the numbers."""
    async with AsyncExitStack() as stack:
        contenders, absent = await opened(place, stack)
        children = stack.enter_context(ExitStack())
        bench = Bench(contenders, scale(options), place, children)
        rounds = await prepared(bench, options)
        series = await measured(rounds, bench.scale.rounds, options.label)
        remarks = [remark for each in contenders for remark in each.remarks()]
        for work in rounds.values():
            remarks += work.remarks if isinstance(work, Turns) else []
        versions = {each.name: each.version() for each in contenders}
    return {"series": series, "absent": absent, "versions": versions, "remarks": remarks}


async def prepared(bench: Bench, options: argparse.Namespace) -> dict[str, Round]:
    """Build what each group needs."""
    rounds = {}
    for name in options.only or GROUPS:
        say(f"{elapsed()} {options.label}: preparing {name}")
        rounds[name] = work = await GROUPS[name](bench)
        if isinstance(work, Turns):
            await work.warm_up()
    # What the imports of others left behind is no cost of anybody's saves.
    gc.collect()
    gc.freeze()
    return rounds


async def measured(rounds: dict[str, Round], times: int, label: str) -> Series:
    """Do so many rounds of each group, and return what was measured in all of them."""
    series: Series = {}
    for number in range(1, times + 1):
        say(f"{elapsed()} {label}: round {number} of {times}:", "")
        for name, work in rounds.items():
            say(f" {name}", "")
            for key, figure in (await work()).items():
                series.setdefault(key, []).append(figure)
        say("")
    return {key: seen for key, seen in series.items() if len(seen) == times}


def elapsed() -> str:
    """Return the time since the start, also of the process that started this one."""
    seconds = int(monotonic() - float(os.environ.setdefault("BENCH_BEGAN", str(BEGAN))))
    return f"{seconds // 60:2}:{seconds % 60:02}"


def measure_here(options: argparse.Namespace) -> None:
    """Be the process that measures: leave the numbers in a file."""
    if options.label == "pinned":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    CheshireCat.python, CheshireCat.why_not = options.cheshire_cat, options.why_not
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        numbers = asyncio.run(measure(options, Path(scratch)))
    Path(options.json).write_text(json.dumps(numbers))


# --- The process that reports.


def measure_apart(options: argparse.Namespace, scratch: Path, which: str, cat: list[str]) -> Any:
    """Start this program to measure, and return the numbers."""
    file = scratch / f"{which}.json"
    command = [sys.executable, __file__, "--json", str(file), "--label", which, *cat]
    command += ["--directory", str(scratch), "--rounds", str(scale(options).rounds)]
    command += ["--quick"] if options.quick else []
    for name in options.only or []:
        command += ["--only", name]
    # Settings of whoever runs this are not what a user would have.
    environment = {k: text for k, text in os.environ.items() if not k.startswith("CAT_")}
    subprocess.run(command, check=True, env=environment)
    return json.loads(file.read_text())


def install_cheshire_cat(options: argparse.Namespace, scratch: Path) -> list[str]:
    """Make a virtual environment with the real Cheshire Cat, and say where it is or why not."""
    if options.quick or options.only:
        return ["--why-not", "it is left out of a short run"]
    say(f"{elapsed()} installing {CheshireCat.package} in an environment of its own")
    python = scratch / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    steps = [
        [sys.executable, "-m", "venv", str(scratch / "venv")],
        [str(python), "-m", "pip", "install", "--quiet", CheshireCat.package],
    ]
    try:
        for step in steps:
            subprocess.run(step, check=True, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        return ["--why-not", "it was not installed within ten minutes"]
    except subprocess.CalledProcessError as failed:
        return ["--why-not", f"it does not install: {failed.stderr.strip().splitlines()[-1:]}"]
    return ["--cheshire-cat", str(python)]


def main() -> None:
    """Measure free and pinned, print the tables, and write them down."""
    options = arguments()
    if options.json:
        measure_here(options)
        return
    elapsed()
    with tempfile.TemporaryDirectory(dir=options.directory or ROOT, prefix=".bench-") as directory:
        scratch = Path(directory)
        about = machine.describe(scratch)
        cat = install_cheshire_cat(options, scratch)
        passes = {which: measure_apart(options, scratch, which, cat) for which in able()}
    found = report.Found(passes, about, scale(options))
    print(report.text(found))
    if not (options.quick or options.no_write or options.only):
        report.write(found, ROOT)
    say(f"{elapsed()} done")


def able() -> list[str]:
    """Return the passes that this platform can do."""
    return [which for which in PASSES if which == "free" or hasattr(os, "sched_setaffinity")]


if __name__ == "__main__":
    main()
