"""Explicit Runge-Kutta methods as tables of numbers."""

from typing import Literal, TypeAlias

import diffrax
import equinox as eqx
import numpy as np

Method: TypeAlias = Literal["euler", "heun", "rk4", "tsit5", "carpenter_kennedy"]


class Tableau(eqx.Module):
    """An explicit Runge-Kutta method: nodes `c`, rows `a` below the diagonal, weights `b`."""

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    low_storage: tuple[tuple[float, float], ...] | None = None
    """Where the method has a form with two registers (Williamson, 1980), its coefficients A_i, B_i:
    `d = A_i d + h f(y)`, then `y = y + B_i d`."""


def _of_low_storage(
    order: int, nodes: tuple[float, ...], coefficients: tuple[tuple[float, float], ...]
) -> Tableau:
    count = len(nodes)
    register, point, rows = np.zeros(count), np.zeros(count), []
    for stage, (keep, take) in enumerate(coefficients):
        rows.append(tuple(map(float, point[:stage])))
        register = keep * register + np.eye(count)[stage]
        point = point + take * register
    return Tableau(order, nodes, tuple(rows), tuple(map(float, point)), coefficients)


_tsit5 = diffrax.Tsit5.tableau

TABLEAUS: dict[str, Tableau] = {
    "euler": Tableau(1, (0.0,), ((),), (1.0,)),
    "heun": Tableau(2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": Tableau(
        4,
        (0.0, 0.5, 0.5, 1.0),
        ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
    # Tsitouras (2011); the seventh stage only serves the error estimate, which fixed steps lack.
    "tsit5": Tableau(
        5,
        (0.0, *map(float, _tsit5.c[:5])),
        ((), *(tuple(map(float, row)) for row in _tsit5.a_lower[:5])),
        tuple(map(float, _tsit5.b_sol[:6])),
    ),
    # Carpenter and Kennedy (1994), their 5-stage method of order 4 with two registers.
    "carpenter_kennedy": _of_low_storage(
        4,
        (
            0.0,
            1432997174477 / 9575080441755,
            2526269341429 / 6820363962896,
            2006345519317 / 3224310063776,
            2802321613138 / 2924317926251,
        ),
        (
            (0.0, 1432997174477 / 9575080441755),
            (-567301805773 / 1357537059087, 5161836677717 / 13612068292357),
            (-2404267990393 / 2016746695238, 1720146321549 / 2090206949498),
            (-3550918686646 / 2091501179385, 3134564353537 / 4481467310338),
            (-1275806237668 / 842570457699, 2277821191437 / 14882151754819),
        ),
    ),
}
