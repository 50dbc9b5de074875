"""Right-hand sides taken apart: is every operation element-wise over the simulations?

A right-hand side that treats each simulation of a batch by itself, with nothing but element-wise
operations, may be computed on a block of simulations of any shape, and hence inside a kernel.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array, PyTree

EVERYWHERE = frozenset({
    "abs", "add", "and", "atan2", "broadcast_in_dim", "ceil", "clamp", "convert_element_type",
    "cos", "div", "eq", "exp", "exp2", "floor", "ge", "gt", "integer_pow", "is_finite", "le",
    "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not",
    "or", "pow", "rem", "rsqrt", "select_n", "sin", "sqrt", "square", "stop_gradient", "sub",
    "tan", "tanh", "xor",
})  # fmt: skip
"""The operations that kernels have on every accelerator."""

ON_GPUS = frozenset({
    "acos", "acosh", "asin", "asinh", "atan", "atanh", "cbrt", "cosh", "expm1", "sign", "sinh",
})  # fmt: skip
"""Those that kernels have on GPUs, but not on TPUs."""

_CALLS = frozenset({
    "jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call",
    "custom_vjp_call",
})  # fmt: skip
_FREE = frozenset({"broadcast_in_dim", "convert_element_type", "stop_gradient"})


class Pointwise(NamedTuple):
    """A right-hand side as a list of element-wise operations, and what it reads besides.

    Its inputs are `t`, the leaves of the state, and `given`: of the leaves of the arguments and the
    arrays that the function captured those it uses, one number for all simulations or one for each.
    """

    operations: tuple[JaxprEqn, ...]
    inputs: tuple[Var, ...]
    outputs: tuple[Any, ...]
    given: tuple[Array, ...]

    def __call__(self, t: Array, leaves: Sequence[Array], given: Sequence[Array]) -> list[Array]:
        """The leaves of the slope; the simulations may be laid out in any one shape."""
        shape = jnp.shape(leaves[0])
        values = dict(zip(self.inputs, (t, *leaves, *given), strict=True))
        return _evaluate(self.operations, self.outputs, values, shape)

    @property
    def names(self) -> set[str]:
        """Of the operations."""
        return {operation.primitive.name for operation in self.operations}


def obstacle(field: Callable, state: PyTree, args: PyTree) -> str | None:
    """Why `field(t, state, args)` is no `Pointwise`, in plain words; `None` where it is one.

    `state` is a pytree of float arrays of one shape (batch,), `args` one of arrays (batch,) or
    scalars; what `field` does not use of `args` may have any form.
    """
    found = _take_apart(field, state, args)
    return found if isinstance(found, str) else None


def pointwise(field: Callable, state: PyTree, args: PyTree) -> Pointwise:
    """`field(t, state, args)` as element-wise operations; `ValueError` where it is not."""
    found = _take_apart(field, state, args)
    if isinstance(found, str):
        raise ValueError(
            f"The right-hand side is not element-wise over the simulations: {found}. "
            "Solve it without a kernel."
        )
    return found


def count_operations(step: Callable, field: Callable, state: PyTree, args: PyTree) -> int:
    """Arithmetic operations of one `step(field, t, h, state, args)` for one simulation.

    Each of +, -, *, /, a comparison, a choice or a function such as `exp` counts as one, a power
    with whole exponent as its multiplications; what is the same for all simulations, and adding 0
    or multiplying by 1, as none.
    """
    real = jnp.result_type(float)
    length = jnp.zeros((), real)
    stepped = pointwise(
        lambda t, y, given: step(field, t, given[0], y, given[1]), state, (length, args)
    )
    return sum(_cost(operation) for operation in stepped.operations)


def _take_apart(field: Callable, state: PyTree, args: PyTree) -> Pointwise | str:
    leaves, form = jax.tree.flatten(state)
    shape = jnp.shape(leaves[0])
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if len(shape) != 1 or jnp.shape(leaf) != shape:
            name = jax.tree_util.keystr(path)
            return f"the state's leaf {name or '()'} has shape {jnp.shape(leaf)}, not (batch,)"
        if jnp.result_type(leaf) not in (jnp.float32, jnp.float64):
            return f"the state has leaves of type {jnp.result_type(leaf)}"
    given, static = eqx.partition(args, eqx.is_array_like)
    given_leaves, given_form = jax.tree.flatten(given)

    def flat(t, *values):
        y = jax.tree.unflatten(form, values[: len(leaves)])
        arguments = jax.tree.unflatten(given_form, values[len(leaves) :])
        return field(t, y, eqx.combine(arguments, static))

    t = jnp.zeros((), jnp.result_type(float))
    traced, slope = jax.make_jaxpr(flat, return_shape=True)(t, *leaves, *given_leaves)
    if jax.tree.structure(slope) != form:
        return f"its form {jax.tree.structure(slope)} is not the state's, {form}"
    for leaf, change in zip(leaves, jax.tree.leaves(slope), strict=True):
        if (change.shape, change.dtype) != (shape, jnp.result_type(leaf)):
            return f"a leaf of it is {change.dtype}{change.shape}, not as the state's"
    problem = next(_problems(traced.jaxpr, shape), None)
    if problem is not None:
        return problem
    # Evaluated once, calls of functions within are gone, and their constants are known.
    inlined = jax.make_jaxpr(
        lambda *values: _evaluate(
            traced.jaxpr.eqns,
            traced.jaxpr.outvars,
            dict(
                zip(
                    (*traced.jaxpr.constvars, *traced.jaxpr.invars),
                    (*traced.consts, *values),
                    strict=True,
                )
            ),
            shape,
        )
    )(t, *leaves, *given_leaves)
    return _prune(inlined, len(leaves), given_leaves, shape)


def _prune(inlined, num_leaves: int, given_leaves: list, shape: tuple) -> Pointwise | str:
    """Without the operations and inputs that no result needs."""
    jaxpr = inlined.jaxpr
    needed = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    operations = []
    for operation in reversed(jaxpr.eqns):
        if needed.intersection(operation.outvars):
            operations.append(operation)
            needed.update(a for a in operation.invars if not isinstance(a, Literal))
    fixed = jaxpr.invars[: 1 + num_leaves]
    rest = [*zip(jaxpr.invars[1 + num_leaves :], given_leaves, strict=True)]
    rest += zip(jaxpr.constvars, inlined.consts, strict=True)
    used = [(var, jnp.asarray(value)) for var, value in rest if var in needed]
    for _, value in used:
        if value.shape not in ((), shape):
            return f"it uses an array of shape {value.shape}, neither one number nor (batch,)"
    return Pointwise(
        tuple(reversed(operations)),
        (*fixed, *(var for var, _ in used)),
        tuple(jaxpr.outvars),
        tuple(value for _, value in used),
    )


def _problems(jaxpr: Jaxpr, shape: tuple) -> Iterator[str]:
    for operation in jaxpr.eqns:
        name = operation.primitive.name
        inner = _called(operation)
        if inner is not None:
            yield from _problems(inner[0], shape)
            continue
        if name not in EVERYWHERE | ON_GPUS | {"copy"}:
            yield f"it uses the operation `{name}`"
        for atom in (*operation.invars, *operation.outvars):
            aval: Any = atom.aval
            if aval.shape not in ((), shape):
                yield f"its operation `{name}` has an array of shape {aval.shape}"
            elif isinstance(atom, Literal) and aval.shape:
                yield f"it has a constant of shape {aval.shape}"
            elif not (
                aval.dtype == bool
                or np.issubdtype(aval.dtype, np.integer)
                or np.issubdtype(aval.dtype, np.floating)
            ):
                yield f"its operation `{name}` has numbers of type {aval.dtype}"


def _called(operation: JaxprEqn) -> tuple[Jaxpr, Sequence] | None:
    """What a call of a function calls, and its constants."""
    if operation.primitive.name not in _CALLS:
        return None
    params = operation.params
    inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())


def _evaluate(operations, outputs, values: dict, shape: tuple) -> list[Array]:
    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    values = dict(values)
    for operation in operations:
        operands = [read(atom) for atom in operation.invars]
        inner = _called(operation)
        if inner is not None:
            jaxpr, consts = inner
            given = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *operands), strict=True))
            results = _evaluate(jaxpr.eqns, jaxpr.outvars, given, shape)
        elif operation.primitive.name == "broadcast_in_dim":
            target: Any = operation.outvars[0].aval
            results = [jnp.broadcast_to(operands[0], shape if target.shape else ())]
        elif operation.primitive.name == "copy":
            results = operands
        else:
            results = [operation.primitive.bind(*operands, **operation.params)]
        values.update(zip(operation.outvars, results, strict=True))
    return [read(atom) for atom in outputs]


def _cost(operation: JaxprEqn) -> int:
    name = operation.primitive.name
    result: Any = operation.outvars[0].aval
    if name in _FREE or not result.shape:
        return 0
    constants = {float(atom.val) for atom in operation.invars if isinstance(atom, Literal)}
    if (name == "add" and 0.0 in constants) or (name == "mul" and 1.0 in constants):
        return 0
    if name == "integer_pow":
        power = abs(operation.params["y"])
        return power.bit_length() - 1 + power.bit_count() - 1 + (operation.params["y"] < 0)
    return 1
