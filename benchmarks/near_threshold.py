"""What the second threshold costs: the direction of the sparse gradient against that of the dense one.

    python -m benchmarks.near_threshold                       a table
    python -m benchmarks.near_threshold --plot FILE.png       and a picture

A network 100-256-256-20 of LIF neurons (alpha 0.95, SuperSpike with beta 10) hears random spikes, and each sample has a
random class: cross entropy of what the last layer's mean voltage says. Weights are random, scaled and shifted layer by
layer until voltages have the standard deviation 0.8 and the mean -0.32, so that about 5 % are above the threshold. The
dense gradient has no second threshold and room for all; a sparse one lists spikes and the neurons above theta_2, in as
much room as a part of the layer. Numbers are means over `--seeds` networks: the cosine between the two gradients of the
weights of each layer, and the ratio of their lengths.
"""

# ruff: noqa: T201 - its output is the table

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from ranvier.ops import SpikeVector, lif_layer, spike_matmul

SIZES, STEPS, BATCH, ALPHA, RATE = (100, 256, 256, 20), 100, 16, 0.95, 0.05
NEAR = (0.99, 0.95, 0.9, 0.8, 0.7, 0.5, 0.25, 0.0, -0.5, -1.0, -2.0, -4.0)
ROOMS = (1.0, 0.2, 0.1, 0.05)


def voltages(spikes, matrix, bias, near_threshold, capacity):
    """Lists of a layer over all steps, and its voltages if it never fired."""
    currents = spike_matmul(spikes, matrix, bias=bias)

    def step(v, current):
        v = ALPHA * v + (1 - ALPHA) * 20.0 * current
        return v, v

    free = jax.lax.scan(step, jnp.zeros_like(currents[0]), currents)[1]
    lists, _ = lif_layer(currents, alpha=ALPHA, near_threshold=near_threshold, capacity=capacity)
    return lists, free


def start(key, spikes):
    """Weights and biases, a layer at a time."""
    layers = []
    for rows, columns in zip(SIZES[:-1], SIZES[1:], strict=True):
        key, k = jax.random.split(key)
        matrix, bias = jax.random.normal(k, (rows, columns)) / np.sqrt(rows), jnp.zeros(columns)
        for _ in range(8):
            _, free = voltages(spikes, matrix, bias, 1.0, columns)
            late = free[STEPS // 4 :]
            matrix = matrix * 0.8 / jnp.std(late)
            _, free = voltages(spikes, matrix, bias, 1.0, columns)
            bias = bias + (-0.32 - jnp.mean(free[STEPS // 4 :])) / 20.0
        layers.append((matrix, bias))
        spikes, _ = voltages(spikes, matrix, bias, 1.0, columns)
    return layers


def gradient(layers, spikes, labels, near_threshold, room):
    """Gradient of the loss; activity of each layer; the part of neurons that a list names."""

    def loss(layers):
        lists, activity = spikes, []
        for matrix, bias in layers[:-1]:
            capacity = max(1, round(room * matrix.shape[1]))
            lists, _ = voltages(lists, matrix, bias, near_threshold, capacity)
            activity.append((jnp.mean(lists.n_spikes) / matrix.shape[1], jnp.mean(lists.n_listed) / matrix.shape[1]))
        _, free = voltages(lists, *layers[-1], 1.0, 1)
        logits = jnp.mean(free, axis=0)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -jnp.mean(picked), activity

    return jax.grad(loss, has_aux=True)(layers)


def measure(seeds):
    """Means over seeds of cosine, ratio of lengths, part listed: (room, theta_2, layer, 3); activity of each layer."""
    rows, activities = [], []
    sparse = jax.jit(gradient, static_argnames="room")
    for seed in range(seeds):
        draw = np.random.default_rng(seed)
        dense_input = jnp.asarray(draw.random((STEPS, BATCH, SIZES[0])) < RATE, jnp.float32)
        spikes = SpikeVector.from_dense(dense_input, SIZES[0])
        labels = jnp.asarray(draw.integers(0, SIZES[-1], BATCH))
        layers = jax.jit(start)(jax.random.key(seed), spikes)
        whole, activity = sparse(layers, spikes, labels, -jnp.inf, 1.0)
        activities.append([a for a, _ in activity])
        of_seed = []
        for room in ROOMS:
            for near in NEAR:
                part, listed = sparse(layers, spikes, labels, near, room)
                for k in range(len(SIZES) - 2):
                    a, b = np.ravel(part[k][0]), np.ravel(whole[k][0])
                    lengths = np.linalg.norm(a), np.linalg.norm(b)
                    of_seed.append((a @ b / (lengths[0] * lengths[1]), lengths[0] / lengths[1], listed[k][1]))
        rows.append(of_seed)
    shape = (len(ROOMS), len(NEAR), len(SIZES) - 2, 3)
    return np.mean(np.array(rows, float), axis=0).reshape(shape), np.mean(np.array(activities, float), axis=0)


def plot(table, path):
    """Cosine against theta_2, a panel a layer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n_layers = table.shape[2]
    figure, panels = plt.subplots(1, n_layers, figsize=(4.2 * n_layers, 3.4), sharey=True, layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(ROOMS)))
    for k, panel in enumerate(panels):
        for room, colour, rows in zip(ROOMS, colours, table[:, :, k], strict=True):
            panel.plot(1 - np.array(NEAR), rows[:, 0], "o-", ms=3, color=colour, label=f"{room:.0%} of the layer")
        panel.set(xscale="log", xlabel="threshold $-$ theta_2", title=f"weights into hidden layer {k + 1}")
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="cosine with the dense gradient", ylim=(0, 1.02))
    panels[-1].legend(title="room in a list", frameon=False)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--plot", metavar="FILE")
    options = parser.parse_args()
    table, activity = measure(options.seeds)
    print(f"activity of the hidden layers: {', '.join(f'{x:.1%}' for x in activity)}; {options.seeds} networks")
    print(
        "| room | theta_2 | "
        + " | ".join(f"layer {k + 1}: cosine | length | listed" for k in range(table.shape[2]))
        + " |"
    )
    print("|" + "---|" * (2 + 3 * table.shape[2]))
    for room, of_room in zip(ROOMS, table, strict=True):
        for near, of_near in zip(NEAR, of_room, strict=True):
            cells = " | ".join(f"{c:.3f} | {r:.2f} | {p:.1%}" for c, r, p in of_near)
            print(f"| {room:.0%} | {near:g} | {cells} |")
    if options.plot:
        plot(table, options.plot)


if __name__ == "__main__":
    main()
