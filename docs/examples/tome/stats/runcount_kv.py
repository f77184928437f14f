"""The run counter of `runcount.py`, kept in a store: nothing to parse, to reset, or to miscount.

Install it with `tome install docs/examples/tome -e`, and run `tome stats:runcount-kv`.
"""

import os

from tome.api.output import TomeOutput
from tome.command import tome_command

from cat.blocking import connect, store

runcount = store.namespace("runcount-kv")


@tome_command()
def runcount_kv(tome_api, parser, *args):
    """Counts times it has been run, also when many copies run at once."""
    parser.parse_args(*args)
    output = TomeOutput(stdout=True)

    # A directory for all commands of "stats", within the tome store
    home = os.path.join(tome_api.store.folder, "stats")
    with connect(home=home):
        count = runcount.increment("run_count")

    output.info(f"This command has been run {count} time(s).")
    output.info(f"(Counter data stored in: {os.path.join(home, 'cat.db')})")
