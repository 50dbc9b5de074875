"""The page of `sgjax check`: `Diagnosis -> check.html`, with its pictures and what they mean."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, PercentFormatter

from sgjax._drawing import COLOURS, FAINT, INK, SOFT, legend, panels_of, signed, styled
from sgjax._page import (
    Cell,
    capital,
    document,
    escape,
    finite,
    label,
    paragraph,
    picture,
    probability,
    section,
    table,
)
from sgjax.checkpoint import write_json
from sgjax.diagnostics import Calibration, Diagnosis, ecdf, ecdf_band
from sgjax.diagnostics.diagnosis import ALARM, BY_DATA, DENSITY, FIXED, RankTest
from sgjax.plots import plot_calibration
from sgjax.study import Study

READING = (
    "Ranks: where the truth lies among posterior draws. A curve above zero on the left and below "
    "it on the right: the posterior is too narrow. The other way round: too wide. All above: the "
    "posterior lies too high; all below: too low.",
    "log likelihood: the ranks of log p(data | parameters), which also see whether the posterior "
    "uses the data. density: the ranks of the predicted joint density. TARP: the share of draws "
    "nearer to a reference point than the truth is; with references that depend on the data it "
    "sees every error of a joint posterior, given enough simulations.",
    "contraction: 0 where the posterior knows no more than the prior, 1 where the data decide. A "
    "posterior can be right and know nothing: the prior passes the ranks of every parameter.",
    "All of this is about simulated data: it says nothing of data that the simulator cannot make.",
)


def write_check(
    folder: Path, study: Study, diagnosis: Diagnosis, calibration: Calibration | None
) -> Path:
    """Writes `check.json` and `check.html` into a folder; returns the page."""
    stored: dict[str, Any] = {
        "summary": diagnosis.summary,
        "passed": diagnosis.passed,
        "tests": diagnosis.table(),
        "knowledge": diagnosis.knowledge(),
        "notes": list(diagnosis.notes),
        "intervals": calibration.summary() if calibration is not None else {},
    }
    write_json(folder / "check.json", stored)
    title = f"{capital(label(study.name))}: can its posteriors be trusted?"
    tone = "good" if diagnosis.passed else "bad"
    parts = [
        f"<header><h1>{escape(title)}</h1>{paragraph(diagnosis.summary, f'lead {tone}')}</header>",
        _pictures(diagnosis),
        section("Every test", _tests(diagnosis)),
        section("What the posteriors know", _knowledge(diagnosis)),
        _intervals(calibration, list(study.mechanisms)),
        section("How to read this", *(paragraph(text) for text in READING)),
        section("Not judged", *(paragraph(text) for text in diagnosis.notes)),
    ]
    path = folder / "check.html"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(document(title, "\n".join(filter(None, parts))), encoding="utf-8")
    partial.replace(path)
    return path


@styled
def plot_ranks(diagnosis: Diagnosis) -> Figure:
    """The distribution function of ranks minus the diagonal, one panel for each quantity.

    The grey band holds the whole curve of 99 in 100 right posteriors.
    """
    colours = _colours(diagnosis)
    ranked = [test for test in diagnosis.tests if test.about not in (FIXED, BY_DATA)]
    names = dict.fromkeys(test.about for test in ranked)
    figure, grid = panels_of(len(names), 4, 1.7)
    for name, axes in zip(names, grid, strict=True):
        tests = [test for test in ranked if test.about == name]
        _draw_difference(axes, tests, [colours[test.mechanism] for test in tests])
        axes.set_title(label(name), size=9.5)
    _mechanisms_legend(figure, colours)
    figure.supxlabel("Rank of the truth among draws", size=9.5, color=SOFT)
    figure.supylabel("share below, minus right (points)", size=9.5, color=SOFT)
    return figure


@styled
def plot_joint(diagnosis: Diagnosis) -> Figure:
    """Expected coverage minus nominal: highest-density regions, and TARP with both references."""
    names = {DENSITY: "Highest-density regions", FIXED: "TARP, fixed references",
             BY_DATA: "TARP, references by data"}  # fmt: skip
    colours = _colours(diagnosis)
    figure, grid = panels_of(len(names), 3, 2.4)
    for (about, title), axes in zip(names.items(), grid, strict=True):
        tests = [test for test in diagnosis.tests if test.about == about]
        # The truth is inside a highest-density region where few draws are denser than it is.
        _draw_difference(axes, tests, [colours[t.mechanism] for t in tests], flip=about == DENSITY)
        axes.set_title(title, size=9.5)
        axes.set_xlabel("credible level")
    grid[0].set_ylabel("coverage, minus nominal (points)")
    _mechanisms_legend(figure, colours)
    return figure


def _draw_difference(
    axes: Axes, tests: Sequence[RankTest], colours: Sequence[str], flip: bool = False
) -> None:
    reach = 2.0
    if tests:
        band = ecdf_band(min(test.found.num for test in tests), 1 - ALARM)
        low, high = 100 * (band.lower - band.points), 100 * (band.upper - band.points)
        axes.fill_between(band.points, low, high, color=FAINT, lw=0)
        reach = max(reach, 1.1 * high.max())
    axes.axhline(0, color=SOFT, lw=0.8)
    for test, colour in zip(tests, colours, strict=True):
        points = ecdf_band(test.found.num).points
        pits = 1 - test.pits if flip else test.pits
        excess = 100 * (ecdf(pits) - points)
        axes.plot([0, *points, 1], [0, *excess, 0], color=colour, lw=1.3)
        reach = max(reach, 1.1 * np.max(np.abs(excess)))
    axes.set(xlim=(0, 1), ylim=(-reach, reach), xticks=[0, 0.5, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.locator_params(axis="y", nbins=4)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: signed(y)))


def _colours(diagnosis: Diagnosis) -> dict[str, str]:
    mechanisms = dict.fromkeys(test.mechanism for test in diagnosis.tests)
    within = [name for name in mechanisms if name]
    return {"": INK} | {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(within)}


def _mechanisms_legend(figure: Figure, colours: dict[str, str]) -> None:
    handles = [
        Line2D([], [], color=colour, lw=1.8, label=label(name))
        for name, colour in colours.items()
        if name
    ]
    if handles:
        legend(figure, handles)


def _pictures(diagnosis: Diagnosis) -> str:
    if not diagnosis.tests:
        return ""
    band = "The grey band holds the whole curve of 99 in 100 right posteriors."
    parts = [picture(plot_ranks(diagnosis), "Rank curves with bands", band)]
    if any(test.about == DENSITY for test in diagnosis.tests):
        caption = f"Joint coverage. {band} Below zero: too narrow; above: too wide."
        parts.append(picture(plot_joint(diagnosis), "Coverage and TARP curves", caption))
    return section("Where the truth lies among the draws", *parts)


def _tests(diagnosis: Diagnosis) -> str:
    body = []
    for row in diagnosis.table():
        wrong = row["wrong"]
        body.append(
            [
                Cell(label(row["about"]), label(row["mechanism"])),
                Cell(probability(row["p_adjusted"]), strong=wrong),
                probability(row["p_value"]),
                f"{100 * row['deviation']:.1f}",
                signed(round(row["bias"], 2)) if finite(row.get("bias")) else "",
                f"{row['width']:.2f}" if finite(row.get("width")) else "",
                Cell(row["verdict"], strong=wrong),
            ]
        )
    header = ("", "p, all tests", "p", "off by, points", "bias, sds", "width", "")
    words = "p over all tests together (Holm), and of each alone; width 1 is right"
    return table(header, body, words) if body else ""


def _knowledge(diagnosis: Diagnosis) -> str:
    body = [
        [
            Cell(label(row["about"]), label(row["mechanism"])),
            row["measure"],
            f"{row['value']:.3f}",
            f"± {row['standard_error']:.3f}",
            Cell(row["verdict"], strong=not row["informative"]),
        ]
        for row in diagnosis.knowledge()
    ]
    return table(("", "", "value", "standard error", ""), body) if body else ""


def _intervals(calibration: Calibration | None, mechanisms: Sequence[str]) -> str:
    if calibration is None or not (calibration.ranks or len(mechanisms) > 1):
        return ""
    caption = (
        f"Central intervals, probabilities and rank histograms on {calibration.num_simulations:,} "
        "simulations, all mechanisms together. Grey bands hold the whole of a right posterior's "
        "with 95 % probability."
    )
    drawn = picture(
        plot_calibration(calibration, mechanisms), "Coverage and rank histograms", caption
    )
    return section("Intervals and histograms", drawn)
