"""All diagnostics of a predictor at once: `predictor, stream -> Diagnosis`, fresh simulations."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float

from sgjax._types import PRNGKey
from sgjax.diagnostics._judged import Judge, Table
from sgjax.diagnostics.diagnosis import BY_DATA, DENSITY, FIXED, LIKELIHOOD, Diagnosis, RankTest
from sgjax.diagnostics.ranks import pit, rank_pits, sbc_ranks
from sgjax.diagnostics.skill import (
    ECE,
    Skill,
    contraction,
    expected_calibration_error,
    log_score_gain,
)
from sgjax.diagnostics.tarp import neighbour_references, tarp, uniform_references
from sgjax.diagnostics.uniform import uniformity
from sgjax.predictors import Predictor, find_task
from sgjax.stream import SimulationStream
from sgjax.study import Simulation, Study
from sgjax.tasks import Estimate

LANES = 2**14
"""About how many draws are simulated at once for their likelihood."""

FEWEST = 10
"""Simulations that a test needs."""


def diagnose(
    predictor: Predictor,
    stream: SimulationStream,
    key: PRNGKey,
    *,
    num_simulations: int = 1000,
    num_draws: int = 255,
    progress: Callable[[int], None] = lambda done: None,
) -> Diagnosis:
    r"""Judges a predictor on simulations from the held-out root of a stream.

    Within each mechanism, as the head allows: ranks of every parameter and derived quantity, of
    $\log p(x \mid \theta)$ and of the predicted density; TARP with fixed references and with
    references that depend on the data; contraction (of positive quantities on the log scale); the
    log score above the prior's. Forecasts and functions of the latent course by their quantiles,
    at the levels that the head knows, as if continuous; the probabilities of mechanisms by their
    calibration error. `progress` is told how many simulations are done.

    `num_simulations` is rounded up to whole pieces of the compiled program. Raises `ValueError`
    for fewer than 100, or fewer than 20 draws, or where no simulation is finite.
    """
    if num_simulations < 100 or num_draws < 20:
        raise ValueError(
            f"A diagnosis needs 100 simulations and 20 draws at least; got {num_simulations} and "
            f"{num_draws}."
        )
    study = predictor.study
    period = study.simulator.mechanism_table.size
    size = max(period, LANES // (num_draws + 1) // period * period)
    size = min(size, -(-num_simulations // period) * period)
    count = -(-num_simulations // size) * size
    drawn = jax.device_get(stream.held_out().take(2 * count))
    # The second half is not judged: TARP takes its references from there.
    ours = jax.tree.map(lambda leaf: leaf[:count], drawn)
    others = jax.tree.map(lambda leaf: leaf[count:], drawn)
    if not ours.valid.any():
        raise ValueError("No held-out simulation is finite; check the equations and priors.")
    judge = Judge(predictor, jax.tree.map(lambda leaf: leaf[:period], ours), num_draws)
    found = judge(ours, key, size, progress)
    collected = _Collected(_names(study), judge.notes)
    for index, mechanism in enumerate(study.mechanisms if found["within"] else ()):
        name = mechanism if len(study.mechanisms) > 1 else ""
        present = study.specs["parameters"].present[index]
        table = found["within"][mechanism]
        collected.within(name, table, _of(ours, index), _of(others, index), present)
    for name in collected.in_order(found["slots"]):
        slots, counted = found["slots"][name]
        collected.slots(name, "", slots[counted])
    if "mechanism" in found:
        shares = np.array(list(study.mechanism_probabilities.values()))
        collected.mechanisms(found["mechanism"], shares, ours)
    return collected.diagnosis(int(ours.valid.sum()))


class _Collected:
    """Tests and skills as they are found."""

    def __init__(self, names: list[str], notes: list[str]):
        self.tests: list[RankTest] = []
        self.contractions: dict[tuple[str, str], Skill] = {}
        self.gains: dict[tuple[str, str], Skill] = {}
        self.error: ECE | None = None
        self.names, self.notes = names, list(notes)

    def in_order(self, table: Table) -> list[str]:
        """Names as the study has them: a compiled program returns them sorted."""
        place = {name: index for index, name in enumerate(self.names)}
        last = len(place)

        def key(name: str) -> int:
            return place.get(name, place.get(name.partition("[")[0], last))

        return sorted(table, key=key)

    def diagnosis(self, num_simulations: int) -> Diagnosis:
        notes = tuple(dict.fromkeys(self.notes))
        return Diagnosis(
            tuple(self.tests), self.contractions, self.gains, self.error, num_simulations, notes
        )

    def test(self, about: str, mechanism: str, pits: np.ndarray) -> None:
        if pits.size < FEWEST:
            where = f" within {mechanism}" if mechanism else ""
            self.notes.append(f"{about}{where}: only {pits.size} simulations.")
            return
        self.tests.append(RankTest(about, mechanism, pits, uniformity(pits)))

    def ranked(self, about: str, mechanism: str, values: np.ndarray) -> None:
        """Where the truth, first in each row, lies among the draws."""
        draws, truth = values[:, 1:], values[:, 0]
        ranks = sbc_ranks(draws, truth, self._seed)
        self.test(about, mechanism, rank_pits(ranks, draws.shape[1], self._seed + 1))

    def slots(self, about: str, mechanism: str, slots: np.ndarray) -> None:
        self.test(about, mechanism, pit(slots[:, 0], slots[:, 1], self._seed))

    def within(
        self, name: str, table: Table, ours: Simulation, others: Simulation, present: np.ndarray
    ) -> None:
        """All there is to say of one mechanism."""
        valid = np.asarray(ours.valid)
        table = jax.tree.map(lambda leaf: leaf[valid], table)
        slots, quantities = table.get("slots", {}), table.get("quantities", {})
        for quantity in self.in_order(slots):
            self.slots(quantity, name, slots[quantity])
        for quantity in self.in_order(quantities):
            values = quantities[quantity]
            self.ranked(quantity, name, values[np.isfinite(values[:, 0])])
        pairs = _pairs(table)
        for quantity in self.in_order(pairs):
            if pairs[quantity][1].size >= FEWEST:
                self.contractions[quantity, name] = contraction(*pairs[quantity])
        if "rows" not in table:
            return
        if "log_likelihood" in table:
            self.ranked(LIKELIHOOD, name, table["log_likelihood"])
        self.ranked(DENSITY, name, table["log_posterior"])
        self._tarp(name, table["rows"].astype(float), ours, others, present)
        if "log_prior" in table and valid.sum() >= FEWEST:
            gain = log_score_gain(table["log_posterior"][:, 0], table["log_prior"])
            self.gains["parameters", name] = gain

    def mechanisms(self, probabilities: np.ndarray, shares: np.ndarray, ours: Simulation) -> None:
        """The probabilities of the mechanisms, against their prior `shares`."""
        valid = np.asarray(ours.valid)
        truths, given = np.asarray(ours.mechanism)[valid], probabilities[valid].astype(float)
        # Enough draws that its p-value can be small beside those of many other tests.
        self.error = expected_calibration_error(given, truths, num_null=20_000)
        of_truth = np.log(np.maximum(given[np.arange(truths.size), truths], 1e-30))
        self.gains["mechanism", ""] = log_score_gain(of_truth, np.log(shares[truths]))

    def _tarp(
        self, name: str, rows: np.ndarray, ours: Simulation, others: Simulation, present: np.ndarray
    ) -> None:
        draws, truths = rows[:, 1:], rows[:, 0]
        if len(truths) < FEWEST or not others.valid.any():
            return  # the other tests of this mechanism say so
        fixed = uniform_references(truths, self._seed)
        self.test(FIXED, name, tarp(draws, truths, fixed, self._seed))
        targets = np.asarray(others.example.targets["parameters"].values, float)
        near = neighbour_references(
            _features(ours)[ours.valid],
            _features(others)[others.valid],
            targets[others.valid][:, present],
        )
        self.test(BY_DATA, name, tarp(draws, truths, near, self._seed))

    @property
    def _seed(self) -> int:
        """Another one for each test."""
        return 2 * len(self.tests)


def _pairs(table: Table) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By quantity, estimates and truths, positive ones on the log scale."""
    pairs = {name: (both[:, 0], both[:, 1]) for name, both in table.get("estimates", {}).items()}
    for name, values in table.get("quantities", {}).items():
        values = values[np.isfinite(values).all(axis=1)].astype(float)
        values = np.log(values) if values.size and values.min() > 0 else values
        pairs[name] = values[:, 1:].mean(axis=1), values[:, 0]
    return pairs


def _names(study: Study) -> list[str]:
    """Every number that is judged, in the order of the study."""
    task = find_task(study.task, Estimate)
    targets = [name for spec in study.specs.values() for name in spec.names]
    return targets + (list(task.derived) if task is not None else [])


def _of(simulations: Simulation, index: int) -> Simulation:
    """Those of one mechanism."""
    (places,) = np.nonzero(simulations.mechanism == index)
    return jax.tree.map(lambda leaf: leaf[places], simulations)


def _features(simulations: Simulation) -> Float[np.ndarray, "simulations features"]:
    """What the predictor saw of each, on a scale that tames counts over decades."""
    inputs = simulations.example.inputs
    size = len(inputs.values)
    seen = np.where(inputs.mask, np.arcsinh(inputs.values), 0.0)
    parts = (seen, inputs.mask, inputs.ts, inputs.known)
    return np.concatenate([np.asarray(part, float).reshape(size, -1) for part in parts], axis=1)
