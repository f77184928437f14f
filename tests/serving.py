"""Servers in processes of their own, started by the commands that the docs give."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LIMIT = 60.0  # seconds; against hanging


class Server:
    """A command that serves HTTP, and the log that it writes."""

    def __init__(self, command: str, directory: Path, log: Path) -> None:
        program, *arguments = shlex.split(command)
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name(program), *arguments],
                cwd=directory,
                # gunicorn keeps a socket in the home directory of whoever runs it.
                env={**os.environ, "HOME": str(log.parent)},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def told(self, pattern: str, count: int = 1) -> list[str]:
        """Wait until the log has `pattern` so many times, and return what its group matched."""
        deadline = time.monotonic() + LIMIT
        while True:
            found = re.findall(pattern, self.log.read_text())
            if len(found) >= count:
                return found
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    @property
    def address(self) -> str:
        """The address that it serves; it was told to take a free port."""
        return self.told(r"(?:running on|Listening at:) (http://127\.0\.0\.1:\d+)")[0]

    def workers(self, pattern: str) -> list[int]:
        """Return those of the processes that the log tells of that live, and are children of it."""
        found = []
        for pid in self.told(pattern):
            with contextlib.suppress(FileNotFoundError):
                # After the name, in brackets, which may hold anything, are state and parent.
                state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z" and int(parent) == self.process.pid:
                    found.append(int(pid))
        return found

    def stop(self) -> None:
        """Stop it as an operator does, and insist that it ends well."""
        self.process.send_signal(signal.SIGTERM)
        # uvicorn without workers ends by the signal that it was stopped with.
        assert self.process.wait(LIMIT) in (0, -signal.SIGTERM), self.log.read_text()


@contextlib.contextmanager
def serving(command: str, directory: Path, log: Path) -> Iterator[Server]:
    """Run a server beside a `with` block, and stop it at its end."""
    server = Server(command, directory, log)
    try:
        yield server
        server.stop()
    finally:
        with contextlib.suppress(ProcessLookupError):  # all of it has ended
            os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
