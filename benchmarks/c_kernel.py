"""The practical limit of the machine: an ensemble solve in C, generated, compiled and loaded.

Fixed Tsit5 steps; blocks of 32 simulations (16, 64 and 128 were slower), structure of arrays, each
block's whole trajectory before the next block, so that the state stays in registers and the first
cache.
"""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import diffrax
import numpy as np

FLAGS = ("-O3", "-march=native", "-ffast-math", "-shared", "-fPIC")
WIDE = "-mprefer-vector-width=512"
"""Where the compiler knows it: twice as fast on AVX-512."""

_KERNEL = """
enum {{ D = {d}, P = {p}, V = 32 }};
#define EACH for (int v = 0; v < V; v++)

static inline void field(float y[D][V], float p[P][V], float f[D][V]) {{
  {field}
}}

/* y0 is D x n, theta P x n, out T x D x n, n a multiple of V; gap is the time between saves. */
void solve(int n, int T, int sub, float gap, const float *y0, const float *theta, float *out) {{
  const float h = gap / sub;
  for (int b = 0; b < n; b += V) {{
    float y[D][V], p[P][V], s[D][V], k[6][D][V];
    for (int i = 0; i < D; i++) for (int v = 0; v < V; v++) y[i][v] = y0[i * n + b + v];
    for (int i = 0; i < P; i++) for (int v = 0; v < V; v++) p[i][v] = theta[i * n + b + v];
    for (int t = 0; t < T; t++) {{
      for (int m = 0; m < sub; m++) {{
        field(y, p, k[0]);
{stages}
        for (int i = 0; i < D; i++) for (int v = 0; v < V; v++) y[i][v] += h * ({final});
      }}
      for (int i = 0; i < D; i++)
        for (int v = 0; v < V; v++) out[(t * D + i) * n + b + v] = y[i][v];
    }}
  }}
}}
"""


def compile_kernel(field: str, num_states: int, num_parameters: int) -> Callable | None:
    """`(y0, theta, num_times, gap, num_substeps) -> states`, or `None` without a C compiler.

    `field` is C: it sets `f[i][v]` from `y[i][v]` and `p[i][v]`, `EACH` being the loop over the
    simulations v. Arrays are states x simulations.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    tableau = diffrax.Tsit5.tableau
    stages = [
        f"        for (int i = 0; i < D; i++) for (int v = 0; v < V; v++) "
        f"s[i][v] = y[i][v] + h * ({_sum(row)});\n        field(s, p, k[{stage}]);"
        for stage, row in enumerate(tableau.a_lower[:5], start=1)
    ]
    source = _KERNEL.format(
        d=num_states,
        p=num_parameters,
        field=field,
        stages="\n".join(stages),
        final=_sum(tableau.b_sol[:6]),
    )
    with tempfile.TemporaryDirectory() as folder:
        path, library = Path(folder) / "kernel.c", Path(folder) / "kernel.so"
        path.write_text(source, encoding="utf-8")
        command = [compiler, *FLAGS, str(path), "-o", str(library), "-lm"]
        if subprocess.run([*command, WIDE], capture_output=True).returncode:
            subprocess.run(command, check=True)
        loaded = ctypes.CDLL(str(library)).solve

    def pointer(array: np.ndarray):
        return array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    def solve(
        y0: np.ndarray, theta: np.ndarray, num_times: int, gap: float, num_substeps: int
    ) -> np.ndarray:
        size = y0.shape[1]
        if size % 32:
            raise ValueError("The kernel works in blocks of 32 simulations.")
        y0, theta = (np.ascontiguousarray(array, np.float32) for array in (y0, theta))
        out = np.empty((num_times, num_states, size), np.float32)
        loaded(
            size, num_times, num_substeps, ctypes.c_float(gap),
            pointer(y0), pointer(theta), pointer(out),
        )  # fmt: skip
        return out

    return solve


def _sum(factors) -> str:
    terms = (f"{float(a)!r}f * k[{j}][i][v]" for j, a in enumerate(factors) if a)
    return " + ".join(terms)
