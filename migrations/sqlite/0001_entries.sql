-- One table for both stores. The owner '' is the global store; a user id is
-- never empty. Owner, namespace and key are columns of their own, so that no
-- separator can be forged; BINARY collation, so that nothing is folded.
--
-- `size` (bytes of `value`) stands before `value`, so that a reader can decide
-- by size without fetching the value. A rowid table with a unique index:
-- measured against WITHOUT ROWID it is equal for values of 50 bytes and 2-4
-- times as fast from 5 KB up.
--
-- `created`, `updated` and `expires` are seconds since 1970-01-01 UTC, read as
-- datetime(updated, 'unixepoch'). `revision` differs after every write of a
-- row and never repeats for a key, not even after it was deleted.
CREATE TABLE entries (
    id        INTEGER PRIMARY KEY,
    owner     TEXT    NOT NULL,
    namespace TEXT    NOT NULL,
    key       TEXT    NOT NULL,
    size      INTEGER NOT NULL,
    revision  INTEGER NOT NULL,
    created   REAL    NOT NULL,
    updated   REAL    NOT NULL,
    expires   REAL,
    value     TEXT    NOT NULL,
    UNIQUE (owner, namespace, key)
) STRICT;

-- Finds what has expired; entries that never expire cost nothing here.
CREATE INDEX entries_by_expiry ON entries (expires) WHERE expires IS NOT NULL;
