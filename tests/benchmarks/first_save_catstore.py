"""The first save in a new directory, with catstore; a program of its own, run by `groups.py`."""

import asyncio

from cat import store


async def main() -> None:
    """Save one value below `CAT_HOME`."""
    await store.save("theme", {"color": "dark"})


asyncio.run(main())
