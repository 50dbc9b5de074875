"""Encoders and networks: masks, gradients, and training that ends at the known Bayes answer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import stats

from sgjax.losses import masked_mean
from sgjax.predictors import ByMechanism, Categorical, Gaussian, Point, Quantiles, build_network
from sgjax.predictors.encoders import pool
from sgjax.predictors.network import ENCODERS
from sgjax.predictors.quantile import LEVELS
from sgjax.tasks import Example, Inputs, Target, TargetSpec

PRESENT = np.array([[True, False], [True, True]])
SPECS = {
    "mechanism": TargetSpec("mechanism", ("m", "n"), np.ones((2, 2), bool)),
    "joint": TargetSpec("parameters", ("a", "b"), PRESENT, by_mechanism=True),
    "point": TargetSpec("parameters", ("a", "b"), PRESENT, by_mechanism=True),
    "quantile": TargetSpec("parameters", ("a", "b"), PRESENT, by_mechanism=True),
}
HEADS = {"point": "point", "quantile": "quantile"}
NOISE = 1.0
DESIGN = np.random.default_rng(0).normal(size=(2, 4, 2)) * PRESENT[:, None]
"""Series = DESIGN[mechanism] @ theta + noise: posterior and evidence are normal and known."""


def simulate(key):
    """One example of the linear-Gaussian world."""
    normal = jax.random.normal(key, (7,))
    mechanism = (normal[0] < stats.norm.ppf(0.4)).astype(int)
    mask = jnp.asarray(PRESENT)[mechanism]
    theta = jnp.where(mask, 3.0 + 2.0 * normal[1:3], 0)
    signal = jnp.asarray(DESIGN, jnp.float32)[mechanism] @ theta
    values = (signal + NOISE * normal[3:])[:, None]
    inputs = Inputs(jnp.arange(4.0), values, jnp.ones((4, 1), bool), jnp.zeros(0))
    label = Target(jax.nn.one_hot(mechanism, 2), jnp.ones(2, bool), mechanism)
    answer = Target(theta, mask, mechanism)
    return Example(inputs, {"mechanism": label} | dict.fromkeys(list(SPECS)[1:], answer))


batch_of = jax.jit(jax.vmap(simulate))


def bayes(inputs):
    """The exact answer, as predictive distributions."""
    values, locations, factors, evidence = inputs.values[:, 0], [], [], []
    for design, present, share in zip(DESIGN, PRESENT, (0.6, 0.4), strict=True):
        covariance = NOISE**2 * np.eye(4) + 4.0 * design @ design.T
        mean = design @ np.full(2, 3.0)
        residual = values - mean
        gain = jnp.asarray(4.0 * design.T @ np.linalg.inv(covariance))
        locations.append(jnp.where(present, 3.0 + gain @ residual, 0))
        precision = design.T @ design / NOISE**2 + np.eye(2) / 4.0
        factors.append(np.linalg.cholesky(precision))
        log_determinant = np.linalg.slogdet(covariance)[1]
        quadratic = residual @ jnp.asarray(np.linalg.inv(covariance)) @ residual
        evidence.append(np.log(share) - 0.5 * (log_determinant + quadratic))
    location, factor = jnp.stack(locations), jnp.asarray(np.stack(factors))
    joint = Gaussian(location, factor, jnp.asarray(PRESENT))
    sd = jax.vmap(Gaussian.sd)(joint)
    quantiles = location[..., None] + sd[..., None] * jnp.asarray(stats.norm.ppf(LEVELS))
    scale = jnp.full((2, 2), 2.0)
    return {
        "mechanism": Categorical(jnp.stack(evidence)),
        "joint": ByMechanism(joint),
        "point": ByMechanism(Point(location, scale)),
        "quantile": ByMechanism(Quantiles(quantiles, scale)),
    }


def scores(predict, example):
    """The score of each block; point and quantile blocks in units of the prior's 2."""
    predictives = predict(example.inputs)
    return {block: predictives[block].score(example.targets[block]) for block in SPECS}


@functools.cache
def pilot(num=2000):
    return batch_of(jax.random.split(jax.random.key(1), num))


def build(**options):
    sample = pilot()
    options = {"width": 32, "depth": 1, "heads": HEADS, "rngs": nnx.Rngs(0)} | options
    return build_network(SPECS, sample.inputs, sample.targets, **options)


def train(network, num_steps=1200, batch_size=256):
    definition, params, constants = nnx.split(network, nnx.Param, ...)
    optimiser = optax.adam(optax.cosine_decay_schedule(5e-3, num_steps))

    def loss(params, batch):
        network = nnx.merge(definition, params, constants)
        found = jax.vmap(lambda example: scores(lambda x: network(x)[1], example))(batch)
        means = jax.tree.map(jnp.mean, found)
        return sum(means.values()), means

    def step(carry, key):
        params, state = carry
        batch = jax.vmap(simulate)(jax.random.split(key, batch_size))
        slope, means = jax.grad(loss, has_aux=True)(params, batch)
        updates, state = optimiser.update(slope, state)
        return (optax.apply_updates(params, updates), state), means

    keys = jax.random.split(jax.random.key(2), num_steps)
    (params, _), history = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))(
        (params, optimiser.init(params))
    )
    return nnx.merge(definition, params, constants), history


def risks(predict, batch):
    """The mean score of each block."""
    mean = lambda batch: jax.tree.map(
        jnp.mean, jax.vmap(lambda example: scores(predict, example))(batch)
    )
    return jax.device_get(jax.jit(mean)(batch))


@pytest.mark.slow
def test_every_head_trains_to_the_bayes_answer():
    network, history = train(build())
    test = batch_of(jax.random.split(jax.random.key(3), 20_000))
    found, best = risks(lambda inputs: network(inputs)[1], test), risks(bayes, test)
    for block in ("mechanism", "joint"):  # nats
        assert history[block][0] - best[block] > 0.5
        assert -0.01 < found[block] - best[block] < 0.015
    for block in ("point", "quantile"):  # shares of the Bayes risk
        assert history[block][0] / best[block] > 2
        assert 0.99 < found[block] / best[block] < 1.06


def example_inputs(times=40, shown=25):
    """One irregular series of two channels with gaps, over after `shown` of `times`."""
    rng = np.random.default_rng(0)
    mask = rng.random((times, 2)) < 0.7
    mask[shown:] = False
    values = jnp.asarray(np.where(mask, rng.poisson(100, (times, 2)), 0), jnp.float32)
    return Inputs(
        jnp.arange(times) * 1.0, values, jnp.asarray(mask), jnp.asarray(rng.normal(size=3))
    )


@functools.cache
def built(name):
    """A network of each encoder, with random head weights, and its compiled call."""
    one = example_inputs()
    rng = np.random.default_rng(1)
    sample = Inputs(
        jnp.broadcast_to(one.ts, (50, 40)),
        jnp.asarray(rng.poisson(rng.gamma(1, 100, (50, 40, 2))), jnp.float32),
        jnp.asarray(rng.random((50, 40, 2)) < 0.9),
        jnp.asarray(rng.normal(size=(50, 3)), jnp.float32),
    )
    mechanism = jnp.arange(50) % 2
    target = Target(
        jnp.asarray(rng.normal(size=(50, 2))), jnp.asarray(PRESENT)[mechanism], mechanism
    )
    specs = {"joint": SPECS["joint"]}
    network = build_network(
        specs, sample, {"joint": target}, encoder=name, width=32, depth=2, rngs=nnx.Rngs(0)
    )
    return network, jax.jit(lambda inputs: network(inputs)[0])


@pytest.mark.parametrize("name", list(ENCODERS))
def test_what_lies_under_a_mask_is_never_read(name):
    _, features = built(name)
    one = example_inputs()
    found = features(one)
    assert float(jnp.std(found)) > 0.1
    rubbish = jnp.where(one.mask, one.values, jnp.nan)
    np.testing.assert_array_equal(features(Inputs(one.ts, rubbish, one.mask, one.known)), found)
    changed = [
        Inputs(one.ts, one.values + 10, one.mask, one.known),
        Inputs(one.ts, one.values, one.mask, one.known + 1),
        Inputs(one.ts, one.values, jnp.roll(one.mask, 1, axis=0), one.known),
    ]
    for other in changed:
        assert float(jnp.abs(features(other) - found).max()) > 1e-3


@pytest.mark.parametrize("name", ["convolution", "transformer"])
def test_padding_is_not_read(name):
    _, features = built(name)
    long = example_inputs()
    short = Inputs(long.ts[:25], long.values[:25], long.mask[:25], long.known)
    np.testing.assert_allclose(features(short), features(long), atol=1e-5)
    other_times = Inputs(long.ts.at[25:].set(1e3), long.values, long.mask, long.known)
    np.testing.assert_array_equal(features(other_times), features(long))
    earlier = Inputs(long.ts.at[:25].add(-0.5), long.values, long.mask, long.known)
    assert float(jnp.abs(features(earlier) - features(long)).max()) > 1e-3


def test_pool():
    x = jnp.array([[9.0], [1.0], [5.0], [-2.0], [9.0]])
    used = jnp.array([False, True, True, True, False])
    np.testing.assert_allclose(pool(x, used), [4 / 3, 5.0, -2.0], rtol=1e-6)
    np.testing.assert_allclose(pool(x, ~used | used), [4.4, 9.0, 9.0], rtol=1e-6)
    np.testing.assert_array_equal(pool(x, used & ~used), [0.0, 0.0, 0.0])


@pytest.mark.parametrize("name", list(ENCODERS))
def test_gradients_are_finite_at_the_extremes(name):
    network, _ = built(name)
    definition, params, constants = nnx.split(network, nnx.Param, ...)
    one = example_inputs()
    none = jnp.zeros_like(one.mask)
    batch = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        Inputs(one.ts, one.values, none, one.known),
        Inputs(one.ts, 1e6 * one.values, one.mask, one.known),
        Inputs(one.ts, jnp.full_like(one.values, -1e30), ~none, one.known),
        Inputs(one.ts, jnp.zeros_like(one.values), ~none, 1e6 * one.known),
    )
    target = Target(jnp.array([1e4, -1e4]), jnp.ones(2, bool), jnp.asarray(1))

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        network = nnx.merge(definition, params, constants)
        return masked_mean(jax.vmap(lambda one: network(one)[1]["joint"].score(target))(batch))

    # A step away from zero, so that the gradient reaches the encoder.
    slopes = loss(jax.tree.map(lambda leaf: leaf + 0.01, params))[1]
    assert all(bool(jnp.isfinite(slope).all()) for slope in jax.tree.leaves(slopes))
    assert all(bool((slope != 0).any()) for slope in jax.tree.leaves(slopes["encoder"]))


def test_default_network():
    network = build_network(SPECS, pilot().inputs, pilot().targets, rngs=nnx.Rngs(0))
    definition, params, constants = nnx.split(network, nnx.Param, ...)
    hash(definition)  # usable as a static argument
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert set(params) == {"encoder", "heads"}
    assert set(constants) == {"scaling", "heads"}
    features, predictives = jax.eval_shape(network, jax.tree.map(lambda x: x[0], pilot().inputs))
    assert features.shape == (256,)
    kinds = {block: type(predictives[block].inner) for block in ("joint", "point", "quantile")}
    assert kinds == dict.fromkeys(kinds, Gaussian)
    assert isinstance(predictives["mechanism"], Categorical)
