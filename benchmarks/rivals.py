"""What does an update cost in other packages, on the study of the README?

Runs in an interpreter that has them and needs no sgjax, since each pins its own versions:
`benchmarks/train_step.py` starts it and gives it batch size, number of weights and solver as one
JSON argument. Each package trains online in the way it documents, compiled, on one core; the
simulator reads the CPU time of the process at each call, so that the time between two calls is
that of a whole update. Medians over blocks, the first two blocks (compilation) left out. A package
that is not installed is named as such. The last line printed is the result.
"""

# pyright: reportMissingImports=false
import importlib.metadata
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

# Before JAX counts the cores.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ |= {"KERAS_BACKEND": "jax", "EQX_ON_ERROR": "nan", "TQDM_DISABLE": "1"}

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

Batch = dict[str, np.ndarray]
"""`theta`, the two rates in logarithms, and `x`, logarithms of one plus the counts."""

TIMES = np.arange(1.0, 15.0)


NETWORKS = {"coupling flow": ("CouplingFlow", 2), "flow matching": ("FlowMatching", 5)}
"""BayesFlow's class and the number of hidden layers it has by default."""


class Stamped:
    """A simulator that notes the CPU time of the process whenever it is called."""

    def __init__(self, sample: Callable[[int], Batch]):
        self.sample = sample
        self.called: list[float] = []

    def __call__(self, size: int) -> Batch:
        self.called.append(time.process_time())
        return self.sample(size)

    def row(self, options: dict[str, Any], weights: int) -> dict[str, float]:
        """Updates per second, and what the simulator costs by itself."""
        steps = options["steps"]
        blocks = np.diff(self.called[-steps * options["rounds"] - 1 :: steps])
        update, alone = float(np.median(blocks)) / steps, []
        for _ in range(5):
            start = time.process_time()
            self.sample(options["batch"])
            alone.append(time.process_time() - start)
        return {
            "weights": weights,
            "steps_per_cpu_second": 1 / update,
            "simulations_per_cpu_second": options["batch"] / update,
            "share_simulating": float(np.median(alone)) / update,
        }


def with_diffrax(options: dict[str, Any]) -> Callable[[int], Batch]:
    """Prior draws and a stock diffrax solve in one compiled program, counts by NumPy."""

    def field(t, y, args):
        del t
        infection, recovery = args[0] * y[0] * y[1] / 763.0, args[1] * y[1]
        return -infection, infection - recovery, recovery

    def solve(rates):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            t0=0.0,
            t1=float(TIMES[-1]),
            dt0=None,
            y0=tuple(jnp.asarray(persons) for persons in (762.0, 1.0, 0.0)),
            args=rates,
            stepsize_controller=diffrax.PIDController(rtol=options["rtol"], atol=options["atol"]),
            saveat=diffrax.SaveAt(ts=jnp.asarray(TIMES)),
            throw=False,
        )
        assert solution.ys is not None
        return solution.ys[1]

    def simulate(key, size):
        mean, sd = jnp.asarray([2.0, 0.4]), jnp.asarray([1.0, 0.5])
        draws = jax.random.truncated_normal(key, -mean / sd, jnp.inf, (size, 2))
        rates = jnp.maximum(mean + sd * draws, 1e-6)
        return rates, jax.vmap(solve)(rates)

    compiled, random = jax.jit(simulate, static_argnums=1), np.random.default_rng(0)
    keys = iter(jax.random.split(jax.random.key(0), 100_000))

    def sample(size: int) -> Batch:
        rates, infectious = map(np.asarray, compiled(next(keys), size))
        dispersion = 1 / np.maximum(random.exponential(0.2, (size, 1)), 1e-6)
        mean = np.maximum(np.nan_to_num(infectious), 1e-9)
        counts = random.negative_binomial(dispersion, dispersion / (dispersion + mean))
        return {
            "theta": np.log(rates).astype(np.float32),
            "x": np.log1p(counts).astype(np.float32),
        }

    return sample


def shipped_with_bayesflow() -> Callable[[int], Batch]:
    """Its SIR benchmark: another prior, ten binomial counts, one SciPy solve after the other."""
    import bayesflow

    simulator = bayesflow.simulators.SIR(rng=np.random.default_rng(0))

    def sample(size: int) -> Batch:
        drawn = simulator.sample(size)
        return {"theta": np.log(drawn["parameters"]), "x": drawn["observables"]}

    return sample


def bayesflow_online(
    sample: Callable[[int], Batch], network: str, options: dict[str, Any]
) -> dict[str, float]:
    """`BasicWorkflow.fit_online` with the network of the wanted number of weights."""
    import bayesflow

    stamped = Stamped(sample)

    kind, depth = NETWORKS[network]

    def workflow(width: int) -> tuple[Any, int]:
        made = bayesflow.BasicWorkflow(
            simulator=bayesflow.simulators.LambdaSimulator(_by_shape(stamped), is_batched=True),
            inference_network=getattr(bayesflow.networks, kind)(
                subnet_kwargs={"widths": (width,) * depth}
            ),
            inference_variables="theta",
            inference_conditions="x",
            standardize="all",
        )
        made.estimator.build_from_data(made.adapter(sample(options["batch"])))
        return made, sum(int(np.prod(v.shape)) for v in made.estimator.trainable_variables)

    made, weights = _of_size(workflow, options["weights"])
    batches = options["steps"] * (options["rounds"] + 2) + 1
    made.fit_online(epochs=1, num_batches_per_epoch=batches, batch_size=options["batch"], verbose=0)
    return stamped.row(options, weights)


def _by_shape(stamped: Stamped) -> Callable[[tuple[int, ...]], Batch]:
    return lambda batch_shape: stamped(batch_shape[0])


def gensbi_online(sample: Callable[[int], Batch], options: dict[str, Any]) -> dict[str, float]:
    """Its masked autoregressive flow, the least costly of its models, on an endless iterator."""
    from flax import nnx
    from gensbi.models import MAFlow, MAFlowParams
    from gensbi.recipes import ConditionalFlowPipeline

    stamped = Stamped(sample)

    def batches(draw: Callable[[int], Batch]) -> Iterator[tuple[jax.Array, jax.Array]]:
        while True:
            batch = draw(options["batch"])
            yield jnp.asarray(batch["theta"][..., None]), jnp.asarray(batch["x"][..., None])

    num_times = sample(2)["x"].shape[1]

    def flow(width: int) -> tuple[MAFlow, int]:
        made = MAFlow(MAFlowParams(nnx.Rngs(0), dim=2, cond_dim=num_times, nn_width=width))
        leaves = jax.tree.leaves(nnx.state(made, nnx.Param))
        return made, sum(leaf.size for leaf in leaves)

    made, weights = _of_size(flow, options["weights"])
    with tempfile.TemporaryDirectory() as folder:
        config = ConditionalFlowPipeline.get_default_training_config()
        pipeline = ConditionalFlowPipeline(
            made,
            batches(stamped),
            batches(sample),
            2,
            num_times,
            training_config=config | {"checkpoint_dir": folder},
        )
        pipeline.fit_standardization(sample(8192)["theta"])
        updates = options["steps"] * (options["rounds"] + 2) + 1
        pipeline.train(nnx.Rngs(0), nsteps=updates, save_model=False)
    return stamped.row(options, weights)


def _of_size(make: Callable[[int], tuple[Any, int]], wanted: int) -> tuple[Any, int]:
    """The network whose number of weights comes closest, by bisection over its width."""
    low, high = 8, 1024
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if make(middle)[1] <= wanted else (low, middle)
    return make(low)


def main(options: dict[str, Any]) -> None:
    """Trains with each package that is installed; the last line is the result."""
    simulate, rows = with_diffrax(options), {}
    if importlib.util.find_spec("bayesflow") is not None:
        for network in NETWORKS:
            rows[f"BayesFlow {network}, diffrax"] = bayesflow_online(simulate, network, options)
        few = options | {"steps": max(1, options["steps"] // 5), "rounds": 3}
        shipped = bayesflow_online(shipped_with_bayesflow(), "coupling flow", few)
        rows["BayesFlow coupling flow, simulator as shipped"] = shipped
    if importlib.util.find_spec("gensbi") is not None:
        rows["GenSBI autoregressive flow, diffrax"] = gensbi_online(simulate, options)
    names = ("jax", "diffrax", "bayesflow", "keras", "gensbi", "flax")
    installed = [name for name in names if importlib.util.find_spec(name) is not None]
    versions = {name: importlib.metadata.version(name) for name in installed}
    absent = [name for name in ("bayesflow", "gensbi") if name not in installed]
    print(json.dumps({"versions": versions, "not_installed": absent, "rows": rows}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
