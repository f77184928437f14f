"""The session of the page about tome's store, with the real `tome`, and its counter kept by us."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("tome")

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "tome"
TOME = Path(sys.executable).with_name("tome")


class Session:
    """A shell in an empty directory, with a tome home of its own."""

    def __init__(self, place: Path) -> None:
        self.home = place / "tome_home"
        self.directory = place / "my-tome"
        self.directory.mkdir()

    def tome(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `tome`, and insist that it succeeds."""
        done = subprocess.run(
            [TOME, *arguments],
            cwd=self.directory,
            env={
                "COLUMNS": "1000",  # else tome wraps what it prints
                "HOME": str(self.home.parent),
                "PATH": os.environ["PATH"],
                "PYTHONWARNINGS": "error::ResourceWarning",
                "TOME_HOME": str(self.home),
            },
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def run(self, command: str) -> list[str]:
        """Run a command of ours, which complains of nothing, and return its lines."""
        done = self.tome(command)
        assert done.stderr == ""
        return done.stdout.splitlines()


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Return a session in which nothing has been installed."""
    return Session(tmp_path)


def number(said: list[str]) -> int:
    """Return how often a command says it has been run."""
    return int(re.fullmatch(r"This command has been run (\d+) time\(s\)\.", said[0])[1])  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "file", "kept"),
    [
        ("stats:runcount", "stats/runcount.py", "stats_runcount/run_counter.json"),
        ("stats:runcount-kv", "stats/runcount_kv.py", "stats/cat.db"),
    ],
)
def test_the_session_of_the_page(name: str, file: str, kept: str, session: Session) -> None:
    """New, install, implement, and run three times: the count goes up, and lies where it says."""
    session.tome("new", name, "--description", "Counts times it has been run.")
    session.tome("install", ".", "-e")
    assert (session.directory / file).is_file()
    shutil.copy(EXAMPLE / file, session.directory / file)
    for run in (1, 2, 3):
        assert session.run(name) == [
            f"This command has been run {run} time(s).",
            f"(Counter data stored in: {session.home}/storage/{kept})",
        ]
    assert (session.home / "storage" / kept).is_file()


def test_ten_copies_at_once_count_to_ten(session: Session) -> None:
    """Ten processes at once, the first of which makes the database, get ten numbers."""
    shutil.copytree(EXAMPLE, session.directory, dirs_exist_ok=True)
    session.tome("install", ".", "-e")
    with ThreadPoolExecutor(10) as pool:
        said = list(pool.map(lambda _: session.run("stats:runcount-kv"), range(10)))
    assert sorted(map(number, said)) == list(range(1, 11))
    assert number(session.run("stats:runcount-kv")) == 11
