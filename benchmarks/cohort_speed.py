"""How much faster is the cohort engine than one run after the other?

Both engines learn the same tasks of the same slots, block by block in alternation in one process with one thread; the
figure is the ratio of seed-steps per CPU second, with the quartiles over blocks. Data are random: what is learned
does not change what a step costs. Counting of answers and losses, and gathering of batches, are in both.

    python benchmarks/cohort_speed.py                                     # the promised cases
    python benchmarks/cohort_speed.py --sizes 64 64 64 10 --optimizer adam --slots 10 36 --json out.json
    python benchmarks/cohort_speed.py --jax                               # beside JAX jit(vmap(scan)), if installed
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from supple.bench import RunSpec
from supple.bench.cohort.group import Group
from supple.bench.learner import Learner
from supple.bench.loop import one_thread
from supple.bench.protocols import DigitsPermuted
from supple.streams import Task

#: (sizes, optimizer, batch, slots, promised ratio or None)
CASES = (
    ((64, 64, 64, 10), "sgd", 16, 10, 10.0),
    ((64, 64, 64, 10), "sgd", 16, 36, 10.0),
    ((784, 100, 100, 10), "sgd", 16, 10, 2.0),
    ((784, 100, 100, 10), "sgd", 16, 36, 2.0),
    ((64, 64, 64, 10), "adam", 16, 36, None),
    ((784, 100, 100, 10), "adam", 16, 36, None),
)
LR = 0.01


class Arms:
    """One case: the tasks of every slot, and the two engines with the same slots."""

    def __init__(self, sizes: Sequence[int], optimizer: str, batch: int, slots: int, steps: int) -> None:
        inputs, *hidden, outputs = sizes
        protocol = DigitsPermuted(
            inputs=inputs, hidden=tuple(hidden), outputs=outputs, optimizer=optimizer, lr=LR, batch=batch
        )
        self.specs = [RunSpec(protocol=protocol, method="plain", seed=s) for s in range(slots)]
        self.sizes, self.optimizer, self.batch, self.steps = tuple(sizes), optimizer, batch, steps
        draw = torch.Generator().manual_seed(0)
        self.tasks = {
            s: Task(
                0,
                "task-0",
                torch.randn(steps * batch, inputs, generator=draw),
                torch.randint(outputs, (steps * batch,), generator=draw),
                s,
            )
            for s in range(slots)
        }
        self.group = Group(self.specs)
        self.learners = [Learner(s) for s in self.specs]

    def cohort(self) -> int:
        """Steps of all slots together."""
        self.group.learn(self.tasks)
        return self.steps * len(self.specs)

    def loop(self, share: int) -> int:
        """Steps of some of the slots one after the other; all of them would take the loop's time for nothing."""
        for spec, learner in list(zip(self.specs, self.learners, strict=True))[:share]:
            learner.learn(self.tasks[spec.seed])
        return self.steps * share


def rate(work: Callable[[], int]) -> float:
    """Seed-steps per CPU second."""
    start = time.process_time()
    done = work()
    return done / (time.process_time() - start)


def measure(arms: Arms, blocks: int, loops: int) -> dict[str, list[float]]:
    """Rates block by block, the first block being thrown away."""
    found: dict[str, list[float]] = {"loop": [], "cohort": []}
    jax = jax_arm(arms) if JAX else None
    for block in range(blocks + 1):
        arm_work = {"loop": lambda: arms.loop(loops), "cohort": arms.cohort}
        if jax is not None:
            arm_work["jax"] = jax
        for name, work in arm_work.items():
            value = rate(work)
            if block:
                found.setdefault(name, []).append(value)
    return found


def jax_arm(arms: Arms) -> Callable[[], int]:
    """The same steps as ``jit(vmap(scan))``: plain SGD or Adam, data of all slots given beforehand."""
    import jax
    import jax.numpy as jnp

    def forward(params: list, x: jax.Array) -> jax.Array:
        for i, (weight, bias) in enumerate(params):
            x = x @ weight.T + bias
            x = jax.nn.relu(x) if i + 1 < len(params) else x
        return x

    def loss(params: list, x: jax.Array, y: jax.Array) -> tuple:
        logits = forward(params, x)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean(), logits

    def step(state: tuple, batch: tuple) -> tuple:
        params, m, v, t = state
        (value, logits), grad = jax.value_and_grad(loss, has_aux=True)(params, *batch)
        right = (logits.argmax(-1) == batch[1]).sum()
        if arms.optimizer == "adam":
            t = t + 1
            m = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * g, m, grad)
            v = jax.tree.map(lambda a, g: 0.999 * a + 0.001 * g * g, v, grad)
            move = jax.tree.map(lambda a, b: a / (1 - 0.9**t) / (jnp.sqrt(b / (1 - 0.999**t)) + 1e-8), m, v)
        else:
            move = grad
        params = jax.tree.map(lambda p, g: p - LR * g, params, move)
        return (params, m, v, t), (value, right)

    def run(state: tuple, x: jax.Array, y: jax.Array) -> tuple:
        return jax.lax.scan(step, state, (x, y))

    program = jax.jit(jax.vmap(run))
    params = [
        (jnp.asarray(w.numpy()), jnp.asarray(b.numpy()))
        for w, b in ((w.clone(), b.clone()) for w, b in arms.group.stack.layers)
    ]
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = (params, zeros, zeros, jnp.zeros(len(arms.specs)))
    order = [
        torch.randperm(len(t), generator=torch.Generator().manual_seed(s)) for s, t in arms.tasks.items()
    ]
    shape = (arms.steps, arms.batch)
    x, y = (
        [
            getattr(t, f)[o].numpy().reshape(*shape, *getattr(t, f).shape[1:])
            for t, o in zip(arms.tasks.values(), order, strict=True)
        ]
        for f in ("inputs", "targets")
    )

    def work() -> int:
        nonlocal state
        state, out = program(
            state, jnp.stack([jnp.asarray(a) for a in x]), jnp.stack([jnp.asarray(a) for a in y])
        )
        jax.block_until_ready((state, out))
        return arms.steps * len(arms.specs)

    return work


JAX = False


def main() -> None:
    global JAX
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", help="one network instead of the promised cases")
    parser.add_argument("--optimizer", default="sgd", choices=("sgd", "adam"))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--slots", type=int, nargs="+", default=[10, 36])
    parser.add_argument("--steps", type=int, default=192)
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--loops", type=int, default=3, help="slots that the loop learns in a block")
    parser.add_argument("--jax", action="store_true")
    parser.add_argument("--json")
    asked = parser.parse_args()
    JAX = asked.jax
    cases = CASES
    if asked.sizes:
        cases = tuple((tuple(asked.sizes), asked.optimizer, asked.batch, s, None) for s in asked.slots)
    table = []
    print(
        "network, optimizer, batch, slots: seed-steps per CPU second; ratio to the loop, median [quartiles]"
    )
    with one_thread():
        for sizes, optimizer, batch, slots, promised in cases:
            arms = Arms(sizes, optimizer, batch, slots, asked.steps)
            rates = measure(arms, asked.blocks, min(asked.loops, slots))
            row = {
                "sizes": sizes,
                "optimizer": optimizer,
                "batch": batch,
                "slots": slots,
                "promised": promised,
            }
            words = []
            for name, values in rates.items():
                ratios = sorted(v / base for v, base in zip(values, rates["loop"], strict=True))
                low, middle, high = statistics.quantiles(ratios, n=4)
                row[name] = {"rate": statistics.median(values), "ratio": middle, "quartiles": (low, high)}
                words.append(
                    f"{name} {statistics.median(values):,.0f}"
                    + ("" if name == "loop" else f" = {middle:.1f} [{low:.1f}, {high:.1f}] x")
                )
            table.append(row)
            bar = f" (promised >= {promised:g})" if promised else ""
            print(
                f"{'-'.join(map(str, sizes))} {optimizer} {batch} S={slots}: {', '.join(words)}{bar}",
                flush=True,
            )
    if asked.json:
        with open(asked.json, "w", encoding="utf-8") as file:
            json.dump(table, file, indent=1)


if __name__ == "__main__":
    main()
