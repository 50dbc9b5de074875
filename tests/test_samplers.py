"""Tests of the fixed-cost samplers against exact laws, `jax.random` and their own promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sgjax import samplers

DRAWS = 100_000
KEY = jax.random.key(2024)

SAMPLERS = {
    "gamma": samplers.gamma,
    "poisson": samplers.poisson,
    "negative_binomial": samplers.negative_binomial,
    "binomial": samplers.binomial,
}
# Around 12 the method changes, around 1 the gamma draws are boosted.
PARAMETERS = {
    "gamma": [(0.05,), (0.5,), (0.99,), (1,), (1.01,), (3,), (50,), (9e3,), (1.1e4,), (1e6,)],
    "poisson": [(r,) for r in (0.01, 0.3, 1, 4, 11.99, 12, 12.01, 13, 20, 50, 300, 1e4, 1e6)],
    "negative_binomial": [
        *[(0.1, 0.3), (1, 0.05), (5, 1), (5, 4), (12, 0.1), (30, 0.001), (30, 0.3)],
        *[(100, 0.02), (100, 1.5), (1000, 0.1), (1000, 1e-5), (1e5, 0.2)],
    ],
    "binomial": [
        *[(1, 0.3), (10, 0.5), (24, 0.5), (25, 0.5), (24, 0.49), (120, 0.1), (121, 0.1)],
        *[(121, 0.9), (1000, 0.012), (1000, 0.9879), (200, 0.3), (10**4, 0.7), (10**6, 1e-5)],
        *[(10**6, 0.4), (3, 0.999)],
    ],
}
LAWS = {
    "gamma": lambda a: stats.gamma(a),
    "poisson": lambda rate: stats.poisson(rate),
    "negative_binomial": lambda m, a: stats.nbinom(1 / a, 1 / (1 + a * m)),
    "binomial": lambda n, p: stats.binom(n, p),
}
CASES = [(name, values) for name, rows in PARAMETERS.items() for values in rows]


def _float32(values):
    """The parameters as the sampler sees them, for the exact law to use the same."""
    return tuple(float(np.float32(value)) for value in values)


def _draw_rows(name, rows):
    """DRAWS draws for each row of parameters, of the one shape each sampler is compiled for."""
    size = len(PARAMETERS[name])
    padded = [*rows, *PARAMETERS[name]][:size]
    columns = [jnp.asarray(column, jnp.float32)[:, None] for column in zip(*padded, strict=True)]
    key = jax.random.fold_in(KEY, list(PARAMETERS).index(name))
    draws = SAMPLERS[name](key, *columns, shape=(size, DRAWS))
    return np.asarray(draws, np.float64)[: len(rows)]


@pytest.fixture(scope="module")
def draws():
    """Draws of every sampler at every parameter."""
    return {
        (name, values): row
        for name, rows in PARAMETERS.items()
        for values, row in zip(rows, _draw_rows(name, rows), strict=True)
    }


def _chi_square(sample, law):
    """P-value of the counts against the law, in bins holding at least ten expected draws."""
    levels = [1e-4, 1e-3, 0.01, *np.linspace(0.025, 0.975, 39), 0.99, 0.999, 0.9999]
    edges, below = [], 0.0
    for edge in np.unique(law.ppf(levels)):
        if min(law.cdf(edge) - below, law.sf(edge)) * len(sample) >= 10:
            edges.append(edge)
            below = law.cdf(edge)
    expected = np.diff(np.concatenate([[0.0], law.cdf(edges), [1.0]])) * len(sample)
    # A draw equal to an edge belongs to the bin that ends there.
    observed = np.bincount(np.searchsorted(edges, sample), minlength=len(expected))
    return stats.chisquare(observed, expected * (len(sample) / expected.sum())).pvalue


@pytest.mark.parametrize(("name", "values"), CASES)
def test_law(draws, name, values):
    sample, law = draws[name, values], LAWS[name](*_float32(values))
    if name == "gamma":
        # What float32 cannot hold stands at its smallest normal number: spread it over its mass.
        held, ranks = sample <= np.finfo(np.float32).tiny, law.cdf(sample)
        ranks[held] = np.random.default_rng(0).uniform(0, ranks[held].max(initial=0), held.sum())
        assert stats.kstest(ranks, "uniform").pvalue > 1e-4 / len(CASES)
    else:
        assert np.array_equal(sample, np.round(sample))
        assert _chi_square(sample, law) > 1e-4 / len(CASES)


@pytest.mark.parametrize(("name", "values"), CASES)
def test_mean_and_variance(draws, name, values):
    sample = draws[name, values]
    mean, variance, _, kurtosis = LAWS[name](*_float32(values)).stats(moments="mvsk")
    assert abs(sample.mean() - mean) < 4 * np.sqrt(variance / DRAWS)
    if kurtosis < 100:  # Beyond, the sample's variance is far from normal.
        spread = variance * np.sqrt((kurtosis + 2) / DRAWS)
        assert abs(sample.var() - variance) < 4 * spread


def test_the_checks_tell_a_wrong_sampler(draws):
    """The thresholds above would fail overdispersion off by a fifth, or a rate by a hundredth."""
    wrong = LAWS["negative_binomial"](100, 1.5 * 1.2)
    assert _chi_square(draws["negative_binomial", (100, 1.5)], wrong) < 1e-9
    assert _chi_square(draws["poisson", (50,)], stats.poisson(50.5)) < 1e-9
    assert stats.kstest(draws["gamma", (3,)], stats.gamma(3.05).cdf).pvalue < 1e-9


@pytest.mark.parametrize(
    ("rates", "bound"), [((1e-6, 0.1, 3.0, 12.0), 2e-5), ((12.01, 20.0, 100.0), 1e-4)]
)
def test_inversion_is_accurate_over_every_uniform(rates, bound):
    """Total variation, without sampling error: the words run evenly over their range."""
    words = jnp.arange(2**18, dtype=jnp.uint32) * 2**14 + 2**13
    uniform = (np.asarray(words, np.float64) + 0.5) / 2**32
    means = jnp.asarray(rates, jnp.float32)[:, None]
    if max(rates) <= samplers._THRESHOLD:
        method = lambda w, m: samplers._sum_terms(w, jnp.exp(-m), lambda k: m / k)
    else:
        method = lambda w, m: samplers._cornish_fisher(w, m, jnp.zeros_like(m))
    for counts, rate in zip(np.asarray(jax.jit(method)(words, means)), rates, strict=True):
        law = stats.poisson(rate)
        top = int(max(counts.max(), law.ppf(1 - 1e-9))) + 1
        # The words' own grid, put through the exact quantile, is the standard.
        exact = np.bincount(np.searchsorted(law.cdf(np.arange(top)), uniform), minlength=top)
        got = np.bincount(counts.astype(int), minlength=top)
        assert 0.5 * np.abs(got - exact).sum() / len(uniform) < bound


def test_rare_events_keep_their_probability():
    """The commonest words with a count of 1 are those above 1 - rate, however small the rate."""
    rate = 1e-7
    edge = 2**32 * (1 - rate)
    words = jnp.asarray([edge - 20, edge - 5, edge + 5, edge + 20], jnp.uint32)
    counts = samplers._sum_terms(words, jnp.exp(jnp.full(4, -rate)), lambda k: rate / k)
    assert counts.tolist() == [0, 0, 1, 1]


def test_words_are_uniform_and_uncorrelated():
    """Every word used, over consecutive places of consecutive keys."""
    keys = jax.random.split(KEY, 64)
    data = jax.random.key_data(jax.vmap(lambda key: jax.random.split(key, 256))(keys))
    seed = (data[..., 0].ravel(), data[..., 1].ravel())
    words = np.stack([np.asarray(samplers._word(seed, i)) for i in range(2 * 6 + 2)])
    size = words.shape[1]
    bits = (words[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    assert np.abs(bits.mean(1) - 0.5).max() < 5 * 0.5 / np.sqrt(size)
    for lag in (0, 1, 14):
        shifted = np.roll(words, lag, axis=1)
        table = np.corrcoef(words, shifted)[: len(words), len(words) :]
        assert np.abs(table - (lag == 0) * np.eye(len(words))).max() < 5 / np.sqrt(size)
    for low, high in zip(words[:-1] >> 28, words[1:] >> 28, strict=True):
        joint = np.bincount(low * 16 + high, minlength=256)
        assert stats.chisquare(joint).pvalue > 1e-5


def test_same_law_as_jax_random(draws):
    """A two-sample comparison, the mixture's rates being on both sides of the threshold."""
    keys, shape = jax.random.split(jax.random.fold_in(KEY, 9), 2), (20_000,)
    # The exponential is the gamma law of concentration 1; `jax.random.gamma` is slow to compile.
    theirs_gamma = np.asarray(jax.random.exponential(keys[0], shape))
    theirs = np.asarray(jax.random.poisson(keys[1], 5 * theirs_gamma))
    assert stats.ks_2samp(theirs_gamma, draws["gamma", (1,)]).pvalue > 1e-4
    ours = draws["negative_binomial", (5, 1)]
    table = [np.bincount(np.minimum(x, 30).astype(int), minlength=31) for x in (theirs, ours)]
    assert stats.chi2_contingency(np.stack(table)).pvalue > 1e-4


def test_gamma_edges():
    tiny, *bad = _draw_rows("gamma", [(1e-3,), (0,), (-1,), (np.nan,), (np.inf,)])
    assert (tiny > 0).all() and np.isfinite(tiny).all()
    assert np.isnan(bad).all()


def test_poisson_edges():
    rows = [(0,), (1e-30,), (-1,), (np.nan,), (np.inf,)]
    zero, smallest, *bad = _draw_rows("poisson", rows)
    assert (zero == 0).all() and (smallest == 0).all()
    assert np.isnan(bad).all()


def test_negative_binomial_edges():
    rows = [(0, 0), (0, 1), (5, np.nan), (5, -1), (5, np.inf), (np.nan, 1), (-1, 1), (np.inf, 0)]
    none, also_none, *bad = _draw_rows("negative_binomial", rows)
    assert (none == 0).all() and (also_none == 0).all()
    assert np.isnan(bad).all()


@pytest.mark.parametrize("mean", [5, 100])
def test_negative_binomial_tends_to_poisson(mean):
    ladder = [(mean, alpha) for alpha in (0, 1e-30, 1e-14, 1e-11, 1e-8, 1e-6)]
    for counts in _draw_rows("negative_binomial", ladder):
        assert _chi_square(counts, stats.poisson(mean)) > 1e-5


def test_binomial_edges():
    certain = [((0, 0.5), 0), ((7, 0), 0), ((1e6, 0), 0), ((7, 1), 7), ((1e6, 1), 1e6), ((0, 1), 0)]
    bad = [(-1, 0.5), (5, -0.1), (5, 1.1), (5, np.nan), (np.nan, 0.5), (np.inf, 0.5)]
    counts = _draw_rows("binomial", [values for values, _ in certain] + bad)
    for row, (_, expected) in zip(counts, certain, strict=False):
        assert (row == expected).all()
    assert np.isnan(counts[len(certain) :]).all()


def test_binomial_stays_in_range(draws):
    for (name, values), sample in draws.items():
        if name == "binomial":
            assert sample.min() >= 0 and sample.max() <= values[0]


def test_negative_binomials_do_not_depend_on_the_batch():
    keys = jax.random.split(jax.random.fold_in(KEY, 5), 64)
    means = jnp.geomspace(0.1, 1000, 64 * 14).reshape(64, 14)
    overdispersions = jnp.linspace(0, 2, 64)
    together = jax.vmap(samplers.negative_binomial)(keys, means, overdispersions)
    for one in (0, 7, 63):
        alone = samplers.negative_binomial(keys[one], means[one], overdispersions[one])
        assert np.array_equal(alone, together[one])


def test_draws_under_nested_maps():
    """Equal for equal keys, unequal across keys and places."""
    keys = jax.random.split(jax.random.fold_in(KEY, 6), 20)
    rates = jnp.asarray([3.0, 1e10])
    nested = jax.vmap(
        lambda key: jax.vmap(lambda rate: samplers.poisson(key, rate, shape=(3,)))(rates)
    )(keys)
    assert np.array_equal(nested[7, 0], samplers.poisson(keys[7], rates[0], shape=(3,)))
    assert len(np.unique(nested[:, 1])) > 55


def test_nothing_loops_on_data():
    counts, chances = jnp.full(3, 5.0), jnp.full(3, 0.4)
    for name, rows in PARAMETERS.items():
        arguments = (counts, chances)[: len(rows[0])]
        traced = str(jax.make_jaxpr(SAMPLERS[name])(KEY, *arguments))
        assert "erf_inv" in traced or "sqrt" in traced  # The text does show what is nested.
        assert "while" not in traced and "scan" not in traced
    assert "while" in str(jax.make_jaxpr(jax.random.poisson)(KEY, counts))


def test_gradients_are_zero():
    def total(mean):
        counts = samplers.negative_binomial(KEY, mean, mean[1] / 10)
        return (counts + samplers.binomial(KEY, 20.0, mean / 2000)).sum()

    gradient = jax.jit(jax.grad(total))(jnp.asarray([0.0, 1.0, 1000.0]))
    assert gradient.tolist() == [0, 0, 0]


def test_other_precisions_and_keys():
    size, rate = 2000, 5
    with jax.enable_x64(True):
        double = samplers.poisson(jax.random.PRNGKey(3), np.full(size, float(rate)))
    half = samplers.poisson(jax.random.key(3, impl="rbg"), jnp.full(size, rate, jnp.bfloat16))
    assert double.dtype == jnp.float64 and half.dtype == jnp.bfloat16
    for counts in (double, half):
        assert abs(np.asarray(counts, np.float64).mean() - rate) < 4 * np.sqrt(rate / size)
    # Whole-number parameters and empty arrays are allowed.
    whole = jax.eval_shape(samplers.poisson, KEY, jnp.zeros((0, 3), int))
    assert whole.dtype == jnp.float32 and whole.shape == (0, 3)
