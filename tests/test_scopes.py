"""Scopes: no user, namespace or key ever meets another, in the database or on the disk."""

import itertools
import os
import shutil
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cat import Store, as_user, for_user, store, user
from cat.errors import InvalidNamespaceError


def below(scope: Store, *names: str) -> Store:
    """Return the namespace `names` below `scope`."""
    for name in names:
        scope = scope.namespace(name)
    return scope


OWNERS = [None, "a", "ab", "A", "a:b", "a/b", "b", "\u00e9", "e\u0301", "store", "users"]
OWNERS += ["ß", "ss", "ﬁ", "fi", "\u017f", "s", "K", "\u212a", "k", "1", "01", "\u0661", " a", "a "]
NAMESPACES = [(), ("a",), ("b",), ("a", "b"), ("ab",), ("a:b",), ("A",), ("a", "b", "c")]
NAMESPACES += [("\u00e9",), ("e\u0301",), ("folder",), ("b", "a"), ("%",), ("..",), (" ",)]


def scopes() -> Iterator[tuple[str, Store]]:
    """Yield many scopes that somebody could take for one another, each with a label."""
    for owner, names in itertools.product(OWNERS, NAMESPACES):
        whose = store if owner is None else for_user(owner)
        yield f"{owner!a} {names!a}", below(whose, *names)


async def test_scopes_never_meet() -> None:
    """The same key in 375 scopes, and keys like parts of scopes, are all values of their own."""
    assert len(dict(scopes())) == len(OWNERS) * len(NAMESPACES) == 375
    for label, scope in scopes():
        assert not await scope.exists("k")
        await scope.save("k", label)
    for label, scope in scopes():
        assert await scope.load("k") == label
    doomed = [scope for _, scope in scopes()][::3]
    for scope in doomed:
        assert await scope.delete("k")
    left = [await scope.exists("k") for _, scope in scopes()]
    assert left.count(False) == len(doomed)


PAIRS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "user and key, split elsewhere": (("a:b", (), "c"), ("a", (), "b:c")),
    "user and key, split at a slash": (("a/b", (), "c"), ("a", (), "b/c")),
    "user and namespace": (("a/b", ("c",), "k"), ("a", ("b", "c"), "k")),
    "namespace and key": ((None, ("a",), "b/c"), (None, ("a", "b"), "c")),
    "user and namespace of the same name": (("n", (), "k"), (None, ("n",), "k")),
    "namespace and key of the same name": ((None, ("n",), "k"), (None, (), "n/k")),
    "a prefix of the name": ((None, ("a",), "k"), (None, ("ab",), "k")),
    "capitals": ((None, ("A",), "k"), (None, ("a",), "k")),
    "accents, composed and not": ((None, ("\u00e9",), "k"), (None, ("e\u0301",), "k")),
    "compatible characters": (("ﬁ", (), "k"), ("fi", (), "k")),
    "a space at the end": ((None, ("a ",), "k"), (None, ("a",), "k")),
    "order of names": ((None, ("a", "b"), "k"), (None, ("b", "a"), "k")),
    "a wildcard": ((None, ("%",), "k"), (None, ("x",), "k")),
    "a user and everybody": (("store", (), "k"), (None, (), "k")),
}


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
async def test_two_places_that_look_alike_are_two(one: Any, other: Any) -> None:
    """What is saved in one is not seen, replaced or deleted in the other."""

    def place(parts: Any) -> tuple[Store, str]:
        owner, names, key = parts
        return below(store if owner is None else for_user(owner), *names), key

    (first, first_key), (second, second_key) = place(one), place(other)
    await first.save(first_key, "first")
    assert not await second.exists(second_key)
    assert not await second.delete(second_key)
    await second.save(second_key, "second")
    assert await first.load(first_key) == "first"
    assert await second.delete(second_key)
    assert await first.load(first_key) == "first"
    assert first.folder != second.folder or one[:2] == other[:2]


async def test_one_scope_by_every_road() -> None:
    """A namespace is the same each time it is named, and for `user` and `for_user` alike."""
    await store.namespace("a").namespace("b").save("k", 1)
    assert await below(store, "a", "b").load("k") == 1
    with as_user("alice"):
        await user.namespace("a").namespace("b").save("k", 2)
        assert user.namespace("a").folder == for_user("alice").namespace("a").folder
        assert user.folder == for_user("alice").folder
    assert await below(for_user("alice"), "a", "b").load("k") == 2
    assert await store.namespace("a").load("k") is None


# --- Names of namespaces

BAD_NAMES: dict[str, Any] = {
    "None": None,
    "int": 1,
    "zero": 0,
    "float": 1.5,
    "True": True,
    "False": False,
    "bytes": b"a",
    "empty bytes": b"",
    "tuple": ("a", "b"),
    "empty tuple": (),
    "list": ["a"],
    "dict": {"a": 1},
    "object": object(),
    "class": str,
    "path": Path("a"),
    "ellipsis": ...,
    "empty": "",
    "slash": "/",
    "slash inside": "a/b",
    "slash first": "/a",
    "slash last": "a/",
    "slashes": "a//b",
    "way up": "../a",
    "NUL": "\0",
    "NUL inside": "a\0b",
    "newline": "a\n",
    "tab": "\ta",
    "escape": "\x1b[0m",
    "unit separator": "a\x1fb",
    "delete": "a\x7f",
    "first C1 control": "\x80",
    "next line": "a\x85",
    "last C1 control": "\x9f",
    "lone high surrogate": "\ud800",
    "lone low surrogate": "a\udfff",
    "pair of surrogates": "\ud83d\ude00",
    "256 bytes": "a" * 256,
    "256 bytes in 128 characters": "é" * 128,
    "a million bytes": "a" * 1_000_000,
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_a_bad_name_is_refused(name: Any, home: Path) -> None:
    """Every kind of store refuses it at once, at the top and below, and nothing is made."""
    for scope in [store, user, for_user("alice"), store.namespace("a"), user.namespace("a")]:
        with pytest.raises(InvalidNamespaceError) as caught:
            scope.namespace(name)
        assert isinstance(caught.value, ValueError)
        assert "nest with .namespace('a').namespace('b')" in str(caught.value)
        assert str(caught.value).isascii()
        assert len(str(caught.value)) < 350
    assert not home.exists()


GOOD_NAMES = ["a", "weather", "my plugin", " ", ".", "..", "a:b", "a\\b", "é", "e\u0301", "😀"]
GOOD_NAMES += ["CON", "nul", "folder", "%", "_", "*", "'; --", "\u202ea", "\u2028", "a" * 255]
GOOD_NAMES += ["é" * 127, "😀" * 63, "1", "None"]


async def test_any_other_text_is_a_name() -> None:
    """Nothing in a name is special; each is a namespace of its own."""
    for name in GOOD_NAMES:
        await store.namespace(name).save("k", name)
    for name in GOOD_NAMES:
        assert await store.namespace(name).load("k") == name
        assert store.namespace(name).folder.is_dir()


async def test_the_whole_path_of_names_has_a_limit() -> None:
    """All names with their slashes have at most 255 bytes of UTF-8; one more is refused."""
    for names, one_more in [
        (["a" * 127, "b" * 127], "c"),
        (["é" * 63, "b" * 128], "c"),
        (["a"] * 128, "c"),
    ]:
        whole = below(store, *names)
        assert len("/".join(names).encode()) == 255
        await whole.save("k", names)
        assert await whole.load("k") == names
        with pytest.raises(InvalidNamespaceError, match="255"):
            whole.namespace(one_more)
        with pytest.raises(InvalidNamespaceError, match="255"):
            below(store, *names[:-1]).namespace(names[-1] + one_more)


@pytest.mark.parametrize("kind", [store, user, for_user("alice")], ids=["store", "user", "one"])
def test_a_namespace_is_the_same_api(kind: Store) -> None:
    """A namespace of any store is of the same class, with all that it can do."""
    deep = kind.namespace("a").namespace("b")
    assert type(deep) is type(kind)
    assert dir(deep) == dir(kind)
    assert "a/b" in repr(deep)


# --- Folders

HOSTILE = ["..", ".", "/", "a/../b", "../../etc", "/etc/passwd", "~", "~root", "C:\\x", "\\\\h\\s"]
HOSTILE += ["CON", "con", "nul", "NUL.txt", "com1", "aux.", "lpt9 ", "a.", "a ", " ", "-rf", "*"]
HOSTILE += ["x" * 250, "é" * 120, "😀" * 60, "😀", "\u202e", "a:b", "a|b", "$HOME", "%00", "cat.db"]
HOSTILE += [
    "files",
    "folder",
    "users",
    "store",
    ".ssh",
    "a\u2215b",
    "\uff0e\uff0e",
    "é",
    "e\u0301",
    "É",
]


def folders() -> dict[str, Path]:
    """Return the folders of many scopes, hostile ones among them."""
    found = {label: scope.folder for label, scope in scopes()}
    for name in HOSTILE:
        found[f"user {name!a}"] = for_user(name).folder
        found[f"user {name!a} below"] = for_user(name).namespace("weather").folder
        if "/" not in name:
            found[f"namespace {name!a}"] = store.namespace(name).folder
            found[f"user's namespace {name!a}"] = below(for_user("x"), "y", name).folder
    return found


def folded(place: Path) -> str:
    """Return how a path looks to a file system that folds all it can."""
    return unicodedata.normalize("NFKC", str(place).casefold()).casefold()


RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in range(10)),
}


def test_folders_are_apart_and_below_files(home: Path) -> None:
    """Each scope's folder is its own for any file system, absolute, and inside `files/`."""
    found = folders()
    files = home / "files"
    for place in found.values():
        assert place.is_absolute()
        assert place.is_dir()
        assert place.is_relative_to(files)
        assert place.resolve() == place
        assert ".." not in place.parts
    scoped = {label: found[label] for label, _ in scopes()}
    assert len({folded(place) for place in scoped.values()}) == len(scoped)
    # Some of `scopes()` are in HOSTILE too: the same scope has the same folder.
    assert len({folded(place) for place in found.values()}) == len(set(found.values()))
    assert len({for_user(name).folder for name in HOSTILE}) == len(HOSTILE)


def test_no_folder_is_inside_another() -> None:
    """Nobody finds another's folder by listing its own."""
    found = set(folders().values())
    for place in found:
        assert not found.intersection(place.parents)
        assert list(place.iterdir()) == []


def test_folder_names_fit_any_file_system(home: Path) -> None:
    """Every part has 1 to 64 characters of plain ASCII and is no reserved name."""
    for place in folders().values():
        for part in place.relative_to(home).parts:
            assert 1 <= len(part) <= 64
            assert set(part) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
            assert not part.startswith("-")
            assert part not in RESERVED


def test_folder_names_can_be_read() -> None:
    """A folder's name starts with what can be read of the id."""
    assert "alice-example-org-" in str(for_user("Alice@Example.org").folder)
    assert "weather-" in str(store.namespace("weather").folder)


def test_the_longest_path_of_names_has_a_folder() -> None:
    """A user's namespace as deep as there may be still has a folder that takes files."""
    deepest = below(for_user("x" * 255), *["a"] * 128).folder
    (deepest / "file").write_text("x")
    assert (deepest / "file").read_text() == "x"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277])
def test_folders_are_for_their_owner_alone(home: Path, umask: int) -> None:
    """Every directory that is made, the home too, has mode 0700 whatever the umask."""
    before = os.umask(umask)
    try:
        made = [store.folder, for_user("alice").namespace("a").namespace("b").folder]
    finally:
        os.umask(before)
    for place in made:
        for directory in [place, *place.parents]:
            if directory == home.parent:
                break
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_folder_is_made_when_touched_and_without_a_database(home: Path) -> None:
    """Naming a scope makes nothing; its folder makes directories and nothing else."""
    scope = for_user("alice").namespace("a")
    assert not home.exists()
    place = scope.folder
    assert place.is_dir()
    assert [path for path in home.rglob("*") if not path.is_dir()] == []


async def test_a_folder_is_the_same_on_a_loop_and_beside_a_database(home: Path) -> None:
    """Where there is a loop and a database, a folder is where it was without."""
    place = store.folder
    await store.save("k", 1)
    assert store.folder == place
    assert not (home / "cat.db").is_relative_to(place)


def test_a_folder_keeps_what_is_in_it_and_comes_back_if_removed() -> None:
    """Touching a folder again changes nothing; one that was removed is made again."""
    for scope in [store, for_user("alice"), store.namespace("a").namespace("b")]:
        place = scope.folder
        (place / "file").write_text("x")
        assert scope.folder == place
        assert (place / "file").read_text() == "x"
        shutil.rmtree(place)
        assert scope.folder == place
        assert place.is_dir()
        assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_all_folders_come_back_if_the_home_was_removed(home: Path) -> None:
    """A home that somebody cleared is made again, with its mode."""
    place = for_user("alice").folder
    shutil.rmtree(home)
    assert for_user("alice").folder == place
    assert place.is_dir()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
