"""The docs keep up with the code: every example runs, every name is there, every link leads on."""

import ast
import asyncio
import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import cat
from cat import Store, User, as_user, asgi, blocking, context, errors, settings, testing

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
VERBS = [name for name in dir(User) if not name.startswith("_")]
ERRORS = [
    name
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, cat.CatError)
]


def documented() -> Iterator[tuple[str, str]]:
    """Return each page, and each docstring of the public API that has an example, with its name."""
    for page in PAGES:
        yield str(page.relative_to(ROOT)), page.read_text(encoding="utf-8")
    yield "cat", str(inspect.getdoc(cat))
    for name in cat.__all__:
        yield f"cat.{name}", str(inspect.getdoc(getattr(cat, name)))
    for name in VERBS:
        yield f"Store.{name}", str(inspect.getdoc(getattr(User, name)))
    yield "cat.asgi", str(inspect.getdoc(asgi))
    for name in asgi.__all__:
        yield f"cat.asgi.{name}", str(inspect.getdoc(getattr(asgi, name)))
    yield "cat.blocking", str(inspect.getdoc(blocking))
    yield "cat.blocking.connect", str(inspect.getdoc(blocking.connect))
    yield "cat.testing.fresh_home", str(inspect.getdoc(testing.fresh_home))


def examples(text: str) -> list[str]:
    """Return the Python blocks of a text, without the indentation of their fences."""
    return [inspect.cleandoc("\n" + code) for _, code in BLOCK.findall(text)]


EXAMPLES = [pytest.param(examples(text), id=name) for name, text in documented() if examples(text)]


@pytest.mark.parametrize("blocks", EXAMPLES)
@pytest.mark.usefixtures("door")
def test_examples_run(blocks: list[str], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of a page run in the request of a user.

    Those that await run on a loop of their own, and the others on none, as scripts do.
    """
    module = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)  # frameworks look up a function's module
    names = vars(module)
    with as_user("alice"):
        for code in blocks:
            compiled = compile(code, "example", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(compiled, names)  # noqa: S307  # the docs are this project's own
            if inspect.iscoroutine(result):
                asyncio.run(result)
            context.close_idle()  # what `cat.blocking` opened: each is a program of its own


def test_examples_are_found() -> None:
    """The pages with examples are among those that run, and so is every verb."""
    found = {param.id for param in EXAMPLES}
    assert {"README.md", "docs/tutorial.md", "docs/reference.md", "docs/design.md"} <= found
    assert {"docs/howto-scripts.md", "cat.blocking", "cat.testing.fresh_home"} <= found
    assert {f"Store.{verb}" for verb in VERBS} <= found


FOR_TESTS = ["cat_store", "cat_as_user", "fresh_home"]


@pytest.mark.parametrize("name", [*cat.__all__, *asgi.__all__, *FOR_TESTS, *VERBS, *ERRORS])
def test_names_are_in_the_reference(name: str) -> None:
    """Every public name, fixture, verb and error stands in the reference."""
    assert re.search(rf"\b{name}\b", REFERENCE)


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_listed_with_their_built_ins(name: str) -> None:
    """The row of an error names the built-ins that it is."""
    [row] = re.findall(rf"^\| `{name}` \|(.*)$", REFERENCE, re.MULTILINE) or [None]
    if name == "CatError":
        return
    assert row is not None
    own = [
        base.__name__ for base in getattr(errors, name).__bases__ if base.__module__ != "cat.errors"
    ]
    assert all(f"`{base}`" in row for base in own)


def test_settings_are_in_the_reference() -> None:
    """The table of settings has exactly those that the source reads."""
    source = inspect.getsource(settings)
    read = set(re.findall(r'"(CAT_[A-Z_]+)"', source))
    assert len(read) >= 6
    assert set(re.findall(r"^\| `(CAT_[A-Z_]+)` \|", REFERENCE, re.MULTILINE)) == read


def test_rooms_are_in_the_design() -> None:
    """The design's table of rooms is the one that the architecture test enforces."""
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8"))
    [layers] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS"
    ]
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `([a-z_.]+)` \|", design, re.MULTILINE)
    assert {name: int(layer) for layer, name in rows} == layers


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A link inside the repository names a file that is there."""
    targets = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in targets if not (page.parent / link).exists()] == []


def test_docstrings_tell_the_signature() -> None:
    """The docstring of each verb names each of its parameters."""
    for name in VERBS:
        member = inspect.getattr_static(User, name, None)
        if inspect.isfunction(member):
            parameters = set(inspect.signature(member).parameters) - {"self"}
            told = str(inspect.getdoc(getattr(Store, name)))
            assert [p for p in parameters if f"`{p}`" not in told and f"`{p}=`" not in told] == []
