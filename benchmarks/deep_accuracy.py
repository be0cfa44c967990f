"""Deep networks trained through lists, and their dense twins: test accuracy, time and memory of some seeds.

    python -m benchmarks.deep_accuracy --out deep.json            the shipped speech and Yin-Yang, 5 seeds each
    python -m benchmarks.deep_accuracy --data yinyang --seeds 1 --epochs 3

The twin has room for all neurons in its lists, every neuron near the threshold, and dense products: the plain surrogate
gradient. Networks, data and schedules are those of `ranvier train --model deep` with the options that the output
names. All seeds of a case share one program, in which a whole epoch is one loop on the device. The network that is best
on the validation samples, looked at after each epoch, is measured once on the test samples.
"""

# ruff: noqa: T201 - its output is the table

import argparse
import json
import time
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

CASES = {
    "speech": Config.of("deep"),
    "yinyang": Config.of(
        "deep",
        data="yinyang",
        sizes="200,100",
        readout="spike-sum",
        dt=0.1,
        duration=8.0,
        epochs=60,
        batch_size=50,
        lr=3e-3,
    ),
}
TWIN = {"max_activity": 1.0, "near_threshold": -1e9, "near_schedule": False, "mode": "dense"}


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
            return sample_mean(out.sample_error(recordings.label[indices])), (result.fits, result.layers)

        (value, (fits, layers)), gradient = jax.value_and_grad(loss, has_aux=True)(network)
        updates, optimizer = chain.update(gradient, optimizer, network)
        network = jax.tree.map(jnp.add, network, updates)
        return (network, optimizer), (value, fits, {name: x.mean(0) for name, x in layers.items()})

    updates = first + jnp.arange(order.shape[0], dtype=jnp.int32)
    return jax.lax.scan(step, (network, optimizer), (order, updates))


def train(config, splits, seed) -> dict[str, Any]:
    """One run: what came of it."""
    steps = len(splits.train) // config.batch_size
    config = settled_schedule(settled(config, splits.train), steps)
    model, key = DeepModel(config), jax.random.key(seed)
    network = model.init(key, splits.train.n_channels, splits.train.n_classes)
    limits = model.limits(network, [splits.train, splits.validation, splits.test])
    if config.augment_stretch:
        limits = type(limits)(limits.duration, 2 * limits.capacity, limits.activity)
    recordings, validation, test = (to_device(x) for x in (splits.train, splits.validation, splits.test))
    batch = np.arange(config.batch_size)
    network, _, notes = model.start(network, recordings, batch, limits)
    optimizer = make_optimizer(network, config).init(network)
    r, best, curve = np.random.default_rng(seed), (-1.0, 0.0), []
    found: dict[str, Any] = {"notes": notes}
    began = compiled = time.perf_counter()
    for epoch in range(config.epochs):
        order = r.permutation(len(splits.train))[: steps * config.batch_size].reshape(steps, -1).astype(np.int32)
        (network, optimizer), (loss, fits, layers) = one_epoch(
            network, optimizer, recordings, order, np.int32(epoch * steps), key, config=config, limits=limits
        )
        assert np.asarray(fits).all(), "input events were lost: give more room"
        if epoch == 0:
            compiled = time.perf_counter()
        measured = predict(network, validation, config, limits)[0].metrics()
        curve.append((float(loss.mean()), measured.loss, measured.top1))
        if (measured.top1, -measured.loss) > best:
            best, kept, found["best_epoch"] = (measured.top1, -measured.loss), network, epoch + 1
    found["seconds"] = (time.perf_counter() - compiled) * config.epochs / max(1, config.epochs - 1)
    found["first_epoch_seconds"] = compiled - began
    found["layers"] = {name: np.asarray(x).mean(0).tolist() for name, x in layers.items()}
    found["validation"], found["curve"] = best[0], curve
    found["test"] = predict(kept, test, config, limits)[0].metrics().top1
    operands = (network, optimizer, recordings, order, np.int32(0), key)
    plan = one_epoch.lower(*operands, config=config, limits=limits).compile().memory_analysis()
    found["program_mib"] = (plan.temp_size_in_bytes + plan.output_size_in_bytes) / 2**20
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--twins", nargs="+", default=["sparse", "dense"], choices=["sparse", "dense"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="options of the networks")
    parser.add_argument("--out", default=None, help="JSON file for all results")
    options = parser.parse_args()
    device = jax.devices()[0].device_kind
    results: dict[str, Any] = {"device": device, "jax": jax.__version__, "runs": []}
    given = {name: json.loads(value) for name, _, value in (word.partition("=") for word in options.set)}
    given |= {} if options.epochs is None else {"epochs": options.epochs}
    print(
        f"{device}\n\n| data | network | seed | validation % | test % | seconds | program MiB | activity % |",
        flush=True,
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for data in options.data:
        splits = load(data)
        for twin in options.twins:
            base = {name: getattr(CASES[data], name) for name in CASES[data].__dataclass_fields__}
            config = Config(**{**base, **given, **(TWIN if twin == "dense" else {})}).validate()
            for seed in range(options.seeds):
                found = train(config, splits, seed)
                results["runs"].append(
                    {"data": data, "network": twin, "seed": seed, **found, "config": config.to_toml()}
                )
                activity = " ".join(f"{100 * x:.2f}" for x in found["layers"]["activity"])
                numbers = f"{100 * found['validation']:.1f} | {100 * found['test']:.1f} | {found['seconds']:.1f}"
                print(f"| {data} | {twin} | {seed} | {numbers} | {found['program_mib']:.0f} | {activity} |", flush=True)
                if options.out is not None:
                    Path(options.out).write_text(json.dumps(results, indent=1))
            mine = [100 * x["test"] for x in results["runs"] if (x["data"], x["network"]) == (data, twin)]
            print(f"| {data} | {twin} | all | | {np.mean(mine):.1f} +- {np.std(mine):.1f} | | | |", flush=True)


if __name__ == "__main__":
    main()
