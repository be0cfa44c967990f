"""Deep networks trained through lists, and their dense twins: test accuracy, time and memory of some seeds.

    python -m benchmarks.deep_accuracy --out deep.json            the shipped speech and Yin-Yang, 5 seeds each
    python -m benchmarks.deep_accuracy --data yinyang --seeds 1 --epochs 3

The twin has room for all neurons in its lists, every neuron near the threshold, and dense products: the plain surrogate
gradient. Networks, data and schedules are those of `ranvier train --model deep` with the options that the output
names. All seeds of a case share one program, in which a whole epoch is one loop on the device; `--threads` runs go on
side by side. The network that is best on the validation samples, looked at after each epoch, is measured once on the
test samples. Seconds are of an epoch of updates, alone on the device; program MiB are its temporaries and results as
XLA plans them.
"""

# ruff: noqa: T201 - its output is the table

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ranvier.augment import Augmentation, augmented_batch, settled
from ranvier.config import Config
from ranvier.data import load
from ranvier.data.recordings import to_device
from ranvier.deep_model import DeepModel
from ranvier.losses import sample_mean
from ranvier.optimizer import make_optimizer, settled_schedule
from ranvier.train import predict

EXAMPLES = Path(__file__).parent.parent / "examples"
CASES = {"speech": Config.of("deep"), "yinyang": Config.from_toml(EXAMPLES / "deep-yinyang.toml")}
TWIN = {"max_activity": 1.0, "near_threshold": -1e9, "near_schedule": False, "sampled": 0.0, "mode": "dense"}


@partial(jax.jit, static_argnames=("config", "limits"))
def one_epoch(network, optimizer, recordings, order, first, key, *, config, limits):
    """An epoch of updates `first`, `first` + 1, ...; `order` (n, B) are the samples of each."""
    model, chain = DeepModel(config), make_optimizer(network, config)

    def step(state, now):
        (network, optimizer), (indices, update) = state, now
        events = augmented_batch(jax.random.fold_in(key, update), recordings, indices, Augmentation.of(config))

        def loss(network):
            out = model.apply(network, events, limits, update)
            result = model.result(None, out, network, limits)
            error = sample_mean(out.sample_error(recordings.label[indices])) + model.penalty(out, limits, None)
            return error, (result.fits, result.layers)

        (value, (fits, layers)), gradient = jax.value_and_grad(loss, has_aux=True)(network)
        updates, optimizer = chain.update(gradient, optimizer, network)
        network = jax.tree.map(jnp.add, network, updates)
        return (network, optimizer), (value, fits, {name: x.mean(0) for name, x in layers.items()})

    updates = first + jnp.arange(order.shape[0], dtype=jnp.int32)
    return jax.lax.scan(step, (network, optimizer), (order, updates))


def prepared(config, splits):
    """The settled options, limits, and the three parts of the data on the device."""
    config = settled_schedule(settled(config, splits.train), len(splits.train) // config.batch_size)
    model = DeepModel(config)
    network = jax.eval_shape(lambda: model.init(jax.random.key(0), splits.train.n_channels, splits.train.n_classes))
    limits = model.limits(network, [splits.train, splits.validation, splits.test])
    if config.augment_stretch:
        limits = replace(limits, capacity=2 * limits.capacity)
    return config, limits, tuple(map(to_device, (splits.train, splits.validation, splits.test)))


def batches(config, n, seed):
    """The samples of an epoch; what does not fill a batch is left out."""
    steps = n // config.batch_size
    order = np.random.default_rng(seed).permutation(n)[: steps * config.batch_size]
    return order.reshape(steps, -1).astype(np.int32)


def started(config, splits, limits, recordings, seed):
    """A network at its start, its optimizer, and what there is to say."""
    model = DeepModel(config)
    network = model.init(jax.random.key(seed), splits.train.n_channels, splits.train.n_classes)
    network, _, notes = model.start(network, recordings, np.arange(config.batch_size), limits)
    return network, make_optimizer(network, config).init(network), notes


def train(config, splits, seed) -> dict[str, Any]:
    """One run: what came of it."""
    config, limits, (recordings, validation, test) = prepared(config, splits)
    network, optimizer, notes = started(config, splits, limits, recordings, seed)
    measured_at_once = replace(config, batch_size=min(250, len(splits.validation)))
    found: dict[str, Any] = {"notes": notes, "curve": []}
    best, kept = (-1.0, 0.0), network
    for epoch in range(config.epochs):
        order = batches(config, len(splits.train), [seed, epoch])
        (network, optimizer), (loss, fits, layers) = one_epoch(
            network,
            optimizer,
            recordings,
            order,
            np.int32(epoch * len(order)),
            jax.random.key(seed),
            config=config,
            limits=limits,
        )
        measured = predict(network, validation, measured_at_once, limits)[0].metrics()
        assert np.asarray(fits).all(), "input events were lost: give more room"
        found["curve"].append((float(loss.mean()), measured.loss, measured.top1))
        if (measured.top1, -measured.loss) > best:
            best, kept, found["best_epoch"] = (measured.top1, -measured.loss), network, epoch + 1
            found["layers"] = {name: np.asarray(x).mean(0).tolist() for name, x in layers.items()}
    found["validation"] = best[0]
    found["test"] = predict(kept, test, measured_at_once, limits)[0].metrics().top1
    return found


def cost(config, splits) -> tuple[float, float]:
    """Seconds of an epoch of updates, and MiB of its program."""
    config, limits, (recordings, _, _) = prepared(config, splits)
    network, optimizer, _ = started(config, splits, limits, recordings, 0)
    operands = (network, optimizer, recordings, batches(config, len(splits.train), 0), np.int32(100), jax.random.key(0))
    program = one_epoch.lower(*operands, config=config, limits=limits).compile()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(program(*operands))
        times.append(time.perf_counter() - start)
    plan = program.memory_analysis()
    return statistics.median(times), (plan.temp_size_in_bytes + plan.output_size_in_bytes) / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--networks", nargs="+", default=["sparse", "dense"], choices=["sparse", "dense"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="options of the networks")
    parser.add_argument("--out", default=None, help="JSON file for all results")
    options = parser.parse_args()
    given = {name: json.loads(value) for name, _, value in (word.partition("=") for word in options.set)}
    given |= {} if options.epochs is None else {"epochs": options.epochs}
    splits = {data: load(data) for data in options.data}
    configs = {
        (data, network): replace(CASES[data], **given, **(TWIN if network == "dense" else {})).validate()
        for data in options.data
        for network in options.networks
    }
    results: dict[str, Any] = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "runs": []}

    def run(work):
        (data, network), seed = work
        found = train(configs[data, network], splits[data], seed)
        results["runs"].append({"data": data, "network": network, "seed": seed, **found})
        print(f"{data} {network} {seed}: test {100 * found['test']:.1f} %", file=sys.stderr, flush=True)
        if options.out is not None:
            Path(options.out).write_text(json.dumps(results, indent=1))

    with ThreadPoolExecutor(options.threads) as pool:
        # The first seed of a case compiles what the others use.
        list(pool.map(run, [(case, 0) for case in configs]))
        list(pool.map(run, [(case, seed) for case in configs for seed in range(1, options.seeds)]))
    columns = (
        "data",
        "network",
        "test %, mean +- standard deviation",
        "of each seed",
        "s an epoch",
        "MiB",
        "activity %",
    )
    print(f"{results['device']}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    for (data, network), config in configs.items():
        mine = [x for x in results["runs"] if (x["data"], x["network"]) == (data, network)]
        test = [100 * x["test"] for x in sorted(mine, key=lambda x: x["seed"])]
        activity = 100 * np.mean([x["layers"]["activity"] for x in mine], axis=0)
        seconds, size = cost(config, splits[data])
        each, active = " ".join(f"{x:.1f}" for x in test), " ".join(f"{x:.2f}" for x in activity)
        spread = f"{np.mean(test):.1f} +- {np.std(test, ddof=min(1, len(test) - 1)):.1f}"
        print(f"| {data} | {network} | {spread} | {each} | {seconds:.3f} | {size:.0f} | {active} |", flush=True)
        results["runs"].append({"data": data, "network": network, "epoch_seconds": seconds, "mib": size})
        results["runs"][-1]["config"] = config.to_toml()
    if options.out is not None:
        Path(options.out).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
