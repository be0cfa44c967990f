"""HDF5 files are opened in a process of their own: on some broken files the HDF5 library ends, or never returns.

A process is started for the first file and kept for the next ones. One that ends, or says nothing for too long, is
ended; the next file gets a new one.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

CHILD = Path(__file__).with_name("hdf5_child.py")
START_S = 120.0  # until the process is there, on a machine that is busy
# An answer may take this long, and longer for larger files; a whole file of SHD takes seconds.
PATIENCE_S, SLOWEST_BYTES_A_S = 30.0, 2e6
BLOCK = 1 << 20  # bytes


class Broken(Exception):
    """A file at which the process ended or did not return."""


def ask(path: Path, start: int, stop: int | None, names: tuple[str, ...]) -> tuple[dict, dict[str, np.ndarray]]:
    """What the process answers about a file.

    Parameters
    ----------
    path : Path
    start, stop : int
        Samples to read.
    names : tuple of str
        Datasets to read.

    Returns
    -------
    head : dict
        With `arrays`, `keys` and `attributes`, or `error`, or `refused`; see `hdf5_child`.
    arrays : dict of str to array

    Raises
    ------
    Broken
        If the process ended or did not return.
    """
    # The process keeps the folder that it was started in; its user may have moved on.
    request = {"path": str(path.absolute()), "start": start, "stop": stop, "names": list(names)}
    child = _take()
    try:
        head, arrays = child.ask(request, PATIENCE_S + path.stat().st_size / SLOWEST_BYTES_A_S)
    except BaseException:
        child.end()
        raise
    with _lock:
        _idle.append(child)
    return head, arrays


class _Child:
    def __init__(self):
        # What is imported here can be imported there, and nothing beside the script can take the place of a library.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            # Ctrl-C is for the one who asks.
            start_new_session=True,
            bufsize=0,
        )
        self.rest = b""
        try:
            self._line(time.monotonic() + START_S)
        except BaseException:
            self.end()
            raise

    def ask(self, request: dict, patience: float) -> tuple[dict, dict[str, np.ndarray]]:
        try:
            self._write(json.dumps(request).encode() + b"\n")
            deadline = time.monotonic() + patience
            head = json.loads(self._line(deadline))
            arrays = {
                name: self._array(kind, length, deadline) for name, (kind, length) in head.get("arrays", {}).items()
            }
        except (OSError, ValueError) as error:
            raise Broken(str(error)) from error
        return head, arrays

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)

    def _line(self, deadline: float) -> bytes:
        line = self.rest
        while b"\n" not in line:
            line += self._some(deadline)
        line, _, self.rest = line.partition(b"\n")
        return line

    def _some(self, deadline: float) -> bytes:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise Broken("the HDF5 library does not return")
        data = os.read(self.process.stdout.fileno(), BLOCK)
        if not data:
            raise Broken("the HDF5 library fails")
        return data

    def _array(self, kind: str, length: int, deadline: float) -> np.ndarray:
        array = np.empty(length, kind)
        view = array.view(np.uint8)
        done = min(len(view), len(self.rest))
        view[:done] = np.frombuffer(self.rest, np.uint8, done)
        self.rest = self.rest[done:]
        while done < len(view):
            data = self._some(deadline)
            n = min(len(data), len(view) - done)
            view[done : done + n] = np.frombuffer(data, np.uint8, n)
            self.rest, done = data[n:], done + n
        return array


_idle: list[_Child] = []
_lock = threading.Lock()


def _take() -> _Child:
    with _lock:
        if _idle:
            return _idle.pop()
    return _Child()


@atexit.register
def _end_all() -> None:
    while _idle:
        _idle.pop().end()
