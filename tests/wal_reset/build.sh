#!/bin/sh
# Build SQLite as this Debian ships it, with two moments of its checkpoint stretched.
#
#     build.sh DIRECTORY
#
# makes DIRECTORY/libsqlite3-race.so, to be used as
#
#     LD_PRELOAD=libsqlite3-race.so CAT_WAL_GAP=50000 CAT_WAL_RACE=50000 python ...
#
# CAT_WAL_RACE is how long, in microseconds, a checkpoint rests between reading
# the log's header and using it; CAT_WAL_GAP is how long it rests before it
# begins, where the scheduler may hold up a process between its commit and the
# automatic checkpoint that follows. Nothing but time is added, so whatever is
# lost with this library can be lost without it.
#
# The source comes from the archive that this machine's own apt is set up for,
# and nothing outside DIRECTORY is changed.
set -eu

mkdir -p "$1"
cd "$1"
here=$PWD

for tool in apt-get dpkg-query dpkg-source gcc make python3 tclsh; do
    command -v "$tool" >/dev/null || { echo "$tool is not here" >&2; exit 3; }
done
version=$(dpkg-query -W -f '${source:Version}' libsqlite3-0)

# The same archives, of which the sources are asked for.
mkdir -p apt/parts apt/lists/partial apt/cache/archives/partial
for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    if [ -e "$list" ]; then
        sed -n 's/^deb[[:space:]]/deb-src /p' "$list" >"apt/parts/$(basename "$list" .list).list"
    fi
done
for list in /etc/apt/sources.list.d/*.sources; do
    if [ -e "$list" ]; then
        sed 's/^Types:.*/Types: deb-src/' "$list" >"apt/parts/$(basename "$list")"
    fi
done
apt() {
    apt-get -q -o "Dir::Etc::sourcelist=$here/apt/none" -o "Dir::Etc::sourceparts=$here/apt/parts" \
        -o "Dir::State::lists=$here/apt/lists" -o "Dir::Cache=$here/apt/cache" \
        -o APT::Sandbox::User=root -o Acquire::Retries=1 -o Acquire::http::Timeout=10 "$@"
}
apt update
apt source --only-source "sqlite3=$version"
cd sqlite3-*/

# The one call of walCheckpoint() follows the reading of the header, and is in
# sqlite3WalCheckpoint(), whose first act is to take the checkpoint lock.
rest='if( getenv("NAME") ) usleep(atoi(getenv("NAME")));'
python3 - "$rest" <<'PYTHON'
import pathlib
import sys

wal = pathlib.Path("src/wal.c")
text = wal.read_text()
for before, name in (
    ("  szPage = walPagesize(pWal);\n  testcase( szPage<=32768 );\n", "CAT_WAL_RACE"),
    ("  rc = walLockExclusive(pWal, WAL_CKPT_LOCK, 1);\n  testcase( rc==SQLITE_BUSY );\n", "CAT_WAL_GAP"),
):
    assert text.count(before) == 1, (name, text.count(before))
    text = text.replace(before, "  " + sys.argv[1].replace("NAME", name) + "\n" + before)
wal.write_text("#include <stdlib.h>\n#include <unistd.h>\n" + text)
PYTHON

./configure --disable-tcl >/dev/null
make sqlite3.c >/dev/null
# As Debian builds it: its own switches, and those its configure adds.
# shellcheck disable=SC2046
gcc -O1 -shared -fPIC -w -Wl,-soname,libsqlite3.so.0 -o "$here/partial.so" \
    $(grep -o -e '-DSQLITE_[A-Z0-9_]*\(=[0-9]*\)\?' debian/rules | sort -u) \
    -DSQLITE_THREADSAFE=1 -DSQLITE_ENABLE_MATH_FUNCTIONS -DSQLITE_ENABLE_FTS4 \
    -DSQLITE_ENABLE_FTS5 -DSQLITE_ENABLE_RTREE -DSQLITE_ENABLE_SESSION \
    -DSQLITE_ENABLE_PREUPDATE_HOOK -DHAVE_USLEEP=1 -DHAVE_ISNAN \
    sqlite3.c -lpthread -ldl -lm
cd "$here"
mv partial.so libsqlite3-race.so
rm -rf apt sqlite3-* sqlite3_* # 200 MB
