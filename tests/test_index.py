"""The index: the stream's simulations once more, found, kept, added to, and never mixed up."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sgjax as sg
from sgjax.attribution import Search, memory
from sgjax.attribution.blocks import as_words, merge_found
from sgjax.attribution.index import Part
from sgjax.attribution.nearest import Rows
from sgjax.attribution.space import measure
from sgjax.checkpoint import locked

SIZE = 700  # of batches of 128, the last not whole


@pytest.fixture(scope="module")
def world(growth):
    stream = sg.SimulationStream(growth, jax.random.key(0), batch_size=128)
    predictor = sg.predictors.for_study(growth, jax.random.key(1), width=16, depth=1)
    return predictor, stream


@pytest.fixture(scope="module")
def index(world):
    return sg.SimulationIndex.build(*world, SIZE)


@pytest.fixture(scope="module")
def queries(world):
    return Search(*world, SIZE).held_out(5)


def numbers(found):
    words = np.asarray(found.ids, np.uint64)
    return (words[..., 0] << np.uint64(32)) + words[..., 1]


REASSOCIATED = 1e-6  # relative: sums of squares in another order


def same(found, other, rtol=0):
    np.testing.assert_array_equal(found.ids, other.ids)
    np.testing.assert_allclose(found.distances, other.distances, rtol=rtol)


def drawn(blocks, ids):
    return blocks.drawn_again(as_words(np.asarray(ids, np.uint64)))


@pytest.mark.parametrize(
    ("space", "scaling"),
    [("features", "sd"), ("features", "whitened"), ("predictive", "sd"), ("inputs", "sd")],
)
def test_every_space_is_searched_exactly(world, space, scaling):
    search = Search(*world, SIZE, space, scaling)
    asked = search.held_out(3)
    found = search.nearest(asked, 7)
    points = np.asarray(search.space.points(jnp.asarray(drawn(search.blocks, range(SIZE)))))
    gaps = np.asarray(search.space.points(asked), np.float64)[:, None] - points[None]
    distances = np.linalg.norm(gaps, axis=-1)
    np.testing.assert_array_equal(numbers(found), np.argsort(distances, axis=1)[:, :7])
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :7], rtol=1e-4)


def test_scales_are_what_they_are_said_to_be():
    generator = np.random.default_rng(0)
    mixed = generator.standard_normal((500, 4)) @ generator.standard_normal((4, 4)) + 3
    # Beside them a coordinate twice, and one that never varies.
    raw = np.column_stack([mixed, mixed[:, 0], np.ones(500)]).astype(np.float32)
    valid = np.arange(500) % 5 > 0
    broken = np.where(valid[:, None], raw, np.nan)
    by_sd = np.asarray(measure("inputs", "sd", broken, valid).points(jnp.asarray(raw)))[valid]
    np.testing.assert_allclose(by_sd.std(axis=0), [1, 1, 1, 1, 1, 0], atol=1e-5)
    whitened = measure("inputs", "whitened", broken, valid)
    points = np.asarray(whitened.points(jnp.asarray(raw)), np.float64)[valid]
    covariance = points.T @ points / valid.sum()
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-4)
    # Four directions vary, by 1 less the ridge; the others stay small.
    np.testing.assert_allclose(np.sort(np.diag(covariance))[2:], 1, atol=0.05)
    np.testing.assert_allclose(np.sort(np.diag(covariance))[:2], 0, atol=1e-4)


def test_the_index_says_what_the_stream_says(world, index, queries):
    same(index.search(queries, 9), Search(*world, SIZE).nearest(queries, 9))
    assert len(index) == SIZE
    assert index.recall(queries, 9) == 1


def test_a_simulation_is_its_own_nearest_at_exactly_0(index):
    ids = np.array([0, 3, 127, 128, 500, SIZE - 1])
    # Drawn again from their numbers, in another program and another batch.
    found = index.search(drawn(index._blocks, ids), 2)
    np.testing.assert_array_equal(numbers(found)[:, 0], ids)
    np.testing.assert_array_equal(found.distances[:, 0], 0)
    assert np.all(np.asarray(found.distances[:, 1]) > 0)


def test_drawn_again_is_the_original_to_the_bit(index):
    raw, valid = index._blocks.raw(0, index._blocks.together)
    raw = np.asarray(raw).reshape(-1, index.space.size)
    ids = np.array([5, 640, 129])
    assert np.asarray(valid).ravel()[ids].all()
    np.testing.assert_array_equal(drawn(index._blocks, ids), raw[ids])


def test_added_is_built_in_one(world, index, queries):
    grown = sg.SimulationIndex.build(*world, 300)
    grown.add(5)
    grown.add(SIZE - 305)
    same(grown.search(queries, 20), index.search(queries, 20))


@pytest.mark.slow
def test_four_devices_find_what_one_does(world, index, queries, tmp_path):
    predictor, stream = world
    mesh = sg.devices.make_mesh(jax.devices()[:4])
    shared = sg.SimulationStream(stream.study, stream.key, 128, mesh)
    spread = sg.SimulationIndex.build(predictor, shared, SIZE)
    # A device's blocks are smaller than one device's, and sums in another order round otherwise.
    alone = index.search(queries, 9)
    same(spread.search(queries, 9), alone, REASSOCIATED)
    same(Search(predictor, shared, SIZE).nearest(queries, 9), alone, REASSOCIATED)
    # Kept by four, read by one and the other way round.
    spread.save(tmp_path / "four")
    same(sg.SimulationIndex.load(tmp_path / "four", *world).search(queries, 9), alone, REASSOCIATED)
    index.save(tmp_path / "one")
    again = sg.SimulationIndex.load(tmp_path / "one", predictor, shared)
    same(again.search(queries, 9), alone, REASSOCIATED)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_low_precision_states_its_recall(world, index, queries, dtype, tmp_path):
    rough = sg.SimulationIndex.build(*world, SIZE, dtype=dtype)
    found, truth = numbers(rough.search(queries, 20)), numbers(index.search(queries, 20))
    share = np.mean([np.isin(a, b).mean() for a, b in zip(found, truth, strict=True)])
    assert rough.recall(queries, 20) == pytest.approx(share)
    assert 0.7 < share <= 1
    # Ranked again in full precision, those found have their true distances.
    ranked = rough.search(queries, 20, rerank=True)
    assert rough.recall(queries, 20, rerank=True) == 1
    np.testing.assert_allclose(ranked.distances, index.search(queries, 20).distances, rtol=1e-5)
    rough.save(tmp_path / "kept")
    same(
        sg.SimulationIndex.load(tmp_path / "kept", *world).search(queries, 20),
        rough.search(queries, 20),
    )


def test_attribute_takes_an_index(world, index):
    predictor, stream = world
    real = np.asarray(stream.held_out().take(1).observed.values[0])
    by_index = sg.attribute(predictor, index, real, k=6)
    by_stream = sg.attribute(predictor, stream, real, k=6, num_simulations=SIZE)
    assert by_index.ids == by_stream.ids
    np.testing.assert_array_equal(by_index.values, by_stream.values)
    other = sg.predictors.for_study(stream.study, jax.random.key(5), width=16, depth=1)
    with pytest.raises(ValueError, match=r"another predictor.*sd apart"):
        sg.attribute(other, index, real, k=6)


def test_it_grows_after_it_is_read(world, index, queries, tmp_path):
    sg.SimulationIndex.build(*world, 300).save(tmp_path / "kept")
    again = sg.SimulationIndex.load(tmp_path / "kept", *world)
    again.add(SIZE - 300)
    same(again.search(queries, 9), index.search(queries, 9))


def test_what_a_killed_process_left_is_removed_when_nobody_holds_it(index, tmp_path):
    dead, alive = tmp_path / ".kept-partial-dead", tmp_path / ".kept-partial-alive"
    for left in (dead, alive):
        left.mkdir()
        (left / "values.npy").write_bytes(b"half")
    with locked(alive):
        index.save(tmp_path / "kept")
    assert {path.name for path in tmp_path.iterdir()} == {"kept", alive.name}
    files = {path.name for path in (tmp_path / "kept").iterdir()}
    assert files == {"description.json", "space.npz", "squares.npy", "values.npy"}


def test_what_belongs_to_something_else_is_refused(world, index, growth, tmp_path):
    predictor, stream = world
    index.save(tmp_path / "kept")
    with pytest.raises(ValueError, match="exists already"):
        index.save(tmp_path / "kept")
    load = lambda predictor, stream: sg.SimulationIndex.load(tmp_path / "kept", predictor, stream)
    with pytest.raises(ValueError, match="another key"):
        load(predictor, sg.SimulationStream(growth, jax.random.key(9), 128))
    louder = sg.Study(
        growth.simulator, sg.observations.Gaussian(sd=0.1, prior={}), growth.task, name="growth"
    )
    with pytest.raises(ValueError, match="another study"):
        load(predictor, sg.SimulationStream(louder, stream.key, 128))
    others = [
        sg.predictors.for_study(growth, jax.random.key(5), width=size, depth=1) for size in (16, 8)
    ]
    with pytest.raises(ValueError, match=r"another predictor.*sd apart"):
        load(others[0], stream)
    with pytest.raises(ValueError, match="8 coordinates instead of 16"):
        load(others[1], stream)
    path = tmp_path / "kept" / "description.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"format": 0}))
    with pytest.raises(ValueError, match="format 0"):
        load(predictor, stream)


def test_half_an_index_is_never_read(world, index, tmp_path, monkeypatch):
    def stop(self, places):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Part, "numbers", stop)
        with pytest.raises(KeyboardInterrupt):
            index.save(tmp_path / "kept")
    assert not list(tmp_path.iterdir())
    index.save(tmp_path / "kept")
    (tmp_path / "kept" / "description.json").unlink()
    with pytest.raises(ValueError, match="no complete index"):
        sg.SimulationIndex.load(tmp_path / "kept", *world)
    with pytest.raises(ValueError, match="no complete index"):
        sg.SimulationIndex.load(tmp_path / "nowhere", *world)


def test_interrupted_it_is_as_before(world, queries):
    index = sg.SimulationIndex.build(*world, 300)
    before = index.search(queries, 5)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.add(200, progress=stop)
    assert len(index) == 300
    same(index.search(queries, 5), before)


def test_the_progress_is_told(world, queries):
    heard = []
    Search(*world, SIZE).nearest(queries, 3, progress=lambda *told: heard.append(told))
    assert heard[-1] == (SIZE, SIZE)


def test_what_does_not_fit_is_refused_before_it_is_made(world, index, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 30_000)
    with pytest.raises(ValueError, match=r"needs .* GiB .* at most 397 simulations.*'int8'"):
        sg.SimulationIndex.build(*world, 1000)


def test_numbers_pass_32_bits():
    none = jnp.zeros(0)
    part = Part(Rows(none, none, none), 0, 2**40, 2**33, 2**20, 2**18)
    places = np.array([[0, 2**18 + 7], [5, 2**19 + 1]])
    expected = [[2**33, 2**33 + 2**20 + 7], [2**33 + 2**18 + 5, 2**33 + 2**21 + 2**18 + 1]]
    np.testing.assert_array_equal(part.numbers(places), np.array(expected, np.uint64))
    words = as_words(part.numbers(places))
    assert words.tolist()[0][1] == [2, 2**20 + 7]


def test_of_equal_distances_the_lowest_number_wins():
    distances = np.array([[1.0, 1.0, 0.5, np.inf]])
    found = merge_found(distances, np.array([[9, 2, 7, 0]], np.uint64), 3)
    np.testing.assert_array_equal(found[1], [[7, 2, 9]])


class HalfBroken(sg.simulators.AbstractSimulator):
    """A level that never changes, and is finite only where it is below 0."""

    prior = {"level": dist.Normal(0.0, 1.0)}  # noqa: RUF012
    ts = np.arange(1.0, 9.0)
    channels = ("level",)

    def simulate(self, key, theta):
        values = jnp.where(theta["level"] < 0, theta["level"], jnp.nan)
        values = jnp.broadcast_to(values, (8, 1))
        return sg.simulators.Latent(jnp.asarray(self.ts, jnp.float32), values, None)


@pytest.mark.slow
def test_invalid_simulations_never_enter():
    noise = sg.observations.Gaussian(sd=0.1, prior={})
    study = sg.Study(HalfBroken(), noise, sg.Estimate())
    stream = sg.SimulationStream(study, jax.random.key(0), 128)
    predictor = sg.predictors.for_study(study, jax.random.key(1), width=8, depth=1)
    valid = np.asarray(stream.take(256).valid)
    assert 80 < valid.sum() < 176
    index = sg.SimulationIndex.build(predictor, stream, 256)
    queries = index._blocks.held_out(2)
    for search in (index.search, Search(predictor, stream, 256).nearest):
        assert valid[numbers(search(queries, 60)).astype(int)].all()
        with pytest.raises(ValueError, match=f"only {valid.sum()} of the 256"):
            search(queries, 200)
    with pytest.raises(ValueError, match="None of the first simulations is finite"):
        measure("features", "sd", np.zeros((4, 2), np.float32), np.zeros(4, bool))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_queries_must_be_numbers(world, index, queries, value):
    for search in (index.search, Search(*world, SIZE).nearest):
        with pytest.raises(ValueError, match="not finite"):
            search(queries.at[1, 2].set(value), 3)
        with pytest.raises(ValueError, match=r"shape \(5, 3\)"):
            search(queries[:, :3], 3)
        with pytest.raises(ValueError, match="k = 701"):
            search(queries, 701)


def test_wrong_names_are_refused(world, index):
    with pytest.raises(ValueError, match="no space 'theta'"):
        Search(*world, SIZE, "theta")
    with pytest.raises(ValueError, match="no scaling 'none'"):
        Search(*world, SIZE, "features", "none")
    with pytest.raises(ValueError, match="no dtype 'float16'"):
        sg.SimulationIndex.build(*world, SIZE, dtype="float16")
    with pytest.raises(ValueError, match="Cannot add 0"):
        index.add(0)


@pytest.mark.slow
def test_a_finite_world_ends(growth, world):
    predictor, stream = world
    finite = sg.SimulationStream(growth, stream.key, 128, num_simulations=256)
    index = sg.SimulationIndex.build(predictor, finite, 200)
    with pytest.raises(ValueError, match="the world has 256"):
        index.add(100)
    index.add(56)
    endless = sg.SimulationIndex.build(predictor, stream, 256)
    queries = index._blocks.held_out(2)
    # Its scale is that of its own simulations, so that only the order must agree.
    assert index.space.size == endless.space.size
    assert set(numbers(index.search(queries, 256))[0]) == set(range(256))
