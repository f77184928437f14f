"""Every exception is a `CatError`, a built-in, picklable, and says no more than it may."""

import builtins
import inspect
import pickle
from pathlib import Path

import pytest

from cat import errors
from cat.errors import CatError, DatabaseUnavailableError, shown

PLACE = Path("/srv/data/cat.db")

# Each class, what to make it with, and the built-ins that it is as well.
CASES = {
    "CatError": (("all of them",), {Exception}),
    "NoUserError": ((), {RuntimeError}),
    "AlreadyBoundError": (("alice", "bob"), {RuntimeError}),
    "MissingMiddlewareError": (("nothing has run before",), {RuntimeError}),
    "WouldBlockError": ((), {RuntimeError}),
    "ForkedEditError": ((), {RuntimeError}),
    "InvalidUserError": (("is empty",), {ValueError}),
    "InvalidKeyError": (("is empty", 512), {ValueError}),
    "InvalidNamespaceError": (("is empty",), {ValueError}),
    "InvalidExpiryError": (("is negative",), {ValueError}),
    "InvalidSettingError": (("CAT_TIMEOUT", "soon", "a number"), {ValueError}),
    "UnstorableValueError": (("$.stops[2].at", "is a datetime"), {TypeError, ValueError}),
    "InvalidArgumentError": (("limit", "is negative", "give 0"), {TypeError, ValueError}),
    "InvalidResultError": (("key 'k'", "None"), {TypeError, ValueError}),
    "NestedEditError": (("key 'k'",), {RuntimeError}),
    "ReboundError": (("key 'k'",), {RuntimeError}),
    "AlreadyConnectedError": ((), {RuntimeError}),
    "InvalidValueError": (("key 'k'", "Theme", [("$.volume", "int_type")] * 7), {ValueError}),
    "KeyNotFoundError": (("key 'k'",), {KeyError, LookupError}),
    "NotEditableError": (("key 'k'", "int"), {TypeError}),
    "CorruptValueError": (("key 'k'",), {ValueError}),
    "ConflictError": (("key 'k'",), {RuntimeError}),
    "KeyBusyError": (("key 'k'", 30.0), {OSError, TimeoutError}),
    "DatabaseUnavailableError": ((PLACE, "it is gone; look for it"), {OSError}),
    "DatabaseReplacedError": ((PLACE,), {OSError}),
    "DatabaseBusyError": ((PLACE, 30.0), {OSError, TimeoutError}),
    "NotScrubbedError": ((PLACE, 30.0), {OSError, TimeoutError}),
    "NotWritableError": ((PLACE, "Permission denied"), {OSError, PermissionError}),
    "DiskFullError": ((PLACE,), {OSError}),
    "CorruptDatabaseError": ((PLACE, "malformed"), {OSError}),
    "NotADatabaseError": ((PLACE,), {OSError}),
    "ForeignDatabaseError": ((PLACE,), {OSError}),
    "MigrationError": ((f"{PLACE}: migration 0002_x failed",), {RuntimeError}),
    "NewerDatabaseError": ((PLACE, 9, 1), {RuntimeError}),
}
MADE = [
    getattr(errors, name)(*given) for name, (given, _) in CASES.items() if hasattr(errors, name)
]
BUILT_INS = {value for value in vars(builtins).values() if inspect.isclass(value)}


def names(error: CatError) -> str:
    """Name a case by its class."""
    return type(error).__name__


def test_all_are_listed_here() -> None:
    """An exception that is added to `cat.errors` is added to the table above."""
    public = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException) and not name.startswith("_")
    }
    assert public == set(CASES)


@pytest.mark.parametrize("error", MADE, ids=names)
def test_kinds(error: CatError) -> None:
    """Code that never heard of this library catches each as the built-in that it expects."""
    assert isinstance(error, CatError)
    wanted = CASES[names(error)][1] | {Exception, BaseException, object}
    assert BUILT_INS.intersection(type(error).__mro__) == wanted


@pytest.mark.parametrize("error", MADE, ids=names)
def test_documented(error: CatError) -> None:
    """Each has a docstring of its own that is a sentence."""
    doc = type(error).__dict__.get("__doc__")
    assert doc
    assert doc.splitlines()[0].endswith(".")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", MADE, ids=names)
def test_pickles(error: CatError, protocol: int) -> None:
    """Each crosses to another process with its type, text and attributes."""
    error.extra = [1]  # type: ignore[attr-defined]
    copy = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301  # made on this line
    del error.extra  # type: ignore[attr-defined]
    assert (type(copy), str(copy), copy.args) == (type(error), str(error), error.args)
    assert vars(copy) == {**vars(error), "extra": [1]}
    assert copy.not_stored is error.not_stored


@pytest.mark.parametrize("error", MADE, ids=names)
def test_texts(error: CatError) -> None:
    """A message is one line of ASCII that starts as a part of a sentence does."""
    text = str(error)
    assert text.isascii()
    assert text.isprintable()
    assert text == text.strip()
    assert not text.endswith(".")


def test_only_a_write_that_was_begun_has_an_unknown_outcome() -> None:
    """`not_stored` is true unless an error says otherwise, and its text agrees."""
    assert all(error.not_stored for error in MADE if names(error) != "NotScrubbedError")
    assert "nothing was stored" in str(DatabaseUnavailableError(PLACE, "it is gone"))
    unknown = DatabaseUnavailableError(PLACE, "the sync failed", not_stored=False)
    assert unknown.not_stored is False
    assert "may or may not be stored" in str(unknown)
    assert "nothing was stored" not in str(unknown)
    assert pickle.loads(pickle.dumps(unknown)).not_stored is False  # noqa: S301  # made here


def test_problems_are_cut() -> None:
    """A value that is wrong in many places names five of them and counts the rest."""
    error = errors.InvalidValueError(
        "key 'k'", "Theme", [(f"$[{n}]", "int_type") for n in range(9)]
    )
    assert "$[4] (int_type) and 4 more" in str(error)
    assert "$[5]" not in str(error)
    assert len(error.problems) == 9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alice", "'alice'"),
        ("", "''"),
        ("it's", '"it\'s"'),
        ("\u00e9\n\x1b\udc80\U0001f600", r"'\xe9\n\x1b\udc80\U0001f600'"),
        ("x" * 78, "'" + "x" * 78 + "'"),
        ("x" * 79, "'" + "x" * 76 + "..."),
        ("\U0001f600" * 1_000_000, ("'" + r"\U0001f600" * 8)[:77] + "..."),
        (7, "7"),
        (None, "None"),
    ],
)
def test_shown(text: object, expected: str) -> None:
    """Text in a message is escaped to ASCII and cut at 80 characters."""
    assert shown(text) == expected
    assert len(shown(text)) <= 80
    assert shown(text).isascii()
