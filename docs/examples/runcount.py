"""The run counter of a command, kept in two places: in a file of the folder, and in the store.

Run it a few times, as `python docs/examples/runcount.py`.
"""

import asyncio
import json

from cat import store

runcount = store.namespace("stats").namespace("runcount")


def count_in_a_file() -> int:
    """Count with a JSON file, as a script does that reads and writes files of its own."""
    file = runcount.folder / "run_counter.json"
    count: int = json.loads(file.read_text())["run_count"] if file.exists() else 0
    file.write_text(json.dumps({"run_count": count + 1}))
    return count + 1


async def count_in_the_store() -> int:
    """Count in the store: no file to find, to parse, or to lose half-written."""
    return await runcount.increment("run_count")


async def main() -> None:
    """Count this run in both places."""
    print(f"This command has been run {await count_in_the_store()} time(s), says the store.")
    print(f"This command has been run {count_in_a_file()} time(s), says the file.")
    print(f"(The file lies in {runcount.folder})")


if __name__ == "__main__":
    asyncio.run(main())
