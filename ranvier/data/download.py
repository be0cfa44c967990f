"""`fetch`: one file from the network, resumed after a cut, compared with its checksum, placed atomically."""

import errno
import fcntl
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from ranvier.data.convert import checksum
from ranvier.errors import RanvierError

BLOCK = 1 << 18  # bytes
Progress = Callable[[int, int | None], None]


class _Cut(Exception):
    """The connection ended, or brought nothing for too long, before the file was whole."""


class _Unreachable(Exception):
    """The address brought nothing."""


def fetch(
    addresses: Sequence[str],
    path: Path,
    md5: str | None,
    *,
    progress: Progress | None = None,
    force: bool = False,
    timeout_s: float = 30.0,
    tries: int = 5,
    pause_s: float = 1.0,
) -> tuple[str, ...]:
    """Download a file.

    What has come is in `path` with `.part` behind the name, and a later call goes on from there. When the checksum
    fits, that file is renamed to `path`.

    Parameters
    ----------
    addresses : sequence of str
        Tried in this order.
    path : Path
    md5 : str, optional
        None: not compared.
    progress : function of bytes that are there and bytes in all (None: not known), optional
    force : bool
        Keep a file with another checksum.
    timeout_s : float
        Longest time without a byte.
    tries : int
        At one address, without a new byte between them.
    pause_s : float
        Before the second try; doubled before each further one.

    Returns
    -------
    tuple of str
        Warnings.

    Raises
    ------
    RanvierError
        If no address brings the file, its checksum is another one, or it cannot be written. The message says where to
        put the file by hand.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    reasons, wrong = [], False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                _refuse(path, "a download that another process is at", "one at a time", "wait for it")
            for address in addresses:
                for again in (False, True):
                    resumed = file.seek(0, os.SEEK_END) > 0
                    try:
                        _whole(address, file, progress, timeout_s, tries, pause_s)
                    except _Unreachable as error:
                        reasons.append(f"{address}: {error}")
                        break
                    file.flush()
                    found = checksum(part) if md5 else None
                    if found == md5 or (force and (again or not resumed)):
                        os.fsync(file.fileno())
                        os.replace(part, path)
                        return () if found == md5 else (f"WARNING: {path.name} has MD5 {found}, not {md5}; kept",)
                    file.truncate(0)
                    wrong = True
                    reasons.append(f"{address}: MD5 {found} in place of {md5}")
                    if not resumed:
                        break  # what was resumed may be of two versions; what was not is what the address has
            part_size = file.seek(0, os.SEEK_END)
        if part_size == 0:
            part.unlink(missing_ok=True)
    except OSError as error:
        what = "no room" if error.errno == errno.ENOSPC else str(error.strerror or error)
        _refuse(path, f"a file that cannot be written ({what})", "a writable folder with room", "set RANVIER_DATA")
    tried = " | ".join(" ".join(reason.split()) for reason in reasons)
    if wrong:
        remedy = f"try again, take it as it is with --force, or get it by hand and put it at {path}"
        _refuse(path, f"a file of a wrong checksum, thrown away ({tried})", "the published one", remedy)
    _refuse(
        path, f"no file from the network ({tried})", "the file", f"try again, or get it by hand and put it at {path}"
    )


def _whole(address: str, file, progress: Progress | None, timeout_s: float, tries: int, pause_s: float) -> None:
    """Append to `file` until it is whole."""
    failed = 0
    while True:
        before = file.seek(0, os.SEEK_END)
        try:
            return _append(address, file, progress, timeout_s)
        except _Cut as error:
            failed = 0 if file.seek(0, os.SEEK_END) > before else failed + 1
            if failed >= tries:
                raise _Unreachable(f"{error}, {tries} times") from None
            time.sleep(pause_s * 2 ** max(0, failed - 1) if failed else 0.0)


def _append(address: str, file, progress: Progress | None, timeout_s: float) -> None:
    have = file.seek(0, os.SEEK_END)
    # Without compression on the way: ranges are those of the file itself.
    headers = {"User-Agent": "ranvier", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=timeout_s) as answer:
            total = _place(answer, file, have)
            # What has come, not a whole block: it is kept if no more comes.
            while data := answer.read1(BLOCK):
                file.write(data)
                if progress is not None:
                    progress(file.tell(), total)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # nothing behind what is there: whole, or no longer that file
                length = (error.headers.get("Content-Range") or "").rpartition("/")[2]
                if length == str(have):
                    return
                file.truncate(0)
                raise _Cut("the part that was there is not of this file") from None
            if error.code in (408, 425, 429) or error.code >= 500:
                raise _Cut(f"HTTP {error.code}") from None
            raise _Unreachable(f"HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, TimeoutError | ConnectionError) and not isinstance(reason, ConnectionRefusedError):
            raise _Cut(f"{reason or 'no answer'}") from None
        raise _Unreachable(f"no connection ({reason})") from None
    except (TimeoutError, ConnectionError, http.client.HTTPException, ssl.SSLError) as error:
        raise _Cut(f"{type(error).__name__} after {file.seek(0, os.SEEK_END)} bytes") from None
    except ValueError as error:
        raise _Unreachable(str(error)) from None
    now = file.seek(0, os.SEEK_END)
    if total is not None and now < total:
        raise _Cut(f"cut after {now} of {total} bytes")


def _place(answer, file, have: int) -> int | None:
    """Make `file` end where the answer begins; number of bytes in all, where it is known."""
    length = answer.headers.get("Content-Length")
    start, total = 0, int(length) if length and length.isdigit() else None
    if answer.status == 206:
        span, _, size = (answer.headers.get("Content-Range") or "").removeprefix("bytes ").partition("/")
        begin = span.partition("-")[0]
        if not begin.isdigit() or int(begin) > have:
            file.truncate(0)
            raise _Cut("an answer from the middle of the file")
        start = int(begin)
        total = int(size) if size.isdigit() else None if total is None else start + total
    # A server that takes no ranges sends the file from its beginning.
    file.truncate(start)
    file.seek(0, os.SEEK_END)
    return total


def _refuse(path: Path, found: str, needed: str, remedy: str) -> NoReturn:
    raise RanvierError(f"data.get: {path.name}: got {found}; needs {needed}; {remedy}")
