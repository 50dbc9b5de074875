"""Series as a predictor sees them, real and simulated alike: `series -> rows of each space`."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, PyTree

from sgjax._types import PRNGKey
from sgjax.attribution.blocks import whole
from sgjax.attribution.progress import Telling, in_launches
from sgjax.attribution.space import SPACES, coordinates
from sgjax.devices import jit
from sgjax.observations import Observed
from sgjax.predictors import AbstractNetwork, Posterior, Predictor, as_observed
from sgjax.stream import BLOCK, Same, SimulationStream, batches_ahead
from sgjax.study import Study
from sgjax.tasks import Inputs

Views: TypeAlias = dict[str, Float[np.ndarray, "series size"]]
"""By space (`"features"`, `"predictive"`, `"inputs"`) the raw coordinates, one row a series."""

Series: TypeAlias = Observed | Inputs | np.ndarray | Array | Sequence[Any]
"""Many series: an array `(series, times, channels)`; an `Observed`, or inputs as simulations have
them, whose batch leads; or a sequence of what a predictor takes one at a time."""


def spaces_of(network: AbstractNetwork) -> tuple[str, ...]:
    """The spaces that a network has: one of forecasts only has no predictive coordinates."""
    estimates = any(block != "forecast" for block in network.blocks)
    return tuple(kind for kind in SPACES if kind != "predictive" or estimates)


def inputs_of(
    predictor: Predictor, real: Series, known: Mapping[str, ArrayLike] | None = None
) -> Inputs:
    """Many real series in the form that the predictor sees; the batch leads.

    `known` gives each known quantity once for all series or once for each. Raises `ValueError`
    where shapes do not fit, values are infinite or a series is wholly missing.
    """
    study = predictor.study
    if isinstance(real, list | tuple) and real and all(isinstance(r, Posterior) for r in real):
        made = [each.inputs for each in real]
        real = jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *made)
    if not isinstance(real, Inputs):
        record = _records(study, real)
        given = _each(known, len(record.values))
        real = _framed(Same(study))(record, given)
    values, mask = np.asarray(real.values), np.asarray(real.mask)
    _cube(values, study)
    if not np.isfinite(np.where(mask, values, 0)).all():
        raise ValueError("The data hold a value that is not finite; give missing values as NaN.")
    (empty,) = np.nonzero(~mask.any(axis=(1, 2)))
    if empty.size:
        raise ValueError(f"Every value of series {empty[0]} is missing; leave it out.")
    return real


def views_of(predictor: Predictor, inputs: Inputs) -> Views:
    """The raw coordinates of given inputs, in blocks of one size so that one program serves all."""
    graph, state = nnx.split(predictor.network)
    count = len(inputs.values)
    padded = -(-count // BLOCK) * BLOCK
    filled = jax.tree.map(lambda leaf: np.resize(leaf, (padded, *leaf.shape[1:])), inputs)
    look = _looker(graph)
    pieces = [
        jax.device_get(look(state, jax.tree.map(lambda leaf, n=n: leaf[n : n + BLOCK], filled)))
        for n in range(0, padded, BLOCK)
    ]
    return {kind: np.concatenate([piece[kind] for piece in pieces])[:count] for kind in pieces[0]}


def simulated_views(
    predictor: Predictor, stream: SimulationStream, count: int, progress: Telling = False
) -> Views:
    """The raw coordinates of the first `count` valid simulations of a stream, drawn on the device.

    Raises `ValueError` where most are not finite.
    """
    graph, state = nnx.split(predictor.network)
    needed = -(-count // stream.batch_size)
    together = max(1, min(batches_ahead(stream), needed))
    program = _Program(Same(stream.study), stream.batch_size * together, stream.mesh, graph)
    draw, found = _drawer(program), []

    def launch(missing: int, first: int, _: int) -> int:
        views, valid = jax.device_get(whole(stream.mesh, draw(state, stream.key, np.uint32(first))))
        rows = np.flatnonzero(valid)[: max(missing, 0)]
        found.append({kind: values[rows] for kind, values in views.items()})
        return missing - rows.size

    blocks, start, missing = -(-needed // together), 0, count
    while missing > 0 and start < 2 * blocks:
        left = min(blocks, 2 * blocks - start)
        go = lambda missing, first, count, start=start: launch(missing, start + first, count)
        missing = in_launches(go, missing, left, 1, (count, progress, "simulating"))
        start += left
    if missing > 0:
        raise ValueError("Most held-out simulations are not finite; check equations and priors.")
    return {kind: np.concatenate([part[kind] for part in found]) for kind in found[0]}


class _Program(NamedTuple):
    same: Same
    batch: int
    mesh: Any
    graph: Any


@functools.lru_cache(maxsize=8)
def _drawer(program: _Program) -> Callable:
    """The one compiled program that simulates a block and looks at it."""
    study, batch, mesh = program.same.study, program.batch, program.mesh

    def draw(state: PyTree, key: PRNGKey, step: Array) -> tuple[dict[str, Array], Array]:
        made = SimulationStream(study, key, batch, mesh).batch(step)
        # Otherwise XLA may draw the noise again for each of its uses.
        inputs, valid = jax.lax.optimization_barrier((made.example.inputs, made.valid))
        return _look(nnx.merge(program.graph, state), inputs), valid

    return jit(draw)


@functools.lru_cache(maxsize=8)
def _looker(graph: Any) -> Callable:
    return jit(lambda state, inputs: _look(nnx.merge(graph, state), inputs))


def _look(network: AbstractNetwork, inputs: Inputs) -> dict[str, Array]:
    spaces = spaces_of(network)

    def one(inputs: Inputs) -> dict[str, Array]:
        answer = network(inputs)
        return {kind: coordinates(kind, network, inputs, *answer) for kind in spaces}

    return jax.vmap(one)(inputs)


@functools.lru_cache(maxsize=8)
def _framed(same: Same) -> Callable[[Observed, dict], Inputs]:
    return jax.jit(jax.vmap(same.study.inputs))


def _records(study: Study, real: Observed | np.ndarray | Array | Sequence[Any]) -> Observed:
    """Many series as one record, the batch leading."""
    if isinstance(real, Observed) and real.values.ndim == 3:
        return real
    if isinstance(real, list | tuple):
        if not real:
            raise ValueError("There is no real series; give one at least.")
        made = [_numbered(study, one, number) for number, one in enumerate(real)]
        return jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *made)
    values = _cube(np.asarray(real, np.float32), study)
    mask = ~np.isnan(values)
    ts = jnp.broadcast_to(jnp.asarray(study.context_ts, jnp.float32), values.shape[:2])
    return Observed(ts, jnp.asarray(np.where(mask, values, 0)), jnp.asarray(mask))


def _cube(values: np.ndarray, study: Study) -> np.ndarray:
    expected = (study.context_ts.size, len(study.channels))
    if values.ndim != 3 or values.shape[1:] != expected:
        raise ValueError(
            f"The data have shape {values.shape}; many series are an array (series, times, "
            f"channels), here (series, {expected[0]}, {expected[1]}), with NaN for missing values."
        )
    if not len(values):
        raise ValueError("There is no real series; give one at least.")
    return values


def _numbered(study: Study, one: Any, number: int) -> Observed:
    try:
        return as_observed(study, one)
    except ValueError as error:
        raise ValueError(f"Series {number}: {error}") from None


def _each(known: Mapping[str, ArrayLike] | None, count: int) -> dict[str, Array]:
    """The known quantities, one for each series."""
    made = {}
    for name, given in (known or {}).items():
        values = np.asarray(given, np.float32)
        if values.ndim and values.shape[0] != count:
            raise ValueError(
                f"`known` gives {values.shape[0]} values of {name!r} for {count} series; give one "
                "for each, or one number for all."
            )
        made[name] = jnp.asarray(values if values.ndim else np.full(count, values))
    return made
