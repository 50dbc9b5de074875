"""The stream: the same simulations whatever the batch, the device or the session."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import Constant

import sgjax as sg
from sgjax.stream import _multiply, _permute, batches_ahead


@pytest.fixture(scope="module")
def batch(outbreak):
    stream = sg.SimulationStream(outbreak, jax.random.key(3), batch_size=64)
    return stream, jax.jit(lambda step: stream.batch(step))


def test_batches_differ_and_repeat(batch):
    _, make = batch
    first, again, second = make(0), make(0), make(1)
    chex.assert_trees_all_equal(first, again)
    assert not np.array_equal(first.observed.values, second.observed.values)
    assert first.valid.all()


def test_four_devices_draw_what_one_does(batch, outbreak):
    stream, make = batch
    mesh = sg.devices.make_mesh(jax.devices()[:4])
    shared = sg.SimulationStream(outbreak, stream.key, 64, mesh)
    compiled = jax.jit(lambda step: shared.batch(step)).lower(jnp.asarray(5)).compile()
    chex.assert_trees_all_equal(compiled(jnp.asarray(5)), make(jnp.asarray(5)))
    text = compiled.as_text()
    # Each device makes its own share: nothing is exchanged, nothing asks the host.
    for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "callback"):
        assert word not in text, word


def test_redrawn_simulation_is_the_original(batch):
    stream, make = batch
    made = make(2)
    head = jax.tree.map(lambda leaf: leaf[:4], made)
    places = np.array([63, 0, 17, 5])
    ids = np.asarray(stream.ids(2))[places]
    again = stream.simulate(ids)
    chex.assert_trees_all_equal(again, jax.tree.map(lambda leaf: leaf[places], made))
    chex.assert_trees_all_equal(stream.take(4, start=128), head)


def test_parameters_are_those_of_the_simulation(batch):
    stream, make = batch
    made = make(1)
    theta, mechanism = stream.parameters(np.asarray(stream.ids(1))[::-1])
    chex.assert_trees_all_equal(theta, jax.tree.map(lambda leaf: leaf[::-1], made.theta))
    np.testing.assert_array_equal(mechanism, made.mechanism[::-1])


def test_mechanism_is_a_function_of_the_number(batch, outbreak):
    stream, make = batch
    made = make(7)
    table = outbreak.simulator.mechanism_table
    low = np.asarray(stream.ids(7))[:, 1]
    np.testing.assert_array_equal(made.mechanism, table[low % table.size])
    shares = outbreak.mechanism_probabilities
    assert shares == {"SIR": 0.75, "SEIR": 0.25}
    assert np.mean(np.asarray(made.mechanism) == 0) == 0.75
    # A mechanism without a parameter has 0 there, and its target is masked.
    lacking = np.asarray(made.mechanism) == 0
    assert np.all(np.asarray(made.theta["sigma"])[lacking] == 0)
    spec = outbreak.specs["parameters"]
    column = spec.names.index("sigma")
    mask = np.asarray(made.example.targets["parameters"].mask)[:, column]
    np.testing.assert_array_equal(mask, ~lacking)


def test_held_out_is_another_world(batch):
    stream, make = batch
    held_out = stream.held_out().take(64)
    assert not np.intersect1d(held_out.theta["beta"], make(0).theta["beta"]).size


def test_numbers_pass_32_bits(outbreak):
    stream = sg.SimulationStream(outbreak, jax.random.key(0), batch_size=2**16)
    step = 2**17 + 3  # simulation 2^33 + 3 * 2^16
    ids = np.asarray(jax.jit(lambda step: stream.ids(step))(jnp.asarray(step)), np.uint64)
    numbers = (ids[:, 0] << np.uint64(32)) + ids[:, 1]
    np.testing.assert_array_equal(numbers, np.arange(2**16, dtype=np.uint64) + step * 2**16)


def test_the_simulation_beyond_32_bits_is_drawn_right(batch):
    stream, make = batch
    first = 2**33
    ids = np.asarray(stream.ids(first // 64))
    np.testing.assert_array_equal(ids, [[2, place] for place in range(64)])
    made = make(first // 64)
    chex.assert_trees_all_equal(stream.take(4, start=first), jax.tree.map(lambda x: x[:4], made))
    # Its twins have the same low word; the high one sets them apart.
    for twin in (0, 2**26):
        assert not np.intersect1d(made.theta["beta"], make(twin).theta["beta"]).size


@pytest.mark.parametrize("a", [0, 1, 65535, 65536, 2**31 + 12345, 2**32 - 1])
@pytest.mark.parametrize("b", [1, 64, 65537, 1_000_003, 2**20])
def test_64_bit_product(a, b):
    high, low = _multiply(jnp.uint32(a), b)
    assert (int(high) << 32) + int(low) == a * b


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_permutation_is_one(size):
    places = _permute(jax.random.key(1), jnp.arange(size, dtype=jnp.uint32), size)
    np.testing.assert_array_equal(np.sort(places), np.arange(size))
    if size >= 64:
        other = _permute(jax.random.key(2), jnp.arange(size, dtype=jnp.uint32), size)
        assert np.mean(np.asarray(other) == np.asarray(places)) < 0.1
        # Shuffled, not shifted: neighbours do not stay neighbours.
        assert np.mean(np.abs(np.diff(np.asarray(places, int))) == 1) < 0.1


def test_finite_world_is_the_same_simulations_each_epoch():
    levels = {"low": Constant(), "high": Constant()}
    study = sg.Study(
        sg.simulators.MechanismMixture(levels, probabilities=(0.75, 0.25), table_size=4),
        sg.observations.Gaussian(sd=1.0, prior={}),
        sg.Estimate(),
    )
    stream = sg.SimulationStream(study, jax.random.key(3), 64, num_simulations=256)
    ids = jax.jit(lambda step: stream.ids(step))
    epochs = [
        np.concatenate([np.asarray(ids(step))[:, 1] for step in range(4 * e, 4 * e + 4)])
        for e in range(2)
    ]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(256))
    assert np.mean(epochs[0] == epochs[1]) < 0.2
    endless = sg.SimulationStream(study, jax.random.key(3), 64)
    drawn = jax.jit(lambda: stream.batch(1))()
    chex.assert_trees_all_equal(drawn, endless.simulate(np.asarray(ids(1))))


def test_wrong_sizes_are_refused(outbreak):
    with pytest.raises(ValueError, match="multiple of 4"):
        sg.SimulationStream(outbreak, jax.random.key(0), 6)
    with pytest.raises(ValueError, match="num_simulations"):
        sg.SimulationStream(outbreak, jax.random.key(0), 64, num_simulations=100)


@pytest.mark.slow
def test_several_batches_at_once_are_the_same(batch, outbreak):
    stream, make = batch
    together = jax.jit(lambda step: stream.batches(step, 3))(4)
    apart = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(make(step) for step in (4, 5, 6)))
    chex.assert_trees_all_equal(together, apart)
    mesh = sg.devices.make_mesh(jax.devices()[:4])
    shared = sg.SimulationStream(outbreak, stream.key, 64, mesh)
    chex.assert_trees_all_equal(jax.jit(lambda step: shared.batches(step, 3))(4), apart)


def test_small_batches_are_made_ahead(outbreak):
    of = lambda size: batches_ahead(sg.SimulationStream(outbreak, jax.random.key(0), size))
    assert of(64) == 64 and of(1024) == 4 and of(2**14) == 2
