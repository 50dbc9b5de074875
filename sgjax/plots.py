"""Pictures of an analysis: `what was found -> matplotlib.figure.Figure`, without global state."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, PercentFormatter

from sgjax._drawing import (
    COLOURS,
    FAINT,
    INK,
    NO_UNITS,
    SOFT,
    WIDTH,
    Units,
    columns_of,
    draw_fan,
    draw_reference,
    draw_ridge,
    draw_series,
    legend,
    mechanism_colours,
    panels_of,
    recorded,
    robust_range,
    scale_values,
    short,
    signed,
    styled,
    time_panels,
    uniform_band,
)
from sgjax._page import label, percent, probability
from sgjax.analysis import Analysis
from sgjax.attribution import AttributedPosterior, Neighbours
from sgjax.diagnostics import Calibration
from sgjax.mismatch import Mismatch
from sgjax.observations import Observed
from sgjax.study import Study


@styled
def plot_prior_predictive(
    study: Study, observed: Observed, before: Mapping[str, Any], units: Units = NO_UNITS
) -> Figure:
    """Bands of what the prior expects, from `mismatch.prior_predictive`, and the data over them."""
    quantiles, levels = np.asarray(before["quantiles"], float), np.asarray(before["levels"], float)
    data, ts = recorded(observed), np.asarray(observed.ts)
    figure, panels = time_panels(study, units)
    handles: list[Any] = []
    for channel, axes in panels:
        handles = draw_fan(axes, ts, levels, quantiles[:, :, channel], COLOURS[0])
        handles.append(draw_series(axes, ts, data[:, channel]))
        scale_values(axes, data[:, channel], quantiles[:, :, channel])
    legend(figure, handles)
    return figure


@styled
def plot_neighbours(
    study: Study, observed: Observed, neighbours: Neighbours, units: Units = NO_UNITS
) -> Figure:
    """The data and the simulations nearest to them, by mechanism; the nearer, the stronger."""
    data, values = recorded(observed), np.asarray(neighbours.values, float)
    ts = np.asarray(study.ts)[: values.shape[1]]
    colours = mechanism_colours(study.mechanisms)
    strength = np.linspace(0.85, 0.2, len(values))
    figure, panels = time_panels(study, units)
    handles: list[Any] = []
    for channel, axes in panels:
        for row in reversed(range(len(values))):
            colour = colours[neighbours.mechanisms[row]]
            axes.plot(ts, values[row, :, channel], color=colour, alpha=strength[row], lw=1.1)
        handles = [draw_series(axes, np.asarray(observed.ts), data[:, channel])]
        scale_values(axes, data[:, channel], values[:, :, channel])
    for mechanism in study.mechanisms:
        count = neighbours.mechanisms.count(mechanism)
        words = f"{label(mechanism)} ({count} of the {len(values)} nearest)"
        handles.append(Line2D([], [], color=colours[mechanism], lw=1.8, label=words))
    legend(figure, handles)
    return figure


@styled
def plot_forecast(analysis: Analysis, units: Units = NO_UNITS) -> Figure:
    """The data and, after them, the fan of `result["forecast"]`."""
    study, ahead = analysis.study, analysis.result["forecast"]
    levels, quantiles = np.asarray(ahead["levels"]), np.asarray(ahead["quantiles"], float)
    before, data = np.asarray(analysis.observed.ts), recorded(analysis.observed)
    after = np.asarray(study.ts)[before.size : before.size + quantiles.shape[1]]
    figure, panels = time_panels(study, units)
    handles: list[Any] = []
    for channel, axes in panels:
        handles = draw_fan(axes, after, levels, quantiles[:, :, channel], COLOURS[0])
        handles.append(draw_series(axes, before, data[:, channel]))
        axes.axvline((before[-1] + after[0]) / 2, color=SOFT, lw=0.8, dashes=(2, 3))
        scale_values(axes, data[:, channel], quantiles[:, :, channel])
    legend(figure, handles)
    return figure


class _Ridge(NamedTuple):
    """One row of densities; `exact` holds the reference's numbers by quantity."""

    words: str
    colour: str
    table: Mapping[str, np.ndarray]
    missing: str
    exact: Mapping[str, Any] | None = None


@styled
def plot_estimates(analysis: Analysis) -> Figure:
    """Marginal posteriors by quantity and mechanism, with the exact ones where there are any."""
    colours = mechanism_colours(analysis.study.mechanisms)
    exact = analysis.result.get("reference") or {}
    several = len(analysis.draws) > 1
    rows = [
        _Ridge(
            textwrap.fill(label(name), 16) if several else "",
            colours[name],
            columns_of(theta),
            f"not in {label(name)}",
            exact.get(name),
        )
        for name, theta in analysis.draws.items()
    ]
    figure = _ridges(rows)
    handles = _ridge_handles()
    if any(exact.values()):
        full = all("q50" in row for table in exact.values() for row in (table or {}).values())
        words = "the same, exact" if full else "exact, or its mean ± sd"
        handles.append(
            Line2D([], [], color=INK, marker="D", mfc="white", lw=1, ms=4.5, label=words)
        )
    legend(figure, handles)
    return figure


@styled
def plot_attributed(analysis: Analysis, attributed: AttributedPosterior) -> Figure:
    """The predictor's posterior and, under it, that of the nearest simulations."""
    colours = mechanism_colours(analysis.study.mechanisms)
    several, rows = len(colours) > 1, []
    for name, weights in attributed.weights.items():
        if weights.size < 2:
            continue
        where = f"{label(name)}, " if several else ""
        predicted = columns_of(analysis.draws.get(name, {}))
        if predicted:
            rows.append(_Ridge(textwrap.fill(f"{where}network", 16), colours[name], predicted, ""))
        words = textwrap.fill(f"{where}nearest", 16)
        cloud = columns_of(attributed.points(name))
        rows.append(_Ridge(words, SOFT, cloud, f"not in {label(name)}"))
    figure = _ridges(rows)
    legend(figure, _ridge_handles())
    return figure


def _ridges(rows: Sequence[_Ridge]) -> Figure:
    """One panel a quantity, one ridge a row where the row has it."""
    names = list(dict.fromkeys(name for row in rows for name in row.table))
    figure, grid = panels_of(len(names), 3, 0.85 + 0.62 * len(rows), sharey=True)
    for name, axes in zip(names, grid, strict=True):
        low, high = robust_range([row.table[name] for row in rows if name in row.table])
        for place, row in enumerate(rows):
            if name in row.table:
                draw_ridge(axes, -place, row.table[name], low, high, row.colour)
                draw_reference(axes, -place, (row.exact or {}).get(name))
            else:
                axes.text(0.5, -place + 0.2, row.missing, transform=axes.get_yaxis_transform(),
                          ha="center", color=SOFT, size=8.5)  # fmt: skip
        axes.set(title=label(name), xlim=(low, high), ylim=(0.35 - len(rows), 0.85))
        axes.set_yticks([-place + 0.15 for place in range(len(rows))], [row.words for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=5)
    return figure


def _ridge_handles() -> list[Any]:
    return [
        Patch(color=SOFT, alpha=0.35, label="density"),
        Line2D([], [], color=SOFT, marker="o", lw=2.2, ms=5, label="median and 90 % interval"),
    ]


@styled
def plot_mechanisms(result: Mapping[str, Any]) -> Figure:
    """Probabilities of the mechanisms: before the data, after them, exact, under other priors."""
    rows = [("before the data", result.get("mechanisms_prior"))]
    rows += [("given the data", result["mechanisms"])]
    rows += [("exact reference", result.get("reference_mechanisms"))]
    rows += [(f"if {row['prior']}", row["probabilities"]) for row in result.get("sensitivity", [])]
    shown = [(textwrap.fill(words, 30), shares) for words, shares in rows if shares]
    colours = mechanism_colours(result["mechanisms"])
    figure = Figure(figsize=(WIDTH, 0.8 + 0.42 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for row, (words, shares) in enumerate(shown):
        left = 0.0
        for mechanism, colour in colours.items():
            share = shares.get(mechanism) or 0.0
            main = words == "given the data"
            axes.barh(-row, share, left=left, height=0.8 if main else 0.5, color=colour,
                      edgecolor="white", linewidth=1)  # fmt: skip
            if share > 0.06:
                axes.text(left + share / 2, -row, percent(share), ha="center", va="center_baseline",
                          color="white", weight="bold")  # fmt: skip
            left += share
    axes.set_yticks([-row for row in range(len(shown))], [words for words, _ in shown])
    axes.set(xlim=(0, 1), xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    legend(figure, [Patch(color=colour, label=label(name)) for name, colour in colours.items()])
    return figure


@styled
def plot_training(curve: Sequence[Mapping[str, Any]]) -> Figure:
    """The loss against the number of simulations seen, in all and by block of the task."""
    seen = np.array([row["simulations"] for row in curve], float)
    series = {"loss": np.array([row["loss"] for row in curve], float)}
    blocks = dict.fromkeys(name for row in curve for name in row.get("losses") or {})
    if len(blocks) > 1:
        for block in blocks:
            values = [(row.get("losses") or {}).get(block, np.nan) for row in curve]
            series[block] = np.array(values, float)
    figure, grid = panels_of(len(series), 3, 2.3)
    for index, ((name, values), axes) in enumerate(zip(series.items(), grid, strict=True)):
        axes.plot(seen, values, color=INK if index == 0 else COLOURS[index - 1], lw=1.3,
                  marker="o" if seen.size < 12 else "", ms=3)  # fmt: skip
        usable = values[np.isfinite(values)]
        if usable.size:
            # The first steps are far above the rest and would flatten it.
            low, high = usable.min(), np.quantile(usable, 0.98 if usable.size > 50 else 1.0)
            margin = 0.06 * max(high - low, 1e-9 + 1e-3 * abs(high))
            axes.set_ylim(low - margin, high + margin)
        axes.set(title=label(name) if index else "total loss", xlabel="Simulations")
        if seen.size > 1 and seen.min() > 0 and seen.max() > 20 * seen.min():
            axes.set_xscale("log")
        else:
            axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter(FuncFormatter(short))
        axes.grid(axis="y")
    return figure


@styled
def plot_calibration(calibration: Calibration, mechanisms: Sequence[str] = ()) -> Figure:
    """Coverage of central intervals, probabilities against frequencies, and ranks of the truth.

    Bands hold, with 95 % probability, the whole curve or histogram of a right posterior.
    `mechanisms` are the names of those of the study.
    """
    names = [name for name, ranks in calibration.ranks.items() if ranks.size]
    several = calibration.mechanism.shape[1] > 1 and calibration.truth.size > 0
    top = max(1, bool(names) + several)
    columns = min(4, max(len(names), 1))
    rows = -(-len(names) // columns)
    heights = [2.9, 1.45 * rows + 0.4] if names else [2.9]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    panels = list(parts[0].subplots(1, top, squeeze=False).flat)
    if names:
        _draw_coverage(panels[0], calibration, names)
    if several:
        _draw_reliability(panels[-1], calibration, mechanisms)
    if names:
        grid = list(parts[1].subplots(rows, columns, squeeze=False).flat)
        for index, (name, axes) in enumerate(zip(names, grid, strict=False)):
            _draw_ranks(axes, label(name), calibration.ranks[name])
            axes.tick_params(labelbottom=index + columns >= len(names))
        for axes in grid[len(names) :]:
            axes.remove()
        parts[1].supxlabel(
            "Rank of the truth among posterior draws, as a share", size=9.5, color=SOFT
        )
        parts[1].supylabel("relative frequency", size=9.5, color=SOFT)
    return figure


@styled
def plot_mismatch(mismatch: Mismatch) -> Figure:
    """How far the data lie from their nearest simulations, among simulations searched alike."""
    distances = np.asarray(mismatch.held_out_distances, float)
    distances = distances[np.isfinite(distances)]
    figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
    axes = figure.subplots()
    everything = np.append(distances, mismatch.distance)
    everything = everything[np.isfinite(everything)]
    wide = everything.min() > 0 and everything.max() > 20 * np.median(everything)
    edges = np.linspace(everything.min(), everything.max(), 41)
    if wide:
        edges = np.geomspace(everything.min(), everything.max(), 41)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.hist(distances, bins=edges.tolist(), color=COLOURS[0], alpha=0.55)
    if np.isfinite(mismatch.distance):
        axes.axvline(mismatch.distance, color=INK, lw=1.8)
        right = np.mean(edges <= mismatch.distance) > 0.6
        axes.annotate(
            f"the data\np = {probability(mismatch.p_value)}".replace("= <", "<"),
            (mismatch.distance, 0.97), xycoords=("data", "axes fraction"),
            xytext=(-7 if right else 7, 0), textcoords="offset points",
            ha="right" if right else "left", va="top", weight="bold",
        )  # fmt: skip
    axes.set(xlabel="Mean distance to the nearest simulations", ylabel="held-out simulations")
    return figure


def _draw_coverage(axes: Axes, calibration: Calibration, names: Sequence[str]) -> None:
    levels = np.linspace(0, 1, 51)[1:-1]
    fewest = min(calibration.ranks[name].size for name in names)
    band = 100 * uniform_band(fewest, np.full(50, 0.02), cumulative=True)
    axes.fill_between(levels, -band, band, color=FAINT, lw=0)
    axes.axhline(0, color=SOFT, lw=0.8)
    largest = band.max()
    for index, name in enumerate(names):
        excess = [100 * (calibration.coverage(name, level) - level) for level in levels.tolist()]
        axes.plot(levels, excess, color=COLOURS[index % len(COLOURS)], lw=1.5, label=label(name))
        largest = max(largest, np.nanmax(np.abs(excess)))
    reach = max(5.0, 1.15 * largest)
    axes.set(xlim=(0, 1), ylim=(-reach, 1.45 * reach), xlabel="Central interval")
    axes.set_title("Coverage: actual minus nominal (points)")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: signed(y)))
    axes.legend(loc="upper left", ncols=3, fontsize=8, borderaxespad=0.2, columnspacing=1)


def _draw_reliability(axes: Axes, calibration: Calibration, mechanisms: Sequence[str]) -> None:
    axes.plot([0, 1], [0, 1], color=SOFT, lw=0.8)
    total = calibration.mechanism.shape[1]
    bins = min(10, calibration.truth.size)
    names = list(mechanisms) or [f"mechanism {index + 1}" for index in range(total)]
    # Of two, the second tells all.
    shown = range(1 if total == 2 else 0, total)
    for index in shown:
        mean, share, count = calibration.reliability(index, bins).T
        error = 1.96 * np.sqrt(np.clip(mean * (1 - mean), 0, None) / count)
        axes.errorbar(mean, share, error, color=COLOURS[index % len(COLOURS)], marker="o", ms=4.5,
                      lw=1.2, elinewidth=1, label=label(names[index]))  # fmt: skip
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.05, 1.05), xlabel="Predicted probability")
    whose = label(names[-1]) if len(shown) == 1 else "Mechanisms"
    axes.set_title(f"{whose}: how often it was true")
    if len(shown) > 1:
        axes.legend(loc="upper left", fontsize=8, borderaxespad=0.2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _draw_ranks(axes: Axes, title: str, ranks: np.ndarray) -> None:
    bins = 20 if ranks.size >= 1000 else 10
    share = np.full(bins, 1 / bins)
    band = bins * uniform_band(max(ranks.size, 1), share, cumulative=False)[0]
    heights, edges = np.histogram(ranks, np.linspace(0, 1, bins + 1))
    axes.axhspan(1 - band, 1 + band, color=FAINT, lw=0)
    axes.axhline(1, color=SOFT, lw=0.8)
    relative = heights * bins / max(ranks.size, 1)
    axes.stairs(relative, edges, color=COLOURS[0], lw=1.3, baseline=None)
    reach = max(0.5, 1.1 * band, 1.1 * np.max(np.abs(relative - 1)))
    axes.set(xlim=(0, 1), ylim=(max(0, 1 - reach), 1 + reach), xticks=[0, 0.5, 1])
    axes.locator_params(axis="y", nbins=3)
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.set_title(title, size=9.5)
