"""Is attribution faithful: do the neighbours say what the network relies on, and what is true?

(1) Held-out simulations explain themselves: a simulation that was searched is found first and
redrawn to the bit, and the truth of one that was not lies inside the 90 % interval of its cloud
90 % of the time. (2) The mechanisms' shares in the cloud against the network's probabilities: log
scores, calibration errors, how far they are apart. (3) Deletion: the network is trained again
without a ball of the prior, of 1 % of its mass, around the attributed parameters, and without balls
of equal mass elsewhere, which are the control (deleting at random changes no law); what counts is
how far the prediction moves, in its own posterior sds, from that of the network that saw all.
`python -m benchmarks.attribution_faithfulness [--quick]`
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import tyro
from jaxtyping import Array

import sgjax as sg
from benchmarks.attribution_worlds import WORLDS
from benchmarks.record import finish, lightly_compiled
from sgjax._types import Prior
from sgjax.attribution import Search, SimulationIndex, attribute_posterior
from sgjax.attribution.clouds import Method, draw_clouds, weigh
from sgjax.attribution.source import Source
from sgjax.observations import AbstractObservation, Observed
from sgjax.predictors import ByMechanism
from sgjax.priors import resolve
from sgjax.stream import SimulationStream

LOGISTIC = WORLDS["logistic growth"]
FIRST_TEST = 2**20


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """One seed, one series, one control, few updates; about a minute."""
    held_out: int = 1000
    """Held-out simulations of the first two parts."""
    searched: int = 200_000
    """Simulations searched."""
    k: int = 400
    """Neighbours."""
    num_steps: int = 4000
    """Updates of each network, on 256 simulations each."""
    width: int = 48
    """Of the networks."""
    series: int = 3
    """Series whose attributed parameters are deleted."""
    controls: int = 2
    """Balls elsewhere, for each series."""
    seeds: int = 5
    """Networks trained on each deleted world."""
    mass: float = 0.01
    """Of the prior, in a ball."""
    store: bool = True
    """Keep the result under benchmarks/results/."""


def main(options: Options) -> None:
    """Runs the three parts and prints what they found."""
    if options.quick:
        options = dataclasses.replace(
            options, held_out=100, searched=5_000, num_steps=200, width=16, series=1, controls=1,
            seeds=1,
        )  # fmt: skip
    with lightly_compiled(options.quick):
        explained, deleted = _explain(options), _delete(options)
    result = {**dataclasses.asdict(options), "explained": explained, "deletion": deleted}
    finish("attribution_faithfulness", result, store=options.store and not options.quick)


# Explanation --------------------------------------------------------------------------------------


def _mixture() -> sg.Study:
    rates = {"beta": dist.LogNormal(0.3, 0.4), "gamma": dist.LogNormal(-0.9, 0.4)}
    world = {"population": 763.0, "ts": range(1, 15)}
    mechanisms = {
        "SIR": sg.simulators.SIR(prior=rates, **world),
        "SEIR": sg.simulators.SEIR(prior=rates | {"sigma": dist.LogNormal(0.0, 0.5)}, **world),
    }
    return sg.Study(
        sg.simulators.MechanismMixture(mechanisms, table_size=2),
        sg.observations.LogNormal(log_sd=0.2, prior={}),
        sg.Several(sg.Estimate(), sg.Identify()),
    )


def _explain(options: Options) -> dict[str, Any]:
    study = _mixture()
    stream = SimulationStream(study, jax.random.key(0), 256)
    predictor = _fresh(study, 0, options)
    predictor = sg.train(predictor, stream, options.num_steps, interval=200)
    index = SimulationIndex.build(predictor, stream, options.searched)
    source = Source(predictor, index, 0)
    queries = source.held_out(options.held_out)
    clouds = draw_clouds(
        predictor, stream, index.search(queries.queries, options.k), queries.inputs, "regression"
    )
    truth = np.eye(2)[queries.mechanism]
    assert clouds.at is not None
    odds = clouds.at.log_odds[:, 0]
    predicted = np.stack([1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(odds))], axis=1)
    table: dict[str, Any] = {"network": _calibration(predicted, truth)}
    methods: tuple[Method, ...] = ("kernel", "regression")
    for method in methods:
        weighted = weigh(clouds, method)
        coverage = {
            label: _coverage(clouds.mechanism, weighted, queries, column)
            for column, label in enumerate(clouds.coordinates.labels)
        }
        apart = np.sqrt(np.mean((weighted.shares - predicted)[:, 0] ** 2))
        table[method] = _calibration(weighted.shares, truth) | {
            "coverage_90": coverage,
            "apart_from_network": float(apart),
        }
    table["found_themselves"] = _themselves(predictor, stream, index)
    for name, row in table.items():
        print(name, row, flush=True)
    return table


def _themselves(predictor: Any, stream: SimulationStream, index: SimulationIndex) -> float:
    """The share of simulations that are found first and redrawn to the bit."""
    count = 64
    drawn = stream.take(count)
    ids = np.stack([np.zeros(count), np.arange(count)], axis=1).astype(np.uint32)
    points = Search(predictor, stream, 1, index.space).blocks.drawn_again(ids)
    first = np.asarray(index.search(points, 1).ids)[:, 0]
    same = first[:, 1] == np.arange(count)
    again = stream.simulate(first)
    equal = np.asarray(again.observed.values) == np.asarray(drawn.observed.values)
    return float(np.mean(same & equal.reshape(count, -1).all(axis=1)))


def _calibration(shares: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Log score with half a count in 400 of smoothing, and the calibration error of 10 bins."""
    smooth = (shares + 0.5 / 400) / (1 + 1 / 400)
    order = np.array_split(np.argsort(shares[:, 0], kind="stable"), 10)
    gaps = [abs(shares[part, 0].mean() - truth[part, 0].mean()) * part.size for part in order]
    return {
        "log_score": float(-np.mean(np.log(np.sum(smooth * truth, axis=1)))),
        "calibration_error": float(np.sum(gaps) / len(shares)),
        "right": float(np.mean(shares.argmax(axis=1) == truth.argmax(axis=1))),
    }


def _coverage(mechanism: np.ndarray, weighted: Any, queries: Any, column: int) -> float:
    """The share of truths inside the central 90 % of their clouds, within their mechanism."""
    mine = mechanism == queries.mechanism[:, None]
    weights = np.where(mine, weighted.weights, 0)
    kept = (mine.sum(axis=1) >= 40) & (queries.values[:, column] != 0)
    below = weights * (weighted.values[:, :, column] < queries.values[:, None, column])
    level = below.sum(axis=1)[kept] / weights.sum(axis=1)[kept]
    return float(np.mean(np.abs(level - 0.5) < 0.45))


# Deletion -----------------------------------------------------------------------------------------


class Without(AbstractObservation):
    """A stage that makes a simulation invalid where its parameters lie in a ball of the prior.

    An invalid simulation has no weight in training, so that the law of the others is the prior
    given that they lie outside. Distances are Euclidean between ranks within the prior.
    """

    centre: Array
    radius: Array
    prior: Prior

    def observe(self, key, theta, signal):
        distance = jnp.linalg.norm(ranks(theta) - self.centre)
        return Observed(
            signal.ts, jnp.where(distance < self.radius, jnp.nan, signal.values), signal.mask
        )


def ranks(theta: Any) -> Array:
    """Parameters of logistic growth as their ranks within the prior; the last axis is theirs."""
    prior = LOGISTIC.simulator.prior
    laws = {name: resolve(prior, name, {}) for name in prior}
    return jnp.stack([laws[name].cdf(jnp.asarray(theta[name])) for name in laws], axis=-1)


def _delete(options: Options) -> list[dict[str, Any]]:
    study, start = LOGISTIC.study(), time.perf_counter()
    stream = SimulationStream(study, jax.random.key(0), 256)
    tests = stream.held_out().take(options.series, FIRST_TEST)
    prior = np.asarray(ranks(stream.held_out().take(20_000).theta))
    random, rows = np.random.default_rng(0), []
    for seed in range(options.seeds):
        fresh = _fresh(study, seed, options)
        own = SimulationStream(study, jax.random.key(100 + seed), 256)
        whole = sg.train(fresh, own, options.num_steps, interval=200)
        for index in range(options.series):
            real = np.asarray(tests.observed.values[index])
            cloud = attribute_posterior(whole, own, real, options.k, options.searched)
            centre = np.asarray(ranks({n: cloud.mean(n) for n in LOGISTIC.simulator.prior}))
            balls = [("attributed", centre, _radius(prior, centre, options.mass))]
            balls += _elsewhere(prior, *balls[0][1:], options, random)
            for kind, middle, radius in balls:
                shift = _shift(whole, fresh, own, middle, radius, real, options)
                rows.append({"seed": seed, "series": index, "ball": kind, "shift": shift})
                print(rows[-1], f"{time.perf_counter() - start:.0f} s", flush=True)
    for kind in ("attributed", "elsewhere"):
        shifts = [row["shift"] for row in rows if row["ball"] == kind]
        print(f"{kind}: median shift {np.median(shifts):.2f} posterior sds of {len(shifts)}")
    return rows


def _radius(prior: np.ndarray, centre: np.ndarray, mass: float) -> float:
    return float(np.quantile(np.linalg.norm(prior - centre, axis=1), mass))


def _elsewhere(
    prior: np.ndarray, centre: np.ndarray, radius: float, options: Options, random: Any
) -> list[tuple[str, np.ndarray, float]]:
    """Balls of the same mass around draws of the prior, none touching the first."""
    balls: list[tuple[str, np.ndarray, float]] = []
    while len(balls) < options.controls:
        middle = prior[random.integers(len(prior))]
        own = _radius(prior, middle, options.mass)
        if np.linalg.norm(middle - centre) > radius + own:
            balls.append(("elsewhere", middle, own))
    return balls


def _shift(
    whole: Any, fresh: Any, own: SimulationStream, centre: np.ndarray, radius: float,
    real: np.ndarray, options: Options,
) -> float:  # fmt: skip
    """How far the prediction moves: root mean square over parameters, in posterior sds.

    Weights and simulations are the same from the start; only those in the ball are left out.
    """
    study = own.study
    ball = jnp.asarray(centre, jnp.float32), jnp.asarray(radius, jnp.float32)
    stage = Without(prior={}, centre=ball[0], radius=ball[1])
    smaller = sg.Study(study.simulator, sg.observations.Chain(study.observation, stage), study.task)
    stream = SimulationStream(smaller, own.key, own.batch_size)
    predictor = sg.Predictor(smaller, fresh.network)
    trained = sg.train(predictor, stream, options.num_steps, interval=200)
    (before, sd), (after, _) = (_answer(each, real) for each in (whole, trained))
    return float(np.sqrt(np.mean(((after - before) / sd) ** 2)))


def _answer(predictor: Any, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    block = predictor(real).blocks["parameters"]
    assert isinstance(block, ByMechanism)
    one = block.select(0)
    return np.asarray(one.mean()), np.asarray(one.sd())


def _fresh(study: sg.Study, seed: int, options: Options) -> Any:
    return sg.predictors.for_study(study, jax.random.key(seed + 1), width=options.width, depth=2)


if __name__ == "__main__":
    main(tyro.cli(Options))
