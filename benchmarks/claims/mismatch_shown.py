"""Tables and the picture of the claim of mismatch: `result -> what is seen`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.claims.tables import as_printed, table, verdict
from sgjax.mismatch.pool import PRIMARY
from sgjax.mismatch.report import LEVEL

console = Console()

DISTANCES = (
    "2a-1, x",
    "2a-1, h",
    "MMD2, x",
    "MMD2, h",
    "MMD2, h whitened",
    "W1, h",
    "W1, predicted",
)


def show_bound(found: dict[str, Any]) -> None:
    """The bound in three lines."""
    console.print(
        f"|R_real - R_syn| <= B TV: {found['violations']} of {len(found['worlds'])} worlds violate "
        f"it beyond 4 standard errors, {found['tight']} reach 0.8 of it. Where only the target "
        f"moves, the gap is {found['target_moved']['gap']:.3f} and the total variation of the "
        "series 0: the bound from series alone is broken."
    )


def show_shifts(found: dict[str, Any]) -> None:
    """One row a shift."""
    table = Table(title=f"Shifts; clipped risk as simulated {found['simulated_risk']:.4f}")
    for column in ("shift", "gap", *DISTANCES):
        table.add_column(column)
    for name, row in found["rows"].items():
        table.add_row(name, f"{row['gap']:+.3f}", *(f"{row[each]:.3f}" for each in DISTANCES))
    table.add_row("Spearman with |gap|", "", *(f"{found['spearman'][d]:.2f}" for d in DISTANCES))
    console.print(table)


def show_power(found: dict[str, Any]) -> None:
    """One row a cell."""
    table = Table(title=f"Power at {LEVEL:g}; primary: {PRIMARY}")
    for column in (
        "shift",
        "series",
        "primary",
        "best other",
        "any other, Holm",
        "oracle",
        "ceiling",
    ):
        table.add_column(column)
    for name, rows in found["cells"].items():
        for size, row in rows.items():
            tests = dict(row["tests"])
            primary, every = tests.pop(PRIMARY), tests.pop("any other, Holm")
            best = max(tests, key=lambda test: tests[test])
            ceiling = f"{row['ceiling']:.2f}" if "ceiling" in row else ""
            table.add_row(name, size, f"{primary:.2f}", f"{tests[best]:.2f} {best}",
                          f"{every:.2f}", f"{row['oracle']:.2f}", ceiling)  # fmt: skip
    console.print(table)
    for size, row in found["false_alarms"].items():
        console.print(
            f"False alarms, {size} series, {row['replicates']} replicates: primary "
            f"{row[PRIMARY]:.3f}, any other {row['any other, Holm']:.3f}"
        )


def show_remedies(risks: dict[str, dict[str, float]]) -> None:
    """Risk by cell and training world."""
    shown = Table(title="Clipped risk by what the network was trained with")
    for column in ("shift", *risks):
        shown.add_column(column)
    for cell in next(iter(risks.values())):
        shown.add_row(cell, *(f"{row[cell]:.4f}" for row in risks.values()))
    console.print(shown)


def section(result: Mapping[str, Any]) -> str:
    """All tables, and what became of the targets."""

    def show() -> None:
        for name, part in SHOWN.items():
            if name in result:
                part(result[name])

    told = [
        (name, verdict(value) if isinstance(value, bool) else value)
        for name, value in result.get("verdicts", {"all": "not all parts are done"}).items()
    ]
    return as_printed(console, show) + "\n" + table(("target", ""), told)


def picture(result: dict[str, Any]) -> Figure:
    """Gaps beside the distance of the features, and power by number of series."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    if "shifts" in result:
        draw_shifts(left, result["shifts"])
    if "power" in result:
        draw_power(right, result["power"]["cells"])
    return figure


def draw_shifts(axis: Any, shifts: dict[str, Any]) -> None:
    """The gap of each shift beside two distances that need no labels."""
    rows = {name: row for name, row in shifts["rows"].items() if name != "none"}
    ranks = shifts["spearman"]
    for each, marker in (("MMD2, h", "o"), ("2a-1, x", "x")):
        axis.scatter([r[each] for r in rows.values()], [abs(r["gap"]) for r in rows.values()],
                     marker=marker, label=f"{each} (Spearman {ranks[each]:.2f})")  # fmt: skip
    axis.set(xlabel="distance without labels", ylabel="|gap in clipped risk|", xlim=(-0.02, None))
    axis.legend(frameon=False)


def draw_power(axis: Any, cells: dict[str, Any]) -> None:
    """The power of the declared test by shift and number of series."""
    sizes = list(next(iter(cells.values())))
    levels = np.array([[cells[f][n]["tests"][PRIMARY] for n in sizes] for f in cells])
    drawn = axis.imshow(levels, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for i, name in enumerate(cells):
        for j, size in enumerate(sizes):
            text = f"{levels[i, j]:.2f} ({cells[name][size]['oracle']:.2f})"
            dark = "white" if levels[i, j] > 0.6 else "black"
            axis.text(j, i, text, ha="center", va="center", fontsize=7, color=dark)
    axis.set_xticks(range(len(sizes)), sizes)
    axis.set_yticks(range(len(cells)), list(cells), fontsize=8)
    axis.set(xlabel="real series", title="power of the declared test (oracle)")
    axis.figure.colorbar(drawn, ax=axis)


SHOWN: dict[str, Callable[[Any], None]] = {
    "bound": show_bound, "shifts": show_shifts, "power": show_power, "remedies": show_remedies,
}  # fmt: skip
