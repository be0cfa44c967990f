"""The map of sparse and dense: microseconds of each way, over activity, size and batch; its picture and its table.

    python -m benchmarks.map --out map.json                      measure on whatever JAX computes on
    python -m benchmarks.map --out map.json --seconds 240        as many points as fit into the time
    python -m benchmarks.map --out map.json --sizes 256 1024 --batch 1 32 256 --activity 0.01 0.1
    python -m benchmarks.map --plot map.json [more.json ...] --figure docs/figures/map.png
    python -m benchmarks.map --fit map.json [more.json ...]      costs that fit the timings; with --ship, the package's

On a GPU `map_cuda.cu` measures the whole map in half a minute, without what JAX takes to call a kernel; its file is
read here like one of this program.

Matrices are square. Neurons spike independently with the given probability, and as many are near the threshold, which
counts for the spike gradient alone. Rows: `sparse`, the compiled kernels; `float32`, `tf32`, `bfloat16` and `split`,
the dense ways of `spike_matmul`, from lists, with the time that it takes to make rows of them; `plain float32` and so
on, the product alone, of operands that are dense arrays of that type already; `brainevent`, where that is installed
(forward and matrix gradient, from dense spikes, as it takes them; on a GPU it compiles its kernels when first asked,
for which CUDA_HOME says where CUDA is). On a GPU several calls are one program, so that none waits until it is asked
for. A call expected above `--limit` ms is left out.
"""

# ruff: noqa: T201 - its output is the table

import argparse
import importlib.util
import json
import time
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ranvier import bench, kernels
from ranvier.bench import Operands, Point
from ranvier.ops import costs
from ranvier.ops.products import product

ACTIVITY = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2)
SIZES = (256, 512, 1024, 2048, 4096, 8192)
BATCH = (1, 8, 32, 128, 256, 1024)
AXES = {"gather": ("qrn,qnc->qrc", "rows", "matrix"), "scatter": ("qrn,qrc->qnc", "rows", "g")}
AXES["dots"] = ("qrc,qnc->qrn", "g", "matrix")
# timed first
COARSE = (256, 1024, 4096, 1, 32, 1024, 0.01, 0.05, 0.2)
# all steps of a batch in one product: rows and columns, lists, activity
TALL = ((700, 1024), (1024, 512), (512, 128), (128, 20)), (24000, 128000), (0.01, 0.05, 0.15)
# states, columns, batch, activity of the published kernels' own figures
PUBLISHED = ((1024, 256, 1024, 0.035), (1024, 1024, 1024, 0.02), (4096, 4096, 256, 0.01))
PUBLISHED += ((8192, 8192, 32, 0.01), (8192, 8192, 256, 0.01))


class Both(Operands):
    """Lists, and the same as dense arrays, of 32 and of 16 bits."""

    def shapes(self, point):
        shapes = super().shapes(point)
        shapes["rows"] = jax.ShapeDtypeStruct((1, point.lists, point.n), jnp.float32)
        return shapes | {f"{x}16": jax.ShapeDtypeStruct(shapes[x].shape, jnp.bfloat16) for x in ("rows", "matrix", "g")}

    def make(self, point, name, shape):
        if not name.startswith("rows"):
            return super().make(point, name, shape)
        fires = np.random.default_rng(1).random((1024, point.n), np.float32) < point.activity
        return np.resize(fires, shape.shape).astype(shape.dtype)


def program(operator, way, n):
    """`ranvier.bench.program`, and the rows that are not ours."""
    kind, _, word = way.partition(" ")
    if kind == "plain":
        axes, a, b = AXES[operator]
        platform = "cpu" if jax.default_backend() == "cpu" else "cuda"
        bits = "16" if word == "bfloat16" else ""
        named = {"a": f"{a}{bits}", "b": f"{b}{bits}"}
        return _renamed(lambda a, b: product(axes, a, b, word, platform), named)
    if kind == "brainevent":
        import brainevent

        if operator == "gather":
            return lambda rows, matrix: brainevent.BinaryArray(rows[0]) @ matrix[0]
        return lambda rows, matrix, g: jax.grad(lambda w: jnp.vdot(brainevent.BinaryArray(rows[0]) @ w, g[0]))(
            matrix[0]
        )
    return bench.program(operator, way, n)


def _renamed(function, named):
    """`function` of parameters of other names, which say what operands it takes."""
    import inspect

    parameters = [inspect.Parameter(x, inspect.Parameter.POSITIONAL_OR_KEYWORD) for x in named.values()]

    def of(*given):
        return function(*given)

    of.__signature__ = inspect.Signature(parameters)
    return of


def load_brainevent():
    """Its version. Its kernels are compiled here, which programs in several threads would do at once."""
    import brainevent

    x = jnp.zeros((2, 2))
    jax.block_until_ready(brainevent.BinaryArray(x) @ x)
    return brainevent.__version__


def run(options):
    platform = "cpu" if jax.default_backend() == "cpu" else "gpu"
    words = ("float32", "tf32", "split", "bfloat16") if platform == "gpu" else ("float32", "bfloat16")
    plain = ("float32", "tf32", "bfloat16") if platform == "gpu" else ("float32", "bfloat16")
    ways = options.ways or ["sparse", *(f"plain {x}" for x in plain), *words]
    about = {**bench.about(), "kernels": kernels.status("cpu" if platform == "cpu" else "cuda").reason}
    beside = "brainevent" in options.ways if options.ways else importlib.util.find_spec("brainevent")
    if beside:
        about["brainevent"] = load_brainevent()
    ways = [x for x in ways if x != "brainevent"]
    print(", ".join(f"{name} {x}" for name, x in about.items()))
    points = [
        Point(operator, n, n, batch, activity, 0.02 if activity <= 0.02 else 0.2)
        for n in options.sizes
        for batch in options.batch
        for operator in costs.OPERATORS
        for activity in options.activity
    ]
    # so that what there is no time for are details
    points.sort(key=lambda p: (p.n not in COARSE) + (p.lists not in COARSE) + (p.activity not in COARSE))
    tall = []
    if options.tall:
        tall = [Point(o, n, c, b, a) for n, c in TALL[0] for b in TALL[1] for o in costs.OPERATORS for a in TALL[2]]
    if options.published:
        points = [Point(o, n, c, b, a) for n, c, b, a in PUBLISHED for o in costs.OPERATORS]
    rows = []

    def save(line):
        print(line, flush=True)
        Path(options.out).write_text(json.dumps({"platform": platform, "about": about, "rows": rows}) + "\n")

    known = [p for p in points if p.n in COARSE and p.lists in COARSE]
    # the model needs few points, the map all
    some = [(tall, ["sparse", *words]), (known, ways), ([p for p in points if p not in known], ways[: 1 + len(plain)])]
    if options.ways:
        some = [(points, ways)]
    if beside:
        some.append(([p for p in points if p.operator != "dots"], ["brainevent"]))
    end, given = time.monotonic() + options.seconds, {"limit": 1000 * options.limit, "make": program, "made": Both()}
    for points, ways in some:
        for row in bench.measure(points, ways, save, seconds=end - time.monotonic(), **given):
            rows.append(row)
        save(f"{len(rows)} timings in {options.out}")


def read(files):
    """What files of one platform say of the machine, and all their timings."""
    contents = [json.loads(Path(file).read_text()) for file in files]
    assert len({x["platform"] for x in contents}) == 1, "the files are of different platforms"
    about = {**contents[0]["about"], "platform": contents[0]["platform"]}
    return about, [row for x in contents for row in x["rows"]]


def show_fit(files, ship):
    """How good the costs are that fit the timings; `ship` makes them those of the package."""
    about, rows = read(files)
    platform = about["platform"]
    mine = [row for row in rows if row["way"] in ("sparse", *bench.WORDS[platform])]
    table = bench.fit(mine)
    print(json.dumps(table, indent=1))
    for precision in ("float32", "tf32", "bfloat16"):
        worst = sorted(bench.regret(mine, table, precision), key=lambda x: -x[1])
        if worst:
            missed = sum(x > 0.05 for _, x in worst)
            print(f"{precision}: {missed} of {len(worst)} points more than 5 % slower than the better way; the worst:")
            for point, x in worst[:5]:
                print(f"  {100 * x:.0f} %  {asdict(point)}")
    if ship:
        machine = {x: about[x] for x in ("device", "processors", "jax", "ranvier")}
        content = json.loads(costs.SHIPPED.read_text()) | {platform: table, f"{platform} is": machine}
        costs.SHIPPED.write_text(json.dumps(content, indent=1) + "\n")
        print(f"written to {costs.SHIPPED}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", default="map.json")
    add("--plot", nargs="+", metavar="FILE")
    add("--steady", action="store_true", help="leave timings out that a higher activity of the same size contradicts")
    add("--fit", nargs="+", metavar="FILE")
    add("--ship", action="store_true", help="write the costs to where the package has them")
    add("--figure", default="docs/figures/map.png")
    add("--activity", type=float, nargs="+", default=ACTIVITY)
    add("--sizes", type=int, nargs="+", default=SIZES)
    add("--batch", type=int, nargs="+", default=BATCH)
    add("--ways", nargs="+", help="rows, instead of all")
    add("--published", action="store_true", help="the five sizes of the published kernels' figures")
    add("--tall", action="store_true", help="all steps of a batch in one product, too: sizes of deep networks")
    add("--limit", type=float, default=20.0, help="ms")
    add("--seconds", type=float, default=1e9)
    options = parser.parse_args()
    if options.fit:
        show_fit(options.fit, options.ship)
    elif options.plot:
        from benchmarks.map_picture import draw, losses, steady, table

        about, rows = read(options.plot)
        if options.steady:
            every, rows = len(rows), steady(rows)
            print(f"{every - len(rows)} timings of sparse left out: disturbed")
        shown = [x for x in rows if x["n"] == x["columns"] and x["n"] in options.sizes and x["lists"] in options.batch]
        draw(shown, options.figure, f"Sparse against dense products, {about['device']}, float32")
        print("\n".join([*losses(rows), "", *table(rows, options.sizes, options.batch, options.activity)]))
    else:
        run(options)


if __name__ == "__main__":
    main()
