"""Measure what the sparse operators and the dense products cost on this machine, and fit `ranvier.ops.costs` to it."""

import inspect
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ranvier import __version__, kernels
from ranvier.errors import RanvierError
from ranvier.ops import costs, primitives, products
from ranvier.ops.ways import PRECISIONS, Ways

# What a way's time is made of; the rest of `costs.sizes` is left out so that few points settle it.
TERMS = {
    ("gather", "sparse"): ("call", "lists", "entries", "far", "columns", "matrix"),
    ("scatter", "sparse"): ("call", "lists", "entries", "far", "spread", "columns", "matrix", "slots"),
    ("dots", "sparse"): ("call", "lists", "entries", "far", "columns", "matrix", "slots"),
}
DENSE_TERMS = ("call", "product", "rows", "columns", "matrix")
# lists become rows of numbers, or are read from such
LIST_TERM = {"gather": "listed", "scatter": "listed", "dots": "slots"}
# from this activity on a dense product is timed again, as making rows of longer lists takes longer
LONG = 0.1
WORDS = {"cpu": ("float32", "bfloat16"), "gpu": ("float32", "split", "tf32", "bfloat16")}


@dataclass(frozen=True)
class Point:
    """A product that is timed: lists that name a fraction `activity` of `n` rows of `columns` columns, as many again
    being near the threshold, with room for an activity of `room` (for its own, unless that is more)."""

    operator: str
    n: int
    columns: int
    lists: int
    activity: float
    room: float = 0.0

    @property
    def slots(self) -> int:
        """Room in a list: for twice the activity, and for what chance adds to it."""
        mean = 2 * max(self.activity, self.room) * self.n
        return max(1, min(self.n, round(mean + 4 * mean**0.5)))

    def size(self) -> dict[str, float]:
        """The terms of `costs.sizes`."""
        fraction = min(1.0, (2 if self.operator == "dots" else 1) * self.activity)
        return costs.sizes(self.lists, self.slots, self.n, self.columns, fraction)


def grid(quick: bool, platform: str) -> list[Point]:
    """The points that a machine is measured at."""
    sizes = (256, 1024) if quick else (256, 1024, 4096) if platform == "cpu" else (256, 1024, 4096, 8192)
    # one sample, batches, and all steps of a batch at once
    batches = {"cpu": (1, 32, 256, 4096), "gpu": (1, 32, 256, 2048, 32768)}[platform]
    activities = (0.005, 0.05, 0.2) if quick else (0.001, 0.01, 0.03, 0.1, 0.3)
    most = {"cpu": 2**32, "gpu": 2**37}[platform]
    return [
        Point(operator, n, columns, lists, activity)
        for operator in costs.OPERATORS
        for n in sizes
        for lists in batches
        for columns in (n // 4, n)
        for activity in activities
        if lists * n * columns <= most
    ]


def program(operator: str, way: str, n: int) -> Callable:
    """A product as a function of what its parameters name (`Operands`)."""
    ways = Ways(way, way, way)

    def gather(values, ids, n_spikes, matrix):
        return primitives.gather(values, ids, n_spikes, matrix, ways=ways)

    def scatter(values, ids, n_spikes, g):
        return primitives.scatter(values, ids, n_spikes, g, n, ways=ways)

    def dots(ids, n_listed, matrix, g):
        return primitives.dots(ids, n_listed, matrix, g, ways=ways)

    return {"gather": gather, "scatter": scatter, "dots": dots}[operator]


class Operands:
    """Arrays by name. Neurons spike, and are near the threshold, independently, each with probability `activity`.

    What is random repeats itself after some thousand lists, and no program is compiled for it, so that measuring spends
    its time on what it measures.
    """

    def __init__(self):
        self._random = np.random.default_rng(0)
        self._normal = self._random.standard_normal(2**20 + 7, np.float32)
        self._kept: dict = {}

    def shapes(self, point: Point) -> dict[str, jax.ShapeDtypeStruct]:
        """Name -> shape and type of each array."""
        lists, of = (1, point.lists), jax.ShapeDtypeStruct
        return {
            "values": of((*lists, point.slots), jnp.float32),
            "ids": of((*lists, point.slots), jnp.int32),
            "n_spikes": of(lists, jnp.int32),
            "n_listed": of(lists, jnp.int32),
            "matrix": of((1, point.n, point.columns), jnp.float32),
            "g": of((*lists, point.columns), jnp.float32),
        }

    def arrays(self, point: Point, names: Iterable[str]) -> list[jax.Array]:
        """The arrays of some names."""
        if len(self._kept) > 30:
            self._kept.clear()
        return [self._array(point, name) for name in names]

    def make(self, point: Point, name: str, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        """An array that is none of the lists."""
        return np.resize(self._normal, shape.shape).astype(shape.dtype)

    def _array(self, point, name):
        shape = self.shapes(point)[name]
        about = (name, shape, point.n, point.activity)
        if about not in self._kept:
            if name in ("values", "ids", "n_spikes", "n_listed"):
                for each, x in self._lists(point).items():
                    self._kept[(each, self.shapes(point)[each], point.n, point.activity)] = jnp.asarray(x)
            else:
                self._kept[about] = jnp.asarray(self.make(point, name, shape))
        return self._kept[about]

    def _lists(self, point):
        lists = min(point.lists, 1024)
        draw = self._random.random((lists, point.n), np.float32)
        ids = np.zeros((lists, point.slots), np.int32)
        count, counts = np.zeros(lists, np.int64), []
        for low, high in ((0, point.activity), (point.activity, 2 * point.activity)):
            row, neuron = np.nonzero((draw >= low) & (draw < high))
            found = np.bincount(row, minlength=lists)
            place = count[row] + np.arange(len(row)) - (np.cumsum(found) - found)[row]
            fits = place < point.slots
            ids[row[fits], place[fits]] = neuron[fits]
            count = np.minimum(count + found, point.slots)
            counts.append(count.astype(np.int32)[None])
        values = (np.arange(point.slots) < counts[0][..., None]).astype(np.float32)
        made = {"values": values, "ids": ids[None], "n_spikes": counts[0], "n_listed": counts[1]}
        shapes = self.shapes(point)
        return {name: np.resize(x, shapes[name].shape) for name, x in made.items()}


def repeated(function: Callable, times: int) -> Callable:
    """`function` of so many sets of operands, in one program and one after the other: all its results."""

    def run(*flat):
        results, each = [], len(flat) // times
        for k in range(times):
            given = flat[k * each : (k + 1) * each]
            if results:
                given, _ = jax.lax.optimization_barrier((given, results[-1]))
            results.append(function(*given))
        return results

    return run


def looped(function: Callable, names: list[str], calls: int) -> Callable:
    """`function` so many times in one program, each time of arrays that the last result seems to have changed.

    The counts, the matrix and `g` do: nothing that is computed of them can be moved out of the loop.
    """
    moves = [name in ("n_spikes", "n_listed") or name.startswith(("matrix", "g")) for name in names]

    def run(*given):
        def body(_, carried):
            moved, _ = carried
            moved = iter(moved)
            out = function(*(next(moved) if move else x for move, x in zip(moves, given, strict=True)))
            wrong = jnp.isnan(out[(0,) * out.ndim])
            return [x.at[(0,) * x.ndim].add(wrong.astype(x.dtype)) for x in carried[0]], out

        out = jax.eval_shape(function, *given)
        moved = [x for move, x in zip(moves, given, strict=True) if move]
        return jax.lax.fori_loop(0, calls, body, (moved, jnp.zeros(out.shape, out.dtype)))[1]

    return run


class Timing:
    """A product to be timed.

    Asking a GPU for a program takes as long as some products do. So short ones are a loop in one program, from whose
    time that of a loop over next to nothing is subtracted, and several of middle length are one program.
    """

    def __init__(self, function: Callable, shapes: dict, inside: int):
        self.names = list(inspect.signature(function).parameters)
        self._function, self._shapes = function, [shapes[name] for name in self.names]
        self.loop, self._inside = inside > 4, inside

    def compile(self) -> "Timing":
        if self.loop:
            function, sets = looped(self._function, self.names, self._inside), 1
        else:
            function, sets = repeated(self._function, self._inside), self._inside
        program = jax.jit(function).lower(*self._shapes * sets)
        # products by cuBLAS alone: the search for the best of Triton's takes seconds a product
        options: Any = {"xla_gpu_enable_triton_gemm": False}
        self._call = program.compile(None if jax.default_backend() == "cpu" else options)
        return self

    def microseconds(self, arrays: list, expected: float, repeats: int = 5) -> float:
        """Time of a call: the least of some programs that call it several times each, as other work only adds."""
        outside = max(1, min(30, round(2000 / (self._inside * expected))))
        flat = arrays if self.loop else arrays * self._inside
        jax.block_until_ready(self._call(*flat))
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            for _ in range(outside):
                out = self._call(*flat)
            jax.block_until_ready(out)
            times.append((time.perf_counter() - started) * 1e6 / (self._inside * outside))
        return min(times)


def loop_microseconds() -> float:
    """Time of a turn of `looped` that computes next to nothing."""
    made, point = Operands(), Point("gather", 256, 256, 32, 0.05)

    def nothing(n_spikes, matrix):
        return matrix[:, :1, :1] + n_spikes[:, :1, None]

    if jax.default_backend() == "cpu":
        return 0.0
    timing = Timing(nothing, made.shapes(point), _inside(10.0)).compile()
    return timing.microseconds(made.arrays(point, timing.names), 10.0)


def _inside(expected):
    """How many calls of so many us are one program."""
    if jax.default_backend() == "cpu":
        return 1
    return 100 if expected < 30 else 40 if expected < 100 else 4 if expected < 1000 else 1


def measure(
    points: Iterable[Point],
    ways: Iterable[str],
    say: Callable[[str], None],
    *,
    limit: float = 50000.0,
    seconds: float = math.inf,
    make: Callable = program,
    made: Operands | None = None,
) -> Iterator[dict]:
    """{point, way, us, timed_at} of each way at each point, as far as one call takes about `limit` us and all take
    `seconds`.

    What a dense product costs has little to do with the activity, so it is timed at the first one, and at the first of
    `LONG` or more: `timed_at`. `make` and `made` are `program` and its `Operands`, unless given.
    """
    cpu = jax.default_backend() == "cpu"
    table, made, started = costs.table("cpu" if cpu else "cuda"), made or Operands(), time.monotonic()
    programs, kept, done, left_out, said = {}, {}, 0, 0, started
    empty = loop_microseconds()
    # A GPU waits while programs are compiled, so many are at once, and before any is timed, which that would disturb.
    with ThreadPoolExecutor(1 if cpu else os.cpu_count()) as pool:
        for some in _batched(points, 1 if cpu else 84):
            work = []
            for point, way in itertools.product(some, ways):
                about: tuple = (point.operator, point.n, point.columns, point.lists, way)
                about += (point.activity >= LONG if way.split()[-1] in products.WORDS else point.activity,)
                known = table[point.operator]
                expected = costs.microseconds(known.get(way, known["float32"]), point.size())
                if expected > limit or time.monotonic() > started + seconds:
                    left_out += 1
                    continue
                expected = max(expected, 2.0)
                program = (*about[:5], point.slots, _inside(expected))
                if about not in kept and program not in programs:
                    timing = Timing(make(point.operator, way, point.n), made.shapes(point), _inside(expected))
                    programs[program] = pool.submit(timing.compile)
                kept.setdefault(about, None)
                work.append((point, way, about, program, expected))
            wait([programs[program] for *_, program, _ in work if program in programs])
            for point, way, about, program, expected in work:
                if kept[about] is None:
                    timing = programs[program].result()
                    us = timing.microseconds(made.arrays(point, timing.names), expected)
                    kept[about] = max(us - empty, 0.5) if timing.loop else us, point.activity
                done += 1
                us, timed_at = kept[about]
                yield {**asdict(point), "way": way, "us": us, "timed_at": timed_at}
            if time.monotonic() > said + 5:
                said = time.monotonic()
                say(f"{done} timings, {said - started:.0f} s")
    if left_out:
        say(f"{left_out} timings left out: above {limit / 1000:g} ms, or no time left for them")


def _batched(items, size):
    items = iter(items)
    while some := list(itertools.islice(items, size)):
        yield some


def fit(rows: list[dict]) -> dict:
    """Operator -> way -> term -> coefficient: least squares of the relative error, no coefficient below 0."""
    table: dict = {}
    keys = sorted({(row["operator"], row["way"]) for row in rows})
    for operator, way in keys:
        mine = [row for row in rows if (row["operator"], row["way"]) == (operator, way)]
        terms = TERMS.get((operator, way), (*DENSE_TERMS, LIST_TERM[operator]))
        sizes = [replace(_point(row), activity=row.get("timed_at", row["activity"])).size() for row in mine]
        x = np.array([[size[term] for term in terms] for size in sizes])
        us = np.array([row["us"] for row in mine])
        found = _not_negative(x / us[:, None])
        table.setdefault(operator, {})[way] = {t: float(f"{c:.4g}") for t, c in zip(terms, found, strict=True) if c}
    return table


def _point(row):
    return Point(*(row.get(name, 0.0) for name in ("operator", "n", "columns", "lists", "activity", "room")))


def _not_negative(x):
    """c >= 0 of least |x c - 1|; few columns, so every choice of those with c > 0 is tried."""
    scale = np.linalg.norm(x, axis=0)
    scale[scale == 0] = 1
    best, least = np.zeros(x.shape[1]), np.inf
    for chosen in itertools.product((False, True), repeat=x.shape[1]):
        part = np.flatnonzero(chosen)
        if not len(part):
            continue
        c = np.linalg.lstsq(x[:, part] / scale[part], np.ones(len(x)), rcond=None)[0] / scale[part]
        error = np.linalg.norm(x[:, part] @ c - 1)
        if (c >= 0).all() and error < least:
            best, least = np.zeros(x.shape[1]), error
            best[part] = c
    return best


def regret(rows: list[dict], table: dict, precision: str) -> list[tuple[Point, float]]:
    """How much slower than the better way the one is that the model picks, at each point: (point, ratio - 1)."""
    out = []
    words = {"float32": ("sparse", "float32", "split"), "tf32": ("sparse", "tf32"), "bfloat16": ("sparse", "bfloat16")}
    for point, times in by_point(rows).items():
        known = {way: us for way, us in times.items() if way in words[precision]}
        if len(known) < 2:
            continue
        predicted = {way: costs.microseconds(table[point.operator][way], point.size()) for way in known}
        out.append((point, known[min(predicted, key=lambda way: predicted[way])] / min(known.values()) - 1))
    return out


def by_point(rows: list[dict]) -> dict[Point, dict[str, float]]:
    """Point -> way -> microseconds."""
    out: dict = {}
    for row in rows:
        out.setdefault(_point(row), {})[row["way"]] = row["us"]
    return out


def break_even(table: dict, operator: str, way: str, n: int, columns: int, lists: int) -> float:
    """The activity up to which the sparse way costs less than `way`, by the model: 0 to 1."""
    low, high = 0.0, 1.0

    def sparse_wins(activity):
        size = Point(operator, n, columns, lists, activity).size()
        return costs.microseconds(table[operator]["sparse"], size) < costs.microseconds(table[operator][way], size)

    if sparse_wins(high):
        return 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if sparse_wins(middle) else (low, middle)
    return low


def bench(quick: bool, out: str | None, say: Callable[[str], None]) -> list[str]:
    """Measure this machine, write the costs to `out` or to the user's file, and return what to show.

    Parameters
    ----------
    quick : fewer points
    out : file; None: the one that `ranvier.ops` reads (`ranvier.ops.costs.file`)
    say : takes a line on how far it is

    Returns
    -------
    list of str, lines

    Raises
    ------
    RanvierError
        JAX computes on neither a CPU nor an NVIDIA GPU, there are no compiled operators, or the file cannot be written.
    """
    if reason := kernels.available("ops_gather"):
        raise RanvierError(f"bench: {reason}; needs compiled sparse operators to time; ranvier info says what there is")
    platform = "cpu" if jax.default_backend() == "cpu" else "gpu"
    path = Path(out) if out else costs.file()
    device = jax.devices()[0].device_kind
    say(f"measuring {device}; other work on the machine shows in the result")
    rows = list(measure(grid(quick, platform), ("sparse", *WORDS[platform]), say))
    table = fit(rows)
    content = {platform: table, f"{platform} is": about()}
    costs.check(path, content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(kept | content, indent=1) + "\n")
    except (OSError, ValueError) as error:
        raise RanvierError(f"bench: cannot write {path} ({error}); needs a file of its own; --out names one") from None
    return [*report(rows, table, platform), f"written to {path}"]


def about() -> dict:
    """What the costs are of."""
    device, versions = jax.devices()[0].device_kind, {"jax": jax.__version__, "ranvier": __version__}
    return {"device": device, "processors": os.cpu_count(), **versions}


def report(rows: list[dict], table: dict, platform: str) -> list[str]:
    """Where each way wins, and how well the model knows it."""
    names = {"gather": "forward", "scatter": "matrix gradient", "dots": "spike gradient"}
    words = [x for x in WORDS[platform] if all(x in table[operator] for operator in costs.OPERATORS)]
    lines = ["sparse costs less than a dense product up to this activity:"]
    lines.append(f"{'product':17}{'rows x columns':>16}{'lists':>8}" + "".join(f"{word:>10}" for word in words))
    seen = sorted({(p.n, p.columns, p.lists) for p in by_point(rows)})
    for operator in costs.OPERATORS:
        for n, columns, lists in seen:
            limits = [break_even(table, operator, word, n, columns, lists) for word in words]
            cells = "".join(f"{'always' if x == 1 else f'{100 * x:.2g} %':>10}" for x in limits)
            lines.append(f"{names[operator]:17}{f'{n} x {columns}':>16}{lists:>8}{cells}")
    for precision in PRECISIONS:
        ratios = [x for _, x in regret(rows, table, precision)]
        if ratios:
            missed = sum(x > 0.05 for x in ratios)
            lines.append(
                f"{precision}: of {len(ratios)} points {missed} are picked more than 5 % slower than the better way, "
                f"at worst {100 * max(ratios):.0f} %"
            )
    return lines
