"""Scaling measured from simulations: order one for all that is usual, bounded for what is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sgjax.predictors.network import build_network, measure_units
from sgjax.predictors.scaling import InputScaling, measure_inputs, measure_targets
from sgjax.tasks import Inputs, Target, TargetSpec

ANYWHERE = TargetSpec("quantities", ("a", "b"), np.ones((2, 2), bool))
BY_MECHANISM = TargetSpec(
    "parameters", ("a", "b"), np.array([[True, True], [True, False]]), by_mechanism=True
)


def series(values, mask=None, known=None, ts=None):
    """Batched inputs of one channel."""
    values = np.asarray(values, np.float32)[..., None]
    batch, times, _ = values.shape
    mask = np.ones(values.shape, bool) if mask is None else np.asarray(mask, bool)[..., None]
    known = np.zeros((batch, 0)) if known is None else known
    ts = np.arange(times) if ts is None else ts
    return Inputs(
        jnp.broadcast_to(jnp.asarray(ts, jnp.float32), (batch, times)),
        jnp.asarray(np.where(mask, values, 0)),
        jnp.asarray(mask),
        jnp.asarray(known, jnp.float32),
    )


def scaled(inputs, like=None, valid=None, per_time=False):
    scaling = InputScaling(measure_inputs(like or inputs, valid, per_time=per_time))
    return jax.jit(jax.vmap(scaling))(inputs)


@functools.cache
def counts():
    rng = np.random.default_rng(0)
    return rng.poisson(rng.gamma(0.5, 1e4, (500, 1)) * np.linspace(0.1, 1, 12))


@pytest.mark.parametrize("per_time", [False, True])
def test_views_are_of_order_one(per_time):
    views = scaled(series(counts()), per_time=per_time).views
    axis = 0 if per_time else (0, 1)
    np.testing.assert_allclose(views.mean(axis), 0, atol=1e-2)
    np.testing.assert_allclose(views.std(axis), 1, atol=1e-2)
    # The second view resolves large values, the first small ones.
    probe = scaled(series([[1, 10, 1e4, 2e4]]), like=series(counts())).views[0]
    small, large = probe[1] - probe[0], probe[3] - probe[2]
    assert small[0] > 5 * small[1] and large[1] > large[0]


def test_scaling_withstands_outliers_invalid_and_missing_values():
    clean = scaled(series(counts())).views
    dirty = counts().astype(float)
    dirty[:5] = 1e12  # one in a hundred
    found = scaled(series(dirty))
    assert float(jnp.abs(found.views).max()) <= 10
    np.testing.assert_allclose(found.views[5:].std((0, 1)), 1, atol=0.2)
    np.testing.assert_allclose(found.views[5:], clean[5:], rtol=0.25, atol=0.25)
    valid = np.arange(500) >= 5
    valid_only = scaled(series(counts()[5:]), like=series(dirty), valid=valid).views
    np.testing.assert_allclose(valid_only, scaled(series(counts()[5:])).views, rtol=1e-5)
    mask = np.ones(dirty.shape, bool)
    mask[:5] = False
    views = scaled(series(dirty, mask)).views
    np.testing.assert_allclose(views[5:], valid_only, rtol=1e-4, atol=1e-4)
    assert bool((views[:5] == 0).all())


def test_scaling_of_constants_signs_times_and_known():
    signed = np.random.default_rng(1).normal(size=(300, 4))
    one = series(signed, known=np.tile([1e6, 2.0], (300, 1)), ts=[3.0, 4.0, 6.0, 11.0])
    out = scaled(one)
    np.testing.assert_allclose(out.times[0], [-1, -0.75, -0.25, 1])
    np.testing.assert_allclose(out.known, 0)
    assert bool((jnp.sign(out.views[..., 1]) == jnp.sign(one.values[..., 0])).mean() > 0.95)
    np.testing.assert_allclose(scaled(series(np.full((5, 3), 7.0))).views, 0, atol=1e-5)
    nothing = scaled(series(np.ones((5, 3)), mask=np.zeros((5, 3))))
    assert bool((nothing.views == 0).all())
    with pytest.raises(ValueError, match="No valid simulation"):
        measure_inputs(one, np.zeros(300, bool))


def test_target_units_are_measured_where_targets_exist():
    values = np.array([[1e-8, 1.0, 5.0], [3e-8, 9.0, 5.0], [np.inf, 3.0, 5.0]])
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
    shift, scale = measure_targets(values, mask)
    np.testing.assert_allclose(shift, [2e-8, 2.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(scale, [1e-8, 1.0, 1.0], rtol=1e-2)
    heavy = np.append(np.linspace(-1, 1, 5000), 1e12)[:, None]
    assert 0.5 < measure_targets(heavy, np.ones_like(heavy, bool))[1][0] < 0.7
    rng = np.random.default_rng(0)
    mechanism = np.repeat([0, 1], 50)
    drawn = rng.normal(np.where(mechanism, 100.0, 0.0)[:, None], 1.0, (100, 2))
    targets = Target(
        jnp.asarray(drawn), jnp.asarray(BY_MECHANISM.present[mechanism]), jnp.asarray(mechanism)
    )
    found = measure_units(BY_MECHANISM, targets, valid=np.ones(100, bool))
    expected = [drawn[:50].mean(0), [drawn[50:, 0].mean(), 0.0]]
    np.testing.assert_allclose(found.shift[...], expected, atol=0.01)
    assert float(found.scale[...].max()) < 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": {"other": "point"}}, r"\['other'\]; the task has the blocks \['a'\]"),
        ({"heads": {"a": "flow?"}}, r"no head 'flow\?'; choose one of \['point'"),
        ({"encoder": "lstm"}, "no encoder 'lstm'; choose one of"),
        ({}, "times differ between simulations"),
    ],
)
def test_build_network_says_what_is_wrong(options, message):
    inputs = series(np.ones((2, 3)), ts=np.array([[0, 1, 2], [0, 1, 3]]))
    targets = Target(jnp.ones((2, 2)), jnp.ones((2, 2), bool), jnp.zeros(2, int))
    with pytest.raises(ValueError, match=message):
        build_network({"a": ANYWHERE}, inputs, {"a": targets}, rngs=nnx.Rngs(0), **options)
