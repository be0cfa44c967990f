"""Figures from a run folder alone; delays in NumPy against `ranvier.space`; what the figures say."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ranvier import plots
from ranvier.config import Config
from ranvier.errors import RanvierError
from ranvier.runs import Run
from ranvier.space import init_space, matched_free, parse

N_IN, N, K = 7, 5, 3


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Few pixels: writing PNG files is most of the time."""
    monkeypatch.setitem(plots.STYLE, "savefig.dpi", 30)


def network(net: str, *, recurrent: bool = True, output: bool = False) -> dict:
    """A tree with the leaves of a network, and the JAX spaces it came from."""
    space = init_space(net, jax.random.key(0), N_IN, N, recurrent=recurrent)
    # away from the start: scale, origins and slack matter
    params = {name: np.asarray(p) + 0.1 * np.arange(p.size).reshape(p.shape) for name, p in space.params.items()}
    params = {name: p.astype(np.float32) for name, p in params.items()}
    random = np.random.default_rng(1)
    tree = {
        "w_in": random.normal(size=(N_IN, N)).astype(np.float32),
        "w_out": random.normal(size=(N, K)).astype(np.float32),
        "space": {"params": params},
    }
    if recurrent:
        tree["w_rec"] = random.normal(size=(N, N)).astype(np.float32)
    spaces = {"space": replace(space, params=params)}
    if output:
        out = init_space(net, jax.random.key(1), N, K, recurrent=False, shared_source=True)
        tree["output"] = {"params": {name: np.asarray(p) for name, p in out.params.items()}}
        spaces["output"] = out
    return {"tree": tree, "spaces": spaces}


def make_run(folder, net: str, *, names=("initial", "best"), samples=True, epochs=2, **options) -> Run:
    run = Run.create(folder, Config(net=net, hidden=N), overwrite=True)
    tree = network(net, **options)["tree"]
    for name in names:
        run.save(name, {"network": tree, "optimizer": ({"mu": tree}, ()), "masks": {}}, {"epoch": 1})
    for epoch in range(epochs):
        for split in ("train", "validation before pruning", "validation", "test", "test known voices"):
            row = {"epoch": epoch, "step": epoch, "split": split, "loss": float("nan") if epoch else 1.0}
            run.log(row | {"top1": 0.5, "top3": 0.75, "rate_hz": 9.0})
    if samples:
        time = np.array([[0.0, 3.0, np.inf], [np.inf] * 3, [1.0, 2.0, 3.0], [1.0, 2.0, np.inf]])
        run.save_arrays(
            "samples",
            input_time=time,
            input_channel=np.zeros((4, 3), int),
            hidden_time=time,
            hidden_neuron=np.zeros((4, 3), int),
            label=np.array([0, 1, 2, 0]),
            prediction=np.array([0, 2, 2, 0]),
            duration=10.0,
            class_names=np.array(["zero", "fünf", "sechs"]),
        )
    return run


def leaves(run: Run) -> dict:
    network = plots._read_network(run.folder, "best")
    assert network is not None
    return network


ALL = ["learning", "raster", "positions", "delays", "weights"]


@pytest.mark.parametrize(
    ("net", "options", "names"),
    [
        ("1", {"output": True}, ALL),
        ("2e0.1", {}, ALL),
        ("3", {"recurrent": False, "output": True}, ALL),
        ("2g0.5", {}, ALL),
        ("inf", {}, ["learning", "raster", "delays", "weights"]),
        ("0", {}, ["learning", "raster"]),
    ],
)
def test_plot_run(net, options, names, tmp_path):
    run = make_run(tmp_path / "run", net, **options)
    paths = plots.plot_run(run.folder)
    assert [path.stem for path in paths] == names
    assert sorted(path.name for path in (run.folder / "figures").iterdir()) == sorted(f"{n}.png" for n in names)
    for path in paths:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")


def test_a_run_that_has_just_begun(tmp_path):
    run = make_run(tmp_path / "run", "2", names=(), samples=False, epochs=0)
    assert plots.plot_run(run.folder) == []
    run = make_run(tmp_path / "run", "2", names=("initial",), samples=False, epochs=1)
    assert [path.stem for path in plots.plot_run(run.folder)] == ["learning", "positions", "delays", "weights"]


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(RanvierError, match="not a run folder"):
        plots.plot_run(tmp_path)
    run = make_run(tmp_path / "run", "2")
    run.save("best", {"w": np.ones(3)}, {})
    with pytest.raises(RanvierError, match="holds no network"):
        plots.plot_run(run.folder)
    (run.folder / "checkpoints" / "best.npz").write_bytes(b"PK")
    with pytest.raises(RanvierError, match="cannot be read"):
        plots.plot_run(run.folder)


@pytest.mark.parametrize("net", ["0", "inf", "1", "3", "2e0.1", "2g0.5", "3g0"])
@pytest.mark.parametrize("recurrent", [True, False])
def test_delays_are_those_of_the_network(net, recurrent, tmp_path):
    spaces = network(net, recurrent=recurrent, output=True)["spaces"]
    run = make_run(tmp_path / "run", net, recurrent=recurrent, output=True)
    delays = plots.network_delays(parse(net), leaves(run))
    positions = spaces["space"].positions()
    expected = {"input": spaces["space"].d_in()}
    if recurrent:
        expected["recurrent"] = spaces["space"].d_rec()
    if net != "0":  # a space without parameters leaves no trace in the checkpoint
        expected["output"] = spaces["output"].d_in(None if positions is None else positions[1])
    assert delays.keys() == expected.keys()
    for name, embedding in expected.items():
        d = np.array(embedding.delays())
        if name == "recurrent":
            np.fill_diagonal(d, np.nan)
        np.testing.assert_allclose(delays[name], d, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("net", ["1", "3", "2e0.1", "2g0.5"])
def test_positions_are_those_of_the_network(net, tmp_path):
    spaces = network(net, output=True)["spaces"]
    points = plots.network_positions(parse(net), leaves(make_run(tmp_path / "run", net, output=True)))
    inputs, hidden = spaces["space"].positions()
    expected = {"inputs": inputs, "hidden": hidden, "outputs": spaces["output"].positions(hidden)[1]}
    assert points.keys() == expected.keys()
    for name in points:
        np.testing.assert_allclose(points[name], np.asarray(expected[name]), rtol=1e-5, atol=1e-5)


def test_a_matched_network_has_free_delays_of_the_space(tmp_path):
    space = init_space("2", jax.random.key(0), N_IN, N)
    free = matched_free(space)
    arrays = {"w_in": np.ones((N_IN, N)), "w_rec": np.ones((N, N)), "w_out": np.ones((N, K))}
    arrays |= {f"space/params/{name}": np.asarray(p) for name, p in free.params.items()}
    delays = plots.network_delays(parse("inf"), arrays)
    np.testing.assert_allclose(delays["input"], space.d_in().delays(), rtol=1e-6)


# what the figures say


def texts(figure) -> str:
    import matplotlib.text

    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def overlaps(figure) -> list[tuple[str, str]]:
    """Pairs of drawn texts whose boxes overlap, and texts that leave the figure."""
    import matplotlib.text
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn, draw = [], matplotlib.text.Text.draw

    def record(self, renderer):  # tick labels beyond the limits exist, but are not drawn
        drawn.append(self)
        draw(self, renderer)

    with plots._style(), pytest.MonkeyPatch.context() as patch:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        patch.setattr(matplotlib.text.Text, "draw", record)
        canvas.draw()
    renderer = canvas.get_renderer()
    seen = [text for text in dict.fromkeys(drawn) if text.get_visible() and text.get_text().strip()]
    assert len(seen) > 5
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in seen]
    boxes = [(text, box) for text, box in boxes if box.width > 0 and box.height > 0]
    width, height = figure.bbox.width, figure.bbox.height
    bad = [(text, "outside") for text, b in boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > width + 1 or b.y1 > height + 1]
    for i, (text, box) in enumerate(boxes):
        bad += [(text, other) for other, b in boxes[i + 1 :] if box.shrunk(0.95, 0.8).overlaps(b.shrunk(0.95, 0.8))]
    return bad


def synthetic_rows():
    splits = ("train", "validation", "validation before pruning")
    rows = [
        {"epoch": e, "split": s, "loss": 2.0 / e, "top1": 0.1 * e, "top3": 0.11 * e, "rate_hz": e}
        for e in range(1, 9)
        for s in splits
    ]
    test = {"epoch": 8, "loss": 0.5, "top1": 0.7, "top3": 0.9, "rate_hz": 8.0}
    return rows + [test | {"split": s} for s in ("test", "test known voices", "test unseen voices")]


def test_learning_curves():
    figure = plots.learning_curves(synthetic_rows(), target_rate_hz=10.0, n_classes=4)
    assert overlaps(figure) == []
    words = texts(figure)
    for word in ("epoch", "cross entropy [nat]", "correct [%]", "firing rate [Hz]", "validation before pruning",
                 "test unseen voices", "guessing", "target"):  # fmt: skip
        assert word in words
    loss, accuracy, rate = figure.axes
    assert rate.get_ylim()[1] > 10 and loss.get_legend() is None
    train = next(line for line in accuracy.lines if line.get_label() == "train")
    np.testing.assert_allclose(np.asarray(train.get_ydata()), 10.0 * np.arange(1, 9))
    guessing = next(line for line in accuracy.lines if line.get_label() == "guessing")
    np.testing.assert_allclose(np.asarray(guessing.get_ydata()), 25.0)


def test_every_split_has_its_own_colour():
    figure = plots.learning_curves(synthetic_rows())
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert len(set(colours)) == len(colours) == 6


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize("stages", [("now",), ("before training", "after training")])
def test_position_map(dim, stages):
    random = np.random.default_rng(0)
    points = {s: {"inputs": random.normal(size=(9, dim)), "hidden": random.normal(size=(4, dim))} for s in stages}
    figure = plots.position_map(points)
    assert overlaps(figure) == []
    words = texts(figure)
    assert "[ms]" in words and "input channel" in words and all(s in words for s in stages)
    assert ("axes 1 to 3 of 5" in words) == (dim == 5)
    panels = figure.axes[: len(stages)]
    assert len({panel.get_xlim() for panel in panels}) == 1  # one scale, so that before and after compare
    if dim == 2:
        (x0, x1), (y0, y1) = panels[0].get_xlim(), panels[0].get_ylim()
        assert x1 - x0 == pytest.approx(y1 - y0)
    drawn = panels[0].collections[0]
    if dim < 3:
        inside = np.asarray(drawn.get_offsets())
        np.testing.assert_allclose(inside[:, 0], points[stages[0]]["inputs"][:, 0])
        low, high = panels[0].get_xlim()
        assert (inside[:, 0] > low).all() and (inside[:, 0] < high).all()


def test_all_neurons_in_one_place():
    same = {"now": {"inputs": np.zeros((3, 2)), "hidden": np.zeros((2, 2))}}
    plots.position_map(same).canvas.draw()


def test_delay_histograms():
    from matplotlib.patches import StepPatch

    before = {"input": np.full((4, 3), 2.0), "recurrent": np.where(np.eye(3, dtype=bool), np.nan, 4.0)}
    after = {"input": np.full((4, 3), 6.0), "recurrent": np.where(np.eye(3, dtype=bool), np.nan, 1.0)}
    figure = plots.delay_histograms({"before": before, "after": after})
    assert overlaps(figure) == []
    words = texts(figure)
    assert "before, median 2 ms" in words and "after, median 6 ms" in words
    assert "before, median 4 ms" in words and "after, median 1 ms" in words  # the diagonal is no synapse
    bars = figure.axes[0].patches[0]
    assert isinstance(bars, StepPatch)
    values, edges, _ = bars.get_data()
    assert values.sum() == pytest.approx(100) and edges[np.argmax(values)] <= 2 <= edges[np.argmax(values) + 1]


def test_delay_weight_maps():
    random = np.random.default_rng(0)
    delays = {"input": random.uniform(0, 9, (40, 30)), "recurrent": np.full((1, 1), np.nan)}
    weights = {"input": random.normal(size=(40, 30)), "recurrent": np.ones((1, 1)), "output": np.ones((30, 2))}
    weights["input"][:20] = 0
    figure = plots.delay_weight_maps(delays, weights)
    assert overlaps(figure) == []
    words = texts(figure)
    assert "Input synapses, 50 % in use" in words and "no weight differs from 0" in words and "weight [1/ms]" in words
    counts = figure.axes[0].collections[0].get_array()
    assert np.sum(counts) == 600  # the pruned ones are not drawn


def test_few_synapses_are_dots():
    d, w = np.arange(6.0).reshape(2, 3), np.array([[0.0, 1.0, -1.0], [2.0, 0.0, 0.5]])
    figure = plots.delay_weight_maps({"input": d}, {"input": w})
    assert overlaps(figure) == []
    drawn = np.asarray(figure.axes[0].collections[0].get_offsets())
    np.testing.assert_allclose(drawn, [[1, 1], [2, -1], [3, 2], [5, 0.5]])


def test_raster(tmp_path):
    samples = make_run(tmp_path / "run", "0").load_arrays("samples")
    figure = plots.raster(samples, N_IN, N)
    assert overlaps(figure) == []
    words = texts(figure)
    assert "zero, read as zero" in words and "fünf, read as sechs" in words
    assert [len(np.asarray(axis.collections[0].get_offsets())) for axis in figure.axes] == [2, 0, 3] * 2
    assert all(axis.get_xlim() == (0, 10) for axis in figure.axes)


def test_no_global_state(tmp_path):
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    plots.plot_run(make_run(tmp_path / "run", "2").folder)
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == []


def test_no_window_without_a_display_or_a_toolkit(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert plots.open_window() is None
    monkeypatch.setenv("DISPLAY", ":0")
    assert plots.open_window() is None  # the tests run with a backend that has no windows


def test_window(monkeypatch, tmp_path):
    """With a backend without windows in the place of one that has them; a window that is gone ends nothing."""
    import matplotlib
    import matplotlib.pyplot as plt

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "TkAgg")
    try:
        show = plots.open_window()
        assert show is not None
        (axes,) = plt.figure("ranvier").axes
        figure = plots.delay_histograms({"before": {"input": np.ones((2, 2))}})
        path = plots.save_figure(figure, tmp_path / "a.png")
        show(path)
        show(path)
        (image,) = axes.images
        assert np.shape(image.get_array()) == plt.imread(path).shape
        show(tmp_path / "none.png")
    finally:
        plt.ioff()
        plt.close("all")
