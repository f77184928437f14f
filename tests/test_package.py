"""What is built installs and works by itself: the wheel of the sdist, and an editable install.

Run by `tox -e package`, as it builds and makes virtual environments.
"""

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMOKE = """
import asyncio, importlib.metadata
from cat import as_user, store, user

async def main():
    with as_user("alice"):
        await user.save("todos", [1])
        print(await user.load("todos"), await store.load("todos"))

asyncio.run(main())
print(importlib.metadata.version("catstore"))
print([e.value for e in importlib.metadata.entry_points(group="pytest11", name="catstore")])
"""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command, insist that it succeeds, and return what it printed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an sdist, and a wheel from that sdist, as `python -m build` does."""
    place = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", place)
    return place


def smoke(place: Path, *install: str | Path) -> str:
    """Install into a fresh environment, use it in an empty directory, and return what it says."""
    venv.create(place / "venv", with_pip=True)
    python = place / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    run(python, "-m", "pip", "install", "-q", *install)
    (place / "empty").mkdir()
    said = run(python, "-c", SMOKE, cwd=place / "empty")
    assert (place / "empty" / "data" / "cat.db").is_file()
    return said


def test_wheel_of_the_sdist_works(built: Path, tmp_path: Path) -> None:
    """The wheel that is built from the sdist brings its migrations and runs."""
    [wheel] = built.glob("*.whl")
    said = smoke(tmp_path, wheel).splitlines()
    assert (said[0], said[2]) == ("[1] None", "['pytest_catstore']")


def test_editable_install_works(tmp_path: Path) -> None:
    """An editable install finds the migrations of the checkout and runs."""
    said = smoke(tmp_path, "-e", ROOT).splitlines()
    assert (said[0], said[2]) == ("[1] None", "['pytest_catstore']")


def test_wheel_holds_the_package_and_no_more(built: Path) -> None:
    """The wheel has the package with each migration, pytest's plugin, and no tests or docs."""
    [wheel] = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    migrations = {f"cat/migrations/{f.relative_to(ROOT / 'migrations')}" for f in every_migration()}
    assert migrations
    assert migrations <= names
    assert {"cat/__init__.py", "cat/py.typed", "cat/backends/sqlite/start.py"} <= names
    tops = {name.split("/")[0] for name in names if not name.startswith("catstore-")}
    assert tops == {"cat", "pytest_catstore.py"}


def test_sdist_can_be_tested(built: Path) -> None:
    """The sdist has what the tests of a packager need."""
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"tox.ini", "tests/conftest.py", "docs/examples/host.py", "LICENSE", "CHANGELOG.md"}
    needed |= {"src/pytest_catstore.py", "docs/examples/tome/stats/runcount_kv.py"}
    assert needed | {f.relative_to(ROOT).as_posix() for f in every_migration()} <= names


def every_migration() -> list[Path]:
    """Return the migration files of the checkout."""
    return list((ROOT / "migrations").rglob("*.sql"))
