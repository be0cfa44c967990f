"""Does a wheel hold what it must?

    python tools/check_wheel.py WHEEL [LIBRARY ...]

Every file of the package, the named libraries ("cpu", "cuda") and no other, and a tag that every Python takes. With a
library, `manylinux` as the last word asks for a tag that package indexes take.
"""

import re
import sys
import zipfile
from pathlib import Path


def problems(wheel, libraries, manylinux):
    """One line for each thing that is wrong."""
    there = set(zipfile.ZipFile(wheel).namelist())
    files = (path for path in Path("ranvier").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    needed = {path.as_posix() for path in files if path.parts[1] != "lib"}
    needed |= {f"ranvier/lib/libranvier_{name}.so" for name in libraries}
    found = {name for name in there if ".dist-info/" not in name and not name.endswith("/")}
    tag = (r"py3-none-manylinux\S+" if manylinux else r"py3-none-linux_\w+") if libraries else "py3-none-any"
    return [
        *(f"{name} is missing" for name in sorted(needed - found)),
        *(f"{name} does not belong there" for name in sorted(found - needed)),
        *([] if re.search(rf"-{tag}\.whl$", wheel.name) else [f"the tag is not {tag}"]),
    ]


def main():
    wheel, *words = sys.argv[1:]
    wheel = Path(wheel)
    wrong = problems(wheel, [word for word in words if word != "manylinux"], "manylinux" in words)
    sys.stdout.write(f"{wheel.name}, {wheel.stat().st_size / 2**20:.2f} MiB: {'; '.join(wrong) or 'complete'}\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
