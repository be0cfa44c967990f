"""The picture and the tables of `benchmarks.map`."""

import math

import matplotlib
import numpy as np

from ranvier.bench import by_point

NAMES = {"gather": "forward", "scatter": "matrix gradient", "dots": "spike gradient"}
LINES = {"plain float32": "solid", "plain tf32": "dashed", "plain bfloat16": "dotted"}
# rows and columns, batch, activity of the square sizes that figures of the published kernels exist for
PUBLISHED = ((1024, 1024, 0.02), (4096, 256, 0.01), (8192, 32, 0.01), (8192, 256, 0.01))
OTHERS = ("brainevent",)
LIMIT = 5
# more than so many times the time of the same lists at a higher activity: something else was at work
DISTURBED = 1.5


def steady(rows):
    """`rows` without those of sparse that more work of the same size took far less time for."""

    def alike(row):
        return row["operator"], row["n"], row["columns"], row["lists"]

    longer = {}
    for row in rows:
        if row["way"] == "sparse":
            longer.setdefault(alike(row), []).append((row["activity"], row["us"]))

    def disturbed(row):
        more = [us for activity, us in longer.get(alike(row), ()) if activity > row["activity"]]
        return row["way"] == "sparse" and row["us"] > DISTURBED * min(more, default=row["us"])

    return [row for row in rows if not disturbed(row)]


def grids(rows, way):
    """Operator, batch -> log2 of the time of `way` over that of sparse, (activity, size); nan where one is missing."""
    points = by_point(rows)
    activities, sizes = (sorted({getattr(p, x) for p in points}) for x in ("activity", "n"))
    out = {}
    for point, us in points.items():
        grid = out.setdefault((point.operator, point.lists), np.full((len(activities), len(sizes)), np.nan))
        if "sparse" in us and way in us and point.n == point.columns:
            at = activities.index(point.activity), sizes.index(point.n)
            grid[at] = math.log2(us[way] / us["sparse"])
    return activities, sizes, out


def draw(rows, path, title):
    """A panel for each product and batch: how many times as fast sparse is, and where the two are even."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    every = {way: grids(rows, way) for way in LINES if any(row["way"] == way for row in rows)}
    activities, sizes, panels = every["plain float32"]
    batches = sorted({batch for _, batch in panels})
    # inches: labels on the left, the scale on the right
    left, right, height = 0.8, 1.35, 6.6
    width = left + right + 1.75 * len(batches)
    shared = {"sharex": True, "sharey": True, "squeeze": False}
    figure, axes = plt.subplots(len(NAMES), len(batches), figsize=(width, height), **shared)
    picture = None
    for i, operator in enumerate(NAMES):
        for j, batch in enumerate(batches):
            axis = axes[i, j]
            axis.set_facecolor("0.85")
            picture = axis.imshow(
                panels.get((operator, batch), np.full((len(activities), len(sizes)), np.nan)),
                cmap="PuOr",
                vmin=-LIMIT,
                vmax=LIMIT,
                origin="lower",
                aspect="auto",
            )
            for way, (_, _, grid) in every.items():
                z = grid.get((operator, batch))
                if z is not None and np.nanmin(z, initial=np.inf) < 0 < np.nanmax(z, initial=-np.inf):
                    axis.contour(z, levels=[0], colors="k", linestyles=LINES[way], linewidths=1.2)
            for n, b, activity in PUBLISHED:
                if b == batch and n in sizes and activity in activities:
                    place = sizes.index(n), activities.index(activity)
                    axis.plot(*place, marker="*", color="k", markerfacecolor="w", markersize=9)
            if i == 0:
                axis.set_title(f"{batch} list{'s' if batch > 1 else ''}", fontsize=10)
            if j == 0:
                axis.set_ylabel(f"{NAMES[operator]}\nactivity, %", fontsize=10)
            axis.set_xticks(range(len(sizes)), [str(x) for x in sizes], rotation=60, fontsize=7)
            axis.set_yticks(range(len(activities)), [f"{100 * x:g}" for x in activities], fontsize=8)
    figure.supxlabel("rows and columns of the matrix", fontsize=10, y=0.01)
    figure.suptitle(title, fontsize=11, y=0.99)
    figure.subplots_adjust(left=left / width, right=1 - right / width, top=0.87, bottom=0.13, wspace=0.08, hspace=0.08)
    bar = figure.colorbar(picture, cax=figure.add_axes((1 - 1.15 / width, 0.2, 0.15 / width, 0.6)), extend="both")
    bar.set_ticks(range(-LIMIT + 1, LIMIT, 2), labels=[f"{2.0**x:g}" for x in range(-LIMIT + 1, LIMIT, 2)])
    bar.set_label("sparse is so many times as fast as dense float32", fontsize=9)
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys: list = [Line2D([], [], color="k", linestyle=LINES[way], label=f"even with {way.split()[1]}") for way in every]
    if any(b in batches and n in sizes for n, b, _ in PUBLISHED):
        keys.append(Line2D([], [], color="k", marker="*", markerfacecolor="w", linestyle="", label="published sizes"))
    if any(np.isnan(panel).any() for panel in panels.values()):
        keys.append(Patch(facecolor="0.85", edgecolor="0.6", label="no timing"))
    figure.legend(
        handles=keys, loc="upper center", ncol=len(keys), fontsize=8, frameon=False, bbox_to_anchor=(0.5, 0.965)
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(rows, sizes=None, batches=None, activities=None):
    """Lines of a table in Markdown: microseconds of each way, and the published sizes alone where nothing is given."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    lines = [f"| product | rows x columns | lists | activity | {' | '.join(ways)} |", f"|{'---|' * (4 + len(ways))}"]
    for point, us in by_point(rows).items():
        wanted = ((sizes, point.n), (batches, point.lists), (activities, point.activity))
        if any(chosen and x not in chosen for chosen, x in wanted):
            continue
        least = min(us.values())
        cells = " | ".join(
            "" if way not in us else f"**{us[way]:.1f}**" if us[way] == least else f"{us[way]:.1f}" for way in ways
        )
        size = f"{point.n:,} x {point.columns:,} | {point.lists:,} | {100 * point.activity:g} %"
        lines.append(f"| {NAMES[point.operator]} | {size} | {cells} |")
    return lines


def losses(rows):
    """Lines that say how often, and by how much at worst, sparse is slower than each dense way, and transposed."""
    lines = []
    for operator, name in NAMES.items():
        for way in (*LINES, *OTHERS):
            ratios = [
                (us["sparse"] / us[way], point)
                for point, us in by_point(rows).items()
                if point.operator == operator and "sparse" in us and way in us
            ]
            if ratios:
                worst, point = max(ratios, key=lambda x: x[0])
                best = 1 / min(ratios, key=lambda x: x[0])[0]
                slower = sum(x > 1 for x, _ in ratios)
                mean = math.exp(-sum(math.log(x) for x, _ in ratios) / len(ratios))
                lines.append(
                    f"{name}, {way}: sparse is slower at {slower} of {len(ratios)} points, at worst {worst:.1f} times "
                    f"({point.n} x {point.columns}, {point.lists} lists, {100 * point.activity:g} %), "
                    f"at best {best:.1f} times as fast, geometric mean {mean:.2f}"
                )
    for operator, name in NAMES.items():
        ratios = [
            (us["sparse transposed"] / us["sparse"], point)
            for point, us in by_point(rows).items()
            if point.operator == operator and {"sparse", "sparse transposed"} <= us.keys()
        ]
        if ratios:
            mean = math.exp(sum(math.log(x) for x, _ in ratios) / len(ratios))
            worst, point = max(ratios, key=lambda x: x[0])
            best = min(x for x, _ in ratios)
            lines.append(
                f"{name}, columns first: {mean:.2f} times the time of rows first (geometric mean of {len(ratios)}), "
                f"more than 1.1 times at {sum(x > 1.1 for x, _ in ratios)}, at worst {worst:.1f} times ({point.n} x "
                f"{point.columns}, {point.lists} lists, {100 * point.activity:g} %), at best {best:.2f}"
            )
    return lines
