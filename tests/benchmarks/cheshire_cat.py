"""The store of the real Cheshire Cat AI, which answers commands; run by the Python that has it."""

import asyncio
import importlib.metadata
import sqlite3
from itertools import count
from pathlib import Path
from typing import Any

from cat import store
from lines import answer

# Found in the databases that it leaves: it does not make its tables at the first use.
TABLES = """
CREATE TABLE IF NOT EXISTS key_value_db ("key" VARCHAR PRIMARY KEY, "value" JSON);
CREATE TABLE IF NOT EXISTS user_key_value_db
    ("id" UUID PRIMARY KEY, "user_id" UUID, "key" VARCHAR, "value" JSON);
"""
counter = count()


def value() -> dict[str, Any]:
    """Return a small value that was never saved before."""
    return {"color": "dark", "size": next(counter), "tags": ["a", "b"]}


async def version() -> str:
    """Return the release, when it has saved and loaded a value."""
    await store.save("tried", 1)
    if await store.load("tried") != 1:
        raise ValueError("it does not load what it saved")
    return importlib.metadata.version("cheshire-cat-ai")


async def save(keys: list[str]) -> None:
    """Save one after the other."""
    for key in keys:
        await store.save(key, value())


async def load(keys: list[str]) -> Any:
    """Load one after the other, and return the last value."""
    for key in keys:
        loaded = await store.load(key)
    return loaded


async def save_at_once(keys: list[str]) -> int:
    """Gather saves, and say how many failed."""
    saves = [store.save(key, value()) for key in keys]
    done = await asyncio.gather(*saves, return_exceptions=True)
    return sum(isinstance(outcome, Exception) for outcome in done)


async def load_at_once(keys: list[str]) -> None:
    """Gather loads."""
    await asyncio.gather(*map(store.load, keys))


def make_tables() -> None:
    """Make what it expects to find below the directory in which it runs."""
    place = Path("data") / "core"
    place.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(place / "core.db")
    connection.executescript(TABLES)
    connection.close()


if __name__ == "__main__":
    make_tables()
    asyncio.run(
        answer(
            {
                "version": version,
                "save": save,
                "load": load,
                "save_at_once": save_at_once,
                "load_at_once": load_at_once,
            }
        )
    )
