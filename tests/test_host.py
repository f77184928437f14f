"""The host example, run as the README runs it: a real server and real HTTP."""

import asyncio
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

HOST = Path(__file__).parent.parent / "docs" / "examples" / "host.py"


def run_host(directory: Path) -> list[str]:
    """Run the example in an empty environment and return the lines of its story."""
    done = subprocess.run(
        [sys.executable, "-W", "error", HOST],
        cwd=directory,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_second_run_goes_on_from_the_first(tmp_path: Path) -> None:
    """Two users keep their own lists, anonymous gets none, all share a counter, and all lasts."""
    for number in (1, 2, 3):
        served, alice, bob, anonymous, hits, end = run_host(tmp_path)
        assert re.fullmatch(r"Two plugins are served at http://127\.0\.0\.1:\d+\.", served)
        for name, story in (("alice", alice), ("bob", bob)):
            assert story == (
                f"  {name} found {number - 1} of their todos, saved one more and has {number}; "
                "none of another user."
            )
        assert anonymous == "  anonymous asked for todos and got 401: Not authenticated."
        assert hits == f"  Everyone's hits, counted together: {3 * number}."
        assert str(tmp_path / "data") in end
    assert (tmp_path / "data" / "cat.db").is_file()


async def test_fifty_parallel_hits(home: Path) -> None:
    """Fifty posts at once to the shared counter, over HTTP, each get a number of their own."""
    import httpx

    spec = importlib.util.spec_from_file_location("host", HOST)
    assert spec
    assert spec.loader
    host = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(host)
    limits = httpx.Limits(max_connections=50)
    async with (
        host.served() as address,
        httpx.AsyncClient(base_url=address, limits=limits, trust_env=False) as http,
    ):
        answers = await asyncio.gather(*(http.post("/hits") for _ in range(50)))
        assert sorted(answer.json() for answer in answers) == list(range(1, 51))
        todos = [{"Authorization": f"Bearer token-of-{name}"} for name in ("alice", "bob") * 25]
        await asyncio.gather(*(http.post("/todos", json="x", headers=who) for who in todos))
        for who in todos[:2]:
            assert len((await http.get("/todos", headers=who)).json()) == 25
