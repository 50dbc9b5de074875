"""What the pictures share: style, panels, scales, densities, bands; drawn on given axes."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sgjax._page import MINUS, label
from sgjax.observations import Observed
from sgjax.study import Study
from sgjax.tasks import component_names

INK, SOFT, FAINT = "#1f2933", "#5d6975", "#d9dde1"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8f6a00", "#3aa0d8", "#7a5bb5", "#999999")
"""Okabe and Ito's, told apart with any colour vision; yellows darkened for a white page."""

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.labelsize": 9.5,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": "#b4bbc2",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "grid.color": "#eceef0",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 1.5,
    "legend.columnspacing": 1.6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "savefig.dpi": 200,
}
WIDTH = 7.4
MOST_CHANNELS = 12

P = ParamSpec("P")


class Units(NamedTuple):
    """Of the times and of the values; empty where they are not known."""

    time: str = ""
    values: str = ""


NO_UNITS = Units()


def styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    @functools.wraps(function)
    def draw(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return draw


def mechanism_colours(mechanisms: Mapping[str, Any]) -> dict[str, str]:
    """The colour of each mechanism, the same in every picture."""
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(mechanisms)}


def recorded(observed: Observed) -> np.ndarray:
    return np.where(np.asarray(observed.mask), np.asarray(observed.values, float), np.nan)


def short(value: float, _: Any = None) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if 0.9995 * size <= abs(value) < 1e12:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}".replace("-", MINUS)


def signed(value: float) -> str:
    return "0" if value == 0 else f"{value:+g}".replace("-", MINUS)


def legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Above the panels, in one row where it fits."""
    lengths = [len(str(handle.get_label())) + 6 for handle in handles]
    columns = len(handles) if sum(lengths) <= 96 else max(1, 92 // max(lengths))
    figure.legend(
        handles=list(handles),
        loc="outside upper left",
        ncols=columns,
        borderpad=0,
        borderaxespad=0.4,
    )


def panels_of(
    count: int, columns: int, height: float, *, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of small panels, as many as asked for, the rest of the grid left empty."""
    columns = max(1, min(columns, count))
    rows = max(1, -(-count // columns))
    spaced = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.07)
    figure = Figure(figsize=(WIDTH, height * rows + 0.35), layout=spaced)
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def time_panels(study: Study, units: Units) -> tuple[Figure, list[tuple[int, Axes]]]:
    """One panel a channel; of very many channels, some, evenly spaced."""
    total = len(study.channels)
    shown = np.unique(np.linspace(0, total - 1, min(total, MOST_CHANNELS)).round().astype(int))
    columns = 1 if shown.size <= 3 else 2
    figure, grid = panels_of(shown.size, columns, 3.3 if shown.size == 1 else 2.1)
    for channel, axes in zip(shown, grid, strict=True):
        unit = f" ({units.values})" if units.values else ""
        axes.set_title(label(study.channels[channel]) + unit)
        axes.grid(axis="y")
        axes.margins(x=0.02)
        if np.all(np.asarray(study.ts) == np.round(study.ts)):
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        if channel in shown[-columns:]:
            axes.set_xlabel(f"Time ({units.time})" if units.time else "Time")
    return figure, list(zip(shown.tolist(), grid, strict=True))


def draw_series(axes: Axes, ts: np.ndarray, values: np.ndarray) -> Line2D:
    # A long series reads better as a line; a lone value between gaps needs its marker.
    few = ts.size <= 80
    (line,) = axes.plot(ts, values, color=INK, lw=1.3, marker="o" if few else ".", zorder=10,
                        ms=5 if few else 2, mec="white" if few else INK, mew=0.7,
                        label="data")  # fmt: skip
    return line


def draw_fan(
    axes: Axes, ts: np.ndarray, levels: np.ndarray, quantiles: np.ndarray, colour: str
) -> list[Any]:
    """Nested central bands and the median; what a legend needs, the innermost first."""
    handles: list[Any] = []
    for low in range(len(levels) // 2):
        share = levels[-1 - low] - levels[low]
        strength = 0.14 + 0.5 * low / len(levels)
        axes.fill_between(ts, quantiles[low], quantiles[-1 - low], color=colour, alpha=strength,
                          lw=0)  # fmt: skip
        depth = 1 - np.prod([1 - 0.14 - 0.5 * i / len(levels) for i in range(low + 1)])
        handles.append(Patch(color=colour, alpha=float(depth), lw=0, label=f"{share:.0%} band"))
    if len(levels) % 2:
        (line,) = axes.plot(ts, quantiles[len(levels) // 2], color=colour, lw=1.6, label="median")
        handles.append(line)
    for handle in handles:
        handle.set_label(handle.get_label().replace("%", " %"))
    return handles[::-1]


def scale_values(axes: Axes, data: np.ndarray, model: np.ndarray) -> None:
    """Linear, or logarithmic (about 0 linear) where data and model together span decades."""
    both = np.concatenate([data.ravel(), model.ravel()])
    both, seen = both[np.isfinite(both)], np.abs(data[np.isfinite(data)])
    largest = np.max(np.abs(both), initial=0.0)
    if not largest:
        return
    top, typical = (seen.max(), np.median(seen)) if seen.any() else (largest, largest)
    if largest <= min(200 * max(typical, 1e-30), 30 * max(top, 1e-30)):
        axes.set_ylim(bottom=0) if both.min() >= 0 else None
        return
    typical = typical or top
    if both.min() > 0:
        axes.set_yscale("log")
        axes.set_ylim(max(both.min(), 1e-4 * typical) / 1.3, 1.5 * min(largest, 1e4 * top))
    else:
        counts = np.all(both == np.round(both))
        linear = 1.0 if counts else max(0.01 * typical, 1e-6 * largest)
        axes.set_yscale("symlog", linthresh=linear, linscale=1.0)
        reach = 1.5 * min(largest, 1e4 * max(top, linear))
        axes.set_ylim(-reach if both.min() < 0 else 0, reach)
    axes.yaxis.set_major_formatter(FuncFormatter(short))


def columns_of(theta: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Draws as one finite vector per number, named as in the tables."""
    table = {}
    for name, values in theta.items():
        columns = np.asarray(values, float).reshape(len(values), -1)
        for title, column in zip(component_names(name, columns.shape[1]), columns.T, strict=True):
            if np.isfinite(column).any():
                table[title] = column[np.isfinite(column)]
    return table


def robust_range(columns: Sequence[np.ndarray]) -> tuple[float, float]:
    """What holds nearly all draws without following a heavy tail."""
    spans = []
    for values in columns:
        q05, q25, q75, q95 = np.quantile(values, (0.05, 0.25, 0.75, 0.95))
        reach = 1.2 * max(q75 - q25, 0.15 * (q95 - q05))
        spans.append((max(values.min(), q05 - reach), min(values.max(), q95 + reach)))
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    margin = 0.04 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def _density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """A Gaussian kernel estimate from binned draws, reflected where they end at zero."""
    width = grid[1] - grid[0]
    q25, q75 = np.quantile(values, (0.25, 0.75))
    spread = min(values.std(), (q75 - q25) / 1.34) or values.std()
    band = max(1.1 * spread * values.size**-0.2, width) if spread > 0 else width
    both = np.concatenate([values, -values]) if values.min() >= 0 else values
    edges = np.append(grid - width / 2, grid[-1] + width / 2)
    counts, _ = np.histogram(both, edges)
    reach = min(int(4 * band / width) + 1, (grid.size - 1) // 2)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * width / band) ** 2)
    smooth = np.convolve(counts, kernel / kernel.sum(), mode="same")
    return np.where(grid >= 0, smooth, 0.0) if values.min() >= 0 else smooth


def draw_ridge(
    axes: Axes, base: float, values: np.ndarray, low: float, high: float, colour: str
) -> None:
    grid = np.linspace(low, high, 401)
    height = _density(values, grid)
    curve = base + 0.62 * height / max(height.max(), 1e-30)
    axes.fill_between(grid, base, curve, color=colour, alpha=0.3, lw=0)
    axes.plot(grid, np.where(height > 0, curve, np.nan), color=colour, lw=1.1)
    q05, q50, q95 = np.quantile(values, (0.05, 0.5, 0.95))
    axes.plot([q05, q95], [base - 0.09] * 2, color=colour, lw=2.2)
    axes.plot([q50], [base - 0.09], color=colour, marker="o", ms=5)


def draw_reference(axes: Axes, base: float, row: Mapping[str, Any] | None) -> None:
    if not row:
        return
    if row.get("q50") is not None:
        low, centre, high = row.get("q05"), row["q50"], row.get("q95")
    else:
        centre, low, high = row.get("mean"), None, None
        if centre is not None and row.get("sd") is not None:
            low, high = centre - row["sd"], centre + row["sd"]
    if low is not None and high is not None:
        axes.plot([low, high], [base - 0.23] * 2, color=INK, lw=1)
    if centre is not None:
        axes.plot([centre], [base - 0.23], color=INK, marker="D", mfc="white", lw=0, ms=4.5)


def uniform_band(size: int, probabilities: np.ndarray, *, cumulative: bool) -> np.ndarray:
    """Half the width of the simultaneous 95 % band of a histogram or curve of uniform ranks."""
    counts = np.random.default_rng(0).multinomial(size, probabilities, 2000) / size
    expected = probabilities
    if cumulative:
        counts, expected = counts.cumsum(axis=1)[:, :-1], probabilities.cumsum()[:-1]
    sd = np.sqrt(expected * (1 - expected) / size)
    return np.quantile(np.max(np.abs(counts - expected) / sd, axis=1), 0.95) * sd
