"""Observation models: a contract for every export, moments and densities against formulas."""

import functools
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import sgjax.observations as observations
from sgjax.observations import (
    AbstractNoise,
    AbstractObservation,
    AbstractTransform,
    Binomial,
    BinomialReporting,
    Chain,
    Gaussian,
    LateStart,
    LogNormal,
    MissingAtRandom,
    MissingBlock,
    NegativeBinomial,
    Observed,
    Poisson,
    ReportingDelay,
    Subsample,
    UnderReporting,
    VaryingLength,
    WeekdayEffect,
    log_likelihood,
)
from sgjax.priors import sample_prior
from sgjax.simulators import Latent

CONCRETE = [
    export
    for export in vars(observations).values()
    if inspect.isclass(export)
    and issubclass(export, AbstractObservation)
    and not inspect.isabstract(export)
]
NUM_TIMES = 28


@eqx.filter_jit
def observe(stage, key, theta, signal):
    return stage.observe(key, theta, signal)


@eqx.filter_jit
def observe_many(stage, keys, theta, signal):
    return jax.vmap(lambda key: stage.observe(key, theta, signal))(keys)


def latent_of(values):
    ts = np.arange(1, len(values) + 1, dtype=np.float32)
    return Latent(jnp.asarray(ts), jnp.asarray(np.asarray(values, np.float32)), None)


def wave():
    """An epidemic wave, and a constant channel that has died out to a hair below zero."""
    ts = np.arange(1.0, NUM_TIMES + 1)
    flat = np.where(ts < 20, 5.0, -1e-6)
    return latent_of(np.stack([300 / np.cosh((ts - 14) / 4) ** 2, flat], axis=1))


def constant(level, num_times=NUM_TIMES, num_channels=1):
    return Observed.of(latent_of(np.full((num_times, num_channels), level)))


@functools.cache
def holed():
    """A signal with values already lost."""
    latent = wave()
    mask = np.ones(latent.values.shape, bool)
    mask[3:6, 0] = mask[20, 1] = False
    return Observed(latent.ts, jnp.asarray(np.where(mask, latent.values, 0)), jnp.asarray(mask))


def assert_within_standard_errors(draws, mean, variance, fourth_moment, num_errors=4.0):
    """Mean and variance of independent draws (leading axis) against their formulas."""
    num_draws = draws.shape[0]
    draws = np.asarray(draws, np.float64)
    error = np.abs(draws.mean(axis=0) - mean) / np.sqrt(variance / num_draws)
    assert np.max(error) < num_errors, f"mean off by {error} standard errors"
    spread = np.mean((draws - mean) ** 2, axis=0)
    error = np.abs(spread - variance) / np.sqrt((fourth_moment - variance**2) / num_draws)
    assert np.max(error) < num_errors, f"variance off by {error} standard errors"


def assert_same_record(left, right):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", CONCRETE, ids=lambda kind: kind.__name__)
def test_contract(kind):
    doc = inspect.getdoc(kind) or ""
    assert "Source: " in doc and "**Good values:**" in doc
    observation, signal = kind(), holed()

    def records(keys, thetas, values):
        signals = lambda values: Observed(signal.ts, values, signal.mask)
        one = lambda key, theta: observation.observe(key, theta, signals(values))
        return jax.vmap(one)(keys, thetas)

    @jax.jit
    def run(keys, thetas, values):
        few = jax.tree.map(lambda leaf: leaf[3:4], (keys, thetas))
        batch, pullback = jax.vjp(lambda *args: records(keys, *args).values, thetas, values)
        return records(keys, thetas, values), records(*few, values), pullback(batch)

    keys = jax.random.split(jax.random.key(0), 8)
    scale = np.linspace(0.7, 1.4, 8, dtype=np.float32)
    fields = {name: np.asarray(getattr(observation, name)) for name in observation.prior}
    thetas = {name: np.multiply.outer(scale, field) for name, field in fields.items()}
    batch, alone, gradients = jax.tree.map(np.asarray, run(keys, thetas, signal.values))
    mask = np.asarray(signal.mask)
    assert batch.values.shape == (8, *mask.shape)
    assert batch.values.dtype == np.float32 and batch.mask.dtype == bool
    assert np.all(batch.ts == signal.ts)
    assert np.all(np.isfinite(batch.values))
    assert not np.any(batch.mask & ~mask), "a lost value came back"
    assert np.all(batch.values[~batch.mask] == 0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    # One simulation is the same numbers alone, again, and among others.
    assert_same_record(alone, jax.tree.map(lambda leaf: leaf[3:4], batch))
    assert_same_record(batch, run(keys, thetas, signal.values)[0])


@pytest.mark.parametrize(
    "kind", [kind for kind in CONCRETE if kind().prior], ids=lambda kind: kind.__name__
)
def test_a_parameter_is_a_field_and_an_empty_prior_makes_it_constant(kind):
    fixed, signal, key = kind(prior={}), holed(), jax.random.key(1)
    assert jax.eval_shape(lambda: fixed.observe(key, {}, signal)).values.shape == (NUM_TIMES, 2)
    for name in kind().prior:
        field = getattr(fixed, name)
        assert fixed.quantity({}, name) is field
        assert kind().quantity({name: 2.0}, name) == 2.0


# Noise: draws and densities against scipy.

NOISES = {
    "gaussian": (Gaussian(), {"sd": 0.3}, lambda mean: stats.norm(mean, 0.3)),
    "log_normal": (LogNormal(), {"log_sd": 0.3}, lambda mean: stats.lognorm(0.3, scale=mean)),
    "poisson": (Poisson(), {}, stats.poisson),
    "negative_binomial": (
        NegativeBinomial(),
        {"overdispersion": 0.2},
        lambda mean: stats.nbinom(5.0, 1 / (1 + 0.2 * mean)),
    ),
    "binomial": (
        Binomial(sample_size=80, population=400),
        {},
        lambda mean: stats.binom(80, mean / 400),
    ),
    "binomial_reporting": (
        BinomialReporting(),
        {"reporting_rate": 0.3},
        lambda mean: stats.binom(np.round(mean).astype(int), 0.3),
    ),
}
MEANS = np.array([0.75, 3.0, 11.75, 40.25, 250.0])
NOISE = pytest.mark.parametrize("name", NOISES)


def as_theta(numbers):
    return {name: jnp.asarray(number) for name, number in numbers.items()}


def test_every_noise_is_compared_with_scipy():
    compared = {type(noise) for noise, _, _ in NOISES.values()}
    assert compared == {kind for kind in CONCRETE if issubclass(kind, AbstractNoise)}


@NOISE
def test_noise_has_the_moments_of_its_formula(name):
    noise, theta, reference = NOISES[name]
    signal = Observed.of(latent_of(MEANS[:, None]))
    keys = jax.random.split(jax.random.key(2), 20_000)
    draws = observe_many(noise, keys, as_theta(theta), signal).values[:, :, 0]
    mean, variance, _, excess = (
        np.asarray(moment, float) for moment in reference(MEANS).stats(moments="mvsk")
    )
    assert_within_standard_errors(draws, mean, variance, (excess + 3) * variance**2)
    # The values of one record are drawn independently.
    correlation = np.corrcoef(draws, rowvar=False)[np.triu_indices(len(MEANS), 1)]
    assert np.max(np.abs(correlation)) < 4 / np.sqrt(len(draws))


@NOISE
def test_log_density_is_that_of_scipy(name):
    noise, theta, reference = NOISES[name]
    law = reference(MEANS[:, None])
    values = law.rvs((len(MEANS), 50), random_state=3)
    expected = law.logpmf(values) if hasattr(law.dist, "pmf") else law.logpdf(values)
    means = np.broadcast_to(MEANS[:, None], values.shape)
    log_density = eqx.filter_jit(noise.log_density)
    with jax.enable_x64(True):
        found = log_density(as_theta(theta), jnp.asarray(means), jnp.asarray(values, float))
        # jax's log beta function is a series good to 1e-6 at any precision.
        np.testing.assert_allclose(found, expected, rtol=1e-6 if "binomial" in name else 1e-9)
    # In float32, terms of the size of v log v cancel, and (v - m) / sd magnifies its rounding.
    size = 1 + np.abs(values) * (1 + np.log1p(np.abs(values)))
    size = size + (name == "gaussian") * np.abs(means) * np.abs(values - means) / 0.3**2
    single = density_and_gradients(noise, theta, means, values)[0]
    assert np.all(np.abs(single - expected) < 8 * np.finfo(np.float32).eps * size)


@eqx.filter_jit
def compiled_density(noise, theta, means, values):
    density = lambda theta, means: noise.log_density(theta, means, values)
    total = lambda theta, means: jnp.sum(density(theta, means))
    return density(theta, means), jax.grad(total, argnums=(0, 1))(theta, means)


def density_and_gradients(noise, theta, means, values):
    """In float32."""
    arguments = (jnp.asarray(argument, jnp.float32) for argument in (means, values))
    return compiled_density(noise, as_theta(theta), *arguments)


@NOISE
def test_log_density_and_its_gradient_where_nothing_is_left(name):
    noise, theta, _ = NOISES[name]
    means = np.zeros((len(MEANS), 50))
    means[1] = -1e-6
    density, gradients = density_and_gradients(noise, theta, means, np.zeros_like(means))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    if name != "gaussian":
        assert np.all(density == 0)
        assert np.all(density_and_gradients(noise, theta, means, means * 0 + 1)[0] == -np.inf)


def test_binomial_log_density_where_the_outcome_is_certain():
    survey = Binomial(sample_size=20, population=100)
    means, counts = np.array([[100.0], [100.0], [50.0]]), np.array([[20.0], [19.0], [21.0]])
    density, gradients = density_and_gradients(survey, {}, means, counts)
    assert density[:, 0].tolist() == [0, -np.inf, -np.inf]
    assert np.all(np.isfinite(gradients[1]))


def test_negative_binomial_tends_to_poisson():
    values = np.arange(20.0, 65.0, 5.0, dtype=np.float32)[:, None]
    mean = np.full_like(values, 40.0)
    log_density = eqx.filter_jit(NegativeBinomial().log_density)
    for overdispersion in (1e-4, 1e-7):
        theta = {"overdispersion": jnp.asarray(overdispersion)}
        found = log_density(theta, jnp.asarray(mean), jnp.asarray(values))
        # To first order the difference is overdispersion ((v - m)^2 - v) / 2.
        bound = overdispersion * ((values - mean) ** 2 + values)
        rounding = 8 * np.finfo(np.float32).eps * values * np.log(1 / overdispersion)
        assert np.all(np.abs(found - stats.poisson(mean).logpmf(values)) < bound + rounding)


def test_a_noise_level_may_differ_between_channels():
    signal = constant(10.0, num_times=2000, num_channels=2)
    noise = Gaussian(sd=jnp.array([0.1, 3.0]), prior={})
    values = observe(noise, jax.random.key(4), {}, signal).values
    variance = np.array([0.1, 3.0]) ** 2
    assert_within_standard_errors(values, 10.0, variance, 3 * variance**2)
    theta = {"sd": jnp.array([0.1, 3.0])}
    expected = stats.norm(10.0, [0.1, 3.0]).logpdf(np.full((1, 2), 10.5))
    found = Gaussian().log_density(theta, jnp.full((1, 2), 10.0), jnp.full((1, 2), 10.5))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# Transforms.


def test_reporting_delay_keeps_the_mass_inside_the_window():
    values = np.zeros((NUM_TIMES, 2))
    values[2, 0], values[5, 1] = 70.0, 30.0
    delay = ReportingDelay(max_delay=20)
    for mean in (0.2, 1.0, 4.0, 30.0):
        theta = {"delay_mean": jnp.asarray(mean)}
        reported = observe(delay, jax.random.key(0), theta, Observed.of(latent_of(values)))
        np.testing.assert_allclose(jnp.sum(reported.values, axis=0), [70.0, 30.0], rtol=1e-5)
        weights = delay.weights(theta)
        np.testing.assert_allclose(reported.values[2:23, 0], 70 * weights, rtol=1e-5)
        assert jnp.all(reported.values[:2, 0] == 0)


def test_reporting_delay_weights_are_those_of_the_gamma_density():
    delay = ReportingDelay(delay_mean=5.0, delay_shape=3.0, max_delay=60, prior={})
    expected = stats.gamma(3.0, scale=5.0 / 3.0).pdf(np.arange(61) + 0.5)
    np.testing.assert_allclose(delay.weights({}), expected / expected.sum(), rtol=1e-4)
    # A delay between d and d + 1 steps is reported d steps late: half a step less on average.
    mean = jnp.sum(delay.weights({}) * (jnp.arange(61) + 0.5))
    np.testing.assert_allclose(mean, 5.0, rtol=1e-3)


def test_reporting_delay_loses_what_falls_after_the_record():
    delay = ReportingDelay(max_delay=20)
    theta = {"delay_mean": jnp.asarray(4.0)}
    impulse = np.zeros((10, 1))
    impulse[7] = 100.0
    reported = observe(delay, jax.random.key(0), theta, Observed.of(latent_of(impulse)))
    np.testing.assert_allclose(
        jnp.sum(reported.values), 100 * jnp.sum(delay.weights(theta)[:3]), rtol=1e-5
    )


def test_reporting_delay_is_a_convolution():
    signal = Observed.of(wave())
    theta = {"delay_mean": jnp.asarray(3.0)}
    delay = ReportingDelay(max_delay=9)
    expected = np.convolve(signal.values[:, 0], delay.weights(theta))[:NUM_TIMES]
    found = observe(delay, jax.random.key(0), theta, signal).values[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    same = observe(ReportingDelay(max_delay=0), jax.random.key(0), theta, signal)
    np.testing.assert_array_equal(same.values, signal.values)


def test_weekday_effect_keeps_whole_weeks():
    effect = WeekdayEffect()
    for seed in range(3):
        theta = sample_prior(jax.random.key(seed), effect.prior)
        record = observe(effect, jax.random.key(0), theta, constant(10.0)).values[:, 0]
        weeks = record.reshape(4, 7).sum(axis=1)
        np.testing.assert_allclose(weeks, 70.0, rtol=1e-5)
        assert jnp.std(record) > 1.0


@pytest.mark.parametrize("first_weekday", [0, 3, 6])
def test_weekday_effect_starts_on_the_right_day(first_weekday):
    factors = jnp.array([4.0, 1.0, 1.0, 1.0, 1.0, 1.0, 5.0])
    effect = WeekdayEffect(first_weekday=first_weekday)
    record = observe(effect, jax.random.key(0), {"weekday_factors": factors}, constant(1.0)).values[
        :, 0
    ]
    # The record starts at time 1.
    expected = [factors[(day + first_weekday) % 7] / 2 for day in range(1, NUM_TIMES + 1)]
    np.testing.assert_allclose(record, expected, rtol=1e-6)


def test_counts_of_what_is_reported_are_noisier_than_binomial_reporting():
    """Counts of mean ρμ have that variance; thinning, checked above, has ρ(1-ρ)μ."""
    theta = {"reporting_rate": jnp.asarray(0.6)}
    keys = jax.random.split(jax.random.key(5), 20_000)
    chain = Chain(UnderReporting(), Poisson())
    draws = observe_many(chain, keys, theta, constant(50.0, num_times=1)).values
    assert_within_standard_errors(draws, 30.0, 30.0, 30.0 + 3 * 30.0**2)


# Missing values.


def kept_counts(observation, theta, num_times=12, num_draws=4000):
    """How often each time was kept, and every mask."""
    signal = constant(1.0, num_times, num_channels=2)
    keys = jax.random.split(jax.random.key(6), num_draws)
    masks = np.asarray(observe_many(observation, keys, theta, signal).mask)
    if isinstance(observation, MissingBlock | LateStart | VaryingLength):
        assert np.all(masks[:, :, 0] == masks[:, :, 1]), "a block is lost in all channels"
    return masks[:, :, 0]


def assert_frequencies(masks, probabilities):
    probabilities = np.asarray(probabilities)
    error = np.sqrt(probabilities * (1 - probabilities) / len(masks))
    assert np.all(np.abs(masks.mean(axis=0) - probabilities) <= 4 * error)


def test_missing_at_random_loses_the_stated_share():
    masks = kept_counts(MissingAtRandom(), {"missing_rate": jnp.asarray(0.3)})
    assert_frequencies(masks, np.full(12, 0.7))
    correlation = np.corrcoef(masks, rowvar=False)[np.triu_indices(12, 1)]
    assert np.max(np.abs(correlation)) < 4 / np.sqrt(len(masks))
    assert np.all(kept_counts(MissingAtRandom(), {"missing_rate": jnp.asarray(0.0)}))
    assert not np.any(kept_counts(MissingAtRandom(), {"missing_rate": jnp.asarray(1.0)}))


def test_missing_block_is_one_gap_of_uniform_length_and_place():
    masks = kept_counts(MissingBlock(min_length=2, max_length=4), {})
    lengths = np.sum(~masks, axis=1)
    assert_frequencies(lengths[:, None] == np.arange(2, 5), np.full(3, 1 / 3))
    starts = np.argmin(masks, axis=1)
    for mask, start, length in zip(masks[:50], starts, lengths, strict=False):
        assert not np.any(mask[start : start + length])
    assert_frequencies(starts[lengths == 3][:, None] == np.arange(10), np.full(10, 1 / 10))


def test_late_start_and_varying_length_are_uniform():
    masks = kept_counts(LateStart(max_late=3), {})
    assert_frequencies(masks, [0.25, 0.5, 0.75, *[1.0] * 9])
    assert np.all(np.diff(masks.astype(int), axis=1) >= 0)
    masks = kept_counts(VaryingLength(min_length=9), {})
    assert_frequencies(masks, [*[1.0] * 9, 0.75, 0.5, 0.25])
    assert np.all(np.diff(masks.astype(int), axis=1) <= 0)


def test_subsample_keeps_what_is_asked_for():
    record = observe(Subsample(every=7, first=2), jax.random.key(0), {}, constant(1.0))
    assert np.flatnonzero(record.mask[:, 0]).tolist() == [2, 9, 16, 23]
    record = observe(Subsample(indices=(0, 5, 27)), jax.random.key(0), {}, constant(1.0))
    assert np.flatnonzero(record.values[:, 0]).tolist() == [0, 5, 27]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MissingBlock(3, 2), "3 to 2"),
        (lambda: MissingBlock(0, 29), "up to 29 times exceeds the record's 28"),
        (lambda: LateStart(28), "nothing of 28"),
        (lambda: LateStart(-1), "-1"),
        (lambda: VaryingLength(29), "exceeds the record's 28"),
        (lambda: VaryingLength(0), "1 time or more"),
        (lambda: Subsample(every=0), "every >= 1"),
        (lambda: Subsample(indices=(3, 28)), r"0 to 27; asked for are \[28\]"),
        (lambda: Subsample(first=28), "none of them"),
        (lambda: ReportingDelay(max_delay=-1), "-1"),
    ],
)
def test_wrong_construction_names_the_value(build, message):
    with pytest.raises(ValueError, match=message):
        build().observe(jax.random.key(0), {"delay_mean": 1.0}, constant(1.0))


# Chains and likelihoods.


def test_chain_without_stages_is_the_identity():
    assert_same_record(observe(Chain(), jax.random.key(0), {}, holed()), holed())
    assert Chain().prior == {}


def test_chain_applies_its_stages_in_order():
    theta = {"reporting_rate": jnp.asarray(0.1), "sd": jnp.asarray(1e-6)}
    signal = constant(100.0)
    reported = observe(Chain(UnderReporting(), Gaussian()), jax.random.key(0), theta, signal)
    np.testing.assert_allclose(reported.values, 10.0, rtol=1e-5)
    theta["sd"] = jnp.asarray(50.0)
    narrow = observe(Chain(Gaussian(), UnderReporting()), jax.random.key(0), theta, signal)
    wide = observe(Chain(UnderReporting(), Gaussian()), jax.random.key(0), theta, signal)
    assert jnp.std(wide.values) > 5 * jnp.std(narrow.values)


def test_chain_gives_each_stage_its_own_key():
    theta = {"missing_rate": jnp.asarray(0.5)}
    twice = Chain(MissingAtRandom(), MissingAtRandom(prior={}, missing_rate=0.5))
    masks = kept_counts(twice, theta)
    assert_frequencies(masks, np.full(12, 0.25))


def test_chain_lays_nested_chains_flat():
    stages = (UnderReporting(), Gaussian(), MissingAtRandom())
    nested = Chain(Chain(stages[0], stages[1]), stages[2])
    flat = Chain(*stages)
    assert nested.stages == flat.stages and list(nested.prior) == list(flat.prior)
    theta = sample_prior(jax.random.key(9), flat.prior)
    key = jax.random.key(10)
    assert_same_record(observe(nested, key, theta, holed()), observe(flat, key, theta, holed()))


def test_chain_refuses_two_priors_of_one_name():
    with pytest.raises(ValueError, match="reporting_rate"):
        Chain(UnderReporting(), BinomialReporting())


def test_log_likelihood_is_that_computed_by_hand():
    chain = Chain(
        UnderReporting(), ReportingDelay(max_delay=5), NegativeBinomial(), MissingAtRandom()
    )
    theta = as_theta(
        {"reporting_rate": 0.4, "delay_mean": 2.0, "overdispersion": 0.1, "missing_rate": 0.2}
    )
    latent = latent_of(100 + 100 * np.sin(np.arange(NUM_TIMES))[:, None] ** 2)
    observed = observe(chain, jax.random.key(11), theta, Observed.of(latent))
    assert 0 < np.sum(~observed.mask) < NUM_TIMES
    weights = stats.gamma(2.0, scale=1.0).pdf(np.arange(6) + 0.5)
    truth = np.asarray(latent.values, np.float64)[:, 0]
    mean = np.convolve(0.4 * truth, weights / weights.sum())[:NUM_TIMES]
    law = stats.nbinom(10.0, 1 / (1 + 0.1 * mean))
    kept = np.asarray(observed.mask)[:, 0]
    expected = np.sum(law.logpmf(np.asarray(observed.values)[:, 0])[kept])
    found = jax.jit(lambda theta: log_likelihood(chain, theta, latent, observed))(theta)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_log_likelihood_has_a_finite_gradient_where_values_are_missing():
    chain = Chain(LogNormal(), MissingAtRandom(missing_rate=0.5, prior={}))
    latent = latent_of(np.full((NUM_TIMES, 1), 3.0))
    theta = {"log_sd": jnp.asarray(0.3)}
    observed = chain.observe(jax.random.key(12), theta, Observed.of(latent))

    def likelihood(theta, values):
        return log_likelihood(chain, theta, Latent(latent.ts, values, None), observed)

    gradients = jax.jit(jax.grad(likelihood, argnums=(0, 1)))(theta, latent.values)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    assert jnp.all((gradients[1] == 0) == ~observed.mask)


def test_log_likelihood_of_one_stage_alone():
    latent = latent_of(np.full((3, 1), 4.0))
    observed = Observed(latent.ts, jnp.array([[1.0], [4.0], [9.0]]), jnp.ones((3, 1), bool))
    expected = stats.poisson(4.0).logpmf([1, 4, 9]).sum()
    np.testing.assert_allclose(log_likelihood(Poisson(), {}, latent, observed), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "chain",
    [
        Chain(Poisson(), Gaussian()),
        Chain(Poisson(), UnderReporting()),
        Chain(MissingAtRandom(), ReportingDelay(), Poisson()),
        Chain(UnderReporting(), MissingAtRandom()),
        Chain(),
    ],
    ids=["two noises", "noise then transform", "loss then transform", "no noise", "nothing"],
)
def test_log_likelihood_refuses_what_has_no_closed_form(chain):
    latent = wave()
    theta = sample_prior(jax.random.key(0), chain.prior)
    with pytest.raises(ValueError, match="noise"):
        log_likelihood(chain, theta, latent, Observed.of(latent))


def test_default_priors_are_proper():
    """Every prior can be drawn from and its names do not clash within a usual chain."""
    chain = Chain(
        UnderReporting(), ReportingDelay(), WeekdayEffect(), NegativeBinomial(), MissingAtRandom()
    )
    assert list(chain.prior) == [
        "reporting_rate",
        "delay_mean",
        "weekday_factors",
        "overdispersion",
        "missing_rate",
    ]
    assert all(isinstance(entry, dist.Distribution) for entry in chain.prior.values())
    transforms = [stage for stage in chain.stages if isinstance(stage, AbstractTransform)]
    assert len(transforms) == 3
