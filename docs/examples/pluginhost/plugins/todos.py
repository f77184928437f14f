"""A plugin that keeps a todo list for each user."""

from cat import user


async def add(text: str) -> list[str]:
    """Add a todo to the caller's own list and return the list."""
    async with user.edit("todos", [], type=list[str]) as todos:
        todos.append(text)
    return todos


async def show() -> list[str]:
    """Return the caller's own list."""
    return await user.load("todos", [], type=list[str])
