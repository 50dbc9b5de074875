"""The ensembles that simulation is measured on: a mechanism each, and its equations in C."""

import dataclasses

import numpy as np
import numpyro.distributions as dist

from sgjax.simulators import (
    SIR,
    AbstractODESimulator,
    Gravity,
    Lorenz63,
    Lorenz96,
    LotkaVolterra,
    Robertson,
)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A mechanism, its equations in C, and the error that every row must reach."""

    simulator: AbstractODESimulator
    field: str | None
    """Sets `f[i][v]` from states `y[i][v]` and parameters `p[i][v]`, `EACH` being the loop over v;
    `None` where explicit steps will not do."""
    parameters: tuple[str, ...]
    """Those of `p`, a vector taking a row for each entry."""
    tolerance: float = 1e-3
    num_judged: int = 256
    """On how many simulations errors are taken."""


def _gravity() -> str:
    softening = Gravity().softening
    pairs = """
    for (int i = 0; i < 5; i++) for (int j = 0; j < 5; j++) if (j != i) EACH {
      float x = y[j][v] - y[i][v], Y = y[5 + j][v] - y[5 + i][v], z = y[10 + j][v] - y[10 + i][v];
      float near = x * x + Y * Y + z * z + SOFT, pull = p[j][v] / (near * sqrtf(near));
      f[15 + i][v] += x * pull; f[20 + i][v] += Y * pull; f[25 + i][v] += z * pull;
    }"""
    start = "for (int i = 0; i < 15; i++) EACH { f[i][v] = y[15 + i][v]; f[15 + i][v] = 0; }"
    return start + pairs.replace("SOFT", f"{softening**2}f")


PROBLEMS = {
    # The priors of sbibm (Lueckmann et al., 2021).
    "SIR": Problem(
        SIR(
            population=1e6,
            prior={
                "beta": dist.LogNormal(np.log(0.4), 0.5),
                "gamma": dist.LogNormal(np.log(0.125), 0.2),
            },
            ts=160 / 50 * np.arange(1, 51),
        ),
        "EACH { float i = p[0][v] * y[0][v] * y[1][v] * 1e-6f, r = p[1][v] * y[1][v];"
        "f[0][v] = -i; f[1][v] = i - r; f[2][v] = r; }",
        ("beta", "gamma"),
    ),
    "Lotka-Volterra": Problem(
        LotkaVolterra(
            initial_prey=30.0,
            initial_predator=1.0,
            prior={
                "alpha": dist.LogNormal(-0.125, 0.5),
                "beta": dist.LogNormal(-3.0, 0.5),
                "gamma": dist.LogNormal(-0.125, 0.5),
                "delta": dist.LogNormal(-3.0, 0.5),
            },
            ts=20 / 50 * np.arange(1, 51),
        ),
        "EACH { float m = y[0][v] * y[1][v]; f[0][v] = p[0][v] * y[0][v] - p[1][v] * m;"
        "f[1][v] = p[3][v] * m - p[2][v] * y[1][v]; }",
        ("alpha", "beta", "gamma", "delta"),
    ),
    "Lorenz-63": Problem(
        Lorenz63(),
        "EACH { f[0][v] = p[0][v] * (y[1][v] - y[0][v]);"
        "f[1][v] = y[0][v] * (p[1][v] - y[2][v]) - y[1][v];"
        "f[2][v] = y[0][v] * y[1][v] - p[2][v] * y[2][v]; }",
        ("sigma", "rho", "beta"),
    ),
    "Lorenz-96": Problem(
        Lorenz96(ts=0.04 * np.arange(1, 51)),
        "for (int i = 0; i < D; i++) { int a = (i + 1) % D, b = (i + D - 2) % D,"
        "c = (i + D - 1) % D;"
        "EACH f[i][v] = (y[a][v] - y[b][v]) * y[c][v] - y[i][v] + p[0][v]; }",
        ("forcing",),
    ),
    "Five bodies": Problem(Gravity(), _gravity(), ("mass",)),
    "Robertson": Problem(Robertson(), None, (), tolerance=1e-2, num_judged=64),
}
