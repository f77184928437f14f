"""The rooms and their doors: what lives where, who may import whom, and who may open what."""

import ast
from pathlib import Path

import cat

SOURCE = Path(__file__).parent.parent / "src" / "cat"

# The document of the architecture: an import points to a lower number, never
# up and never sideways.
LAYERS = {
    "errors": 0,
    "scope": 1,
    "codec": 1,
    "settings": 1,
    "schema": 1,
    "entry": 2,
    "files": 2,
    "backends.sqlite.faults": 2,
    "backends.sqlite.worker": 2,
    "line": 3,
    "backends.sqlite.changes": 3,
    "backends.sqlite.mutex": 3,
    "backends.sqlite.locks": 4,
    "backends.sqlite.start": 4,
    "backends.sqlite.writer": 5,
    "backends.sqlite": 6,
    "backends": 7,
    "repository": 8,
    "context": 9,
    "ambient": 10,
    "asgi": 11,
    "blocking": 11,
    "testing": 11,
    "__init__": 12,
}

# What opens, copies or moves files. The database is touched through SQLite
# alone: opening and closing it in any other way drops the process's locks.
OPENERS = {"open", "fdopen", "read_text", "read_bytes", "write_text", "write_bytes"}
OPENING_MODULES = {"io", "mmap", "shutil", "tarfile", "zipfile", "fileinput"}
# Where one may be, and why: a migration is read; a new file is made, with
# O_EXCL; a directory is opened to be synced.
MAY_OPEN = {("schema", "read_text"): 1, ("files", "open"): 3}


def sources() -> dict[str, ast.Module]:
    """Return every module of the package, by its name inside it."""
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        name = ".".join(file.relative_to(SOURCE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imported(module: ast.Module) -> set[str]:
    """Return the modules of this package that a module imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if name.removeprefix("cat.") in LAYERS}
            names |= modules or {str(node.module)}
    return {name.removeprefix("cat.") for name in names if name.split(".")[0] == "cat"}


def test_every_room_has_a_place() -> None:
    """The table of layers names exactly the modules there are."""
    assert set(sources()) == set(LAYERS)


def test_imports_point_down() -> None:
    """No module imports one of its own layer or above."""
    arrows = [(name, other) for name, module in sources().items() for other in imported(module)]
    assert len(arrows) > 20, "the test sees the imports"
    assert [a for a in arrows if LAYERS[a[1]] >= LAYERS[a[0]]] == []


def test_database_is_opened_by_sqlite_alone() -> None:
    """Nothing in the source opens files but at the places named above, none of them a database."""
    found: dict[tuple[str, str], int] = {}
    for name, module in sources().items():
        for node in ast.walk(module):
            if isinstance(node, ast.Call):
                called = node.func
                verb = getattr(called, "attr", getattr(called, "id", ""))
                if verb in OPENERS and not is_own_method(called):
                    found[name, verb] = found.get((name, verb), 0) + 1
            elif isinstance(node, ast.Import | ast.ImportFrom):
                modules = {getattr(node, "module", None) or alias.name for alias in node.names}
                assert not modules & OPENING_MODULES, name
    assert found == MAY_OPEN


def is_own_method(called: ast.expr) -> bool:
    """Tell `repository.open()` and the like, which open a store, from what opens a file."""
    text = ast.unparse(called)
    return text in {"self._backend.open", "bound.repository.open"}


def test_statements_are_constant() -> None:
    """No statement is put together from parts, but for a migration with its own numbers."""
    built = [
        ast.unparse(node)
        for name, module in sources().items()
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "").startswith("execute")
        and not all(isinstance(sql, ast.Name) for sql in choices(node.args[0]))
    ]
    assert built == []


def choices(sql: ast.expr) -> list[ast.expr]:
    """Return the branches of `A if ... else B`, or the expression itself."""
    return [sql.body, sql.orelse] if isinstance(sql, ast.IfExp) else [sql]


def test_front_door_is_a_list() -> None:
    """`cat.__all__` is sorted and complete, and each name has a docstring."""
    public = {
        name
        for name, value in vars(cat).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("cat.")
    }
    assert sorted(public) == cat.__all__
    for name in cat.__all__:
        assert getattr(cat, name).__doc__
