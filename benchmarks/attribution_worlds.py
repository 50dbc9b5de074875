"""Worlds whose posterior is known exactly, for the benchmarks of attribution."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import sgjax as sg
from sgjax.priors import from_unconstrained
from sgjax.references import ReferencePosterior, grid_posterior
from sgjax.references._placement import fine_grid, log_density, place, prior_draws
from sgjax.references.grid import POINTS
from sgjax.references.likelihood import log_joint

LEVELS = (np.arange(1000) + 0.5) / 1000
JOINT = 10_000
"""Joint draws that are kept of each exact posterior."""

FIRST_TEST = 2**20
"""Test series are held-out simulations from this number on; k is chosen on the first ones."""


@dataclasses.dataclass(frozen=True)
class World:
    """A study of all parameters; `target` is judged, on a log scale with a prior sd of `prior_sd`.

    `narrow` is the one parameter that the insufficient network is trained for.
    """

    simulator: sg.simulators.AbstractSimulator
    observation: sg.observations.AbstractObservation
    target: str
    narrow: str
    prior_sd: float

    def study(self, *names: str) -> sg.Study:
        """The study that estimates the named parameters, or all."""
        return sg.Study(self.simulator, self.observation, sg.Estimate(*names))

    @property
    def mechanism(self) -> str:
        """The name of its only mechanism."""
        return type(self.simulator).__name__


WORLDS = {
    "logistic growth": World(
        sg.simulators.Logistic(
            prior={
                "growth_rate": dist.Uniform(0.2, 0.6),
                "carrying_capacity": dist.LogUniform(50.0, 2e4),
                "initial_size": dist.LogUniform(2.0, 20.0),
            },
            ts=range(20),
        ),
        sg.observations.LogNormal(log_sd=0.1, prior={}),
        target="carrying_capacity",
        narrow="growth_rate",
        prior_sd=float(np.log(400) / np.sqrt(12)),
    ),
    "SIR": World(
        sg.simulators.SIR(
            population=1000.0,
            initial_infectious=5.0,
            prior={"beta": dist.LogNormal(0.0, 0.4), "gamma": dist.LogNormal(-1.0, 0.4)},
            ts=range(1, 21),
        ),
        sg.observations.NegativeBinomial(overdispersion=0.1, prior={}),
        target="gamma",
        narrow="beta",
        prior_sd=0.4,
    ),
}


def train(
    world: World, names: tuple[str, ...], seed: int, num_steps: int, width: int
) -> tuple[sg.Predictor, sg.SimulationStream]:
    """A predictor of the named parameters, or of all, and the stream it was trained on."""
    study = world.study(*names)
    stream = sg.SimulationStream(study, jax.random.key(seed), 512)
    predictor = sg.predictors.for_study(study, jax.random.key(seed + 1), width=width, depth=2)
    return sg.train(predictor, stream, num_steps, interval=min(500, num_steps)), stream


@dataclasses.dataclass(frozen=True)
class Reference:
    """The exact posterior of one test series."""

    quantiles: np.ndarray
    """Of the logarithm of the target, at `LEVELS`."""
    joint: np.ndarray
    """Draws of the logarithms of all parameters, in the order of the prior."""

    @property
    def sd(self) -> float:
        """The posterior standard deviation of the target's logarithm."""
        return float(self.quantiles.std())


class Exact:
    """Exact posteriors of many series of one world, by one grid of `grid_posterior` each.

    That one also refines and guards its grid, and is what the first series is checked against.
    """

    def __init__(self, world: World):
        self.world, self.study = world, world.study()
        self.prior = self.study.priors[world.mechanism]

    def __call__(self, observed: sg.observations.Observed, seed: int) -> Reference:
        """The posterior given one record; `seed` of the joint draws."""
        joint = log_joint(self.study, self.world.mechanism, observed)
        density = log_density(joint)
        frame = place(density, *prior_draws(joint, density), 14.0)
        grid = fine_grid(density, frame, POINTS[joint.size])
        weights = grid.weights[np.isfinite(grid.density)]
        names = list(joint.shapes)
        values = dict(zip(names, grid.vectors.T, strict=True))
        # Smooth on the real line, where the prior's support has no edge.
        smooth = ReferencePosterior(self.world.mechanism, "grid", values, weights, None, {})
        quantiles = self._log(self.world.target, smooth.quantile(self.world.target, LEVELS))
        random = np.random.default_rng(seed)
        # Anywhere in a cell of the grid: a classifier would know its points by their places.
        cells = random.uniform(-0.5, 0.5, (JOINT, len(names))) * [
            tick[1] - tick[0] for tick in grid.ticks
        ]
        drawn = grid.vectors[random.choice(len(weights), JOINT, p=weights)] + cells @ grid.axes.T
        logs = [self._log(name, drawn[:, column]) for column, name in enumerate(names)]
        return Reference(quantiles, np.stack(logs, axis=1))

    def _log(self, name: str, unconstrained: np.ndarray) -> np.ndarray:
        vectors = {name: jnp.asarray(unconstrained)}
        return np.log(np.asarray(from_unconstrained(self.prior, vectors)[name], np.float64))


def references(name: str, seed: int, count: int, folder: Path | None) -> list[Reference]:
    """The exact posteriors of the test series; those in the folder are not computed again."""
    exact, made = Exact(WORLDS[name]), []
    stream = sg.SimulationStream(exact.study, jax.random.key(seed), 512)
    drawn = stream.held_out().take(count, FIRST_TEST)
    for index in range(count):
        path = None if folder is None else folder / f"exact {name} {seed} {index}.npz"
        if path is not None and path.exists():
            stored = np.load(path)
            made.append(Reference(stored["quantiles"], stored["joint"]))
            continue
        one = exact(jax.tree.map(lambda leaf, i=index: leaf[i], drawn.observed), index)
        made.append(one)
        if path is not None:
            np.savez(path, quantiles=one.quantiles, joint=one.joint)
        if (index + 1) % 10 == 0:
            print(f"{name}: {index + 1} of {count} exact posteriors", flush=True)
    return made


def check_reference(name: str, seed: int, reference: Reference) -> float:
    """The error of the first reference's target mean, in its sds, against `grid_posterior`."""
    world = WORLDS[name]
    study = world.study()
    stream = sg.SimulationStream(study, jax.random.key(seed), 512)
    drawn = stream.held_out().take(1, FIRST_TEST)
    observed = jax.tree.map(lambda leaf: leaf[0], drawn.observed)
    posterior = grid_posterior(study, world.mechanism, observed)
    mean = float(posterior.weights @ np.log(posterior.values[world.target]))
    return (float(reference.quantiles.mean()) - mean) / reference.sd
