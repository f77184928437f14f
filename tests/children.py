"""Python processes of their own, for tests of what happens between processes."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager


def python(
    code: str, *arguments: str, timeout: float = 60, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a Python process of its own and return what came of it."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def printed(code: str, *arguments: str, **options: object) -> str:
    """Run `code` as `python` does, insist that it succeeds quietly, and return its output."""
    done = python(code, *arguments, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def lock_holder() -> "subprocess.Popen[str]":
    """Start a process that holds the write lock of `CAT_HOME` between lines `hold` and `release`.

    It answers each line with `done`, and ends with its input.
    """
    code = """
    import os, sqlite3, sys
    connection = None
    for line in sys.stdin:
        if connection is None:
            path = os.environ["CAT_HOME"] + "/cat.db"
            connection = sqlite3.connect(path, timeout=10, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE" if line == "hold\\n" else "ROLLBACK")
        print("done", flush=True)
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def beside(code: str) -> Iterator["subprocess.Popen[str]"]:
    """Run `code` beside a `with` block, from the first line that it prints; kill it at the end."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline(), "it has ended"
            yield child
        finally:
            child.kill()
