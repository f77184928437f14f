"""The fixtures that come with catstore, in test runs of their own, as other projects have them."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

INI = """
[pytest]
asyncio_mode = strict
asyncio_default_fixture_loop_scope = function
"""
SESSION_INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = session
asyncio_default_test_loop_scope = session
"""

# What is true after every project: it is run last.
LAST = """
import threading, time
from pathlib import Path

def left():
    table = Path("/proc/self/fd")
    links = [link.resolve() for link in table.iterdir()] if table.is_dir() else []
    files = [link for link in links if "cat.db" in link.name]
    threads = {thread.name for thread in threading.enumerate()}
    return files, threads - {"MainThread", "cat.blocking"}

def test_nothing_is_left():
    until = time.monotonic() + 10  # a closed connection's thread ends a moment later
    while left() != ([], set()) and time.monotonic() < until:
        time.sleep(0.01)
    assert left() == ([], set())
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return the directory of a project that has no tests yet."""
    place = tmp_path / "project"
    place.mkdir()
    (place / "pytest.ini").write_text(INI)
    return place


@pytest.fixture
def run(project: Path) -> Run:
    """Return what runs the tests of the project, every warning an error, in a clean environment."""

    def run_tests(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        (project / "test_project.py").write_text(textwrap.dedent(code))
        (project / "test_zz_last.py").write_text(LAST)
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "pytest", "-q", "-W", "error", *options],
            cwd=project,
            env={"PATH": os.environ["PATH"], "HOME": str(project), **environment},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return run_tests


def passed(done: subprocess.CompletedProcess[str], count: int) -> None:
    """Insist that so many tests passed, and that nothing else is said."""
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"{count + 1} passed in "), last
    assert done.stderr == ""


# --- Async tests, on each plugin's loops.

BODY = """
import os
from pathlib import Path

import pytest

import cat
from cat import as_user, store, user

{mark}

HOMES = set()

{fixtures}

@pytest.mark.parametrize("number", range(3))
async def test_each_test_begins_empty(cat_store, number, tmp_path):
    assert cat_store is store
    assert await store.keys() == []
    await store.save("k", number)
    await store.save("large", "x" * 400_000)
    assert len(await store.load("large")) == 400_000
    assert store.folder.is_relative_to(tmp_path)
    HOMES.add(store.folder)
    assert len(HOMES) == number + 1
    assert Path(os.environ["CAT_HOME"]).is_relative_to(tmp_path)
    assert "CAT_URL" not in os.environ

@pytest.mark.parametrize("number", range(2))
async def test_users(cat_as_user, number):
    with cat_as_user("alice"):
        assert await user.load("k") is None
        await user.save("k", number)
        with cat_as_user("bob"):
            assert await user.load("k") is None
    assert cat.current_user() is None
    assert await cat.for_user("alice").load("k") == number
    assert await cat.users() == ["alice"]

async def test_a_fixture_of_the_projects_own(seeded):
    assert await store.load("seed") == 1
    async with store.edit("list", []) as value:
        value.append(1)

async def test_the_next_test_of_it(seeded, cat_as_user):
    assert await store.keys() == ["seed"]
"""

ASYNCIO_FIXTURE = """
import pytest_asyncio

@pytest_asyncio.fixture
async def seeded(cat_store):
    await cat_store.save("seed", 1)
    yield
    assert await cat_store.load("seed") == 1
"""
FIXTURE = ASYNCIO_FIXTURE.replace("@pytest_asyncio.fixture", "@pytest.fixture").replace(
    "import pytest_asyncio\n", ""
)
# One that lives as long as the session keeps the loop of the session alive.
SESSION_FIXTURE = """
@pytest.fixture(scope="session", autouse=True)
async def whole_session({backend}):
    yield
"""

LOOPS = {
    "pytest-asyncio, a loop for each test": (
        INI,
        {"mark": "pytestmark = pytest.mark.asyncio", "fixtures": ASYNCIO_FIXTURE},
    ),
    "pytest-asyncio, one loop for all": (
        SESSION_INI,
        {"mark": "", "fixtures": ASYNCIO_FIXTURE + SESSION_FIXTURE.format(backend="")},
    ),
    "pytest-asyncio, a loop for each module": (
        SESSION_INI.replace("session", "module"),
        {"mark": "", "fixtures": ASYNCIO_FIXTURE},
    ),
    "pytest-asyncio, a fixture on the session's loop and a test on its own": (
        SESSION_INI.replace("test_loop_scope = session", "test_loop_scope = function"),
        {"mark": "", "fixtures": ASYNCIO_FIXTURE},
    ),
    "anyio, a loop for each test": (
        INI,
        {
            "mark": "pytestmark = pytest.mark.anyio",
            "fixtures": FIXTURE + "\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'\n",
        },
    ),
    "anyio, one loop for all": (
        INI,
        {
            "mark": "pytestmark = pytest.mark.anyio",
            "fixtures": FIXTURE
            + "\n@pytest.fixture(scope='session')\ndef anyio_backend(): return 'asyncio'\n"
            + SESSION_FIXTURE.format(backend="anyio_backend"),
        },
    ),
}


@pytest.mark.parametrize("label", LOOPS)
def test_async_tests(label: str, run: Run, project: Path) -> None:
    """On every kind of loop each test has an empty home of its own, and leaves nothing open."""
    ini, parts = LOOPS[label]
    if not importlib.util.find_spec(label.partition(",")[0].replace("-", "_")):
        pytest.skip("this plugin is not installed")
    (project / "pytest.ini").write_text(ini)
    passed(run(BODY.format(**parts)), 7)
    assert not (project / "data").exists()


def test_trio_is_told_apart(run: Run) -> None:
    """On trio a verb raises, as it needs asyncio; the fixture itself does no harm."""
    pytest.importorskip("trio")
    code = """
    import pytest

    @pytest.fixture(params=["trio", "asyncio"])
    def anyio_backend(request): return request.param

    @pytest.mark.anyio
    async def test_it(cat_store, anyio_backend):
        if anyio_backend == "asyncio":
            await cat_store.save("k", 1)
            return
        with pytest.raises(RuntimeError, match="no running event loop"):
            await cat_store.save("k", 1)
    """
    passed(run(code), 2)


# --- Tests that are not coroutines.


def test_plain_tests(run: Run) -> None:
    """`asyncio.run`, `cat.blocking` and threads use the home of the test, one after another."""
    code = """
    import asyncio, threading
    import pytest
    from cat import blocking, store

    @pytest.mark.parametrize("number", range(3))
    def test_run(cat_store, number):
        asyncio.run(store.save("k", number))
        assert asyncio.run(store.keys()) == ["k"]

    @pytest.mark.parametrize("number", range(3))
    def test_blocking(cat_store, cat_as_user, number, tmp_path):
        assert blocking.store.keys() == []
        with cat_as_user("alice"):
            assert blocking.user.increment("n") == 1
        with blocking.connect(home=tmp_path / "cat_home"), blocking.store.edit("k", []) as value:
            value.append(number)
        assert asyncio.run(store.load("k")) == [number]

    def test_a_thread(cat_store):
        thread = threading.Thread(target=lambda: asyncio.run(store.save("k", 1)))
        thread.start()
        thread.join()
        assert blocking.store.load("k") == 1

    def test_a_loop_that_was_closed_rudely(cat_store):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(store.save("k", 1))
        loop.close()

    @pytest.fixture(scope="module")
    def kept():
        loop = asyncio.new_event_loop()
        yield loop
        loop.close()

    @pytest.mark.parametrize("number", range(2))
    def test_a_loop_that_is_kept(kept, cat_store, number):
        assert kept.run_until_complete(store.increment("n")) == 1

    @pytest.fixture(scope="module")
    def running():
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        yield loop
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    @pytest.mark.parametrize("number", range(2))
    def test_a_loop_that_another_thread_runs(running, cat_store, number):
        counted = asyncio.run_coroutine_threadsafe(store.increment("n"), running)
        assert counted.result(20) == 1
    """
    passed(run(code), 12)


def test_unittest_style_tests(run: Run) -> None:
    """`IsolatedAsyncioTestCase` and `TestCase` take the fixtures by `usefixtures`."""
    code = """
    import asyncio, unittest
    import pytest
    from cat import store

    @pytest.mark.usefixtures("cat_store")
    class TestAsync(unittest.IsolatedAsyncioTestCase):
        async def asyncSetUp(self):
            await store.save("seed", 1)

        async def asyncTearDown(self):
            assert await store.load("seed") == 1

        async def test_one(self):
            assert await store.keys() == ["seed"]
            await store.save("k", 1)

        async def test_two(self):
            assert await store.keys() == ["seed"]
            await store.save("k", 1)

    @pytest.mark.usefixtures("cat_as_user")
    class TestPlain(unittest.TestCase):
        def test_one(self):
            assert asyncio.run(store.increment("n")) == 1

        test_two = test_one
    """
    passed(run(code), 4)


def test_without_pytest(project: Path) -> None:
    """`fresh_home` does the same for any runner, such as unittest's own."""
    (project / "test_it.py").write_text(
        textwrap.dedent(
            """
            import os, pathlib, tempfile, unittest
            from cat import blocking, store
            from cat.testing import fresh_home

            class Test(unittest.IsolatedAsyncioTestCase):
                def setUp(self):
                    self.home = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
                    self.enterContext(fresh_home(self.home))

                async def test_one(self):
                    assert await store.increment("n") == 1

                test_two = test_one

            class TestPlain(unittest.TestCase):
                setUp = Test.setUp

                def test_one(self):
                    assert blocking.store.increment("n") == 1

                test_two = test_one
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "unittest", "-q"],
        cwd=project,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("-----")
    assert "Ran 4 tests" in done.stderr
    assert not (project / "data").exists()


def test_an_app_in_a_test_client(run: Run) -> None:
    """FastAPI's `TestClient` runs the app in another thread, for one test or for all."""
    if not (importlib.util.find_spec("fastapi") and importlib.util.find_spec("httpx")):
        pytest.skip("FastAPI is not installed")
    code = """
    import warnings
    import pytest
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FastAPI's own
        from fastapi import FastAPI
        from fastapi.testclient import TestClient
    from cat import store
    from cat.asgi import UserMiddleware

    app = FastAPI()
    app.add_middleware(UserMiddleware, identify=lambda scope: "alice")

    @app.post("/count")
    async def count() -> int:
        return await store.increment("n")

    @pytest.mark.parametrize("number", range(2))
    def test_client(cat_store, number):
        with TestClient(app) as client:
            assert [client.post("/count").json() for _ in range(2)] == [1, 2]

    @pytest.fixture(scope="module")
    def client():
        with TestClient(app) as client:
            yield client

    @pytest.mark.parametrize("number", range(2))
    def test_client_of_the_module(client, cat_store, number):
        assert [client.post("/count").json() for _ in range(2)] == [1, 2]
    """
    passed(run(code), 4)


# --- The environment.

ENVIRONMENT = """
import asyncio, os
import pytest
from cat import blocking, store

BEFORE = {name: os.environ.get(name) for name in ("CAT_HOME", "CAT_URL")}

@pytest.fixture(scope="session")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()

def both(loop, verb, *given):
    ours = getattr(blocking.store, verb)(*given)
    assert loop.run_until_complete(getattr(store, verb)(*given)) == ours
    return ours

def check(loop):
    assert {name: os.environ.get(name) for name in BEFORE} == BEFORE
    assert both(loop, "load", "k") == "of the environment"

def test_1_the_environments(loop):
    both(loop, "save", "k", "of the environment")
    check(loop)

def test_2_the_tests_own(loop, cat_store):
    assert both(loop, "keys") == []
    both(loop, "save", "k", "of the test")

def test_3_again(loop):
    check(loop)

def test_4_meddles(cat_store):
    del os.environ["CAT_HOME"]
    os.environ["CAT_URL"] = "sqlite:///nowhere.db"

def test_5_again(loop):
    check(loop)

def test_6_sets(monkeypatch, cat_store):
    monkeypatch.setenv("CAT_URL", "sqlite:///nowhere.db")

def test_7_sets(cat_store, monkeypatch):
    monkeypatch.setenv("CAT_URL", "sqlite:///nowhere.db")
    monkeypatch.setenv("CAT_TIMEOUT", "1")

def test_8_again(loop):
    check(loop)

@pytest.mark.xfail(raises=ZeroDivisionError, strict=True)
def test_9_fails(cat_store):
    1 // 0

def test_9_then(loop):
    check(loop)
    blocking.store.clear_all()  # the database closes with the process
"""


@pytest.mark.parametrize("name", ["CAT_HOME", "CAT_URL", "both", "none"])
def test_the_environment_is_restored(name: str, run: Run, project: Path, tmp_path: Path) -> None:
    """What pointed elsewhere before a test does so after it, for loops that go on too."""
    environment = {
        "CAT_HOME": str(tmp_path / "earlier"),
        "CAT_URL": f"sqlite:///{tmp_path / 'earlier.db'}",
    }
    if name != "both":
        environment = {key: value for key, value in environment.items() if key == name}
    done = run(ENVIRONMENT, "--deselect", "test_zz_last.py", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 passed, 1 deselected, 1 xfailed" in done.stdout
    assert (project / "data" / "cat.db").exists() == (name == "none")
    assert (tmp_path / "earlier" / "cat.db").exists() == (name == "CAT_HOME")
    assert (tmp_path / "earlier.db").exists() == (name in ("CAT_URL", "both"))
    assert not (project / "nowhere.db").exists()


def test_what_cannot_be_closed_is_told(run: Run) -> None:
    """A `connect()` that is open, and a running loop, are errors that say what to do."""
    code = """
    import asyncio
    import pytest
    from cat import blocking, store
    from cat.testing import fresh_home

    @pytest.fixture
    def connected(tmp_path):
        with blocking.connect(home=tmp_path / "other"):
            yield

    def test_connected(connected, tmp_path):
        with pytest.raises(RuntimeError, match="connect.*leave it first"):
            with fresh_home(tmp_path / "home"):
                pass
        assert blocking.store.increment("n") == 1

    def test_running(tmp_path):
        async def main():
            with pytest.raises(RuntimeError, match="running"):
                with fresh_home(tmp_path / "home"):
                    pass

        asyncio.run(main())

    def test_then(cat_store):
        assert blocking.store.increment("n") == 1
    """
    passed(run(code), 3)


# --- The plugin itself.


def test_the_plugin_imports_nothing_before_a_fixture_is_used(run: Run) -> None:
    """Where catstore is installed, tests that have nothing to do with it are left alone."""
    code = """
    import os, sys

    def ours():
        return [name for name in sys.modules if name.split(".")[0] in ("cat", "aiosqlite")]

    def test_1_before():
        assert "pytest_catstore" in sys.modules
        assert ours() == []
        assert not [name for name in os.environ if name.startswith("CAT_")]

    def test_2_used(cat_store):
        assert "cat" in ours()
    """
    passed(run(code), 2)


def test_the_plugin_can_be_left_out(run: Run) -> None:
    """`-p no:catstore` keeps it away, with its fixtures."""
    code = """
    import sys

    def test_it():
        assert "pytest_catstore" not in sys.modules

    def test_a_fixture(cat_store):
        raise AssertionError
    """
    done = run(code, "-p", "no:catstore")
    assert done.returncode == 1
    assert "fixture 'cat_store' not found" in done.stdout
    assert "2 passed, 1 error in" in done.stdout


def test_the_fixtures_are_listed(run: Run) -> None:
    """`pytest --fixtures` shows both, each with what it is for."""
    said = run("", "--fixtures").stdout
    for name in ("cat_store", "cat_as_user"):
        [line] = [number for number, text in enumerate(said.splitlines()) if text.startswith(name)]
        assert "home" in said.splitlines()[line + 1]


def test_the_entry_point_is_in_the_metadata() -> None:
    """What is installed names the plugin to pytest."""
    [found] = importlib.metadata.distribution("catstore").entry_points.select(group="pytest11")
    assert (found.name, found.value) == ("catstore", "pytest_catstore")
    assert found.load().__doc__
