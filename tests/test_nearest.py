"""The search of a table: exact against sorting every distance, whatever the shape and the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgjax.attribution.nearest import _least, encode, nearest_rows, padded

FLOAT = np.dtype(np.float32)
search = jax.jit(nearest_rows, static_argnums=(2, 3))


def table(points, valid=None, dtype=FLOAT, unit=None):
    missing = padded(len(points)) - len(points)
    valid = np.ones(len(points), bool) if valid is None else valid
    unit = jnp.ones(points.shape[1]) if unit is None else unit
    padding = jnp.pad(jnp.asarray(points, jnp.float32), ((0, missing), (0, 0)))
    return encode(padding, jnp.pad(jnp.asarray(valid), (0, missing)), unit, dtype)


def by_sorting(queries, points, k):
    gaps = np.asarray(queries, np.float64)[:, None] - np.asarray(points, np.float64)[None]
    distances = np.linalg.norm(gaps, axis=-1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), order


@pytest.mark.parametrize(("rows", "queries", "k"), [(7, 3, 7), (5000, 1, 9), (20_000, 30, 40)])
def test_it_is_exact(rows, queries, k):
    generator = np.random.default_rng(rows)
    points = generator.standard_normal((rows, 10), dtype=np.float32)
    asked = generator.standard_normal((queries, 10), dtype=np.float32)
    distances, places = search(asked, table(points), k, False)
    expected, order = by_sorting(asked, points, k)
    np.testing.assert_array_equal(places, order)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)


def test_it_is_exact_where_the_product_rounds_more_than_the_distances():
    # Ten thousand points within 1e-3 of each other and far from the origin: the product, which
    # rounds by 1e-4, knows nothing of their order.
    generator = np.random.default_rng(0)
    points = (20 + 1e-3 * generator.random((10_000, 4))).astype(np.float32)
    asked = points[[5, 700, 9000, 42]]
    squares = np.sum(points**2, axis=1) - 2 * asked @ points.T
    assert (np.argmin(squares, axis=1) != [5, 700, 9000, 42]).any()
    distances, places = search(asked, table(points), 6, False)
    expected, _ = by_sorting(asked, points, 6)
    np.testing.assert_array_equal(places[:, 0], [5, 700, 9000, 42])
    np.testing.assert_array_equal(distances[:, 0], 0)
    np.testing.assert_allclose(distances, expected, rtol=1e-5, atol=1e-12)


def test_of_equal_rows_the_first_is_found():
    points = np.tile(np.arange(4.0)[:, None], (2000, 3))
    _, places = search(points[:4] + 0.1, table(points), 5, False)
    np.testing.assert_array_equal(places, np.arange(4)[:, None] + 4 * np.arange(5)[None])


def test_rows_that_hold_nothing_are_never_found():
    points = np.random.default_rng(1).standard_normal((300, 5))
    valid = np.arange(300) % 3 == 0
    broken = np.where(valid[:, None], points, np.nan)
    distances, places = search(points[:8], table(broken, valid), 100, False)
    _, order = by_sorting(points[:8], points[valid], 100)
    np.testing.assert_array_equal(places, 3 * order)
    distances, _ = search(points[:8], table(broken, valid), 120, False)
    assert np.isinf(distances[:, 100:]).all() and np.isfinite(distances[:, :100]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_low_precision_is_exact_for_what_is_stored(dtype):
    points = np.random.default_rng(2).standard_normal((3000, 6), dtype=np.float32)
    unit = jnp.asarray(np.abs(points).max(axis=0) / 127) if dtype == "int8" else None
    rows = table(points, dtype=jnp.dtype(dtype), unit=unit)
    held = np.asarray(rows.decode(rows.values))[:3000]
    # Half a step: of 8 bits of mantissa, or of a 127th of the largest.
    step = 2.0**-8 * np.abs(points) if dtype == "bfloat16" else np.asarray(unit) / 2
    assert np.all(np.abs(held - points) <= 1.001 * step)
    assert np.abs(held - points).max() > 0
    asked = points[:5] + np.float32(0.01)
    _, places = search(asked, rows, 10, False)
    _, order = by_sorting(asked, held, 10)
    assert np.mean(np.sort(places, axis=1) == np.sort(order, axis=1)) > 0.99


def test_the_least_of_a_long_vector():
    values = np.random.default_rng(3).permutation(2**14).astype(np.float32)
    least, places = jax.jit(_least, static_argnums=1)(values, 20)
    np.testing.assert_array_equal(least, np.arange(20))
    np.testing.assert_array_equal(values[places], np.arange(20))
