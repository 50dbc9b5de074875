"""Maximum likelihood of many series at once, held against closed forms and against SciPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import optimize, stats

import sgjax as sg
from sgjax.observations import Observed
from sgjax.references import criterion_weights, fit, fit_mechanisms
from sgjax.study import Simulation

TIMES = np.arange(1.0, 13.0)
SD = 0.05


@pytest.fixture(scope="module")
def decay() -> sg.Study:
    """An amount that decays from 1 at a rate between 0.1 and 0.5, with an error that is known."""
    return sg.Study(
        sg.simulators.ExponentialDecay(prior={"rate": dist.Uniform(0.1, 0.5)}, ts=TIMES),
        sg.observations.Gaussian(sd=SD, prior={}),
        sg.Estimate(),
    )


def record(values: np.ndarray, mask: np.ndarray | None = None) -> Observed:
    """Series by rows, one channel."""
    values = np.asarray(values, np.float32)[..., None]
    mask = np.ones(values.shape, bool) if mask is None else mask[..., None]
    ts = np.broadcast_to(TIMES.astype(np.float32), values.shape[:2])
    return Observed(jnp.asarray(ts), jnp.asarray(np.where(mask, values, 0)), jnp.asarray(mask))


def loss(rate: float, values: np.ndarray) -> float:
    return -stats.norm.logpdf(values, np.exp(-rate * TIMES[: values.size]), SD).sum()


def noisy(rates: np.ndarray, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, SD, (rates.size, TIMES.size))
    return np.exp(-rates[:, None] * TIMES) + noise


def test_one_parameter_is_found_as_scipy_finds_it(decay):
    values = noisy(np.array([0.12, 0.2, 0.3, 0.45]))
    found = fit(decay, "ExponentialDecay", record(values), jax.random.key(0))
    assert found.converged.all() and (found.agreeing == 8).all()
    for row, rate, log_likelihood in zip(
        values, found.theta["rate"], found.log_likelihood, strict=True
    ):
        best = optimize.minimize_scalar(
            loss, args=(row,), bounds=(0.1, 0.5), method="bounded", options={"xatol": 1e-9}
        )
        curvature = (loss(best.x + 1e-3, row) - 2 * best.fun + loss(best.x - 1e-3, row)) / 1e-6
        assert abs(rate - best.x) < 0.03 / np.sqrt(curvature)  # in standard errors
        assert abs(log_likelihood + best.fun) < 1e-3


@pytest.mark.slow
def test_the_prior_box_holds_and_wide_bounds_let_go(decay):
    values = noisy(np.array([0.05, 0.9]))
    box = fit(decay, "ExponentialDecay", record(values), jax.random.key(0))
    np.testing.assert_allclose(box.theta["rate"], [0.1, 0.5], rtol=1e-4)
    assert box.converged.all()
    wide = fit(decay, "ExponentialDecay", record(values), jax.random.key(0), bounds="wide")
    best = [
        optimize.minimize_scalar(loss, args=(row,), bounds=(1e-3, 5), method="bounded").x
        for row in values
    ]
    np.testing.assert_allclose(wide.theta["rate"], best, rtol=0.01)
    named = fit(
        decay, "ExponentialDecay", record(values), jax.random.key(0), bounds={"rate": (0.01, 0.7)}
    )
    np.testing.assert_allclose(named.theta["rate"], [wide.theta["rate"][0], 0.7], rtol=1e-3)
    assert (wide.log_likelihood >= box.log_likelihood).all()


class Differences(sg.simulators.SIR):
    """Cases as differences of a hundred thousand, which single precision rounds by hundredths."""

    channels = ("cases",)

    def readout(self, trajectory, theta):
        start = self.initial_state(theta).S
        return -jnp.diff(trajectory.S, prepend=start)[:, None]


@pytest.mark.slow
def test_a_rough_likelihood_does_not_stop_a_fit():
    """A search that compares values stops early there: without the last steps at 0.78 of these."""
    prior = {
        "beta": dist.Uniform(0.2, 0.6),
        "gamma": dist.Uniform(0.1, 0.3),
        "initial_infectious": dist.LogUniform(5.0, 50.0),
    }
    study = sg.Study(
        Differences(population=1e5, prior=prior, ts=range(1, 41)),
        sg.observations.NegativeBinomial(overdispersion=0.05, prior={}),
        sg.Estimate(),
    )
    test = sg.SimulationStream(study, jax.random.key(0), 128).take(256)
    found = fit(study, "Differences", test.observed, jax.random.key(1), bounds="wide")
    assert found.converged.mean() > 0.9


@pytest.fixture(scope="module")
def outbreaks() -> tuple[sg.Study, Simulation]:
    """SIR or SEIR, negative-binomial counts, and some series of each."""
    rates = {"beta": dist.Uniform(0.2, 0.6), "gamma": dist.Uniform(0.1, 0.3)}
    latent = {"sigma": dist.Uniform(0.15, 0.6)}
    world = {"population": 1e4, "initial_infectious": 20.0, "ts": range(1, 31)}
    simulators = sg.simulators
    study = sg.Study(
        simulators.MechanismMixture(
            {
                "SIR": simulators.SIR(prior=rates, **world),
                "SEIR": simulators.SEIR(prior=rates | latent, **world),
            },
            table_size=2,
        ),
        sg.observations.NegativeBinomial(overdispersion=0.05, prior={}),
        sg.tasks.Identify(),
    )
    stream = sg.SimulationStream(study, jax.random.key(3), 32)
    return study, stream.take(32)


@pytest.fixture(scope="module")
def fits(outbreaks):
    study, simulated = outbreaks
    return fit_mechanisms(study, simulated.observed, jax.random.key(1), bounds="wide")


@pytest.mark.slow
def test_no_fit_is_below_the_truth(outbreaks, fits):
    study, simulated = outbreaks

    def truth(theta, latent, observed):
        latent = sg.simulators.Latent(observed.ts, latent, None)
        return sg.observations.log_likelihood(study.observation, theta, latent, observed)

    true = np.asarray(jax.vmap(truth)(simulated.theta, simulated.latent, simulated.observed))
    for number, (name, found) in enumerate(fits.items()):
        own = np.asarray(simulated.mechanism) == number
        assert own.sum() == 16, name
        gain = (found.log_likelihood - true)[own]
        assert gain.min() > -1e-3
        # Twice the gain is chi-squared with as many degrees as parameters, were all regular.
        expected, error = found.num_parameters / 2, np.sqrt(found.num_parameters / 2 / own.sum())
        assert abs(gain.mean() - expected) < 4 * error


@pytest.mark.slow
def test_scipy_finds_nothing_better(outbreaks, fits):
    study, simulated = outbreaks
    joint_of = lambda row: jax.tree.map(lambda leaf: leaf[row], simulated.observed)
    observation, mechanism = study.observation, study.mechanisms["SIR"]

    @jax.jit
    def value(logs, observed):
        theta = {"beta": jnp.exp(logs[0]), "gamma": jnp.exp(logs[1])}
        latent = mechanism.simulate(jax.random.key(0), theta)
        return -sg.observations.log_likelihood(observation, theta, latent, observed)

    for row in range(6):
        start = np.log([fits["SIR"].theta[name][row] for name in ("beta", "gamma")])
        for shift in (0.0, 0.3):
            best = optimize.minimize(
                value, start + shift, args=(joint_of(row),), method="Nelder-Mead"
            )
            assert fits["SIR"].log_likelihood[row] > -best.fun - 0.01


@pytest.mark.slow
def test_the_criteria_are_their_formulas(fits):
    found = fits["SEIR"]
    assert found.num_parameters == 3 and (found.num_values == 30).all()
    minus_two = -2 * found.log_likelihood
    np.testing.assert_allclose(found.aic, minus_two + 6)
    np.testing.assert_allclose(found.aicc, minus_two + 6 + 24 / 26)
    np.testing.assert_allclose(found.bic, minus_two + 3 * np.log(30))
    weights = criterion_weights({name: each.aic for name, each in fits.items()})
    odds = np.exp((fits["SEIR"].aic - fits["SIR"].aic) / 2)
    np.testing.assert_allclose(weights["SIR"], odds / (1 + odds))
    with pytest.raises(ValueError, match="needs at least 5 recorded values; a series has 4"):
        _ = dataclasses.replace(found, num_values=np.full(32, 4)).aicc


@pytest.mark.slow
def test_one_series_and_missing_values(decay):
    values = noisy(np.array([0.3]))
    mask = np.ones(values.shape, bool)
    mask[0, 5:] = False
    full = fit(decay, "ExponentialDecay", record(values), jax.random.key(0))
    part = fit(decay, "ExponentialDecay", record(values, mask), jax.random.key(0))
    one = jax.tree.map(lambda leaf: leaf[0], record(values))
    alone = fit(decay, "ExponentialDecay", one, jax.random.key(0))
    np.testing.assert_allclose(alone.theta["rate"], full.theta["rate"])
    assert part.num_values == 5
    best = optimize.minimize_scalar(
        loss, args=(values[0, :5],), bounds=(0.1, 0.5), method="bounded"
    )
    np.testing.assert_allclose(part.theta["rate"], best.x, rtol=2e-3)


@pytest.mark.slow
def test_what_does_not_converge_is_told_and_kept(outbreaks):
    study, simulated = outbreaks
    found = fit(
        study, "SEIR", simulated.observed, jax.random.key(1), tolerance=0.0, max_steps=24, starts=1
    )
    assert found.log_likelihood.shape == (32,) and np.isfinite(found.log_likelihood).all()
    assert not found.converged.all()


def test_wrong_input_is_one_message(decay, outbreaks, unchecked):
    good, key = record(noisy(np.array([0.3]))), jax.random.key(0)
    call = lambda observed=good, study=decay, name="ExponentialDecay", **options: fit(
        study, name, observed, key, **options
    )
    with pytest.raises(ValueError, match="No mechanism 'SIR'"):
        call(name="SIR")
    with pytest.raises(ValueError, match="`bounds` names 'speed'; the parameters are"):
        call(bounds={"speed": (0, 1)})
    with pytest.raises(ValueError, match="lower must be less"):
        call(bounds={"rate": (1.0, 0.5)})
    with pytest.raises(ValueError, match="must be 'prior', 'wide' or a dict"):
        call(bounds="box")
    with pytest.raises(ValueError, match="`starts` must be at least 1"):
        call(starts=0)
    empty = record(np.zeros((2, 12)), np.zeros((2, 12), bool))
    with pytest.raises(ValueError, match=r"series \[0, 1\] have no recorded value"):
        call(empty)
    with pytest.raises(ValueError, match=r"series \[0\] have values that are not finite"):
        call(record(np.full((1, 12), np.nan)))
    with pytest.raises(ValueError, match="mask what is missing"):
        call(outbreaks[1].observed)
    noise = sg.observations.Chain(
        sg.observations.Poisson(), sg.observations.Gaussian(sd=1, prior={})
    )
    with pytest.raises(ValueError, match="likelihood"):
        call(study=dataclasses.replace(decay, observation=noise))
