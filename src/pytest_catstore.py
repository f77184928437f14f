"""The pytest plugin of catstore: two fixtures. It imports `cat` when one of them is used.

pytest loads it wherever catstore is installed, also for tests that have nothing
to do with it; so it is no part of the package, whose import would be theirs.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cat import Store


@pytest.fixture
def cat_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Store]":
    """Give `cat.store`, on an empty home of this test's own; `user` and all else use it too."""
    from cat import store
    from cat.testing import fresh_home

    for name in ("CAT_HOME", "CAT_URL"):
        if name in os.environ:
            # Whatever the test changes with it is undone to this, also after the restoring below.
            monkeypatch.setenv(name, os.environ[name])
    with fresh_home(tmp_path / "cat_home"):
        yield store


@pytest.fixture
def cat_as_user(
    cat_store: "Store",  # so that the user is one of this test's own home
) -> "Callable[[str], AbstractContextManager[None]]":
    """Give what binds a user inside a `with` block, on an empty home of this test's own."""
    from cat import as_user

    return as_user
