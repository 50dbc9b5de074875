"""Power of the tests without labels, beside a classifier trained for the very fault."""

import warnings
from typing import Any

import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from benchmarks.claims.shifted import NONE, Fault, inputs_from
from sgjax.diagnostics import holm
from sgjax.mismatch.groups import draw_groups, p_value
from sgjax.mismatch.pool import PRIMARY, Pool

LEVEL = 0.05


def alarms(
    pool: Pool, fault: Fault, size: int, replicates: int, groups: int, seed: int
) -> dict[str, float]:
    """The share of replicates of `size` real series in which each test sounds an alarm."""
    random = np.random.default_rng([seed, size])
    found: dict[str, list[bool]] = {}
    whole = pool.sample(inputs_from(fault.draw(size * replicates, random)[0]))
    for replicate in range(replicates):
        real = whole.rows(replicate * size, (replicate + 1) * size)
        key = jax.random.fold_in(jax.random.key(seed), replicate)
        drawn = draw_groups(key, size, size + pool.size, groups)
        p_values = {name: p_value(t) for name, t in pool.statistics(real, drawn).items()}
        others = [p for name, p in p_values.items() if name != PRIMARY]
        said = {name: p <= LEVEL for name, p in p_values.items()}
        said["any other, Holm"] = bool(holm(others).min() <= LEVEL)
        for name, value in said.items():
            found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


class Oracle:
    """A classifier of one fault, trained on series of both worlds, judged on others.

    It knows what to look for, which no test without labels does.
    """

    def __init__(self, fault: Fault, count: int, seed: int):
        random = np.random.default_rng([seed, 1])
        worlds = [seen(world.draw(count, random)[0]) for world in (NONE, fault)]
        rows = np.concatenate(worlds)
        self.shift, self.scale = rows.mean(0), rows.std(0)
        self.fault, self.random = fault, random
        self.network = MLPClassifier(
            (64, 64), early_stopping=True, n_iter_no_change=4, max_iter=40,
            random_state=seed,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.network.fit((rows - self.shift) / self.scale, np.repeat([0, 1], count))

    def power(self, size: int, replicates: int) -> float:
        """Of the mean log odds of `size` series, at the level that null series set."""
        null = self._mean_log_odds(NONE, size, max(2000, replicates))
        return float(np.mean(self._mean_log_odds(self.fault, size, replicates)
                             > np.quantile(null, 1 - LEVEL)))  # fmt: skip

    def _mean_log_odds(self, world: Fault, size: int, replicates: int) -> np.ndarray:
        # Groups of one pool of series: their overlap costs the oracle nothing of note.
        count = min(size * replicates, 50_000)
        rows = (seen(world.draw(count, self.random)[0]) - self.shift) / self.scale
        p = np.asarray(self.network.predict_proba(rows))[:, 1]
        odds = np.log(np.clip(p, 1e-9, 1)) - np.log(np.clip(1.0 - p, 1e-9, 1))
        if size * replicates <= count:
            return odds.reshape(replicates, size).mean(axis=1)
        return odds[self.random.integers(0, count, (replicates, size))].mean(axis=1)


def seen(sizes: np.ndarray) -> np.ndarray:
    """Logarithms with their first and second differences."""
    logs = np.log(np.maximum(sizes, 1e-12))
    return np.concatenate([logs, np.diff(logs, axis=1), np.diff(logs, 2, axis=1)], axis=1)


def power_table(
    pool: Pool, faults: dict[str, Fault], replicates: dict[int, int], groups: int, oracle: int,
    seed: int,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """By fault and number of series: power of each test, of the oracle, and the ceiling."""
    table: dict[str, dict[str, Any]] = {}
    for name, fault in faults.items():
        best = Oracle(fault, oracle, seed)
        table[name] = {}
        for size, count in replicates.items():
            row: dict[str, Any] = {"replicates": count, "oracle": best.power(size, 2000)}
            row["tests"] = alarms(pool, fault, size, count, groups, seed)
            if fault.contamination:
                # The share of strange series is at least their total variation.
                row["ceiling"] = min(1.0, LEVEL + 1 - (1 - fault.contamination) ** size)
            table[name][str(size)] = row
    return table


def missed(table: dict[str, dict[str, Any]]) -> list[str]:
    """Cells where the oracle reaches 0.95 and the declared test not 0.9."""
    return [
        f"{name}, {size} series: {row['tests'][PRIMARY]:.2f}"
        for name, rows in table.items()
        for size, row in rows.items()
        if row["oracle"] >= 0.95 and row["tests"][PRIMARY] < 0.9
    ]
