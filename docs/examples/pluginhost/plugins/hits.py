"""A plugin that counts the requests of everyone."""

from cat import store


async def before_request(_: object) -> None:
    """Count one more."""
    await store.increment("count")


async def hits() -> int:
    """Tell how many there were."""
    return await store.load("count", 0, type=int)
