"""The endless stream: `step -> batch of simulations`, made on the device, without state.

Batch `n` is the simulations with the numbers `[n B, (n + 1) B)`; a number is 64 bits, two uint32
words. Each device of a mesh makes its own share without talking to another.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int, UInt32

from sgjax._types import PRNGKey, Theta
from sgjax.devices import AXIS, jit, on_first, several_processes
from sgjax.priors import fold_name
from sgjax.study import Simulation, Study

BLOCK = 512
"""How many simulations of one mechanism are drawn at once outside a compiled program."""


CPU_LANES, ACCELERATOR_LANES = 2**12, 2**17
"""Simulations at once that keep a device busy."""


class SimulationStream(eqx.Module):
    """An endless (or, with `num_simulations`, finite and reshuffled) stream of simulations.

    **Arguments:** `study`; the root `key`; `batch_size`, over all devices; `mesh`, a one-axis mesh
    from `make_mesh` (one device where `None`); `num_simulations`, the size of a finite world.

    Raises `ValueError` where the table of mechanisms does not divide the share of a device.
    """

    study: Study
    key: PRNGKey
    batch_size: int = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True, default=None)
    num_simulations: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        devices = 1 if self.mesh is None else self.mesh.size
        period = self.study.simulator.mechanism_table.size
        if self.batch_size < 1 or self.batch_size % (devices * period):
            raise ValueError(
                f"`batch_size` {self.batch_size} must be a multiple of {devices * period}: "
                f"{devices} device(s) times a table of {period} mechanisms."
            )
        if self.batch_size > 2**20 * devices:
            raise ValueError("`batch_size` may be at most 2^20 per device.")
        if self.num_simulations is not None and (
            self.num_simulations < 1 or self.num_simulations % self.batch_size
        ):
            raise ValueError(
                f"`num_simulations` {self.num_simulations} must be a multiple of `batch_size` "
                f"{self.batch_size}."
            )

    def held_out(self) -> "SimulationStream":
        """The stream of fresh simulations that training never sees: another root key, no range."""
        return SimulationStream(
            self.study, fold_name(self.key, "held-out"), self.batch_size, self.mesh
        )

    def batch(self, step: Int[Array, ""] | UInt32[Array, ""] | int) -> Simulation:
        """The simulations of one step. A pure function: call it under `jit` or `lax.scan`."""
        return jax.tree.map(lambda leaf: leaf[0], self.batches(step, 1))

    def batches(self, step: Int[Array, ""] | UInt32[Array, ""] | int, count: int) -> Simulation:
        """The simulations of `count` steps from `step` on, made together; the step leads.

        An ODE loop costs nearly the same for few simulations as for many, so that small batches are
        better made several at once.
        """
        steps = jnp.asarray(step, jnp.uint32) + jnp.arange(count, dtype=jnp.uint32)
        if self.mesh is None:
            return self._share(steps, jnp.zeros((), jnp.uint32), self.batch_size)
        share = self.batch_size // self.mesh.size

        def make(steps: Array) -> Simulation:
            first = jax.lax.axis_index(AXIS).astype(jnp.uint32) * share
            return self._share(steps, first, share)

        # Simulating inside shard_map keeps collectives out of the ODE loop (diffrax #407, #738);
        # diffrax's loop carry fails the varying-manual-axes check (diffrax #735).
        return jax.shard_map(
            make,
            mesh=self.mesh,
            in_specs=PartitionSpec(),
            out_specs=PartitionSpec(None, AXIS),
            check_vma=False,
        )(steps)

    def ids(self, step: Int[Array, ""] | UInt32[Array, ""] | int) -> UInt32[Array, "batch 2"]:
        """The numbers of the simulations of one step."""
        step = jnp.asarray(step, jnp.uint32)
        return self._ids(step, jnp.arange(self.batch_size, dtype=jnp.uint32))

    def simulate(self, ids: UInt32[Array, "batch 2"] | np.ndarray) -> Simulation:
        """Draws any simulations again from their numbers (concrete, not traced).

        Works in blocks of one size, so that however many are asked for, each mechanism is compiled
        once per study.
        """
        return self._again(ids, _simulator)

    def parameters(self, ids: UInt32[Array, "batch 2"] | np.ndarray) -> tuple[Theta, Array]:
        """The parameters and the mechanism of any simulations, by their numbers.

        Those of `simulate`, without solving: `theta` holds every parameter of the study, 0 where
        the mechanism lacks it.
        """
        drawn = self._again(ids, _parameters)
        return drawn, jnp.asarray(self._mechanism(np.asarray(ids, np.uint32).reshape(-1, 2)))

    def _mechanism(self, ids: np.ndarray) -> np.ndarray:
        table = self.study.simulator.mechanism_table
        return table[ids[:, 1] % table.size]

    def _again(self, ids: UInt32[Array, "batch 2"] | np.ndarray, program: Callable) -> Any:
        ids = np.asarray(ids, np.uint32).reshape(-1, 2)
        mechanism = self._mechanism(ids)
        parts, places = [], []
        for index, name in enumerate(self.study.mechanisms):
            (every,) = np.nonzero(mechanism == index)
            draw = program(Same(self.study), name)
            for start in range(0, every.size, BLOCK):
                place = every[start : start + BLOCK]
                made = jax.device_get(draw(self.key, np.resize(ids[place], (BLOCK, 2))))
                parts.append(jax.tree.map(lambda leaf, n=place.size: leaf[:n], made))
                places.append(place)
        # Put together by NumPy: eagerly, each leaf would be one more program to compile.
        return jax.tree.map(jnp.asarray, _in_order(np, parts, np.concatenate(places)))

    def take(self, count: int, start: int = 0) -> Simulation:
        """The simulations numbered `start` to `start + count - 1`, outside any compiled program."""
        numbers = np.arange(start, start + count, dtype=np.uint64)
        return self.simulate(np.stack([numbers >> np.uint64(32), numbers], axis=1))

    def _share(self, steps: UInt32[Array, " steps"], first: Array, size: int) -> Simulation:
        # `first` is a multiple of the table's size, so the mechanism of a place is known here.
        table = self.study.simulator.mechanism_table
        places = first + jnp.arange(size, dtype=jnp.uint32)
        ids = jax.vmap(self._ids, in_axes=(0, None))(steps, places).reshape(-1, 2)
        keys = _keys(self.key, ids)
        mechanism = np.tile(table[np.arange(size) % table.size], steps.size)
        parts, places = [], []
        for index, name in enumerate(self.study.mechanisms):
            (place,) = np.nonzero(mechanism == index)
            parts.append(self.study.simulate(name, keys[place]))
            places.append(place)
        made = _in_order(jnp, parts, np.concatenate(places))
        return jax.tree.map(lambda leaf: leaf.reshape(steps.size, size, *leaf.shape[1:]), made)

    def _ids(self, step: Array, places: UInt32[Array, " batch"]) -> UInt32[Array, "batch 2"]:
        if self.num_simulations is None:
            high, low = _multiply(step, self.batch_size)
            total = low + places
            return jnp.stack([high + (total < low), total], axis=1)
        return self._finite_ids(step, places)

    def _finite_ids(self, step: Array, places: Array) -> UInt32[Array, "batch 2"]:
        # Only simulations of the same remainder change places, so mechanisms stay where they are.
        assert self.num_simulations is not None
        period = self.study.simulator.mechanism_table.size
        steps = self.num_simulations // self.batch_size
        key = jax.random.fold_in(fold_name(self.key, "epoch"), step // steps)
        position = (step % steps) * self.batch_size + places
        block = _permute(key, position // period, self.num_simulations // period)
        low = block * period + position % period
        return jnp.stack([jnp.zeros_like(low), low], axis=1)


def batches_ahead(stream: SimulationStream) -> int:
    """How many batches are simulated at once: enough to keep a device busy, within its memory.

    An ODE loop is bound by what it costs to start each operation until some thousand simulations
    on a core, and some hundred thousand on an accelerator. Two at least: of a batch that no loop
    parts from its update XLA computes the noise again for each use.
    """
    device = jax.local_devices()[0]
    share = stream.batch_size // (1 if stream.mesh is None else stream.mesh.size)
    busy = CPU_LANES if device.platform == "cpu" else ACCELERATOR_LANES
    # A simulation in the making takes several times the room of what is kept of it.
    each = 4 * 16 * stream.study.ts.size * (len(stream.study.channels) + 2)
    memory = (device.memory_stats() or {}).get("bytes_limit", 2**32)
    ahead = max(2, min(busy, int(memory / 8 / each)) // share)
    # Hosts may differ in memory, but must run one program.
    return on_first(lambda: ahead) if several_processes(stream.mesh) else ahead


class Same:
    """A study as a cache key, by identity: its arrays make it unhashable."""

    def __init__(self, study: Study):
        self.study = study

    def __hash__(self):
        return id(self.study)

    def __eq__(self, other):
        return isinstance(other, Same) and self.study is other.study


@functools.lru_cache(maxsize=32)
def _simulator(same: Same, mechanism: str) -> Callable[[PRNGKey, np.ndarray], Simulation]:
    # The cache holds the study, so its identity is not given to another one meanwhile.
    return jit(lambda key, ids: same.study.simulate(mechanism, _keys(key, ids)))


@functools.lru_cache(maxsize=32)
def _parameters(same: Same, mechanism: str) -> Callable[[PRNGKey, np.ndarray], Theta]:
    return jit(lambda key, ids: same.study.parameters(mechanism, _keys(key, ids)))


def _keys(root: PRNGKey, ids: UInt32[Array, "batch 2"]) -> PRNGKey:
    def key(words: UInt32[Array, "2"]) -> PRNGKey:
        return jax.random.fold_in(jax.random.fold_in(root, words[0]), words[1])

    return jax.vmap(key)(ids)


def _in_order(xp: ModuleType, parts: list, places: np.ndarray) -> Any:
    if len(parts) == 1:
        return parts[0]
    order = np.argsort(places)
    return jax.tree.map(lambda *leaves: xp.concatenate(leaves)[order], *parts)


def _multiply(a: Array, b: int) -> tuple[Array, Array]:
    """The 64-bit product of two 32-bit numbers as two words (64-bit integers may be off in JAX)."""
    low_mask, shift = jnp.uint32(0xFFFF), jnp.uint32(16)
    factor = jnp.uint32(b)
    a_low, a_high = a & low_mask, a >> shift
    b_low, b_high = factor & low_mask, factor >> shift
    cross = (a_low * b_low >> shift) + (a_high * b_low & low_mask) + (a_low * b_high & low_mask)
    high = a_high * b_high + (a_high * b_low >> shift) + (a_low * b_high >> shift)
    return high + (cross >> shift), a * factor


def _permute(key: PRNGKey, index: Array, size: int) -> Array:
    """A keyed pseudo-random permutation of `range(size)`, evaluated at `index`.

    A Feistel network on the next power of four, walked until it falls inside the range (Black and
    Rogaway, 2002): its cost does not grow with `size`, as a shuffle's would.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = jnp.uint32((1 << half) - 1)
    round_keys = jax.random.bits(key, (6,), jnp.uint32)

    def mix(word: Array, round_key: Array) -> Array:
        word = (word ^ round_key) * jnp.uint32(0x85EBCA6B)
        word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
        return word ^ (word >> 16)

    def shuffle(value: Array) -> Array:
        left, right = value >> half, value & mask
        for round_key in round_keys:
            left, right = right, left ^ (mix(right, round_key) & mask)
        return (left << half) | right

    def walk(value: Array) -> Array:
        return jnp.where(value >= size, shuffle(value), value)

    return jax.lax.while_loop(
        lambda value: jnp.any(value >= size), walk, shuffle(index.astype(jnp.uint32))
    )
