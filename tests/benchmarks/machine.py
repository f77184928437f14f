"""Where it was measured."""

import datetime as dt
import os
import platform
import sqlite3
import statistics
from pathlib import Path
from time import perf_counter


def describe(directory: Path) -> dict[str, str]:
    """Return what a reader wants to know of the machine, its disk and its Python."""
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{processor()}, {cores()}, {platform.system()} {platform.release()}",
        "disk": f"{filesystem(directory)}; a write of 4 KiB and its fsync take {sync(directory)}",
        "load before": load(),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "SQLite": sqlite3.sqlite_version,
    }


def processor() -> str:
    """Return the model of the processor."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def cores() -> str:
    """Return how many cores there are."""
    number = os.cpu_count() or 1
    return f"{number} core{'s' * (number > 1)}"


def load() -> str:
    """Return how busy the machine was before the first round."""
    if not hasattr(os, "getloadavg"):
        return "unknown"
    return f"{os.getloadavg()[0]:.1f} processes on average in the last minute"


def filesystem(directory: Path) -> str:
    """Return the type of the file system below which a directory lies."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "a file system of unknown type"
    rows = [line.split() for line in mounts.read_text().splitlines()]
    above = [row for row in rows if directory.resolve().is_relative_to(row[1])]
    return max(above, key=lambda row: len(row[1]))[2]


def sync(directory: Path, times: int = 200) -> str:
    """Return the median time to write a page to the end of a file and sync it."""
    spent = []
    with (directory / "sync").open("wb", buffering=0) as file:
        for _ in range(times):
            started = perf_counter()
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
            spent.append(perf_counter() - started)
    low, middle, high = statistics.quantiles(spent, n=4)
    return f"{middle * 1e6:.0f} µs (quartiles {low * 1e6:.0f} to {high * 1e6:.0f})"
