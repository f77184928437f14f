"""A plugin that greets, with words that it stores when the host starts."""

from cat import store, user
from cat.errors import NoUserError


async def bootstrap() -> None:
    """Store the greeting, once and for all, and count the starts; there is no user yet."""
    await store.create("greeting", "Meow")
    await store.increment("count")
    try:
        await user.increment("count")
    except NoUserError:
        await store.save("user at the start", "nobody")


async def greet() -> str:
    """Greet the caller, and say how often that was so far."""
    return f"{await store.load('greeting')} no. {await user.increment('count')}, {user.id}!"


async def story() -> str:
    """Tell what the bootstrap hook has seen."""
    return f"start no. {await store.load('count')}, with {await store.load('user at the start')}"
