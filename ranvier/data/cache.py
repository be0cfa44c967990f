"""The folder where downloaded and packed data are kept."""

import json
import os
from pathlib import Path

from ranvier.data.convert import checksum

SUMS = "checksums.json"


def folder() -> Path:
    """`$RANVIER_DATA`, else `$XDG_CACHE_HOME/ranvier`, else `~/.cache/ranvier`.

    Returns
    -------
    Path
        It may not be there yet.
    """
    chosen = os.environ.get("RANVIER_DATA")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ranvier"


def known_checksum(path: Path) -> str:
    """MD5 of a file, computed once: it is kept beside the file, with the size and the date that the file had.

    Parameters
    ----------
    path : Path

    Returns
    -------
    str
    """
    sums = path.with_name(SUMS)
    stat = path.stat()
    fact = [stat.st_size, stat.st_mtime_ns]
    try:
        kept = json.loads(sums.read_text())
        if kept[path.name][:2] == fact:
            return kept[path.name][2]
    except (OSError, ValueError, LookupError, TypeError):
        kept = {}
    digest = checksum(path)
    text = json.dumps((kept if isinstance(kept, dict) else {}) | {path.name: [*fact, digest]}, indent=1)
    work = sums.with_name(f".{SUMS}.{os.getpid()}.tmp")
    try:
        work.write_text(text)
        os.replace(work, sums)
    except OSError:  # a folder that others own: it is computed again the next time
        work.unlink(missing_ok=True)
    return digest
