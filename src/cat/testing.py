"""For tests of code that uses the stores: a home of its own for each test.

The pytest plugin that comes with catstore offers this as the fixtures
`cat_store` and `cat_as_user`; other test runners use `fresh_home`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cat import context


@contextmanager
def fresh_home(home: Path) -> Iterator[None]:
    """Let `store` and `user` begin anew in the directory `home`, until the block ends.

    Then all is closed, and what was used before is used again. Event loops
    that go on are taken care of, such as one for all tests of a session, one
    that another thread runs, and that of `cat.blocking`.

    Raises `RuntimeError` inside a running event loop, so in a test or a fixture
    that is a coroutine function, and inside a `connect()`.

    ```python
    import asyncio
    import tempfile
    from pathlib import Path

    from cat import store
    from cat.testing import fresh_home

    with tempfile.TemporaryDirectory() as directory, fresh_home(home=Path(directory)):
        asyncio.run(store.save("theme", "dark"))
    ```
    """
    context.close_idle()
    before = _without_settings()
    os.environ["CAT_HOME"] = str(home)
    try:
        yield
    finally:
        _without_settings()
        os.environ.update(before)
        context.close_idle()


def _without_settings() -> dict[str, str]:
    """Take what says where the data lies out of the environment, and return it."""
    names = ("CAT_HOME", "CAT_URL")
    return {name: os.environ.pop(name) for name in names if name in os.environ}
