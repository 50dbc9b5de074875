"""The whole-solve kernel: equal to the diffrax solve, and lowered for hardware that is not here."""

import contextlib
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from sgjax.priors import sample_prior
from sgjax.simulators import SEIR, SIR, FitzHughNagumo, Lorenz63, LotkaVolterra, Richards
from sgjax.simulators._base import in_default_precision
from sgjax.solvers import TABLEAUS, FixedSteps, step_grid
from sgjax.solvers.kernel import layouts, solve_in_kernel
from sgjax.solvers.pointwise import (
    EVERYWHERE,
    ON_GPUS,
    count_operations,
    obstacle,
    pointwise,
)
from sgjax.solvers.runge_kutta import runge_kutta_step

CALLS = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}
TIMES = [0.5, 1.0, 1.5, 4.0, 4.5]
"""Uneven, and one gap is cut up."""


class Pair(NamedTuple):
    a: jax.Array
    b: jax.Array


def solvers(field, ts=TIMES, method="tsit5", num_substeps=2, interpret=None, t0=0.0):
    """`(state, args) -> trajectory` in a kernel, and the same without."""
    steps, ts = FixedSteps(num_substeps, method), np.asarray(ts, float)
    step = functools.partial(runge_kutta_step, TABLEAUS[method])

    def plain(field, state, args):
        return steps.solve(field, state, t0, ts, args)

    def kernel(state, args):
        knots, kept = step_grid(t0, ts)
        return solve_in_kernel(
            step, field, state, knots, kept, num_substeps, args, plain, interpret=interpret
        )

    return kernel, functools.partial(plain, field)


def ensemble(simulator, size):
    """The right-hand side, the initial state and the parameters of prior draws."""

    def draw(key):
        theta = sample_prior(key, simulator.prior)
        return in_default_precision(simulator.initial_state(theta)), theta

    keys = jax.random.split(jax.random.key(3), size)
    return simulator.field_of_many(), *jax.jit(jax.vmap(draw))(keys)


def assert_equal(kernel, plain, *inputs, digits=5):
    found, wanted = jax.jit(kernel)(*inputs), jax.jit(plain)(*inputs)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        scale = np.abs(other).max()
        assert 0 < scale < np.inf
        np.testing.assert_allclose(one, other, rtol=0, atol=10.0**-digits * scale)
    return found


def lowered(platform, field, state, args, ts=TIMES):
    """The program for an accelerator that is not here; its other solve is not diffrax's."""
    kind = {"cuda": "NVIDIA H200", "tpu": "TPU v5e"}[platform]
    device = AbstractDevice(kind, 1, {"cuda": "gpu"}.get(platform, platform))
    mesh = AbstractMesh((1,), ("one",), (AxisType.Explicit,), abstract_device=device)
    knots, kept = step_grid(0.0, np.asarray(ts, float))
    step = functools.partial(runge_kutta_step, TABLEAUS["rk4"])

    def constant(field, state, args):
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (kept.size, leaf.size)), state)

    def solve(state, args):
        return solve_in_kernel(step, field, state, knots, kept, 2, args, constant)

    # JAX 0.12 asks which device it will be; 0.10 looks for one that is there.
    with use_abstract_mesh(mesh) if jax.__version_info__ >= (0, 12) else contextlib.nullcontext():
        return jax.jit(solve).trace(state, args).lower(lowering_platforms=(platform,)).as_text()


triton_is_deprecated = pytest.mark.filterwarnings("ignore:The Pallas Triton backend")


@pytest.mark.parametrize(
    ("simulator", "method", "platform"),
    [
        (SIR(), "euler", "cuda"),
        pytest.param(SEIR(), "heun", "tpu", marks=pytest.mark.slow),
        pytest.param(LotkaVolterra(), "rk4", "cuda", marks=pytest.mark.slow),
        (Lorenz63(), "tsit5", "tpu"),
        (FitzHughNagumo(), "tsit5", "cuda"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_kernel_is_the_diffrax_solve(simulator, method, platform):
    field, state, thetas = ensemble(simulator, 150)  # more than a block, and not two
    kernel, plain = solvers(field, simulator.ts[:6], method, 3, platform, simulator.t0)
    assert_equal(kernel, plain, state, thetas)


@pytest.mark.parametrize(("platform", "starts"), [("cuda", True), ("tpu", False)])
def test_times_are_those_of_the_solve(platform, starts):
    def field(t, y, rate):
        return Pair(rate * jnp.cos(t) * y.a, t - y.b)

    rates = jnp.linspace(0.5, 1.5, 5)
    state = Pair(jnp.ones(5), rates)
    ts = [0.0, *TIMES] if starts else TIMES
    found = assert_equal(*solvers(field, ts, interpret=platform), state, rates)
    np.testing.assert_allclose(found.a, np.exp(rates * np.sin(ts)[:, None]), rtol=1e-4)


def test_double_precision():
    with jax.enable_x64(True):
        state, rates = jnp.ones(5), jnp.linspace(0.5, 1.5, 5)
        field = lambda t, y, rate: rate * y * jnp.cos(t)
        found = assert_equal(*solvers(field, interpret="cuda"), state, rates, digits=14)
        assert found.dtype == jnp.float64


def test_all_that_a_right_hand_side_may_read():
    captured, whole, switch = jnp.float32(0.3), np.float32(2.0), jnp.arange(6) % 2 == 0

    def field(t, y, args):
        rate = jnp.where(args["switch"], args["rate"], captured) * args["count"] / whole
        return {"y": -rate * y["y"] * args["one"] + args["small"].astype(y["y"].dtype) * lanes}

    lanes = jnp.linspace(0.0, 1.0, 6)
    args = {
        "rate": jnp.linspace(0.1, 0.2, 6),
        "switch": switch,
        "count": jnp.arange(6),
        "small": jnp.arange(6, dtype=jnp.uint8),
        "one": 1.5,
        "unused": jnp.ones((6, 3)),
        "keys": jax.random.split(jax.random.key(0), 6),
    }
    state = {"y": jnp.ones(6)}
    assert obstacle(field, state, args) is None
    for platform in ("cuda", "tpu"):
        assert_equal(*solvers(field, interpret=platform), state, args)


def test_what_is_in_the_way_is_said():
    state, ones = jnp.ones(4), jnp.ones(4)
    table = jnp.linspace(0.0, 1.0, 9)

    def why(field, state=state, args=ones):
        found = obstacle(field, state, args)
        assert found is not None
        with pytest.raises(ValueError, match="not element-wise over the simulations"):
            pointwise(field, state, args)
        return found

    assert "reduce_sum" in why(lambda t, y, a: y - y.sum())
    assert "slice" in why(lambda t, y, a: jnp.concatenate([y[1:], y[:1]]))
    assert "(9,)" in why(lambda t, y, a: a * jnp.max(jnp.cos(t * table)))
    assert "cumsum" in why(lambda t, y, a: jnp.cumsum(y))
    assert "cond" in why(lambda t, y, a: jax.lax.cond(t > 1, lambda y: y, jnp.negative, y))
    assert "(4, 3)" in why(lambda t, y, a: -y, state=jnp.ones((4, 3)))
    assert "complex64" in why(lambda t, y, a: -y, state=jnp.ones(4, complex))
    assert "(4, 3)" in why(lambda t, y, a: -y * jnp.cos(a).sum(1), args=jnp.ones((4, 3)))
    assert "float32()" in why(lambda t, y, a: jnp.zeros(()))
    with jax.enable_x64(True):
        assert "float64(4,)" in why(lambda t, y, a: jnp.cos(t) * y, jnp.ones(4, jnp.float32))


def test_derivatives_are_those_of_the_diffrax_solve():
    field, state, thetas = ensemble(SIR(), 5)
    kernel, plain = solvers(field, [0.5, 1.0], "heun", interpret="cuda")

    def gradient(solve):
        def loss(state, thetas, factor):
            scaled = {name: factor * value for name, value in thetas.items()}
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in solve(state, scaled))

        return jax.grad(loss, argnums=(0, 1, 2))

    assert_equal(gradient(kernel), gradient(plain), state, thetas, 1.1)


def test_derivatives_reach_what_the_right_hand_side_captured():
    def total(number, rate):
        field = lambda t, y, count: -rate * y * count
        solve = solvers(field, [0.5], "euler", interpret="cuda")[number]
        return solve(jnp.ones(3), jnp.arange(3)).sum()

    found, wanted = (jax.grad(functools.partial(total, number))(0.7) for number in (0, 1))
    assert wanted < -1
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_many_ensembles(platform):
    def field(t, y, rate):
        return -rate[0] * y * rate[1]

    kernel, plain = solvers(field, interpret=platform)
    rates = jnp.linspace(0.5, 1.5, 15).reshape(3, 5), jnp.asarray([0.5, 1.0, 2.0])
    state = jnp.ones((3, 5)) + rates[0]
    assert_equal(jax.vmap(kernel), jax.vmap(plain), state, rates)


@triton_is_deprecated
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_one_kernel(platform):
    program = lowered(platform, *ensemble(SIR(), 300))
    assert program.count("custom_call @" + CALLS[platform]) == 1
    assert "while" not in program


def test_without_an_accelerator_diffrax_solves():
    field, state, thetas = ensemble(SIR(), 5)
    kernel, plain = solvers(field)
    assert_equal(kernel, plain, state, thetas, digits=6)


@triton_is_deprecated
@pytest.mark.parametrize("why", ["long", "double"])
def test_a_tpu_solves_without_a_kernel_what_it_cannot_hold(why):
    with jax.enable_x64(why == "double"):
        state, rate = jnp.ones(5), jnp.ones(5)
        problem = lambda t, y, rate: -rate * y, state, rate
        ts = np.arange(2000) if why == "long" else TIMES
        assert CALLS["tpu"] not in lowered("tpu", *problem, ts)
        assert CALLS["cuda"] in lowered("cuda", *problem, ts)


def test_programs_take_whole_blocks():
    """No interpreter shows a store behind the end of an array."""
    for size in (1, 127, 129, 5000):
        state = jnp.ones(size)
        found = layouts(pointwise(lambda t, y, rate: rate * y, state, 0.5), [state], num_rows=10)
        assert set(found) == {"cuda", "tpu"}
        for layout in found.values():
            assert layout.whole[0] % layout.tile[0] == 0
            assert layout.programs * np.prod(layout.tile) >= size


def functions(names):
    """A right-hand side that uses each of the operations."""
    lax = jax.lax
    special = {
        "and": lambda x: jnp.where((x > 0) & (x < 1), x, 1.0),
        "or": lambda x: jnp.where((x > 0) | (x <= 1), x, 1.0),
        "xor": lambda x: jnp.where((x >= 0) ^ (x == 1), x, 1.0),
        "not": lambda x: jnp.where(~(x != 0), x, 1.0),
        "broadcast_in_dim": lambda x: jnp.where(x > 0, 1.0, 0.5) * x,
        "clamp": lambda x: lax.clamp(jnp.float32(0.1), x, jnp.float32(0.9)),
        "convert_element_type": lambda x: (x * 10).astype(jnp.int32).astype(x.dtype),
        "integer_pow": lambda x: x**3 + x**-2,
        "is_finite": lambda x: jnp.where(jnp.isfinite(x), x, 0.0),
        "logistic": jax.nn.sigmoid,
        "acosh": lambda x: jnp.arccosh(1 + x),
        **{
            name: functools.partial(
                lambda name, x: jnp.where(getattr(lax, name)(x, 0.5), x, 1.0), name
            )
            for name in ("eq", "ne", "lt", "le", "gt", "ge")
        },
        **{
            name: functools.partial(lambda name, x: getattr(lax, name)(x, x + 0.3), name)
            for name in (
                "add",
                "atan2",
                "div",
                "max",
                "min",
                "mul",
                "nextafter",
                "pow",
                "rem",
                "sub",
            )
        },
        "select_n": lambda x: lax.select(x > 0.5, x, 2 * x),
    }
    chosen = [special.get(name) or getattr(lax, name) for name in sorted(names)]
    return lambda t, y, args: sum(function(y * args) for function in chosen)


@triton_is_deprecated
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_every_operation_has_a_kernel(platform):
    names = EVERYWHERE | (ON_GPUS if platform == "cuda" else frozenset())
    field, state, args = functions(names), jnp.full(5, 0.4), jnp.linspace(0.5, 1.1, 5)
    assert pointwise(field, state, args).names == names
    assert CALLS[platform] in lowered(platform, field, state, args)
    interpreted, plain = solvers(field, [0.01], "euler", 1, platform)
    assert_equal(interpreted, plain, state, args)


def test_operations_are_counted():
    def count(method, field, state=None, args=1.5):
        step = functools.partial(runge_kutta_step, TABLEAUS[method])
        return count_operations(step, field, jnp.ones(4) if state is None else state, args)

    # -rate * y, times h, plus y.
    assert count("euler", lambda t, y, rate: -rate * y) == 1 + 2
    assert count("euler", lambda t, y, rate: y**5) == 3 + 2
    # What all simulations share costs nothing.
    assert count("euler", lambda t, y, rate: jnp.sin(t * rate) * y) == 1 + 2
    # The stages' slopes; one product and sum for each entry of the tableau, less a sum a row, and
    # for each row one product with h and one sum more.
    tableau = TABLEAUS["tsit5"]
    entries = sum(map(len, (*tableau.a, tableau.b)))
    field, state, thetas = ensemble(Lorenz63(), 4)
    assert count("tsit5", field, state, thetas) == 6 * 8 + 3 * (2 * entries - 6 + 2 * 6)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "simulator", [SIR(), Lorenz63(), Richards()], ids=["SIR", "Lorenz", "Richards"]
)
def test_on_hardware(simulator):
    field, state, thetas = ensemble(simulator, 1000)
    kernel, plain = solvers(field, simulator.ts, t0=simulator.t0)
    assert_equal(kernel, plain, state, thetas, digits=3 if isinstance(simulator, Lorenz63) else 5)
