"""The plot for the README and the docs: operations per second of all who took part."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from contenders import Contender
from report import MEASURES, Found

mpl.use("agg")

OURS, SYNCED, UNSYNCED, INK, FAINT = "#d1495b", "#5b7c99", "#c3d0db", "#22303c", "#dfe5ea"
TITLE = "Operations per second: longer is better, the scale is logarithmic"
BLOCKS = "* its save blocks the event loop"
UNSYNCED_LABEL = "not yet on the disk when save returns"
# Text as paths looks the same everywhere, and no date or salt makes each drawing another file.
STYLE = {
    "font.size": 10,
    "svg.fonttype": "path",
    "svg.hashsalt": "catstore",
    "hatch.linewidth": 0.8,
}


def draw(found: Found, directory: Path) -> None:
    """Draw a panel for each measure, and leave the files `performance.svg` and `.png`."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 6.6), facecolor="white", layout="constrained")
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)
        panels = figure.subplots(2, 2)
        for axes, (measure, words) in zip(panels.flat, MEASURES.items(), strict=True):
            draw_panel(axes, measure, words, found)
        figure.suptitle(TITLE, color=INK)
        figure.legend(
            handles=legend(), loc="outside lower center", ncols=4, frameon=False, labelcolor=INK
        )
        figure.savefig(directory / "performance.svg", metadata={"Date": None})
        figure.savefig(directory / "performance.png", dpi=160, metadata={"Software": None})


def draw_panel(axes: Axes, measure: str, words: str, found: Found) -> None:
    """Draw a bar for each contender, the fastest on top, with its number."""
    rates = sorted(rates_of(measure, found), key=lambda pair: pair[1])
    for place, (kind, rate) in enumerate(rates):
        axes.barh(place, rate, height=0.72, **look(kind, measure))
        axes.annotate(
            f"{rounded(rate):,}",
            (rate, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=9,
            fontweight="bold" if kind.name == "catstore" else "normal",
        )
    dress(axes, words, [kind.name + "*" * kind.blocks for kind, _ in rates])
    axes.set_xlim(min(rate for _, rate in rates) / 3, max(rate for _, rate in rates) * 5)


def rates_of(measure: str, found: Found) -> list[tuple[type[Contender], float]]:
    """Return the operations per second of each contender."""
    series = found.series()
    keys = [(kind, f"{measure}: {kind.name}") for kind in found.present()]
    return [(kind, 1 / statistics.median(series[key])) for kind, key in keys if key in series]


def look(kind: type[Contender], measure: str) -> dict[str, Any]:
    """Return the colour of a bar; one of saves that nothing syncs is hatched."""
    if kind.name == "catstore":
        return {"color": OURS}
    if "save" in measure and not kind.syncs:
        return {"facecolor": UNSYNCED, "edgecolor": SYNCED, "hatch": "////", "linewidth": 0}
    return {"color": SYNCED}


def rounded(rate: float) -> int:
    """Return a rate with the digits that mean something."""
    return int(float(f"{rate:.2g}"))


def dress(axes: Axes, words: str, names: list[str]) -> None:
    """Name the bars, and take away what says nothing."""
    axes.set_title(words, loc="left", color=INK, fontsize=11, fontweight="bold")
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names, color=INK)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == "catstore" else "normal")
    axes.tick_params(axis="both", which="both", length=0)
    axes.tick_params(axis="x", labelcolor="#7b8a97", labelsize=8)
    axes.grid(axis="x", color=FAINT)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def legend() -> list[Patch]:
    """Return what the colours mean."""
    return [
        Patch(color=OURS, label="catstore"),
        Patch(color=SYNCED, label="others"),
        Patch(
            facecolor=UNSYNCED, edgecolor=SYNCED, hatch="////", linewidth=0, label=UNSYNCED_LABEL
        ),
        Patch(alpha=0, label=BLOCKS),
    ]
