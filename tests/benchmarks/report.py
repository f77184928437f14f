"""What is told: tables in Markdown, for the terminal and the docs, and the words of the README."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

from contenders import CONTENDERS, WAYS, Contender
from layers import ALONE, LOAD, SAVES
from measures import TARGETS, Scale, Series, Spread, Target, ratio

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
MEASURES = {
    "save": "save",
    "load": "load",
    "100 saves": "100 saves at once",
    "100 loads": "100 loads at once",
}


@dataclass
class Found:
    """All that was measured."""

    passes: dict[str, dict[str, Any]]  # free and pinned: series, versions, absent, remarks
    about: dict[str, str]
    scale: Scale

    def series(self, which: str = "free") -> Series:
        """Return the numbers of a pass."""
        return self.passes[which]["series"]

    def present(self) -> list[type[Contender]]:
        """Return who took part."""
        return [kind for kind in CONTENDERS if kind.name in self.passes["free"]["versions"]]


# --- Words for numbers.

COUNTED = {"errors", "threads"}


def digits(number: float) -> str:
    """Return three digits of a number, two of a small one, and all of a large one."""
    for below, form in {0.1: "{:.2g}", 10: "{:.2f}", 100: "{:.1f}"}.items():
        if abs(number) < below:
            return form.format(number)
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """Return seconds in the unit that suits them."""
    for unit, factor in {"µs": 1e6, "ms": 1e3}.items():
        if seconds * factor < 1000:
            return f"{digits(seconds * factor)} {unit}"
    return f"{digits(seconds)} s"


def spread_of(figure: Spread, unit: str) -> str:
    """Return a median with its quartiles."""
    write = "{:g}".format if unit in COUNTED else digits
    factor = 100 if unit == "%" else 1
    low, middle, high = (write(factor * n) for n in (figure.low, figure.middle, figure.high))
    return f"{middle} {unit} ({low} to {high})"


def prose(words: str) -> str:
    """Return a paragraph in lines of 88 characters, no figure apart from its unit."""
    return fill(words.replace(" ×", "\0×"), 88).replace("\0", " ")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown that is legible as it stands."""
    cells = [header, ["---"] * len(header), *rows]
    widths = [max(len(row[place]) for row in cells) for place in range(len(header))]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    return "\n".join(f"| {line} |" for line in lines)


# --- The lines of the issue.


def verdict(target: Target, figure: Spread) -> str:
    """Say whether a target was met, and by how much it was not."""
    missed = target.missed(figure)
    if missed <= 0:
        return "met"
    return f"missed by {max(1, round(100 * missed))} %" if target.limit else "missed"


def outcome(target: Target, series: Series) -> list[str]:
    """Return the cells of one pass."""
    figure = target.figure(series)
    if figure is None:
        return ["–", "not measured"]
    return [spread_of(figure, target.unit), verdict(target, figure)]


def takes(target: Target, series: Series) -> str:
    """Return the time of one operation of catstore, where the figure is a ratio of times."""
    if target.other is None or target.ours not in series:
        return ""
    return duration(median(series[target.ours]))


def wanted(target: Target, found: Found) -> bool:
    """Say whether any of it was measured: `--only` leaves the others out."""
    return target.ours in found.series()


def target_table(found: Found) -> str:
    """Return the table of the targets."""
    header = ["measure", "to reach", "catstore takes"]
    for which in found.passes:
        header += [which, "verdict"]
    rows = []
    for target in filter(lambda target: wanted(target, found), TARGETS):
        row = [target.line, target.reach, takes(target, found.series())]
        for which in found.passes:
            row += outcome(target, found.series(which))
        rows.append(row)
    return table(header, rows)


# --- The peers.


def peer_cell(measure: str, name: str, series: Series) -> str:
    """Return the time of one operation of a peer, and catstore's as a multiple of it."""
    key = f"{measure}: {name}"
    if key not in series:
        return "–"
    text = duration(median(series[key]))
    times = ratio(series, f"{measure}: catstore", key)
    return text if name == "catstore" or times is None else f"{text} ({digits(times.middle)} ×)"


def peer_table(found: Found, which: str) -> str:
    """Return the table of all who took part."""
    series = found.series(which)
    measures = [measure for measure in MEASURES if f"{measure}: catstore" in series]
    header = ["", *[MEASURES[measure] for measure in measures], "100 at once are", "a save is"]
    rows = [
        [
            kind.name + "*" * kind.blocks,
            *[peer_cell(measure, kind.name, series) for measure in measures],
            kind.at_once,
            kind.durable,
        ]
        for kind in found.present()
    ]
    return table(header, rows)


# --- What else was seen.

BESIDE = {
    "1 MB document, loop held beyond coding, worst of all rounds": ("held document", max, "ms"),
    "1 MB document, loop held beyond coding, mostly": ("held document, mostly", median, "ms"),
    "1 MB text, loop held beyond coding, worst of all rounds": ("held text", max, "ms"),
    "1 MB text, loop held beyond coding, mostly": ("held text, mostly", median, "ms"),
    "one process saving 100-way": ("one process", median, "/s"),
    "four processes saving 100-way, together": ("four processes: sum", median, "/s"),
    "`from cat import store, user`, inside the process": (
        "import alone: catstore",
        median,
        "s",
    ),
    "`import aiosqlite`, inside the process": ("import alone: aiosqlite", median, "s"),
}
TRAFFIC = {
    "store": "100 tasks that save and load",
    "sleep": "100 tasks in `sleep(0)`",
    "none": "no traffic",
}


def beside_cell(series: Series, key: str, pick: Any, unit: str) -> str:
    """Return a figure of the rounds."""
    if key not in series:
        return "–"
    seen = pick(series[key])
    if unit == "/s":
        return f"{digits(1 / seen)} saves a second"
    return duration(seen) if unit == "s" else f"{digits(seen)} {unit}"


def beside_table(found: Found) -> str:
    """Return the figures that have no target, but explain those that have one."""
    rows = [
        [words, *[beside_cell(found.series(which), *how) for which in found.passes]]
        for words, how in BESIDE.items()
        if how[0] in found.series()
    ]
    return table(["figure", *found.passes], rows) if rows else ""


def lag_table(found: Found) -> str:
    """Return how late the event loop was."""
    shares = ["50 %", "99 %", "99.9 %", "worst"]
    rows = []
    for which in found.passes:
        for traffic, words in TRAFFIC.items():
            keys = [f"lag, {traffic}: {share}" for share in shares]
            cells = [beside_cell(found.series(which), key, median, "ms") for key in keys]
            rows.append([f"{words}, {which}", *cells])
    measured = "lag, store: worst" in found.series()
    return table(["beside", *shares], rows) if measured else ""


def layer_tables(found: Found) -> list[str]:
    """Return where the time of a load goes, that of 100 saves, and what cannot be spared."""
    tables = []
    for key, header, layers in (
        ("load", "a load, from the inside out", LOAD),
        ("saves", "one of 100 saves at once, step by step", SAVES),
        ("alone", "for comparison", ALONE),
    ):
        rows = [
            [
                words,
                *[
                    beside_cell(found.series(which), f"layer, {key}: {layer}", median, "s")
                    for which in found.passes
                ],
            ]
            for layer, words in layers.items()
        ]
        if f"layer, {key}: {next(iter(layers))}" in found.series():
            tables.append(table([header, *found.passes], rows))
    return tables


# --- How, where and with whom.


def rounds(found: Found) -> list[str]:
    """Say how much was done."""
    scale = found.scale
    each, at_once = WAYS * scale.slices, 2 * WAYS * scale.slices
    slow = [
        f"{kind.name} {WAYS * -(-scale.slices // kind.every):,}"
        for kind in found.present()
        if min(kind.every, scale.slices) > 1
    ]
    fewer = f", of those that are slow fewer: {', '.join(slow)} of each" if slow else ""
    return [
        f"rounds: {scale.rounds}, slices of each: {scale.slices}",
        f"operations in a round: {each:,} one at a time, {at_once:,} at once{fewer}",
        f"values of 1 MB in a round: {scale.large * scale.slices}",
        f"starts of each program in a round: {scale.starts}",
        f"growth: from {scale.keys[0]:,} to {scale.keys[1]:,} keys in a scope",
        f"growth: from {scale.users[0]:,} to {scale.users[1]:,} users with ten keys each",
    ]


def remarks(found: Found) -> list[str]:
    """Return what a reader has to know of this run."""
    told = rounds(found)
    told += [
        f"{name}: not measured: {why}." for name, why in found.passes["free"]["absent"].items()
    ]
    for which, numbers in found.passes.items():
        told += [f"{which}: {remark}" for remark in numbers["remarks"]]
    if "pinned" not in found.passes:
        told.append("This platform cannot pin a process to a core: that column is left out.")
    return told


def where(found: Found) -> list[str]:
    """Return the date, the machine and the versions."""
    versions = ", ".join(
        f"{name} {version}" for name, version in found.passes["free"]["versions"].items()
    )
    return [*[f"{name}: {text}" for name, text in found.about.items()], f"versions: {versions}"]


NOTE = (
    "A figure is the median of the rounds, with the quartiles in brackets, and the time beside it"
    " that of one operation of catstore, free."
)
PEERS = (
    "The time of one operation, and in brackets catstore's as a multiple of it: below 1, catstore"
    " is faster. A save of those with a star holds the event loop until it is done."
)
LATE = "By how much a task that sleeps for a millisecond wakes up late."
NAMES = {"free": "free", "pinned": "pinned to one core (`taskset -c 0`)"}


def sections(found: Found) -> dict[str, str]:
    """Return all of it by headings; what was not measured is empty."""
    peers = {
        f"Peers, {NAMES[which]}": f"{prose(PEERS)}\n\n{peer_table(found, which)}"
        for which in found.passes
        if any(f"{measure}: catstore" in found.series() for measure in MEASURES)
    }
    run = "\n".join(f"- {line}" for line in [*remarks(found), *where(found)])
    late = lag_table(found)
    return {
        "Targets": f"{prose(NOTE)}\n\n{target_table(found)}",
        **peers,
        "The event loop": f"{LATE}\n\n{late}" if late else "",
        "Also seen": beside_table(found),
        "Where the time goes": "\n\n".join(layer_tables(found)),
        "This run": run,
    }


def text(found: Found) -> str:
    """Return all of it in Markdown."""
    told = [f"### {heading}\n\n{body}" for heading, body in sections(found).items() if body]
    return "\n\n".join(told)


# --- What is written down.


def summary(found: Found) -> str:
    """Return the three figures that matter to a user."""
    series = found.series()

    def times(ours: str, other: str) -> str:
        """Return a ratio as the table has it."""
        figure = ratio(series, ours, other)
        return f"**{digits(figure.middle)} ×**" if figure else "–"

    return prose(
        "Beside one aiosqlite connection that syncs each commit, `load` is"
        f" {times('load: aiosqlite', 'load: catstore')} as fast, a durable `save` takes"
        f" {times('save: catstore', 'save: aiosqlite')} as long, and 100 durable saves at once are"
        f" {times('100 saves: aiosqlite', '100 saves: catstore')} as fast."
    )


def rewrite(page: Path, text: str) -> None:
    """Replace what stands between the markers."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def write(found: Found, root: Path) -> None:
    """Rewrite the figures in the docs and in the README, and draw the plot."""
    import plot

    plot.draw(found, root / "docs")
    picture = "![Operations per second of catstore and its peers]"
    rewrite(
        root / "docs" / "performance.md",
        f"{picture}(performance.svg)\n\n{summary(found)}\n\n{text(found)}",
    )
    link = "[All figures, and how they were measured](docs/performance.md)."
    rewrite(root / "README.md", f"{picture}(docs/performance.svg)\n\n{summary(found)}\n{link}")
