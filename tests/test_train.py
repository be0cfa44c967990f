"""Training on a toy task: metrics, choice of the best, stop and resume, room for spikes and delays, failures."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import train
from ranvier.data import Dataset, Splits
from ranvier.data.recordings import to_device
from ranvier.errors import RanvierError
from ranvier.runs import Run
from ranvier.train import TrainingDiverged, evaluate, fit, load_network
from tests.toy import TOY

pytestmark = pytest.mark.usefixtures("quick_compiler")

M, N, K = 5, TOY.hidden, 3
CONFIG = TOY


def dataset(n, seed):
    """The label is the channel that is most active."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K, n).astype(np.int32)
    times = [np.sort(rng.uniform(0.0, 20.0, 12)).astype(np.float32) for _ in labels]
    channels = [np.where(rng.random(12) < 0.8, k, rng.integers(0, M, 12)).astype(np.int32) for k in labels]
    offsets = 12 * np.arange(n + 1)
    return Dataset("toy", np.concatenate(times), np.concatenate(channels), offsets, labels, M, ("a", "b", "c"))


@pytest.fixture(scope="module")
def splits():
    return Splits(
        dataset(20, 0), dataset(9, 1), dataset(10, 2), {"odd": np.arange(1, 10, 2), "none": np.array([], int)}
    )


class Recorder(train.Quiet):
    """Keeps all that is reported and asks to stop after update `stop`."""

    def __init__(self, stop=None):
        self.stop, self.steps, self.rows, self.notes, self.networks, self.started = stop, [], [], [], [], None

    def start(self, total_epochs, steps_per_epoch, epoch):
        self.started = total_epochs, steps_per_epoch, epoch

    def step(self, epoch, step, loss, top1, samples_per_s):
        self.steps.append((epoch, step, loss, top1))
        assert samples_per_s > 0

    def epoch(self, rows):
        self.rows += rows

    def note(self, line):
        self.notes.append(line)

    def live(self, network):
        self.networks.append(network)

    def stop_requested(self):
        return self.stop is not None and len(self.steps) >= self.stop


def trained(path, config, splits, **options):
    run, recorder = Run.create(path, config), Recorder(**options)
    return run, recorder, fit(config, splits, run, recorder)


@pytest.fixture(scope="module", autouse=True)
def room():
    """Room for all spikes from the start, as each smaller size would compile anew; and blocks of one update."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "STEP_CAPACITY", N)
        patch.setattr(train, "BLOCK", 1)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, splits):
    """One uninterrupted run."""
    return trained(tmp_path_factory.mktemp("whole") / "run", CONFIG, splits)


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def assert_same_run(a, b):
    """Equal rows up to times, and checkpoints equal to the bit."""
    measured = [
        [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} for row in r.metrics()] for r in (a, b)
    ]
    assert measured[0] == measured[1]
    for name in ("initial", "best", "last"):
        files = [dict(np.load(r.folder / "checkpoints" / f"{name}.npz")) for r in (a, b)]
        assert files[0].keys() == files[1].keys()
        for key in files[0].keys() - {"__ranvier__"}:
            np.testing.assert_array_equal(files[0][key], files[1][key])


# a whole run ----------------------------------------------------------------------------------------------------------


def test_rows_and_steps(whole):
    run, recorder, report = whole
    assert recorder.started == (3, 3, 0)
    assert [s[:2] for s in recorder.steps] == [(e, s) for e in (1, 2, 3) for s in (1, 2, 3)]
    rows = run.metrics()
    assert rows == recorder.rows
    assert [(r["epoch"], r["step"], r["split"]) for r in rows] == [
        (0, 0, "validation"),
        *((e, 3 * e, split) for e in (1, 2, 3) for split in ("train", "validation")),
        (3, 9, "test"),
        (3, 9, "test odd"),
    ]
    for row in rows:
        assert 0 <= row["top1"] <= row["top3"] <= 1 and row["rate_hz"] > 0 and row["seconds"] > 0
    assert report.rows == rows[-2:] and not report.stopped and report.epochs == 3
    assert len(recorder.networks) == 3


def test_it_learns(whole):
    rows = {(r["epoch"], r["split"]): r for r in whole[0].metrics()}
    assert rows[3, "validation"]["loss"] < 0.8 * rows[0, "validation"]["loss"]
    assert rows[3, "test"]["top1"] > 0.5


def test_train_row_is_the_mean_over_samples(whole):
    _, recorder, _ = whole
    # 20 samples in batches of 8, 8 and 4
    loss = sum(n * s[2] for n, s in zip((8, 8, 4), recorder.steps[:3], strict=True)) / 20
    assert recorder.rows[1]["loss"] == pytest.approx(loss, rel=1e-6)


def test_the_best_is_chosen_on_validation_data(whole):
    run, _, report = whole
    rows = [r for r in run.metrics() if r["split"] == "validation"]
    best = max(rows, key=lambda r: (r["top1"], -r["loss"]))
    assert report.best_epoch == best["epoch"]
    network, meta = load_network(run, "best", M, K)
    assert_equal(network, report.network)
    assert meta["best"] == {k: best[k] for k in ("epoch", "top1", "loss")}


def test_the_best_has_the_highest_accuracy_and_of_equals_the_lowest_loss(splits, tmp_path):
    run = Run.create(tmp_path / "run", CONFIG)
    training = train._Training(CONFIG, splits, run, train.Quiet())
    for epoch, top1, loss in ((0, 0.5, 1.0), (1, 0.7, 2.0), (2, 0.7, 1.5), (3, 0.7, 1.6), (4, 0.6, 0.1)):
        training._choose({"epoch": epoch, "top1": top1, "loss": loss})
    assert load_network(run, "best", M, K)[1]["best"] == {"epoch": 2, "top1": 0.7, "loss": 1.5} == training.best


def test_test_data_decide_nothing(whole, splits, tmp_path):
    other = replace(splits.test, labels=(splits.test.labels + 1) % K)
    run, _, report = trained(tmp_path / "run", CONFIG, replace(splits, test=other))
    assert report.best_epoch == whole[2].best_epoch
    assert_equal(report.network, whole[2].network)
    assert report.rows[0]["top1"] != whole[2].rows[0]["top1"]


def test_rows_are_what_evaluate_measures(whole, splits):
    run, _, report = whole
    duration = load_network(run, "best", M, K)[1]["limits"]["duration"]
    measured = evaluate(report.network, splits.test, CONFIG, duration=duration, groups=splits.test_groups)
    assert measured.keys() == {"all", "odd"} and measured["all"].n == 10 and measured["odd"].n == 5
    for row, metrics in zip(report.rows, measured.values(), strict=True):
        for name in train.MEANS:
            assert row[name] == pytest.approx(getattr(metrics, name), rel=1e-4)


def test_accuracy_is_over_samples_not_batches(whole, splits):
    network = whole[2].network
    one = evaluate(network, splits.test, replace(CONFIG, batch_size=10))["all"]
    many = evaluate(network, splits.test, CONFIG)["all"]
    assert (one.top1, one.top3, one.n) == (many.top1, many.top3, 10)
    assert one.loss == pytest.approx(many.loss, rel=1e-5) and one.rate_hz == pytest.approx(many.rate_hz, rel=1e-5)


def test_samples_are_kept(whole, splits):
    samples = whole[0].load_arrays("samples")
    index = samples["index"]
    np.testing.assert_array_equal(samples["label"], splits.test.labels[index])
    assert sorted(samples["label"]) == [0, 1, 2] and list(samples["class_names"]) == ["a", "b", "c"]
    np.testing.assert_array_equal(samples["input_time"][0][:12], splits.test.times[12 * index[0] : 12 * index[0] + 12])
    assert np.isfinite(samples["hidden_time"]).any() and samples["hidden_neuron"].max() < N
    assert samples["hidden_time"].shape == samples["hidden_neuron"].shape and samples["prediction"].shape == (3,)


def test_initial_checkpoint_is_the_network_of_the_seed(whole):
    network, meta = load_network(whole[0], "initial", M, K)
    assert_equal(network, train.init_state(CONFIG, M, K).network)
    assert meta["epoch"] == 0


# stop and resume ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 3, 5, 9])
def test_resume_equals_an_uninterrupted_run(whole, splits, tmp_path, stop):
    run, recorder, report = trained(tmp_path / "run", CONFIG, splits, stop=stop)
    assert len(recorder.steps) == stop and report.stopped == (stop < 9)
    again = Recorder()
    resumed = fit(CONFIG, splits, Run.open(run.folder), again, resume=True)
    assert again.started == (3, 3, stop // 3) and len(again.steps) == 9 - stop
    assert_same_run(whole[0], run)
    assert_equal(resumed.network, whole[2].network)


def test_resume_after_a_crash_forgets_what_came_after_the_checkpoint(whole, splits, tmp_path):
    run, _, _ = trained(tmp_path / "run", CONFIG, splits, stop=4)
    run.log({"epoch": 2, "step": 6, "split": "train", "loss": 0.0})
    fit(CONFIG, splits, run, resume=True)
    assert_same_run(whole[0], run)


def test_a_finished_run_does_not_meet_the_test_samples_again(splits, tmp_path, monkeypatch):
    run, _, report = trained(tmp_path / "run", CONFIG, splits)
    before = run.metrics()
    monkeypatch.setattr(train, "predict", None)
    assert fit(CONFIG, splits, run, resume=True).rows == report.rows
    assert run.metrics() == before


def test_resume_with_other_data_is_refused(splits, tmp_path):
    run, _, _ = trained(tmp_path / "run", CONFIG, splits, stop=1)
    with pytest.raises(RanvierError, match="19 training samples"):
        fit(CONFIG, replace(splits, train=splits.train.subset(np.arange(19))), run, resume=True)


# room -----------------------------------------------------------------------------------------------------------------


def busy(splits):
    """A state whose network fires a lot, and an update of it but for its limits."""
    state = train.init_state(CONFIG, M, K)
    state = replace(state, network=replace(state.network, w_in=10.0 * state.network.w_in))
    batch = to_device(splits.train), np.arange(8), np.ones(8, np.float32), 0
    return state, partial(train._train_step, state, True, *batch, config=CONFIG)


def test_an_update_that_lost_spikes_is_done_again(splits):
    state, call = busy(splits)
    small = train.Limits(25.0, 10.0, N, 40)
    result, limits = train._with_room(call, small, CONFIG)
    assert limits == replace(small, capacity=80)
    assert call(limits=small).overflow > 0 and result.overflow == 0
    assert_equal(result.state, call(limits=limits).state)


def test_an_update_with_clipped_delays_is_done_again(splits):
    state, call = busy(splits)
    small = train.Limits(25.0, 1.0, N, 80)
    result, limits = train._with_room(call, small, CONFIG)
    assert limits == replace(small, max_delay=1.25 * float(state.network.longest_delay()))
    assert call(limits=small).clipped > 0 and result.clipped == 0
    assert_equal(result.state, call(limits=limits).state)
    # A longest delay that was asked for stays.
    given = replace(CONFIG, max_delay=1.0)
    assert train._with_room(partial(call, config=given), small, given)[1] == small


@pytest.mark.parametrize(
    ("busiest", "sizes"),
    [
        (99.0, [(2, 10), (6, 72)]),  # 6 neurons, four spikes in each of 3 steps
        (10.0, [(2, 10), (6, 10)]),  # what is lost is not lost for want of records, so there are no more of them
    ],
)
def test_spikes_that_never_fit_end_the_search(busiest, sizes):
    tried = []

    def call(limits):
        tried.append((limits.step_capacity, limits.capacity))
        result = train._Result(None, np.int32(3), np.int32(0), np.float32(0.0), np.float32(busiest), None)
        return result._replace(fits=not any(train._short_of(limits, result, CONFIG)))

    result, limits = train._with_room(call, train.Limits(3.0, 1.0, 2, 10), CONFIG)
    assert tried == sizes
    assert result.overflow == 3 and limits == train.Limits(3.0, 1.0, *sizes[-1])


def test_lost_spikes_are_said(splits, tmp_path, monkeypatch):
    real = jax.device_get

    def lossy(tree):
        tree = real(tree)
        return [row._replace(overflow=1) for row in tree] if isinstance(tree, list) else tree

    monkeypatch.setattr(jax, "device_get", lossy)
    recorder = trained(tmp_path / "run", CONFIG, splits, stop=3)[1]
    assert [note.split(", ")[0] for note in recorder.notes] == [
        "epoch 0: lost 2 spikes in measuring",
        "epoch 1: lost 3 spikes in training",
        "epoch 1: lost 2 spikes in measuring",
    ]


def test_room_is_given_back_when_rates_fall():
    limits = train.Limits(100.0, 5.0, 64, 0)
    config = replace(CONFIG, hidden=100)
    assert [train._step_capacity(config, limits, n) for n in (0.0, 600.0, 601.0, 2400.0, 1e9)] == [6, 6, 12, 24, 100]


def test_neurons_that_fire_once_have_a_record_each():
    network = train.init_state(CONFIG, M, K).network
    config = replace(CONFIG, readout="leaky-mean")
    assert train.initial_limits(network, config, 100.0, duration=100.0).capacity == 64
    assert train.initial_limits(network, replace(config, single_spike=True), 100.0, duration=100.0).capacity == N


def test_duration_comes_from_training_and_validation(splits, tmp_path):
    late = replace(splits.test, times=splits.test.times + 100.0)
    run, recorder, _ = trained(tmp_path / "run", CONFIG, replace(splits, test=late), stop=1)
    network, meta = load_network(run, "initial", M, K)
    latest = max(splits.train.latest, splits.validation.latest) + float(network.longest_delay())
    assert latest < meta["limits"]["duration"] <= latest + CONFIG.dt
    assert any("120 test events" in note for note in recorder.notes)


# what a run can be asked for ------------------------------------------------------------------------------------------


def test_weights_stay_removed(splits, tmp_path):
    run, recorder, _ = trained(tmp_path / "run", replace(CONFIG, sparsity=0.5, epochs=2), splits)
    network = load_network(run, "last", M, K)[0]
    assert (network.w_in != 0).sum() == 15 and (network.w_rec != 0).sum() == 18
    assert ((recorder.networks[0].w_in == 0) == (recorder.networks[1].w_in == 0)).all()
    named = [(r["epoch"], r["split"]) for r in recorder.rows if not r["split"].startswith("test")]
    before = (1, "validation before pruning")
    assert named == [(0, "validation"), (1, "train"), before, (1, "validation"), (2, "train"), (2, "validation")]


def test_frozen_and_clipped_delays_and_positive_weights(splits, tmp_path):
    config = replace(CONFIG, delay_lr_scale=0.0, positive_weights=True, max_delay=1.0, epochs=1, lr=0.1)
    run, recorder, _ = trained(tmp_path / "run", config, splits)
    (before, _), (after, meta) = (load_network(run, name, M, K) for name in ("initial", "last"))
    assert_equal(before.space, after.space)
    assert (after.w_in >= 0).all() and (after.w_in == 0).any() and (after.w_out < 0).any()
    assert meta["limits"]["max_delay"] == 1.0
    assert any("acts as 1 ms" in note for note in recorder.notes)


def test_spiking_outputs_learn(splits, tmp_path):
    config = replace(CONFIG, readout="first-spike", weight_scale_out=1.0, net="1g0.1", epochs=2)
    run, recorder, _ = trained(tmp_path / "run", config, splits)
    before, after = (load_network(run, name, M, K)[0] for name in ("initial", "last"))
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.isfinite(y).all() and (np.asarray(x) != np.asarray(y)).any()


# failures -------------------------------------------------------------------------------------------------------------


def test_a_logit_that_is_not_finite_stops_the_run(splits, tmp_path, monkeypatch):
    state = train.init_state(CONFIG, M, K)
    state = replace(state, network=replace(state.network, w_out=state.network.w_out.at[0, 0].set(jnp.inf)))
    monkeypatch.setattr(train, "init_state", lambda *_: state)
    with pytest.raises(TrainingDiverged, match="logit at epoch 1 step 1"):
        trained(tmp_path / "run", CONFIG, splits)
    network, meta = load_network(Run.open(tmp_path / "run"), "failed", M, K)
    assert (meta["failed"], meta["step"]) == ("logit at epoch 1 step 1", 0)
    assert_equal(network, state.network)


def test_the_first_gradient_that_is_not_finite_is_named(splits, tmp_path, monkeypatch):
    # The value is 0 and finite, the derivative at 0 is 0 x inf.
    monkeypatch.setattr(train, "rate_penalty", lambda count, *_: jnp.sqrt(0.0 * count).sum())
    config = replace(CONFIG, tag="nan")  # compiles anew, with the broken penalty
    with pytest.raises(TrainingDiverged, match="gradient of w_in at epoch 1 step 1"):
        trained(tmp_path / "run", config, splits)
    network, _ = load_network(Run.open(tmp_path / "run"), "failed", M, K)
    assert_equal(network, train.init_state(config, M, K).network)


def test_each_quantity_has_its_name():
    network = train.init_state(replace(CONFIG, net="2e0.1"), M, K).network
    names = [f"gradient of {n}" for n in ("w_in", "w_rec", "w_out")]
    space = [f"gradient of space/params/{n}" for n in ("e_in", "e_rec", "x_in", "x_rec")]
    assert train._quantities(network) == ["logit", "loss", *names, *space]
    assert len(jax.tree.leaves(network)) == 7


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_no_samples_are_refused(splits, tmp_path, part):
    empty = getattr(splits, part).subset(np.array([], int))
    with pytest.raises(RanvierError, match="no samples"):
        trained(tmp_path / "run", CONFIG, replace(splits, **{part: empty}))


def test_data_of_another_shape_are_refused(splits, tmp_path):
    with pytest.raises(RanvierError, match="7 channels"):
        trained(tmp_path / "run", CONFIG, replace(splits, test=replace(splits.test, n_channels=7)))


def test_float64_needs_64_bit_numbers(splits, tmp_path):
    with pytest.raises(RanvierError, match="jax_enable_x64"):
        trained(tmp_path / "run", replace(CONFIG, precision="float64"), splits)


def test_empty_groups_have_no_metrics():
    predictions = train.Predictions(np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2))
    assert predictions.metrics(np.array([1])).n == 1
    with pytest.raises(RanvierError, match="no samples"):
        predictions.metrics(np.array([], int))


@pytest.mark.parametrize("n", [1, 7, 8, 9])
def test_batches_hold_each_sample_once(n):
    batches = train._batches(np.arange(n)[::-1], 8)
    assert len(batches) == math.ceil(n / 8)
    assert all(indices.shape == weight.shape == (8,) for indices, weight in batches)
    kept = np.concatenate([indices[weight > 0] for indices, weight in batches])
    np.testing.assert_array_equal(kept, np.arange(n)[::-1])
