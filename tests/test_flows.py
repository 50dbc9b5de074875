"""Flows: densities integrate to one, draws follow them, and they reach posteriors of two modes."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx
from scipy import stats

import sgjax as sg
from sgjax.predictors import CannotGive, FlowMatching, SplineFlow, _splines, flow_matching
from sgjax.predictors._base import GIVEN_BY, Shared, Units
from sgjax.predictors.network import HEADS
from sgjax.tasks import Target, TargetSpec

KINDS = {"spline_flow": SplineFlow, "flow_matching": FlowMatching}
SLOW = [pytest.param("flow_matching", marks=pytest.mark.slow)]
EACH = pytest.mark.parametrize("name", ["spline_flow", *SLOW])
SIZES = {"spline_flow": 0.08, "flow_matching": 0.3}
"""Of the random weights that bend a flow: far from normal, but no finer than the grids."""
HIDDEN = 8
FEATURES = jnp.array([0.5, -1.0, 0.3, 0.8])
PAIR = TargetSpec("parameters", ("a", "b"), np.ones((1, 2), bool), by_mechanism=True)
WITHIN = TargetSpec(
    "parameters", ("a", "b"), np.array([[True, True], [True, False]]), by_mechanism=True
)
GAPS = TargetSpec("series", ("a", "b"), np.ones((1, 2), bool))
INDEX = jnp.asarray(0)


def head(name, spec, shift=0.0, scale=1.0, moved=True, hidden=HIDDEN):
    """A head whose weights are moved away from those it starts from, unless told otherwise."""
    rows = spec.present.shape if spec.by_mechanism else spec.present.shape[1:]
    units = Units(spec, np.full(rows, shift), np.full(rows, scale))
    made = HEADS[name](4, spec, units, rngs=nnx.Rngs(0), hidden=hidden)
    definition, params, constants = nnx.split(made, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    size = SIZES[name] if moved else 0.0
    leaves = [
        leaf + size * jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return nnx.merge(definition, jax.tree.unflatten(tree, leaves), constants)


@functools.cache
def bent(name):
    """A predictive distribution far from normal, its compiled density, and 4,000 draws of it."""
    one = head(name, PAIR)(FEATURES).select(0)
    log_prob = jax.jit(jax.vmap(lambda one, values: one.log_prob(values), in_axes=(None, 0)))
    draw = jax.jit(lambda one: one.sample(jax.random.key(0), 4000))
    return one, functools.partial(log_prob, one), np.asarray(draw(one))


def grid(draws, num):
    """Equally spaced points that hold every draw and half as much again; the volume of each."""
    low, high = draws.min(0), draws.max(0)
    middle, half = (low + high) / 2, 0.75 * (high - low)
    axes = [np.linspace(m - h, m + h, num) for m, h in zip(middle, half, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    return axes, jnp.asarray(points, jnp.float32), np.prod([axis[1] - axis[0] for axis in axes])


@pytest.mark.parametrize("size", [0.0, 1.0, 10.0])
def test_splines_are_invertible_with_the_slope_they_say(size):
    outputs = size * jax.random.normal(jax.random.key(0), (200, _splines.num_outputs()))
    x = jnp.linspace(-7.0, 7.0, 200)

    @jax.jit
    @jax.vmap
    def everything(outputs, x):
        knots = _splines.make_knots(outputs)
        value = lambda x: _splines.forward(knots, x)[0]
        y, log_slope = _splines.forward(knots, x)
        slopes = jax.grad(lambda out: sum(_splines.forward(_splines.make_knots(out), x)))(outputs)
        return y, log_slope, jax.grad(value)(x), _splines.inverse(knots, y), slopes

    y, log_slope, slope, back, gradients = map(np.asarray, everything(outputs, x))
    np.testing.assert_allclose(log_slope, np.log(slope), rtol=2e-3, atol=2e-3)
    # Where the spline is flat, rounding of y is stretched on the way back.
    error = np.abs(back - x) * np.minimum(slope, 1)
    assert error.max() < 2e-5
    outside = np.abs(x) > _splines.BOUND
    np.testing.assert_array_equal(y[outside], x[outside])
    assert np.isfinite(gradients).all()
    if size == 0:
        np.testing.assert_allclose(y, x, atol=2e-6)
    else:
        assert np.abs(y - x)[~outside].max() > 0.5


@functools.cache
def marginals(name):
    """Of the bent flow: the whole mass on a grid, and of each component its axis and masses."""
    _, log_prob, draws = bent(name)
    axes, points, volume = grid(draws, 101)
    table = np.exp(np.asarray(log_prob(points), np.float64)).reshape(101, 101) * volume
    return table.sum(), axes, [table.sum(1), table.sum(0)]


def distribution(axis, mass):
    """The distribution function of masses on a grid."""
    return lambda x: np.interp(x, axis + (axis[1] - axis[0]) / 2, np.cumsum(mass))


@EACH
def test_density_integrates_to_one_and_draws_follow_it(name):
    total, axes, masses = marginals(name)
    # A sum on a grid, of a density with kinks or one that is itself an integral in steps.
    assert total == pytest.approx(1, abs=1e-3)
    _, _, draws = bent(name)
    for column, (axis, mass) in enumerate(zip(axes, masses, strict=True)):
        assert stats.kstest(draws[:, column], distribution(axis, mass)).pvalue > 1e-3
    assert stats.normaltest(draws[:, 1]).pvalue < 1e-6


def test_moments_and_quantiles_are_those_of_the_density():
    levels, num = np.array([0.1, 0.5, 0.9]), 10_000
    ask = jax.jit(lambda one: (one.mean(), one.sd(), one.quantile(levels)))
    means, sds, quantiles = map(np.asarray, ask(bent("spline_flow")[0]))
    _, axes, masses = marginals("spline_flow")
    for column, (axis, mass) in enumerate(zip(axes, masses, strict=True)):
        mean = mass @ axis
        sd = np.sqrt(mass @ (axis - mean) ** 2)
        assert abs(means[column] - mean) < 4 * sd / np.sqrt(num)
        spread = np.sqrt(mass @ (axis - mean) ** 4 / sd**4 - 1) / 2
        assert abs(sds[column] / sd - 1) < 4 * spread / np.sqrt(num)
        errors = distribution(axis, mass)(quantiles[:, column]) - levels
        assert (np.abs(errors) < 4 * np.sqrt(levels * (1 - levels) / num)).all()


@EACH
def test_flows_start_at_the_prior(name):
    one = head(name, PAIR, shift=5.0, scale=3.0, moved=False)(FEATURES).select(0)
    values = jnp.array([[5.0, 5.0], [2.0, 9.0], [30.0, -20.0]])
    found = jax.jit(jax.vmap(one.log_prob))(values)
    exact = stats.norm(5.0, 3.0).logpdf(values).sum(1)
    np.testing.assert_allclose(found, exact, rtol=1e-4)


@EACH
def test_flows_predict_in_the_units_of_the_target(name):
    standard = head(name, PAIR)(FEATURES).select(0)
    natural = head(name, PAIR, shift=5.0, scale=3.0)(FEATURES).select(0)
    values = jnp.array([0.4, -0.7])
    expected = float(standard.log_prob(values)) - 2 * np.log(3.0)
    assert float(natural.log_prob(5.0 + 3.0 * values)) == pytest.approx(expected, rel=1e-5)


@EACH
def test_what_a_mechanism_lacks_is_never_read(name):
    axis = jnp.linspace(-15, 15, 601)
    rubbish = jnp.full_like(axis, jnp.nan)

    @jax.jit
    def everything(one):
        values = jnp.stack([axis, rubbish], axis=-1)
        return jax.vmap(one.log_prob)(values), one.sample(jax.random.key(0), 10)

    log_density, draws = everything(head(name, WITHIN)(FEATURES).select(1))
    assert float(jnp.exp(log_density).sum()) * 0.05 == pytest.approx(1, abs=1e-3)
    assert bool((draws[:, 1] == 0).all()) and bool((draws[:, 0] != 0).all())


@EACH
def test_by_mechanism_selects_the_right_one_and_shares_weights(name):
    predictive = head(name, WITHIN)(FEATURES)
    chosen = [predictive.select(index) for index in (0, 1)]
    is_shared = lambda node: isinstance(node, Shared)
    shared = [jax.tree.leaves(one, is_leaf=is_shared)[-1] for one in (predictive, *chosen)]
    assert all(is_shared(one) and eqx.tree_equal(one, shared[0]) for one in shared)
    assert not eqx.tree_equal(chosen[0].context, chosen[1].context)
    for index, static in enumerate(chosen):
        assert eqx.tree_equal(eqx.filter_jit(predictive.select)(jnp.asarray(index)), static)
        present = jnp.asarray(WITHIN.present[index])
        target = Target(jnp.where(present, jnp.array([0.4, -0.7]), 0), present, jnp.asarray(index))
        assert float(predictive.score(target)) == pytest.approx(float(static.score(target)))
        if name == "spline_flow":
            score = -float(static.log_prob(target.values))
            assert float(static.score(target)) == pytest.approx(score, rel=1e-5)


@EACH
def test_scoring_a_batch_copies_no_weights(name):
    made, batch, hidden = head(name, WITHIN, hidden=40), 16, 40
    mechanism = jnp.arange(batch) % 2
    targets = Target(jnp.ones((batch, 2)), jnp.asarray(WITHIN.present)[mechanism], mechanism)

    def loss(features):
        return jax.vmap(lambda one, target: made(one).score(target))(features, targets).sum()

    program = jax.make_jaxpr(jax.grad(loss))(jnp.ones((batch, 4)))
    sizes = [np.prod(variable.aval.shape) for line in program.eqns for variable in line.outvars]
    assert max(sizes) < batch * hidden**2


@EACH
def test_gaps_of_a_target_are_never_read(name):
    one = head(name, GAPS)(FEATURES)
    axis = jnp.linspace(-15, 15, 601)
    seen = jnp.array([False, True])

    @jax.jit
    @jax.vmap
    def score(first, second):
        return one.score(Target(jnp.stack([first, second]), seen, INDEX))

    rubbish = jnp.full_like(axis, jnp.nan)
    np.testing.assert_array_equal(score(0 * axis, axis), score(rubbish, axis))
    if name == "spline_flow":
        density = jnp.exp(-score(rubbish, axis))
        assert float(density.sum()) * 0.05 == pytest.approx(1, abs=1e-3)
    draws = jax.jit(lambda: one.sample(jax.random.key(0), 4))()
    assert np.isfinite(draws).all() and bool((draws != 0).all())


@EACH
def test_gradients_are_finite_at_the_extremes(name):
    made = head(name, WITHIN)
    definition, params, constants = nnx.split(made, nnx.Param, ...)
    values = jnp.array([[1e4, -1e4], [0.0, 0.0], [-1e8, 0.0], [1e4, jnp.nan]])
    mechanism = jnp.array([0, 0, 1, 1])
    targets = Target(values, jnp.asarray(WITHIN.present)[mechanism], mechanism)

    @jax.jit
    @jax.grad
    def slope(params):
        made = nnx.merge(definition, params, constants)
        return jax.vmap(lambda target: made(FEATURES).score(target))(targets).mean()

    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slope(params)))


@EACH
def test_flows_give_everything_and_refuse_levels_outside(name):
    one, _, draws = bent(name)
    assert all(name in heads for heads in GIVEN_BY.values())
    with pytest.raises(CannotGive, match="inside"):
        one.quantile([0.0, 0.5])
    # Draws are made in blocks, each with noise of its own.
    assert not np.intersect1d(draws[:256, 0], draws[256:512, 0]).size


@pytest.mark.slow
def test_flow_matching_scores_a_normal_law_by_its_known_risk():
    # The frame is exact at the start and the target follows it: the error that is left is the
    # variance of z - noise given its place, 2 / (1 + (2t - 1)^2), on average over t pi / 2 each.
    one = head("flow_matching", PAIR, moved=False)(FEATURES).select(0)
    values = jax.random.normal(jax.random.key(2), (4000, 2))
    target = lambda values: Target(values, jnp.ones(2, bool), INDEX)

    @jax.jit
    @jax.vmap
    def errors(values):
        return one.score(target(values)) - one.frame.score(target(values))

    found = np.asarray(errors(values))
    assert abs(found.mean() - np.pi) < 4 * found.std() / np.sqrt(found.size)
    np.testing.assert_array_equal(found, errors(values))  # no hidden state
    # Noise belongs to the target: the smallest change brings other noise.
    near = errors(jnp.array([0.4, -0.7]) * (1 + 1e-6 * jnp.arange(200.0))[:, None])
    assert np.unique(near).size == 200 and np.std(near) > 0.5


@pytest.mark.slow
def test_flow_matching_takes_enough_steps(monkeypatch):
    one, log_prob, draws = bent("flow_matching")
    points = jnp.asarray(draws[:200])
    coarse = log_prob(points)
    monkeypatch.setattr(flow_matching, "NUM_STEPS", 4 * flow_matching.NUM_STEPS)
    fine = jax.jit(lambda one, points: jax.vmap(one.log_prob)(points))(one, points)
    np.testing.assert_allclose(coarse, fine, atol=1e-2)


class Flat(sg.simulators.AbstractSimulator):
    """A level."""

    prior = {"level": dist.LogNormal(0.0, 0.5)}  # noqa: RUF012
    ts = np.arange(1.0, 5.0)
    channels = ("level",)

    def simulate(self, key, theta):
        values = theta["level"] + theta.get("slope", 0.0) * jnp.asarray(self.ts, jnp.float32)
        return sg.simulators.Latent(jnp.asarray(self.ts, jnp.float32), values[:, None], None)


class Line(sg.simulators.AbstractSimulator):
    """A level that changes."""

    prior = Flat.prior | {"slope": dist.Uniform(-1.0, 1.0)}
    ts, channels, simulate = Flat.ts, Flat.channels, Flat.simulate


@pytest.mark.slow
@EACH
def test_joint_predictor_of_mechanism_and_parameters(name):
    study = sg.Study(
        sg.simulators.MechanismMixture({"flat": Flat(), "line": Line()}, table_size=2),
        sg.observations.Gaussian(sd=0.5, prior={}),
        sg.Several(sg.Identify(), sg.Estimate()),
    )
    stream = sg.SimulationStream(study, jax.random.key(0), batch_size=16)
    predictor = sg.predictors.for_study(
        study, jax.random.key(1), width=8, depth=1, heads={"parameters": name}
    )
    posterior = sg.train(predictor, stream, 3, interval=3)(np.arange(4.0))
    assert sum(posterior.mechanisms.values()) == pytest.approx(1, rel=1e-5)
    log_prob = jax.jit(lambda theta: posterior.log_prob(theta, "line"))
    theta = {"level": 1.3, "slope": 0.2}
    raw = (
        posterior.blocks["parameters"]
        .select(1)
        .log_prob(jnp.array([np.log(1.3), np.log(1.2 / 0.8)]))
    )
    # du / dtheta: 1 / level, and 2 / ((1 + slope)(1 - slope)).
    assert float(log_prob(theta)) == pytest.approx(
        float(raw) + np.log(1 / 1.3) + np.log(2 / (1.2 * 0.8)), abs=1e-3
    )
    assert set(posterior.sample(jax.random.key(2), 10, "flat")) == {"level"}
    assert float(log_prob(theta | {"slope": 1.1})) == -np.inf


class Folded(sg.simulators.AbstractSimulator):
    """Two levels, |a| and b - a: given them, the posterior has a mode for each sign of a."""

    prior = {"a": dist.Normal(0.0, 1.0), "b": dist.Normal(0.0, 1.0)}  # noqa: RUF012
    ts = np.arange(1.0, 3.0)
    channels = ("level",)

    def simulate(self, key, theta):
        levels = jnp.stack([jnp.abs(theta["a"]), theta["b"] - theta["a"]])
        return sg.simulators.Latent(jnp.asarray(self.ts, jnp.float32), levels[:, None], None)


SD = 0.2


def folded_log_posterior(values, a, b):
    """Exact, but for a sum over a grid of a that has 20 points in a standard deviation."""
    first, second = values[:, :1], values[:, 1:]
    grid = np.linspace(-6, 6, 1201)[None]
    joint = stats.norm.pdf(grid) * stats.norm.pdf(first, np.abs(grid), SD)
    # b is integrated out: b - a + noise has variance 1 + SD^2 given a.
    evidence = (joint * stats.norm.pdf(second, -grid, np.hypot(1, SD))).sum(1) * 0.01
    likelihood = stats.norm.logpdf(first[:, 0], np.abs(a), SD)
    likelihood += stats.norm.logpdf(second[:, 0], b - a, SD)
    return likelihood + stats.norm.logpdf(a) + stats.norm.logpdf(b) - np.log(evidence)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, least, most",
    [("gaussian", 0.3, 2.0), ("spline_flow", 0.0, 0.03), ("flow_matching", 0.0, 0.06)],
)
def test_two_modes_are_found(name, least, most):
    study = sg.Study(Folded(), sg.observations.Gaussian(sd=SD, prior={}), sg.Estimate())
    stream = sg.SimulationStream(study, jax.random.key(0), batch_size=256)
    predictor = sg.predictors.for_study(
        study, jax.random.key(1), width=32, depth=1, heads={"parameters": name}
    )
    optimisation = sg.Optimisation(learning_rate=3e-3, average=0.99)
    predictor = sg.train(predictor, stream, 2000, interval=500, optimisation=optimisation)
    test = stream.held_out().take(4096)

    @jax.jit
    @jax.vmap
    def log_density(example):
        block = predictor.network(example.inputs)[1]["parameters"]
        return block.select(0).log_prob(example.targets["parameters"].values)

    a, b = (np.asarray(test.theta[name], np.float64) for name in ("a", "b"))
    exact = folded_log_posterior(np.asarray(test.observed.values[..., 0], np.float64), a, b)
    excess = exact - np.asarray(log_density(test.example), np.float64)
    # The mean is a Kullback-Leibler divergence: below 0 by chance alone.
    error = excess.std() / np.sqrt(excess.size)
    assert least - 4 * error < excess.mean() < most
