"""The environment is read when it is needed, and refused by name before anything is made."""

# ruff: noqa: ASYNC240  # a test has its event loop to itself, and may block it

import asyncio
import math
import os
import pickle
from pathlib import Path
from uuid import uuid4

import pytest

from cat import connect, store
from cat.errors import AlreadyConnectedError, InvalidSettingError, UnstorableValueError
from cat.settings import Settings, read

MB = 1024 * 1024


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a directory of our own."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def test_defaults(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no environment at all there are defaults, and reading them makes nothing."""
    monkeypatch.delenv("CAT_HOME")
    settings = read()
    assert settings.home.is_absolute()
    assert settings.home.name == "data"
    assert settings == Settings(
        home=settings.home,
        url=f"sqlite:///{settings.home}/cat.db",
        durability="always",
        timeout=30.0,
        max_value_bytes=16 * MB,
        max_key_bytes=512,
        inline_reads=True,
    )
    assert not list(here.iterdir())


GOOD = [
    ("CAT_HOME", "/srv/data", "home", Path("/srv/data")),
    ("CAT_HOME", "/srv/data", "url", "sqlite:////srv/data/cat.db"),
    ("CAT_HOME", "/srv/my data/\u00e9", "home", Path("/srv/my data/\u00e9")),
    ("CAT_HOME", "~", "home", Path("~").expanduser()),
    ("CAT_HOME", "~/data", "home", Path("~/data").expanduser()),
    ("CAT_URL", "sqlite:////srv/x.db", "url", "sqlite:////srv/x.db"),
    ("CAT_URL", "sqlite:////srv/my%20x&y#z.db", "url", "sqlite:////srv/my%20x&y#z.db"),
    ("CAT_DURABILITY", "always", "durability", "always"),
    ("CAT_DURABILITY", "interval", "durability", "interval"),
    ("CAT_TIMEOUT", "5", "timeout", 5.0),
    ("CAT_TIMEOUT", "0.25", "timeout", 0.25),
    ("CAT_TIMEOUT", "3600", "timeout", 3600.0),
    ("CAT_MAX_VALUE_BYTES", "1", "max_value_bytes", 1),
    ("CAT_MAX_VALUE_BYTES", str(512 * MB), "max_value_bytes", 512 * MB),
    ("CAT_MAX_KEY_BYTES", "1", "max_key_bytes", 1),
    ("CAT_MAX_KEY_BYTES", "65536", "max_key_bytes", 65_536),
]


@pytest.mark.parametrize(("name", "text", "field", "expected"), GOOD)
def test_good_values(
    name: str, text: str, field: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is allowed is taken as it is meant."""
    monkeypatch.setenv(name, text)
    assert getattr(read(), field) == expected


BAD = {
    "CAT_HOME": ["", " ", "\t", "~nobody-has-this-name", "~nobody-has-this-name/data"],
    "CAT_URL": [
        "",
        " ",
        "cat.db",
        "/srv/cat.db",
        "sqlite:",
        "sqlite://",
        "sqlite://cat.db",
        "sqlite:///",
        "sqlite:///  ",
        "sqlite:////",
        "sqlite:///data/",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?cache=shared",
        "SQLITE:///cat.db",
        "postgresql:///name",
        "sqlite:////srv/cat.db?mode=ro",
        "sqlite+aiosqlite:///cat.db",
    ],
    "CAT_DURABILITY": ["", " ", "Always", "always ", "normal", "off", "0", "always,interval"],
    "CAT_TIMEOUT": ["", " ", "0", "0.0", "-1", "nan", "inf", "-inf", "1e999", "3601", "5s", "1,5"],
    "CAT_MAX_VALUE_BYTES": [
        "",
        "0",
        "-1",
        "+1",
        " 1",
        "1.0",
        "1e6",
        "1_000",
        "16MB",
        "0x10",
        "\u0661",
        "\u00b2",
        str(512 * MB + 1),
        "9" * 5000,
    ],
    "CAT_MAX_KEY_BYTES": ["", "0", "-1", "512.0", "all", "65537", "\uff11"],
}
ALLOWED = {
    "CAT_HOME": "directory",
    "CAT_URL": "sqlite:///relative/path.db or sqlite:////absolute/path.db",
    "CAT_DURABILITY": "always or interval",
    "CAT_TIMEOUT": "above 0, up to 3600",
    "CAT_MAX_VALUE_BYTES": "from 1 to 536,870,912",
    "CAT_MAX_KEY_BYTES": "from 1 to 65,536",
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in BAD for text in BAD[name]])
def test_bad_values(
    name: str, text: str, here: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not allowed is refused by every door, with all there is to know, and nothing made."""
    monkeypatch.setenv(name, text)

    async def main() -> list[BaseException]:
        async def connected() -> None:
            async with connect():
                pass

        tried = [store.save("k", 1), store.load("k"), store.exists("k"), store.delete("k")]
        return await asyncio.gather(*tried, connected(), return_exceptions=True)  # type: ignore[return-value]

    errors = asyncio.run(main())
    with pytest.raises(InvalidSettingError) as caught:
        _ = store.folder
    for error in [*errors, caught.value]:
        assert type(error) is InvalidSettingError
        assert isinstance(error, ValueError)
        message = str(error)
        assert message.startswith(f"{name} is {ascii(text)[:77]}")
        assert ALLOWED[name] in message
        assert message.isascii()
        assert len(message) < 300
        assert str(pickle.loads(pickle.dumps(error))) == message  # noqa: S301  # made here
    assert not home.exists()
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "given",
    [
        {"home": ""},
        {"home": "a\0b"},
        {"home": "~nobody-has-this-name"},
        {"url": ""},
        {"url": "cat.db"},
        {"url": "sqlite:///a\0b"},
    ],
)
async def test_bad_arguments(given: dict[str, str], home: Path) -> None:
    """What `connect` is given is checked as the environment is, and the loop stays free."""
    with pytest.raises(InvalidSettingError, match=f"^CAT_{next(iter(given)).upper()} is "):
        async with connect(**given):
            pass
    assert not home.exists()
    await store.save("k", 1)


def test_read_when_first_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event loop reads the environment as it is when the loop first needs it."""

    async def use(first: str, later: str) -> object:
        monkeypatch.setenv("CAT_HOME", str(tmp_path / first))
        await store.save("k", first)
        monkeypatch.setenv("CAT_HOME", str(tmp_path / later))
        assert store.folder.is_relative_to(tmp_path / first)
        return await store.load("k")

    assert asyncio.run(use("one", "two")) == "one"
    assert not (tmp_path / "two").exists()
    assert asyncio.run(use("two", "one")) == "two"
    assert asyncio.run(use("one", "one")) == "one"


def test_limits_are_read_when_first_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that was changed between two loops is the second one's."""

    async def save() -> None:
        await store.save("k", "four")

    monkeypatch.setenv("CAT_MAX_VALUE_BYTES", "5")
    with pytest.raises(UnstorableValueError, match="CAT_MAX_VALUE_BYTES"):
        asyncio.run(save())
    monkeypatch.setenv("CAT_MAX_VALUE_BYTES", "6")
    asyncio.run(save())


def test_relative_home_is_made_absolute_once(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path of the environment means the same after a `chdir`."""
    name = f"data-{uuid4()}"
    for setting, text in [("CAT_HOME", name), ("CAT_URL", f"sqlite:///{name}/some.db")]:
        monkeypatch.setenv(setting, text)
    monkeypatch.chdir(here)
    first = read()
    assert first.home == here / name
    assert first.url == f"sqlite:///{here}/{name}/some.db"
    monkeypatch.chdir(tmp_path)
    assert read() == first


def test_url_names_the_database_alone(
    here: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `CAT_URL` the database lies where that says, and files lie in the home still."""
    name = f"{uuid4()}.db"
    monkeypatch.setenv("CAT_URL", f"sqlite:///there/{name}")

    async def save() -> None:
        await store.save("k", 1)
        assert store.folder.is_relative_to(home)

    asyncio.run(save())
    assert (here / "there" / name).is_file()
    assert not (home / "cat.db").exists()


@pytest.mark.parametrize("kind", [str, Path])
def test_connect_overrides(kind: type, here: Path, home: Path) -> None:
    """Inside `connect(home=)` everything lies there, and after it in the environment's again."""

    async def main() -> None:
        async with connect(home=kind(here / "other")):
            assert await store.load("k") in (None, "other")
            await store.save("k", "other")
            assert store.folder.is_relative_to(here / "other")
            assert (here / "other" / "cat.db").is_file()
        assert store.folder.is_relative_to(home)
        assert await store.load("k") in (None, "environment")
        await store.save("k", "environment")

    asyncio.run(main())
    asyncio.run(main())
    assert (home / "cat.db").is_file()


async def test_connect_url(here: Path, home: Path) -> None:
    """`connect(url=)` names the database, relative to the current directory or absolute."""
    async with connect(url="sqlite:///some.db"):
        await store.save("k", 1)
    async with connect(url=f"sqlite:///{here}/some.db"):
        assert await store.load("k") == 1
    assert (here / "some.db").is_file()
    assert not home.exists()


async def test_connect_is_relative_to_the_current_directory(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `connect` is given is relative to where the process stands at that call."""
    for place in ("one", "two"):
        (here / place).mkdir()
        monkeypatch.chdir(here / place)
        async with connect(home="data"):
            monkeypatch.chdir(here)
            assert await store.load("k") is None
            await store.save("k", place)
    assert sorted(here.glob("*/*/cat.db")) == [here / p / "data/cat.db" for p in ("one", "two")]


async def test_connect_twice_alike(here: Path) -> None:
    """The same again, inside or beside, is allowed, and the outer one goes on."""
    async with connect(home=here / "a"):
        async with connect(home="a"):
            await store.save("k", 1)
        assert await store.load("k") == 1


@pytest.mark.parametrize(
    "other", [{"home": "b"}, {"url": "sqlite:///b.db"}, {}], ids=["home", "url", "environment"]
)
async def test_connect_to_another(other: dict[str, str], here: Path) -> None:
    """A second, different one on the same loop is refused, and the first goes on."""
    async with connect(home="a"):
        await store.save("k", 1)
        with pytest.raises(AlreadyConnectedError, match="connect"):
            async with connect(**other):
                pass
        assert await store.load("k") == 1
    assert [path.name for path in here.iterdir()] == ["a"]


async def test_connect_after_use(here: Path, home: Path) -> None:
    """A loop that uses the environment's already may connect to the same, and to no other."""
    await store.save("k", 1)
    with pytest.raises(AlreadyConnectedError):
        async with connect(home=here / "other"):
            pass
    async with connect(home=home):
        assert await store.load("k") == 1
    assert await store.load("k") == 1


async def test_connect_that_fails_leaves_the_loop_free(here: Path) -> None:
    """A `connect` that cannot open binds nothing."""
    (here / "obstacle").write_text("mine")
    with pytest.raises(PermissionError):
        async with connect(home=here / "obstacle"):
            pass
    await store.save("k", 1)
    assert await store.load("k") == 1


async def test_connect_is_left_by_an_exception(here: Path) -> None:
    """An exception in the block comes out as it is, and the block has ended."""
    with pytest.raises(ZeroDivisionError):
        async with connect(home=here / "a"):
            await store.save("k", math.floor(1 / 0))
    async with connect(home=here / "b"):
        assert await store.load("k") is None


def test_a_loop_per_home(here: Path) -> None:
    """Two loops at once may use two homes."""

    async def use(name: str) -> object:
        async with connect(home=here / name):
            await store.save("k", name)
            return await asyncio.to_thread(_inner, name) if name == "a" else await store.load("k")

    def _inner(name: str) -> object:
        return asyncio.run(use("b")), name

    assert asyncio.run(use("a")) == ("b", "a")


def test_given_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given wins over the environment, by name."""
    monkeypatch.setenv("CAT_TIMEOUT", "5")
    assert read({"CAT_TIMEOUT": "7"}).timeout == 7
    assert read({"CAT_HOME": os.curdir}).timeout == 5


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal of another database's URL keeps its password to itself."""
    monkeypatch.setenv("CAT_URL", "postgresql://app:hunter2@host/name")
    with pytest.raises(InvalidSettingError) as caught:
        read()
    assert "hunter2" not in str(caught.value)
    assert "'postgresql://...@host/name'" in str(caught.value)
