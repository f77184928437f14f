"""What the library makes is for its owner alone, and what was there is left and reported."""

import json
import os
from pathlib import Path

import pytest

from children import printed

NOBODY = 65534

# Prints every path below the home with its mode and owner, while all is open.
USE = """
import asyncio, json, os, sys, tempfile
from cat import connect, for_user, store

umask, uid, below = sys.argv[1:]

async def rehearse(home):  # as nobody, Python's own files may be out of reach
    async with connect(home=home):
        await store.save("k", 1)
        for_user("rehearsal").folder

with tempfile.TemporaryDirectory() as home:
    asyncio.run(rehearse(home))
os.umask(int(umask, 8))
os.seteuid(int(uid))

async def main():
    await store.save("k", 1)
    for one in (store, for_user("alice"), store.namespace("a").namespace("b")):
        one.folder
    found = {}
    for directory, names, files in os.walk(below):
        for name in [".", *files]:
            seen = os.stat(os.path.join(directory, name))
            path = os.path.relpath(os.path.join(directory, name), below)
            found[path] = [oct(seen.st_mode & 0o7777), seen.st_uid, name == "."]
    print(json.dumps(found))

asyncio.run(main())
"""
DATABASE = {"cat.db", "cat.db-wal", "cat.db-shm", "cat.db.lock"}


@pytest.mark.parametrize("umask", ["0", "022", "077", "0777"])
def test_modes(umask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories are 0700 and files 0600, whatever the umask."""
    top = tmp_path / "top"
    home = top / "some" / "home"
    top.mkdir(mode=0o700)
    monkeypatch.setenv("CAT_HOME", str(home))
    found = json.loads(printed(USE, umask, str(os.geteuid()), str(top)))
    assert {f"some/home/{name}" for name in DATABASE} < set(found)
    assert sum(is_directory for _, _, is_directory in found.values()) > 6
    for path, (mode, uid, is_directory) in found.items():
        assert mode == ("0o700" if is_directory else "0o600"), path
        assert uid == os.geteuid(), path
    assert home.joinpath("cat.db").stat().st_mode & 0o777 == 0o600


REPORT = """
import asyncio, json, logging, sys
from cat import for_user, store

records = []
handler = logging.Handler()
handler.emit = lambda record: records.append(
    [record.name, record.levelname, record.getMessage()]
)
logging.getLogger().addHandler(handler)

async def main():
    await store.save("k", 1)
    await for_user("alice").load("k")
    store.folder

for _ in range(3):
    asyncio.run(main())
print(json.dumps(records))
"""


def test_wide_modes_are_left_and_reported_once(home: Path) -> None:
    """A home and a database that others may enter are reported once in a process, and kept."""
    assert json.loads(printed(REPORT)) == []
    home.chmod(0o755)
    (home / "cat.db").chmod(0o644)
    for _ in range(2):
        records = json.loads(printed(REPORT))
        assert [record[:2] for record in records] == [["cat", "WARNING"]] * 2
        texts = sorted(record[2] for record in records)
        assert texts[0].startswith(f"{home} has mode 0755")
        assert texts[0].endswith("chmod 0700")
        assert texts[1].startswith(f"{home}/cat.db has mode 0644")
        assert texts[1].endswith("chmod 0600")
    assert home.stat().st_mode & 0o7777 == 0o755
    assert (home / "cat.db").stat().st_mode & 0o7777 == 0o644
    home.chmod(0o700)
    (home / "cat.db").chmod(0o600)


@pytest.mark.parametrize("mode", [0o710, 0o770, 0o701])
def test_any_bit_for_others_is_wide(mode: int, home: Path) -> None:
    """One bit for the group or for others is enough to be reported."""
    home.mkdir(mode=0o700)
    home.chmod(mode)
    [record] = json.loads(printed(REPORT))
    assert f"has mode {mode:04o}" in record[2]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("made", [True, False], ids=["home is there", "home is new"])
def test_root_hands_over(
    made: bool,  # noqa: FBT001
    open_place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What root makes in another's directory is that owner's, who can go on with it."""
    os.chown(open_place, NOBODY, NOBODY)
    home = open_place if made else open_place / "some" / "home"
    open_place.chmod(0o700)
    monkeypatch.setenv("CAT_HOME", str(home))
    found = json.loads(printed(USE, "022", "0", str(open_place)))
    assert {os.path.relpath(home / name, open_place) for name in DATABASE} < set(found)
    assert {path for path, (_, uid, _) in found.items() if uid != NOBODY} == set()
    again = json.loads(printed(USE, "022", str(NOBODY), str(open_place)))
    assert {mode for mode, _, _ in again.values()} == {"0o700", "0o600"}
