"""The same as `first_save_catstore.py`, written by hand with aiosqlite."""

import asyncio
import json
import os
from pathlib import Path

import aiosqlite

TABLE = "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
PUT = "INSERT INTO entries VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


async def main() -> None:
    """Save one value below `CAT_HOME`."""
    home = Path(os.environ["CAT_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    async with aiosqlite.connect(home / "aio.db") as connection:
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = FULL")
        await connection.execute(TABLE)
        await connection.execute(PUT, ("theme", json.dumps({"color": "dark"})))
        await connection.commit()


asyncio.run(main())
