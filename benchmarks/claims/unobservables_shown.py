"""Tables and the picture of what no one sees: `result -> what is seen`."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.claims.tables import as_printed, table, verdict
from sgjax._drawing import COLOURS, WIDTH, styled

console = Console()

FAR = 2.0
"""An estimate of ln K that is off by more is called far off."""

WORST = "RMSE over the exact posterior mean's, worst stratum of 2,000 series at least"

TARGETS = {
    WORST: (0.0, 1.02),
    "log rho": (-0.01, 0.003),
    "log rho, leaky": (0.10, 1.0),
    "log m": (0.93, 1.0),
    "beta - gamma": (0.98, 1.0),
}
"""Between which figures must lie, scores unless told otherwise."""


def show_growth(arm: str, row: dict[str, Any]) -> None:
    """The tables of growth."""
    methods = list(row["overall"]["methods"])
    strata = {"tau": row["by_tau"], "exact posterior sd": row["by_sd"]}
    for by, parts in strata.items():
        table = Table(title=f"{arm}: RMSE of ln K by {by} (over the exact posterior mean's)")
        for column in (by, "n", *methods, f"unrestricted off by > {FAR:g}"):
            table.add_column(column)
        for part in parts:
            own = part["methods"]
            end = "" if part["to"] is None else f" - {part['to']:.3g}"
            cells = [
                f"{own[m]['rmse']:.3f} ± {own[m]['error']:.3f} ({own[m]['over_exact']:.2f})"
                for m in methods
            ]
            far = f"{own['maximum likelihood, unrestricted']['far_off']:.1%}"
            table.add_row(f"{part['from']:.3g}{end}", f"{part['n']:,}", *cells, far)
        console.print(table)
    console.print(f"contraction: {_in_words(row['contraction'])}")
    console.print(f"network to exact posterior mean: {_in_words(row['network_to_exact'])}")
    console.print(f"converged: {_in_words(row['converged'])}")
    for part, found in zip(row["by_tau"], row["verdicts"], strict=False):
        console.print(f"profile likelihood, tau from {part['from']:g}: {_in_words(found)}")
    console.print(f"{row['seconds']:.0f} s")


def _in_words(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in numbers.items()) or "none"


def show_scores(arm: str, row: dict[str, Any]) -> None:
    """The scores of one world."""
    table = Table(title=f"{arm}: what the data tell, {row['tests']:,} tests")
    for column in ("quantity", "mechanism", "score", "the network expects", "verdict",
                   "in 90 %", "width", "ranks uniform, p"):  # fmt: skip
        table.add_column(column)
    for each in row["scores"]:
        score = f"{each['score']:.4f} ± {each['error']:.4f}"
        names = (each["quantity"], each["mechanism"])
        # Ranks of a parameter are those of its logarithm.
        known, name = row["calibration"], each["quantity"]
        own = known.get(name, known.get(name.removeprefix("log ")))
        shown = [""] * 3
        if own is not None:
            shown = [f"{own['coverage_90']:.1%}", f"{own['width']:.3f}", f"{own['p_value']:.2g}"]
        table.add_row(*names, score, f"{each['expected']:.4f}", each["verdict"], *shown)
    console.print(table)
    if "errors" in row:
        show_methods(arm, row)
    for each in row["combinations"]:
        console.print(
            f"  {each['score']:.4f} ± {each['error']:.4f}  {each['combination, in prior sds']}"
        )
    console.print(row.get("fisher", {}).get("verdict", ""), f"{row['seconds']:.0f} s")


def show_methods(arm: str, row: dict[str, Any]) -> None:
    """The errors of R0, method by method."""
    table = Table(title=f"{arm}: its RMSE on {row['errors']['n']:,} series, by every way there is")
    for column in ("method", "RMSE", "over the exact posterior mean's"):
        table.add_column(column)
    for method, own in row["errors"]["methods"].items():
        ratio = f"{own['over_exact']:.3f} ± {own['over_exact_error']:.3f}"
        table.add_row(method, f"{own['rmse']:.3f} ± {own['error']:.3f}", ratio)
    console.print(table, row["references"])


def section(result: Mapping[str, Any]) -> str:
    """The tables of all arms, and what became of the targets."""

    def show() -> None:
        for arm, row in result["arms"].items():
            (show_growth if arm == "growth" else show_scores)(arm, row)

    targets = [(name, verdict(told)) for name, told in result["met"].items()]
    return as_printed(console, show) + "\n" + table(("target", ""), targets)


@styled
def picture(result: dict[str, Any]) -> Figure:
    """RMSE of ln K by tau and by exact posterior sd, and the scores of the controls."""
    arms = result["arms"]
    figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(3, 2))
    top, bottom = halves
    axes: Any = top.subplots(1, 2, sharey=True)
    mixed = lambda arm: len({row["mechanism"] for row in arms[arm]["scores"]}) > 1
    growth = arms.get("growth")
    titles = ("by time seen over time of steepest growth", "by exact posterior sd")
    for axis, by, title in zip(axes, ("by_tau", "by_sd"), titles, strict=True):
        parts = growth[by] if growth else []
        for method, colour in zip(parts[0]["methods"] if parts else (), COLOURS, strict=False):
            rows = [part["methods"][method] for part in parts]
            axis.errorbar(
                range(len(parts)), [row["rmse"] for row in rows], [row["error"] for row in rows],
                marker="o", markersize=3, linewidth=1, color=colour, label=method,
            )  # fmt: skip
        ends = [(f"{p['from']:.2g}", "" if p["to"] is None else f"{p['to']:.2g}") for p in parts]
        axis.set_xticks(range(len(parts)), ["-\n".join(each) for each in ends], fontsize="x-small")
        axis.set(yscale="log", title=title)
    axes[0].set_ylabel("RMSE of ln K")
    if growth:
        axes[0].legend(fontsize="x-small", frameon=False)
    bars = [
        (f"{row['quantity']}: {arm}{', ' + row['mechanism'] if mixed(arm) else ''}",
         row["score"], row["error"])
        for arm in arms if arm != "growth"
        for row in arms[arm]["scores"]
        if row["quantity"] in (*TARGETS, "R0", "log exposed")
    ]  # fmt: skip
    axis = bottom.subplots()
    labels, scores, errors = zip(*bars, strict=True) if bars else ((), (), ())
    axis.barh(range(len(bars)), scores, xerr=errors, color=COLOURS[0], height=0.6)
    axis.set_yticks(range(len(bars)), labels)
    axis.invert_yaxis()
    axis.set(xlabel="score: 1 where the data decide, 0 where an answer is the prior mean")
    return figure
