"""Talk with a process of one's own in lines of JSON, from either end."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

numbers = count()
Verbs = dict[str, Callable[..., Awaitable[Any]]]


class Child:
    """A process that answers: the end of whoever asks."""

    def __init__(self, *command: str | Path, home: Path) -> None:
        """Start it, with `home` as its `CAT_HOME` and as the directory in which it runs."""
        home.mkdir(mode=0o700, exist_ok=True)
        self.errors = home / f"stderr-{next(numbers)}.txt"
        # A PYTHONPATH could lead the real Cheshire Cat to the wrong package `cat`.
        environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
        with self.errors.open("w") as stderr:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=home,
                env=environment | {"CAT_HOME": str(home)},
            )

    def tell(self, verb: str, **arguments: object) -> None:
        """Say what to do, and do not wait for it."""
        try:
            print(json.dumps([verb, arguments]), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise EOFError(self.last_words()) from None

    def hear(self, limit: float = 900) -> Any:
        """Return the answer, or raise EOFError if it ends, or is ended after `limit` seconds."""
        watchdog = threading.Timer(limit, self.process.kill)
        watchdog.start()
        answer = self.process.stdout.readline()
        watchdog.cancel()
        if not answer:
            raise EOFError(self.last_words())
        return json.loads(answer)

    def ask(self, verb: str, **arguments: object) -> Any:
        """Say what to do and return the answer."""
        self.tell(verb, **arguments)
        return self.hear()

    def last_words(self) -> str:
        """Return the last line of its standard error."""
        said = self.errors.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(said) if line.strip()), "it ended silently")

    def close(self) -> None:
        """Let it end, and see to it that it does."""
        if self.process.poll() is not None:
            return
        try:
            self.process.communicate(timeout=30)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()
            self.process.wait()


async def answer(verbs: Verbs) -> None:
    """Do what is asked until the input ends: the end of the child.

    Whatever else prints goes to standard error, so that only answers are read as answers.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        verb, arguments = json.loads(line)
        print(json.dumps(await verbs[verb](**arguments)), file=answers, flush=True)
