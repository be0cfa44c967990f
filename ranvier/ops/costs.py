"""Which way of a product is the fastest: a model of its time, linear in few numbers that a machine measures.

    microseconds = sum over terms of coefficient[term] * size[term]

The coefficients of one CPU and one GPU are in `costs.json` beside this file. `ranvier bench` measures others and writes
them to a file of the user, which comes first.

Environment:
    RANVIER_COSTS=FILE      the file; `ranvier/costs.json` in XDG_CONFIG_HOME, or in ~/.config, unless given
"""

import functools
import json
import math
import os
from pathlib import Path

from ranvier.errors import RanvierError
from ranvier.ops.products import WORDS
from ranvier.ops.ways import Ways

OPERATORS = ("gather", "scatter", "dots")
# XLA's platforms, and what files call them
TABLES = {"cpu": "cpu", "cuda": "gpu"}
# bytes that a large cache holds; what matrices, or the lists' sums, have more comes from farther away
CACHE = 50e6
SHIPPED = Path(__file__).with_name("costs.json")


def sizes(lists, slots, n, columns, fraction, matrices=1):
    """Term -> size: what the time of a product depends on.

    Parameters
    ----------
    lists : how many there are in all
    slots : room in a list
    n, columns : of a matrix
    fraction : of the n rows that a list names
    matrices : how many there are
    """
    entries = lists * min(fraction * n, slots)
    return {
        "call": 1.0,
        "entries": entries * columns,
        "far": entries * columns * _outside(4.0 * matrices * n * columns),
        "spread": entries * columns * _outside(4.0 * lists * columns),
        "lists": float(lists),
        "listed": float(entries),
        "slots": float(lists * slots),
        "columns": float(lists * columns),
        "rows": float(lists * n),
        "matrix": float(matrices * n * columns),
        "product": float(lists) * n * columns,
    }


def _outside(size):
    """The part of so many bytes that a cache does not hold."""
    return max(0.0, 1 - CACHE / max(size, 1.0))


def microseconds(coefficients, size):
    """What a way costs, by its coefficients."""
    return sum(c * size[term] for term, c in coefficients.items())


def choose(operator, ways: Ways, shape, platform, double, sparse) -> str:
    """The way to compute a product: `sparse`, or a word of `ranvier.ops.products`.

    Parameters
    ----------
    operator : gather, scatter or dots
    shape : (Q, R, S, N, C)
    platform : cpu or cuda
    double : sums have 64 bits
    sparse : there is a compiled kernel; without one, `sparse` is a dense product after all
    """
    word = getattr(ways, operator)
    if word not in ("dense", "auto"):
        return word
    exact = "float32" if ways.precision == "tf32" and platform == "cpu" else ways.precision
    words = [exact]
    if double:
        words = ["float32"]
    elif exact == "float32" and not (ways.real and operator != "dots"):
        words.append("split")
    if word == "auto" and sparse:
        words.append("sparse")
    if len(words) == 1:
        return words[0]
    costs = table(platform)[operator]
    q, r, s, n, c = shape
    fraction = 1.0 if ways.activity is None else ways.activity[operator == "dots"]
    size = sizes(q * r, s, n, c, fraction, q)
    known = [x for x in words if x in costs]
    return min(known, key=lambda x: microseconds(costs[x], size)) if known else words[0]


def table(platform):
    """Operator -> way -> term -> coefficient, of the user's file where that has the platform."""
    path = file()
    own = _read(path, path.stat().st_mtime_ns) if path.is_file() else {}
    if not own and os.environ.get("RANVIER_COSTS"):
        raise RanvierError(
            f"costs: RANVIER_COSTS names {path}, which is no file; needs one; write it with ranvier bench --out {path}"
        )
    name = TABLES[platform]
    return own[name] if name in own else _read(SHIPPED, 0)[name]


def file() -> Path:
    """Where the costs of this machine are kept."""
    if path := os.environ.get("RANVIER_COSTS"):
        return Path(path)
    folder = os.environ.get("XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / "ranvier" / "costs.json"


@functools.cache
def _read(path, changed):
    """The table in a file; `changed` is when, so that a new one is read again."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _bad(path, str(error).splitlines()[0]) from None
    check(path, content)
    return {name: content[name] for name in TABLES.values() if name in content}


def check(path, content):
    """Refuse a table that `choose` cannot use."""
    if not isinstance(content, dict) or not any(name in content for name in TABLES.values()):
        raise _bad(path, f"no table of {' or '.join(TABLES.values())}")
    terms = set(sizes(1, 1, 1, 1, 1.0))
    for name in TABLES.values():
        for operator in OPERATORS if name in content else ():
            ways = content[name].get(operator) if isinstance(content[name], dict) else None
            if not isinstance(ways, dict):
                raise _bad(path, f"{name} has no {operator}")
            for way, costs in ways.items():
                if way not in ("sparse", *WORDS) or not isinstance(costs, dict) or not set(costs) <= terms:
                    raise _bad(path, f"{name}.{operator}.{way} is no way with terms {', '.join(sorted(terms))}")
                for term, x in costs.items():
                    if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x):
                        raise _bad(path, f"{name}.{operator}.{way}.{term} is {x!r}")


def _bad(path, why):
    return RanvierError(f"costs: {path} cannot be used ({why}); needs what ranvier bench writes; write it again")
