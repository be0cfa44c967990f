"""Files of a folder or a zip archive, found and read alike."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ranvier.errors import RanvierError

# What a broken archive raises, depending on where it is broken.
BROKEN = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, ValueError)


class Files:
    """The files under a folder, or in a zip archive.

    Parameters
    ----------
    root : Path
        Folder or `.zip`.
    ending : str
        Of the names to find.

    Raises
    ------
    RanvierError
        If the archive is broken.
    """

    def __init__(self, root: Path, ending: str):
        self.root = root
        self._archive = None
        if root.is_dir():
            found = {str(path.relative_to(root)): path.stat() for path in root.rglob(f"*{ending}") if path.is_file()}
            self.facts = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in sorted(found.items())}
            return
        try:
            self._archive = zipfile.ZipFile(root)
            members = [info for info in self._archive.infolist() if info.filename.endswith(ending)]
        except BROKEN as error:
            _refuse(root, error)
        self.facts = {info.filename: (info.file_size, info.CRC) for info in sorted(members, key=lambda i: i.filename)}

    @property
    def names(self) -> list[str]:
        """Paths under the root, sorted."""
        return list(self.facts)

    def read(self, names: Sequence[str]) -> list[bytes]:
        """Contents of some of the files.

        Parameters
        ----------
        names : (n,) str

        Returns
        -------
        list of n bytes

        Raises
        ------
        RanvierError
            If one cannot be read; the message names it.
        """
        contents = []
        for name in names:
            try:
                if self._archive is None:
                    contents.append((self.root / name).read_bytes())
                else:
                    contents.append(self._archive.read(name))
            except BROKEN as error:
                _refuse(self.root / name, error)
        return contents


def _refuse(path: Path, error: Exception) -> NoReturn:
    reason = " ".join(str(error).split()) or type(error).__name__
    raise RanvierError(
        f"data.files: {path}: got a file that cannot be read ({reason}); needs a whole one; fetch it again"
    )
