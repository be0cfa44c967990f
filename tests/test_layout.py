"""The shape of the package: imports point one way, each outside library has one owner, importing has no side effect."""

import ast
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ranvier"
FILES = sorted(PACKAGE.rglob("*.py"))
OWNERS = {
    "h5py": ("data",),
    "matplotlib": ("plots", "data_plots"),
    "rich": ("cli", "data_cli"),
    "tyro": ("cli", "data_cli"),
    "optax": ("optimizer",),
    "ctypes": ("kernels",),
    "tomli_w": ("config",),
}


def listed_order(text: str) -> list[str]:
    """Names of the files and folders in the first column of the table of docs/design.md, top to bottom."""
    order = []
    for row in re.findall(r"^\| (`[^|]*`) \|", text, flags=re.MULTILINE):
        order += [name.removesuffix(".py").removesuffix("/") for name in re.findall(r"`([\w.]+/?)`", row)]
    return order


def part_of(path: Path) -> str:
    """The listed name that a file belongs to: "events" for events.py, "data" for each file of data/."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> list[str]:
    """Every module named by an import, at any depth of the file; `from ranvier import x` names `ranvier.x`."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names += [f"{module}.{alias.name}" for alias in node.names] if module == "ranvier" else [module]
    return names


def wrong_imports(part: str, tree: ast.AST, order: list[str]) -> list[str]:
    """What `part` imports against the order, or that belongs to another file; one line each."""
    wrong = []
    for name in imported(tree):
        top, _, rest = name.partition(".")
        if name.startswith("."):
            wrong.append(f"{part}: relative import {name}")
        elif top == "ranvier" and rest and rest != "__version__":
            target = rest.split(".")[0]
            if target not in order or (target != part and order.index(target) > order.index(part)):
                wrong.append(f"{part}: imports {name}, which is not above it in docs/design.md")
        elif part not in OWNERS.get(top, (part,)):
            wrong.append(f"{part}: imports {top}, which belongs to {', '.join(OWNERS[top])}")
    return wrong


def private_imports(tree: ast.AST) -> list[str]:
    """Private names, of modules or in modules, that `from ranvier... import` takes."""
    taken = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    names = [f"{node.module}.{alias.name}" for node in taken for alias in node.names]
    return [name for name in names if re.match(r"ranvier\..*\b_(?!_)", name)]


def prints(tree: ast.AST) -> list[int]:
    """Lines that call `print`."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


ORDER = listed_order((ROOT / "docs/design.md").read_text())


def test_every_file_is_listed_in_the_design():
    there = {part_of(path) for path in FILES} - {"__init__", "__main__"}
    assert there - set(ORDER) == set(), "files that docs/design.md does not list"
    assert set(ORDER) - there == set(), "names in docs/design.md without a file"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way_and_printing_is_the_command_lines(path):
    tree = ast.parse(path.read_text())
    part = part_of(path)
    if path.parent == PACKAGE and part in ("__init__", "__main__"):
        return
    assert part in ORDER, f"{part} has no row in docs/design.md"
    assert wrong_imports(part, tree, ORDER) == []
    assert private_imports(tree) == []
    assert part in ("cli", "data_cli") or prints(tree) == []


def test_package_only_re_exports():
    """`from x import y as y`, the docstring and the version: nothing runs."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            assert all(alias.asname == alias.name for alias in node.names)
        else:
            assert isinstance(node, (ast.Expr, ast.Assign)) and isinstance(node.value, ast.Constant)


@pytest.mark.parametrize(
    ("part", "code", "bad"),
    [
        ("events", "from ranvier.errors import RanvierError", False),
        ("events", "from ranvier.train import fit", True),
        ("events", "def f():\n    from ranvier import train", True),
        ("events", "from ranvier import errors, train", True),
        ("events", "import ranvier.nowhere", True),
        ("events", "from .errors import RanvierError", True),
        ("data", "from ranvier.data.speech import load", False),
        ("data", "import h5py", False),
        ("train", "import h5py", True),
        ("train", "from matplotlib.figure import Figure", True),
        ("train", "def f():\n    import optax", True),
        ("runs", "from ranvier import __version__", False),
    ],
)
def test_the_rules_can_fail(part, code, bad):
    assert bool(wrong_imports(part, ast.parse(code), ORDER)) == bad


def test_private_names_are_found():
    code = "from ranvier.lif import LIF, _step\nfrom ranvier._x import y\nfrom ranvier import __version__\nimport jax"
    assert private_imports(ast.parse(code)) == ["ranvier.lif._step", "ranvier._x.y"]


def test_print_is_found():
    assert prints(ast.parse("x = 1\nif x:\n    print(x)\nfingerprint(x)")) == [3]


def fresh_python(code: str) -> str:
    """What `code` prints in a new interpreter that starts outside the repository's own settings."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_starts_no_backend_loads_no_heavy_library_and_reads_no_file():
    heavy = ["matplotlib", "h5py", "rich", "tyro", "pandas", "scipy.optimize"]
    out = fresh_python(
        "import sys, jax, jax.numpy\n"
        "from jax._src import xla_bridge\n"
        "before, opened = set(sys.modules), []\n"
        "sys.dont_write_bytecode = True\n"
        "sys.addaudithook(lambda event, args: event == 'open' and opened.append(str(args[0])))\n"
        "import ranvier\n"
        "print(list(xla_bridge._backends))\n"
        f"print([name for name in {heavy} if name in set(sys.modules) - before])\n"
        "print([name for name in opened if not name.endswith(('.py', '.pyc'))])"
    )
    assert out.split("\n") == ["[]", "[]", "[]", ""]


def test_import_is_quick():
    """Median of three fresh interpreters; the time of `import jax` is not ours."""
    code = "import time, jax, jax.numpy; t = time.perf_counter(); import ranvier; print(time.perf_counter() - t)"
    assert statistics.median(float(fresh_python(code)) for _ in range(3)) < 1.0
