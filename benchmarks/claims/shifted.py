"""Reality as it may differ from the simulator: logistic growth with faults, in closed form.

Rows of sizes with the capacity that made them, drawn by NumPy, so that nothing is compiled and
reality is no simulator of the package.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import sgjax as sg
from sgjax._types import Prior
from sgjax.tasks import Inputs

TIMES = np.arange(20.0)
RATE, CAPACITY, INITIAL = (0.2, 0.6), (50.0, 2e4), (2.0, 20.0)
NOISE = 0.1
PRIOR_SD = float(np.log(CAPACITY[1] / CAPACITY[0]) / np.sqrt(12))
"""Of the logarithm of the capacity."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """In what reality differs: the share that is Gompertz growth, the noise, what is reported."""

    contamination: float = 0.0
    noise_sd: float = NOISE
    correlation: float = 0.0
    """Of the noise from one time to the next, its sd being kept."""
    reporting: float = 1.0

    def draw(self, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Sizes (series, times) and the logarithms of the capacities."""
        rate = random.uniform(*RATE, (count, 1))
        log_capacity = random.uniform(np.log(CAPACITY[0]), np.log(CAPACITY[1]), (count, 1))
        log_initial = random.uniform(np.log(INITIAL[0]), np.log(INITIAL[1]), (count, 1))
        spread = log_initial - log_capacity
        logistic = log_capacity - np.log1p(np.expm1(-spread) * np.exp(-rate * TIMES))
        gompertz = log_capacity + spread * np.exp(-0.35 * TIMES)
        strange = random.random((count, 1)) < self.contamination
        noise = np.empty((count, TIMES.size))
        fresh = random.normal(size=noise.shape)
        noise[:, 0] = fresh[:, 0]
        for t in range(1, TIMES.size):
            new = np.sqrt(1 - self.correlation**2) * fresh[:, t]
            noise[:, t] = self.correlation * noise[:, t - 1] + new
        log_size = np.where(strange, gompertz, logistic) + np.log(self.reporting)
        return np.exp(log_size + self.noise_sd * noise), log_capacity[:, 0]


NONE = Fault()

FAULTS: dict[str, Fault] = (
    {f"Gompertz {share:g}": Fault(contamination=share) for share in (0.1, 0.25, 0.5, 1.0)}
    | {f"noise sd {sd:g}": Fault(noise_sd=sd) for sd in (0.05, 0.15, 0.2, 0.3, 0.5)}
    | {f"AR(1) {r:g}": Fault(correlation=r) for r in (0.3, 0.6, 0.9)}
    | {f"reported {share:g}": Fault(reporting=share) for share in (0.9, 0.75, 0.5, 0.25)}
)
"""The 16 shifted worlds of the table, by name."""

Observing = Callable[[], sg.observations.AbstractObservation]


def clipped_loss(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """min(e^2, 1) of logarithms of capacities, in sds of the prior; at most B = 1."""
    return np.minimum(((prediction - truth) / PRIOR_SD) ** 2, 1)


def growth(observation: sg.observations.AbstractObservation | None = None) -> sg.Study:
    """The simulator: logistic growth, asked for the capacity, by default without any fault."""
    return sg.Study(
        sg.simulators.Logistic(
            prior={
                "growth_rate": dist.Uniform(*RATE),
                "carrying_capacity": dist.LogUniform(*CAPACITY),
                "initial_size": dist.LogUniform(*INITIAL),
            },
            ts=TIMES,
        ),
        observation or sg.observations.LogNormal(log_sd=NOISE, prior={}),
        sg.Estimate("carrying_capacity"),
        name="growth",
    )


def inputs_from(sizes: np.ndarray) -> Inputs:
    """Rows of sizes as the network's inputs."""
    values = jnp.asarray(sizes, jnp.float32)[..., None]
    ts = jnp.broadcast_to(jnp.asarray(TIMES, jnp.float32), values.shape[:2])
    return Inputs(ts, values, jnp.ones(values.shape, bool), jnp.zeros((len(values), 0)))


class SpikeAndSlab(sg.observations.AbstractNoise):
    """Log-normal noise that is replaced by heavy tails at a tenth of the times, for training."""

    log_sd: float = NOISE
    share: float = 0.1
    scale: float = 0.5
    prior: Prior = eqx.field(default_factory=dict)
    lowest = 0.0

    def draw(self, key, theta, mean):
        keys = jax.random.split(key, 3)
        ordinary = self.log_sd * jax.random.normal(keys[0], mean.shape)
        heavy = self.scale * jnp.clip(jax.random.cauchy(keys[1], mean.shape), -10, 10)
        chosen = jax.random.bernoulli(keys[2], self.share, mean.shape)
        return jnp.maximum(mean, 0) * jnp.exp(jnp.where(chosen, heavy, ordinary))

    def log_density(self, theta, mean, values):
        raise ValueError("Spike-and-slab noise is for training; fit with `LogNormal`.")


REMEDIES: dict[str, Observing] = {
    "as simulated": lambda: sg.observations.LogNormal(log_sd=NOISE, prior={}),
    "wide observation prior": lambda: sg.observations.Chain(
        sg.observations.UnderReporting(prior={"reporting_rate": dist.Uniform(0.25, 1.0)}),
        sg.observations.LogNormal(prior={"log_sd": dist.LogUniform(0.05, 0.5)}),
    ),
    "spike and slab": SpikeAndSlab,
}
"""What the network is trained with, by name."""
