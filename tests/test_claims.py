"""The benchmarks of the theory's claims: their arithmetic, and the page they make together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

import sgjax as sg
from benchmarks.claims import __main__ as claims
from benchmarks.claims import (
    convergence,
    early,
    exact,
    mismatch,
    model_selection,
    page,
    unobservables,
)
from benchmarks.claims.tables import table


def rows(slope: float, floor: float = 0.0) -> list[dict]:
    """A curve of excess risk by a power law."""
    return [
        {
            "world": "conjugate", "loss": "squared", "width": 128, "kind": "network", "seed": seed,
            "count": count, "excess": 40 * count**slope + floor, "standard_error": 1e-9,
            "bayes_risk": 1 / 21, "share_of_bayes_risk": 0.0, "seconds": 1.0,
        }
        for count in (2**9, 2**12, 2**15)
        for seed in range(2)
    ]  # fmt: skip


def test_slopes_are_those_of_the_power_law():
    (found,) = convergence.slopes(rows(-0.5))
    assert abs(found["slope"] + 0.5) < 1e-6 and found["counts"] == [2**9, 2**12, 2**15]
    assert convergence.slopes([row | {"standard_error": 1e3} for row in rows(-0.5)]) == []


def test_a_verdict_is_of_the_most_simulations():
    (missed,) = convergence.verdicts(rows(-0.5))
    assert missed["count"] == 2**15 and not missed["met"]
    (met,) = convergence.verdicts(rows(-1.5))
    assert met["met"] and abs(met["value"] - 40 * 2**-22.5 * 21) < 1e-9


class Known:
    """In place of a predictor: one answer for every series."""

    def __init__(self, predictive):
        self.network = lambda inputs: (None, {"level": predictive})


@pytest.fixture(scope="module")
def test_series():
    world = exact.conjugate()
    stream = sg.SimulationStream(world.study, jax.random.key(0), 32)
    return world, stream.take(64)


def posterior_mean(test) -> np.ndarray:
    return np.asarray(test.observed.values, np.float64)[..., 0].sum(axis=1) / 21


def test_squared_excess_is_the_distance_from_the_posterior_mean(test_series):
    world, test = test_series
    point = sg.predictors.Point(jnp.full(1, 0.3), jnp.ones(1))
    found = world.judge("squared", Known(point), test, 0)
    np.testing.assert_allclose(found.each, (0.3 - posterior_mean(test)) ** 2, rtol=1e-5)
    assert abs(found.bayes_risk - 1 / 21) < 1e-9


def test_pinball_excess_is_that_of_numerical_integration(test_series):
    world, test = test_series
    levels = np.array(exact.LEVELS)
    values = jnp.asarray(np.linspace(-1, 1, levels.size), jnp.float32)[None]
    said = sg.predictors.Quantiles(values, jnp.ones(1))
    found = world.judge("pinball", Known(said), test, 0)
    mean, sd = posterior_mean(test)[0], 1 / np.sqrt(21)

    def risk(quantiles: np.ndarray) -> float:
        grid = np.linspace(mean - 9 * sd, mean + 9 * sd, 20_001)
        above = grid[:, None] - quantiles
        loss = np.maximum(levels * above, (levels - 1) * above).mean(axis=1)
        return float(integrate.simpson(loss * stats.norm.pdf(grid, mean, sd), x=grid))

    best = stats.norm.ppf(levels, mean, sd)
    assert abs(found.bayes_risk - risk(best)) < 1e-6
    assert abs(found.each[0] - (risk(np.asarray(values[0], float)) - risk(best))) < 1e-5


def test_log_excess_is_the_divergence_of_normal_laws(test_series):
    world, test = test_series
    said = sg.predictors.Gaussian(jnp.full(1, 0.3), jnp.full((1, 1), 2.0), jnp.ones(1, bool))
    found = world.judge("log", Known(said), test, 0)
    mean, sd, other = posterior_mean(test), 1 / np.sqrt(21), 0.5
    expected = np.log(other / sd) + (sd**2 + (mean - 0.3) ** 2) / (2 * other**2) - 0.5
    np.testing.assert_allclose(found.each, expected, rtol=1e-4, atol=1e-5)


def test_the_bonus_has_the_least_error():
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, 200)
    logs = np.stack([np.zeros(200), truth + random.normal(size=200) - 3], axis=1)
    found = model_selection.best_bonus(logs, truth)
    errors = [np.mean((logs[:, 1] + b > 0) != truth) for b in np.linspace(-2, 8, 4001)]
    assert found[0] == 0 and np.mean((logs + found).argmax(axis=1) != truth) <= min(errors)


def test_three_bonuses_undo_what_was_taken_away():
    random = np.random.default_rng(1)
    truth = random.integers(0, 3, 600)
    logs = 2.0 * np.eye(3)[truth] + random.normal(size=(600, 3))
    fair = np.mean(logs.argmax(axis=1) != truth)
    unfair = logs - np.array([0.0, 3.0, 5.0])
    found = model_selection.best_bonus(unfair, truth)
    assert np.mean((unfair + found).argmax(axis=1) != truth) <= fair
    assert np.mean(unfair.argmax(axis=1) != truth) > fair + 0.2


def test_probabilities_of_mechanisms_are_judged():
    truth = np.array([0, 1, 2, 2])
    right = np.eye(3)[truth]
    assert model_selection.log_score(right, truth) < 1e-9
    assert model_selection.divergence(right, right)["mean"] < 1e-9
    assert model_selection.calibration_error(right, truth, bins=2) < 1e-9
    even = np.full((4, 3), 1 / 3)
    assert abs(model_selection.log_score(even, truth) - np.log(3)) < 1e-9
    assert abs(model_selection.divergence(right, even)["mean"] - np.log(3)) < 1e-9
    errors = model_selection.judged(np.array([0, 1, 0, 2]), truth, ["a", "b", "c"])
    assert errors["error"] == 0.25 and errors["wrong_of"] == {"a": 0.0, "b": 0.0, "c": 0.5}


def test_a_table_has_a_line_for_each_row():
    assert table(("a", "b"), [(1, 2)]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_the_page_says_what_has_not_been_run(tmp_path):
    text = page.write({}, tmp_path).read_text(encoding="utf-8")
    assert text.count("Not run yet.") == len(page.CLAIMS)
    assert "cannot be certified from above" in " ".join(text.split())


def test_what_is_stored_makes_a_page(tmp_path):
    results = page.stored()
    text = page.write(results, tmp_path).read_text(encoding="utf-8")
    made = [claim for claim in page.CLAIMS if results[claim.name]]
    assert made and text.count("Not run yet.") == len(page.CLAIMS) - len(made)
    for claim in made:
        assert claim.title in text
        assert claim.picture is None or (tmp_path / f"{claim.name}.png").stat().st_size > 1000


def test_a_stopped_run_goes_on_with_the_same_options_only(monkeypatch):
    options = mismatch.Options(test=100)
    left = mismatch.begun(options) | {"bound": {"violations": 0}}
    assert "shifts" not in left
    monkeypatch.setattr(mismatch, "kept", lambda name: left)
    assert mismatch.begun(options) == left
    assert "bound" not in mismatch.begun(mismatch.Options(test=200))
    assert "bound" not in mismatch.begun(mismatch.Options(test=100, quick=True))
    # Parts of a part are shown as such.
    assert "not all parts are done" in page.mismatch.section({})


def test_the_growth_rate_is_the_maximum_likelihood():
    """The slopes of the negative-binomial likelihood vanish there; without noise it is the rate."""
    ts, rates = np.arange(14.0), np.array([0.05, 0.3])
    even = early.growth_rates(ts, 20 * np.exp(rates[:, None] * ts))
    np.testing.assert_allclose(even, rates, rtol=1e-6)
    counts = np.random.default_rng(0).poisson(5 * np.exp(0.1 * ts))[None].astype(float)
    (rate,) = early.growth_rates(ts, counts)

    def slopes(level: float) -> np.ndarray:
        mean = np.exp(level + rate * ts)
        each = (counts[0] - mean) / (1 + early.OVERDISPERSION * mean)
        return np.array([each.sum(), (each * ts).sum()])

    level = optimize.root_scalar(lambda level: slopes(level)[0], bracket=(-5, 10)).root
    assert abs(slopes(level)[1]) < 1e-4 * counts.sum()


@pytest.mark.slow
def test_r0_is_asked_in_every_way():
    options = unobservables.Options(
        tests=1024, references=24, num_steps=200, width=32, depth=1, head="gaussian", starts=2
    )
    row = unobservables.scored("R0 from 14 days", options)
    methods = row["errors"]["methods"]
    assert methods["exact posterior mean"]["over_exact"] == 1
    assert all(np.isfinite(own["rmse"]) for own in methods.values()) and len(methods) == 8
    # With the true times, which no one has, the growth rate may do better.
    assert methods["prior mean"]["over_exact"] > 1.3
    assert set(row["calibration"]) >= {"R0", "beta", "gamma"}
    assert "growth rate, true times" in unobservables.section(
        {"arms": {"R0 from 14 days": row | {"seconds": 0.0}}, "met": {}}
    )


@pytest.mark.slow
def test_all_claims_run_in_small(tmp_path, capsys):
    claims.main(claims.Options(quick=True, folder=tmp_path))
    text = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert "Not run yet." not in text
    assert capsys.readouterr().out.strip().endswith("claims.md")
