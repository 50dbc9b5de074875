"""Predictive distributions and their heads: what they promise by construction."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from sgjax.predictors import (
    ByMechanism,
    CannotGive,
    Categorical,
    Gaussian,
    GaussianMixture,
    Point,
    Quantiles,
)
from sgjax.predictors._base import GIVEN_BY, Units
from sgjax.predictors.network import HEADS
from sgjax.tasks import Target, TargetSpec

MEAN = np.array([0.5, -1.0, 2.0])
COVARIANCE = np.array([[1.0, 0.5, 0.2], [0.5, 2.0, -0.3], [0.2, -0.3, 0.5]])


def gaussian(present=(True, True, True), gaps=False):
    """A normal law whose components present have MEAN and COVARIANCE; the others hold rubbish."""
    present = np.array(present)
    both = np.ix_(present, present)
    factor = np.full((3, 3), 7.0)
    factor[both] = np.linalg.cholesky(np.linalg.inv(COVARIANCE[both]))
    location = jnp.asarray(np.where(present, MEAN, 0), jnp.float32)
    return Gaussian(location, jnp.asarray(factor, jnp.float32), jnp.asarray(present), gaps)


def reference(kept):
    return stats.multivariate_normal(MEAN[kept], COVARIANCE[np.ix_(kept, kept)])


@pytest.mark.parametrize("present", [(True, True, True), (True, False, True)])
def test_gaussian_log_prob(present):
    values = jnp.array([[0.1, 0.2, 0.3], [2.0, -3.0, 1.0]])
    kept = np.flatnonzero(present)
    found = jax.jit(jax.vmap(gaussian(present).log_prob))(values)
    np.testing.assert_allclose(found, reference(kept).logpdf(values[:, kept]), rtol=1e-5)


@pytest.mark.parametrize("present", [(True, False, True), (False, True, True)])
def test_gaussian_density_integrates_to_one(present):
    kept = np.flatnonzero(present)
    axis = np.linspace(-10, 10, 201)
    values = np.zeros((axis.size**2, 3))
    values[:, kept] = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    density = jnp.exp(jax.jit(jax.vmap(gaussian(present).log_prob))(jnp.asarray(values)))
    assert float(density.sum()) * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "seen", [(True, True, True), (True, False, True), (False, True, False), (False, False, True)]
)
def test_gaussian_score_integrates_over_what_a_target_lacks(seen):
    kept = np.flatnonzero(seen)
    values = jnp.where(jnp.array(seen), jnp.array([0.1, 0.2, 0.3]), 0)
    target = Target(values, jnp.array(seen), jnp.asarray(0))
    score, slopes = jax.jit(jax.value_and_grad(lambda p: p.score(target), allow_int=True))(
        gaussian(gaps=True)
    )
    assert float(score) == pytest.approx(-reference(kept).logpdf(values[kept]), rel=1e-4)
    assert bool(jnp.isfinite(slopes.factor).all())


def test_gaussian_moments_quantiles_and_samples():
    predictive, num = gaussian((True, False, True)), 20_000
    kept, gone = [0, 2], 1
    covariance = COVARIANCE[np.ix_(kept, kept)]

    @jax.jit
    def everything(p):
        draws = p.sample(jax.random.key(0), num)
        return p.mean(), p.sd(), p.covariance(), p.quantile([0.1, 0.9]), draws

    mean, deviation, found, quantiles, draws = map(np.asarray, everything(predictive))
    np.testing.assert_allclose(mean[kept], MEAN[kept])
    np.testing.assert_allclose(found[np.ix_(kept, kept)], covariance, rtol=1e-5)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(deviation[kept], sd, rtol=1e-5)
    for index, level in enumerate((0.1, 0.9)):
        expected = stats.norm(MEAN[kept], sd).ppf(level)
        np.testing.assert_allclose(quantiles[index, kept], expected, rtol=1e-4)
    draws = draws.astype(np.float64)
    errors = (draws.mean(0)[kept] - MEAN[kept]) / (sd / np.sqrt(num))
    assert np.abs(errors).max() < 4
    spread = np.sqrt((np.outer(sd**2, sd**2) + covariance**2) / num)
    assert np.abs((np.cov(draws[:, kept].T) - covariance) / spread).max() < 4
    for absent in (mean, deviation, found, quantiles, draws):
        assert (absent[..., gone] == 0).all()


WEIGHTS = np.array([0.3, 0.7])
SHIFTS = np.array([[-2.0, 0.0, 1.0], [1.0, 0.5, 0.0]])
STRETCHES = np.array([0.5, 1.5])


def mixture(present=(True, True, True)):
    """Two normal laws about MEAN + SHIFTS with the covariances COVARIANCE * STRETCHES**2."""
    one = gaussian(present)
    location = jnp.asarray(np.where(one.present, MEAN + SHIFTS, 0), jnp.float32)
    factor = one.factor[None] / jnp.asarray(STRETCHES, jnp.float32)[:, None, None]
    components = Gaussian(location, factor, jnp.tile(one.present, (2, 1)))
    return GaussianMixture(jnp.log(jnp.asarray(WEIGHTS, jnp.float32)), components)


def laws(kept):
    for shift, stretch in zip(SHIFTS, STRETCHES, strict=True):
        covariance = COVARIANCE[np.ix_(kept, kept)] * stretch**2
        yield stats.multivariate_normal((MEAN + shift)[kept], covariance)


@pytest.mark.parametrize("present", [(True, True, True), (True, False, True)])
def test_mixture_density_and_score(present):
    values = jnp.array([[0.1, 0.2, 0.3], [2.0, -3.0, 1.0]])
    kept = np.flatnonzero(present)
    each = [law.pdf(values[:, kept]) for law in laws(kept)]
    expected = np.log(WEIGHTS @ np.stack(each))
    predictive = mixture(present)

    @jax.jit
    @jax.vmap
    def both(values):
        target = Target(values, jnp.array(present), jnp.asarray(0))
        return predictive.log_prob(values), predictive.score(target)

    found, score = both(values)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(score, -expected, rtol=1e-5)


def test_mixture_moments_quantiles_and_samples():
    kept, gone, num = [0, 2], 1, 20_000
    predictive = mixture((True, False, True))

    @jax.jit
    def everything(p):
        draws = p.sample(jax.random.key(0), num)
        return p.mean(), p.sd(), p.quantile([0.02, 0.5, 0.9]), draws

    mean, sd, quantiles, draws = (np.asarray(x, np.float64) for x in everything(predictive))
    centres = (MEAN + SHIFTS)[:, kept]
    sds = STRETCHES[:, None] * np.sqrt(np.diag(COVARIANCE))[kept]
    exact = WEIGHTS @ centres
    np.testing.assert_allclose(mean[kept], exact, rtol=1e-5)
    variance = WEIGHTS @ (sds**2 + (centres - exact) ** 2)
    np.testing.assert_allclose(sd[kept], np.sqrt(variance), rtol=1e-5)
    for row, level in zip(quantiles[:, kept], (0.02, 0.5, 0.9), strict=True):
        np.testing.assert_allclose(WEIGHTS @ stats.norm(centres, sds).cdf(row), level, rtol=1e-4)
    for column, index in enumerate(kept):
        law = lambda x, j=column: WEIGHTS @ stats.norm(centres[:, [j]], sds[:, [j]]).cdf(x)
        assert stats.kstest(draws[:, index], law).pvalue > 1e-3
    # The draws hang together as the components say: the covariance within, and between.
    inside = np.einsum("c,ij->ij", WEIGHTS * STRETCHES**2, COVARIANCE[np.ix_(kept, kept)])
    between = np.einsum("c,ci,cj->ij", WEIGHTS, centres - exact, centres - exact)
    np.testing.assert_allclose(np.cov(draws[:, kept].T), inside + between, rtol=0.06, atol=0.03)
    for absent in (mean, sd, quantiles, draws):
        assert (absent[..., gone] == 0).all()


def units(spec, shift=0.0, scale=1.0):
    ones = np.ones(len(spec.names))
    return Units(spec, shift * ones, scale * ones)


EVERYWHERE = TargetSpec("quantities", ("a", "b"), np.ones((2, 2), bool))
WITHIN = TargetSpec(
    "parameters", ("a", "b"), np.array([[True, True], [True, False]]), by_mechanism=True
)
CLASSES = TargetSpec("mechanism", ("m", "n"), np.ones((2, 2), bool))


def randomised(head, size):
    """The head with random weights of this size."""
    definition, params = nnx.split(head)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    new = [
        size * jax.random.normal(key, leaf.shape) if leaf.ndim > 1 and leaf.shape[0] == 4 else leaf
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return nnx.merge(definition, jax.tree.unflatten(tree, new))


@pytest.mark.parametrize("size", [0.1, 3.0, 100.0])
def test_quantiles_never_cross(size):
    head = randomised(HEADS["quantile"](4, EVERYWHERE, units(EVERYWHERE), rngs=nnx.Rngs(0)), size)
    features = jax.random.normal(jax.random.key(1), (200, 4))
    values = jax.jit(jax.vmap(lambda one: head(one).values))(features)
    assert float(jnp.std(values)) > 0
    assert bool((jnp.diff(values, axis=-1) >= 0).all())


def test_heads_start_at_the_prior():
    make = lambda name: HEADS[name](4, EVERYWHERE, units(EVERYWHERE, 5.0, 3.0), rngs=nnx.Rngs(0))
    shares = Units(CLASSES, np.array([0.25, 0.75]), np.ones(2))
    categorical = HEADS["categorical"](4, CLASSES, shares, rngs=nnx.Rngs(0))
    point, quantile, normal = make("point"), make("quantile"), make("gaussian")
    levels = [0.025, 0.25, 0.5, 0.975]

    @jax.jit
    def everything(x):
        means = point(x).mean(), normal(x).mean(), categorical(x).mean()
        quantiles = quantile(x).quantile(levels), normal(x).quantile(levels)
        return *means, *quantiles, normal(x).covariance()

    at, mean, classes, free, marginal, covariance = everything(jnp.arange(4.0))
    np.testing.assert_allclose(at, 5.0)
    np.testing.assert_allclose(mean, 5.0)
    np.testing.assert_allclose(classes, [0.25, 0.75], rtol=1e-5)
    np.testing.assert_allclose(covariance, 9.0 * np.eye(2), rtol=1e-5, atol=1e-6)
    expected = stats.norm(5.0, 3.0).ppf(levels)
    for found in (free, marginal):
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["point", "quantile", "gaussian"])
def test_heads_predict_in_the_units_of_the_target(name):
    shift, scale = np.array([5.0, -1.0]), np.array([3.0, 0.5])
    features, values = jnp.arange(4.0), jnp.array([0.4, -0.7])

    def predictive(shift, scale):
        made = HEADS[name](4, EVERYWHERE, Units(EVERYWHERE, shift, scale), rngs=nnx.Rngs(0))
        return randomised(made, 0.3)(features)

    standard, natural = predictive(np.zeros(2), np.ones(2)), predictive(shift, scale)
    score = lambda p, values: float(p.score(Target(values, jnp.ones(2, bool), jnp.asarray(0))))
    log_jacobian = np.log(scale).sum() if name == "gaussian" else 0.0
    expected = score(standard, values) + log_jacobian
    assert score(natural, shift + scale * values) == pytest.approx(expected, rel=1e-4)
    if name == "gaussian":
        covariance = np.outer(scale, scale) * standard.covariance()
        assert abs(float(covariance[0, 1])) > 0.01
        np.testing.assert_allclose(natural.covariance(), covariance, rtol=1e-3)


def test_quantiles_interpolate_and_refuse_beyond():
    predictive = Quantiles(jnp.array([[0.0, 1.0, 3.0]]), jnp.ones(1), (0.1, 0.5, 0.9))
    found = predictive.quantile([0.1, 0.3, 0.5, 0.6, 0.9])
    np.testing.assert_allclose(found[:, 0], [0.0, 0.5, 1.0, 1.5, 3.0], rtol=1e-6)
    single = predictive.quantile(jnp.array([0.1, 0.9]))  # float32: 0.9 is a little above 0.9
    np.testing.assert_allclose(single[:, 0], [0.0, 3.0], atol=1e-6)
    with pytest.raises(CannotGive, match=r"0.1 to 0.9.*gaussian"):
        predictive.quantile([0.95])
    with pytest.raises(ValueError, match="increase"):
        HEADS["quantile"](4, EVERYWHERE, units(EVERYWHERE), rngs=nnx.Rngs(0), levels=(0.5, 0.1))


KINDS = {
    "point": Point(jnp.zeros(2), jnp.ones(2)),
    "quantile": Quantiles(jnp.zeros((2, 9)), jnp.ones(2)),
    "gaussian": Gaussian(jnp.zeros(2), jnp.eye(2), jnp.ones(2, bool)),
    "gaussian_mixture": GaussianMixture(
        jnp.log(jnp.array([0.3, 0.7])),
        Gaussian(jnp.zeros((2, 2)), jnp.stack([jnp.eye(2)] * 2), jnp.ones((2, 2), bool)),
    ),
    "categorical": Categorical(jnp.zeros(2)),
}
ARGUMENTS = {
    "mean": (),
    "sd": (),
    "quantile": ([0.5],),
    "sample": (jax.random.key(0), 3),
    "log_prob": (jnp.array([1.0, 0.0]),),
}


@pytest.mark.parametrize("asked", list(GIVEN_BY))
@pytest.mark.parametrize("kind", list(KINDS))
def test_each_kind_gives_what_it_can_and_names_who_can_otherwise(kind, asked):
    method = getattr(KINDS[kind], asked)
    if kind in GIVEN_BY[asked]:
        assert bool(jnp.isfinite(method(*ARGUMENTS[asked])).all())
    else:
        named = f"{type(KINDS[kind]).__name__} cannot give `{asked}`.*'{GIVEN_BY[asked][0]}'"
        with pytest.raises(CannotGive, match=named):
            method(*ARGUMENTS[asked])
    with pytest.raises(CannotGive, match="select"):
        getattr(ByMechanism(KINDS[kind]), asked)(*ARGUMENTS[asked])


def test_categorical():
    predictive = Categorical(jnp.log(jnp.array([0.2, 0.8])))
    draws = np.asarray(predictive.sample(jax.random.key(0), 10_000))
    assert abs(draws[:, 1].mean() - 0.8) < 4 * np.sqrt(0.16 / 10_000)
    assert float(predictive.log_prob(jnp.array([1.0, 0.0]))) == pytest.approx(np.log(0.2), rel=1e-5)
    assert float(predictive.entropy()) == pytest.approx(stats.entropy([0.2, 0.8]), rel=1e-5)
    with pytest.raises(ValueError, match="needs classes"):
        HEADS["categorical"](4, EVERYWHERE, units(EVERYWHERE), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["point", "quantile", "gaussian"])
def test_by_mechanism_selects_the_right_one(name):
    shift, scale = np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([[0.5, 2.0], [1.0, 1.0]])
    made = HEADS[name](4, WITHIN, Units(WITHIN, shift, scale), rngs=nnx.Rngs(0))
    predictive = randomised(made, 0.3)(jnp.arange(4.0))
    assert isinstance(predictive, ByMechanism)
    chosen = [predictive.select(index) for index in (0, 1)]
    assert not eqx.tree_equal(*chosen)
    for index, static in enumerate(chosen):
        assert eqx.tree_equal(eqx.filter_jit(predictive.select)(jnp.asarray(index)), static)
        target = Target(
            jnp.array([1.5, 0.0]), jnp.asarray(WITHIN.present[index]), jnp.asarray(index)
        )
        assert float(predictive.score(target)) == pytest.approx(float(static.score(target)))
    if name == "gaussian":
        alone = stats.norm(chosen[1].mean()[0], chosen[1].sd()[0])
        found = chosen[1].log_prob(jnp.array([1.5, 99.0]))  # the second does not exist here
        assert float(found) == pytest.approx(alone.logpdf(1.5), rel=1e-5)
