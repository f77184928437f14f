"""The snippets of the page that this library was made from, word for word, and its counter."""

import ast
import asyncio
import inspect
import re
from pathlib import Path

from cat import as_user
from children import printed

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"

FIRST = """
from cat import store, user

await store.save("theme", {"color": "dark"}) # shared by everyone
await user.save("todos", [{"text": "buy milk"}]) # private to the caller
"""

THEME = """
from cat import store

await store.save("theme", {"color": "dark"})
theme = await store.load("theme") # {"color": "dark"}, or None if unset
await store.load("theme", {}) # pass a default for the unset case
await store.exists("theme") # True / False
await store.delete("theme") # True if something was removed
"""

COUNTS = """
counts = await store.load("counts", {})
counts["hits"] = counts.get("hits", 0) + 1
await store.save("counts", counts)
"""

TODOS = """
from cat import user

todos = await user.load("todos", [])
todos.append({"text": "buy milk", "done": False})
await user.save("todos", todos) # stored under this user only
"""

DELETE_TODOS = """
await user.delete("todos")
"""

COUNT = """
await store.save("count", 9)
await store.load("count") # 9 (int, not "9")
"""


def run(*snippets: str) -> dict[str, object]:
    """Run snippets as the code of one request, and return the names they leave."""
    names: dict[str, object] = {}

    async def request() -> None:
        for snippet in snippets:
            code = compile(snippet, "seed", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(code, names)  # noqa: S307  # the text above
            if inspect.iscoroutine(result):
                await result

    with as_user("caller"):
        asyncio.run(request())
    return names


def test_snippets_run_in_one_process() -> None:
    """Every snippet of the page runs as it stands, one after the other."""
    names = run(FIRST, THEME, COUNTS, TODOS, DELETE_TODOS, COUNT)
    assert names["theme"] == {"color": "dark"}
    assert names["counts"] == {"hits": 1}
    assert names["todos"] == [{"text": "buy milk"}, {"text": "buy milk", "done": False}]


def test_a_second_process_finds_what_the_first_saved(home: Path) -> None:
    """What the snippets saved is there in another process, with its type, for its user alone."""
    run(FIRST, COUNTS, COUNTS, TODOS, COUNT)
    said = printed(
        """
        import asyncio
        from cat import as_user, store, user

        async def main():
            with as_user("caller"):
                print(await store.load("theme"), await store.load("counts"))
                print(await user.load("todos"))
                print(repr(await store.load("count")))
            with as_user("another"):
                print(await user.load("todos"))

        asyncio.run(main())
        """
    )
    assert said.splitlines() == [
        "{'color': 'dark'} {'hits': 2}",
        "[{'text': 'buy milk'}, {'text': 'buy milk', 'done': False}]",
        "9",
        "None",
    ]


def test_run_counter_counts_in_both_places(home: Path) -> None:
    """The page's run counter counts its runs in a file of the folder, and in the store."""
    program = (EXAMPLES / "runcount.py").read_text(encoding="utf-8")
    for run_number in (1, 2, 3):
        said = printed(program).splitlines()
        assert said[0] == f"This command has been run {run_number} time(s), says the store."
        assert said[1] == f"This command has been run {run_number} time(s), says the file."
        folder = Path(re.fullmatch(r"\(The file lies in (.*)\)", said[2])[1])  # type: ignore[index]
    assert folder.is_relative_to(home / "files" / "store")
    assert [file.name for file in folder.iterdir()] == ["run_counter.json"]
