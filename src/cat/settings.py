"""The environment, read when called.

Importing this module reads nothing. `read` is called when a repository is
first needed on an event loop, and when `folder` is first touched.
"""

import functools
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from cat.errors import InvalidSettingError

DURABILITY = ("always", "interval")

SQLITE_SCHEME = "sqlite:///"
# A "?" would be taken to begin options, and there are none.
_NOT_IN_URLS = ("?", "\0", ":memory:")
_LARGEST_VALUE = 512 * 1024 * 1024  # SQLite's own limit is a row of 1,000,000,000 bytes.
_LARGEST_KEY = 65_536
_LONGEST_WAIT = 3600.0


class Settings(NamedTuple):
    """What the environment says, checked.

    `home` is absolute; `url` names the database; `timeout` is in seconds;
    `max_value_bytes` and `max_key_bytes` count UTF-8; `inline_reads` lets small
    reads be answered on the event loop's own thread.
    """

    home: Path
    url: str
    durability: str
    timeout: float
    max_value_bytes: int
    max_key_bytes: int
    inline_reads: bool


def read(given: Mapping[str, str] | None = None) -> Settings:
    """Return the settings: what is `given` by name, and the environment for the rest.

    A relative path in the environment is made absolute when it is first met,
    so that a later `chdir` changes nothing; one that is given, at each call.

    Raises `InvalidSettingError` with the name of the setting, what it was and
    what is allowed. An empty text is refused too: it is what a deployment file
    leaves behind when a variable of its own is missing.
    """
    given = given or {}

    def text(name: str) -> str | None:
        return given.get(name, os.environ.get(name))

    def absolute(name: str, path: str) -> Path:
        return Path(path).absolute() if name in given else _first_absolute(path)

    home = absolute("CAT_HOME", _path("CAT_HOME", text("CAT_HOME"), "./data"))
    path = _database(text("CAT_URL"))
    database = home / "cat.db" if path is None else absolute("CAT_URL", path)
    return Settings(
        home=home,
        url=f"{SQLITE_SCHEME}{database}",
        durability=_choice("CAT_DURABILITY", text("CAT_DURABILITY"), DURABILITY),
        timeout=_timeout(text("CAT_TIMEOUT")),
        max_value_bytes=_bytes("CAT_MAX_VALUE_BYTES", text, 16 * 1024 * 1024, _LARGEST_VALUE),
        max_key_bytes=_bytes("CAT_MAX_KEY_BYTES", text, 512, _LARGEST_KEY),
        inline_reads=_choice("CAT_INLINE_READS", text("CAT_INLINE_READS"), ("on", "off")) == "on",
    )


@functools.cache
def _first_absolute(path: str) -> Path:
    return Path(path).absolute()


def _path(name: str, text: str | None, default: str) -> str:
    if text is None:
        return default
    expanded = os.path.expanduser(text)  # noqa: PTH111  # Path's own raises where there is no home
    if not text.strip() or "\0" in text or expanded.startswith("~"):
        raise InvalidSettingError(name, text, "the path of a directory")
    return expanded


def _database(url: str | None) -> str | None:
    """Return the path that a URL names, or `None` for the one in the home."""
    if url is None:
        return None
    path = os.path.expanduser(url.removeprefix(SQLITE_SCHEME))  # noqa: PTH111  # as above
    bad = not path.strip() or path.endswith("/") or path.startswith("~")
    if not url.startswith(SQLITE_SCHEME) or bad or any(mark in path for mark in _NOT_IN_URLS):
        raise InvalidSettingError(
            "CAT_URL",
            re.sub("//[^/]*@", "//...@", url),  # a password, in the URL of another database
            "sqlite:///relative/path.db or sqlite:////absolute/path.db, with the path of a file "
            "outside the home's files/",
        )
    return path


def _choice(name: str, text: str | None, allowed: tuple[str, ...]) -> str:
    """Return `text` if it is allowed, and the first of `allowed` if it is not set."""
    if text is None:
        return allowed[0]
    if text not in allowed:
        raise InvalidSettingError(name, text, " or ".join(allowed))
    return text


def _timeout(text: str | None) -> float:
    if text is None:
        return 30.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST_WAIT:
        allowed = f"a number of seconds above 0, up to {_LONGEST_WAIT:g}"
        raise InvalidSettingError("CAT_TIMEOUT", text, allowed)
    return seconds


def _bytes(name: str, text_of: Callable[[str], str | None], default: int, largest: int) -> int:
    text = text_of(name)
    if text is None:
        return default
    count = int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else 0
    if not 1 <= count <= largest:
        raise InvalidSettingError(name, text, f"a whole number of bytes from 1 to {largest:,}")
    return count
