"""Pictures of a `RolloutReport`: errors against time, statistics of long rollouts, an animation.

They need nothing but the report and touch no global state of matplotlib.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter
from PIL import Image

from sgjax._drawing import COLOURS, FAINT, INK, SOFT, STYLE, WIDTH, legend, panels_of, short, styled
from sgjax._page import capital, label
from sgjax.rollout import RolloutReport, Scales, measures

THRESHOLD = 0.4
"""The scaled error up to which a rollout counts as valid."""

MODEL_COLOURS = {
    "learned": COLOURS[1],
    "its solver": COLOURS[0],
    "nearest simulation": COLOURS[2],
    "linear": COLOURS[3],
    "persistence": COLOURS[7],
}
"""The same in every picture; others follow in the order of the report."""

MOST_PANELS = 4
"""Of very many channels, some, evenly spaced."""

FINER = 6
"""So many points are drawn for each step: a loop of a few steps would look like a polygon."""


@styled
def draw_errors(report: RolloutReport) -> Figure:
    """The scaled error against time, a panel a world: median and quartiles over courses."""
    figure, grid = panels_of(len(report.worlds), 2, 3.3, sharey=True)
    unit = report.scales.dt / report.scales.lyapunov_time
    colours = _colours(report)
    low, high = 1e-2, 3.0
    for (name, world), axes in zip(report.worlds.items(), grid, strict=True):
        ts = unit * np.arange(1, world.truth.shape[1] + 1)
        for model, colour in colours.items():
            errors = measures.scaled_error(
                report.predicted[name][model], world.truth, report.scales.sd
            )
            quartiles = _drawable(np.quantile(errors, (0.25, 0.5, 0.75), axis=0, method="higher"))
            main = model == "learned"
            axes.fill_between(ts, quartiles[0], quartiles[2], color=colour, lw=0,
                              alpha=0.22 if main else 0.1)  # fmt: skip
            axes.plot(ts, quartiles[1], color=colour, lw=2.2 if main else 1.3, zorder=3 + main)
            low = min(low, quartiles[1].min())
        axes.axhline(THRESHOLD, color=INK, lw=0.9, dashes=(4, 3), zorder=2)
        axes.set(title=capital(name), xlim=(0, ts[-1]), yscale="log")
        axes.set_xlabel(_time_words(report.scales))
        axes.yaxis.set_major_formatter(FuncFormatter(short))
        axes.grid(axis="y")
    grid[0].set_ylim(max(low / 1.5, 1e-7), high)
    grid[0].set_ylabel("Error, in deviations of the channels")
    handles = [Line2D([], [], color=c, lw=2.2, label=capital(m)) for m, c in colours.items()]
    handles.append(
        Line2D([], [], color=INK, lw=0.9, dashes=(4, 3), label=f"Valid up to {THRESHOLD}")
    )
    legend(figure, handles)
    return figure


@styled
def draw_statistics(report: RolloutReport, channels: Sequence[str] = ()) -> Figure:
    """Histograms of all values of the rollouts over those of the truth: a row a world.

    `channels` are their names (those of the fields, where the channels are points of fields).
    """
    groups = _groups(report.scales)
    total = report.scales.fields or report.scales.mean.size
    shown = range(total) if report.scales.fields else [int(group[0]) for group in groups]
    names = [_names(channels, total)[index] for index in shown]
    count, columns = len(report.worlds), len(groups)
    spaced = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05)
    figure = Figure(figsize=(WIDTH, 0.4 + 1.95 * count), layout=spaced)
    grid = figure.subplots(count, columns, squeeze=False)
    colour = MODEL_COLOURS["learned"]
    for row, (world, held) in enumerate(report.worlds.items()):
        learned = report.predicted[world]["learned"]
        for column, group in enumerate(groups):
            axes: Axes = grid[row, column]
            _draw_histogram(axes, held.truth[..., group], learned[..., group], colour)
            axes.set_title(names[column] if row == 0 else "")
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.xaxis.set_major_formatter(FuncFormatter(short))
            axes.locator_params(axis="x", nbins=5)
        grid[row, 0].set_ylabel(capital(world))
    handles: list[Any] = [Patch(color=FAINT, label="Truth")]
    handles.append(Line2D([], [], color=colour, lw=1.8, label="Learned"))
    legend(figure, handles)
    return figure


def animate(
    report: RolloutReport,
    path: Path,
    *,
    world: str | None = None,
    course: int | None = None,
    plane: tuple[int, int] = (0, 1),
    channels: Sequence[str] = (),
    frames: int = 240,
    seconds: float = 12.0,
) -> None:
    """Writes a GIF: the truth beside the learned simulator, in the `plane` of two channels.

    **Arguments:** `world`, the first unless named; `course`, the one of the median valid time
    unless given; `channels`, their names; `frames` pictures in so many `seconds`.

    Raises `ValueError` where a channel of the plane is not there.
    """
    name = next(iter(report.worlds)) if world is None else world
    held, learned = report.worlds[name], report.predicted[name]["learned"]
    total = held.truth.shape[-1]
    if not all(0 <= channel < total for channel in plane):
        raise ValueError(f"`plane` is {plane}; there are {total} channels, counted from 0.")
    if course is None:
        lasted = measures.valid_time(learned, held.truth, report.scales.sd, report.scales.dt)
        course = int(np.argsort(lasted, kind="stable")[len(lasted) // 2])
    start = held.frames[course, -1:]
    courses = [np.concatenate([start, rows[course]]) for rows in (held.truth, learned)]
    with matplotlib.rc_context(STYLE):
        stage = _Stage(report.scales, held.truth, courses, plane, _names(channels, total))
        places = np.linspace(0, len(courses[0]) - 1, max(frames, 1)).tolist()
        _write_gif(path, [stage.picture(place) for place in places], 1000 * seconds / len(places))


def _write_gif(path: Path, pictures: Sequence[Image.Image], milliseconds: float) -> None:
    """One palette, that of the last picture, which has everything; what rests costs no bytes."""
    palette = pictures[-1].quantize(64)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    colours[colours.min(axis=1) >= 250] = 255  # a page of almost white is seen on white
    palette.putpalette(colours.ravel().tolist())
    still = Image.Dither.NONE
    first, *others = (picture.quantize(palette=palette, dither=still) for picture in pictures)
    # Times of a GIF are hundredths of a second.
    duration = max(20, 10 * round(milliseconds / 10))
    first.save(path, save_all=True, append_images=others, duration=duration, loop=0, optimize=True)


class _Stage:
    """Two portraits and a strip of the first channel against time, drawn up to any moment."""

    def __init__(
        self,
        scales: Scales,
        cloud: Float[np.ndarray, "courses steps channels"],
        courses: Sequence[Float[np.ndarray, "frames channels"]],
        plane: tuple[int, int],
        names: Sequence[str],
    ):
        self.unit, self.plane = scales.dt / scales.lyapunov_time, plane
        self.figure = Figure(figsize=(6.8, 4.7), layout=ConstrainedLayoutEngine(w_pad=0.1))
        self.canvas = FigureCanvasAgg(self.figure)
        grid = self.figure.subplot_mosaic([["truth", "learned"], ["strip", "strip"]],
                                          height_ratios=(3.2, 1))  # fmt: skip
        self.paths = [_smooth(course) for course in courses]
        self.times = self.unit * np.arange(len(self.paths[0])) / FINER
        self.window = 1.0 if scales.lyapunov_time != 1 else self.times[-1] / 12
        x, y = plane
        seen = [cloud.reshape(-1, cloud.shape[-1]), courses[0]]
        self.trails, strip = [], grid["strip"]
        colours = (INK, MODEL_COLOURS["learned"])
        for axes, title, colour in zip((grid["truth"], grid["learned"]), ("Truth", "Learned"),
                                       colours, strict=True):  # fmt: skip
            axes.plot(seen[0][:, x], seen[0][:, y], ",", color=FAINT, alpha=0.9, zorder=0)
            axes.set(xlabel=names[x], xlim=_limits(seen, x), ylim=_limits(seen, y))
            axes.set_title(title, color=colour, weight="bold")
            axes.xaxis.set_major_formatter(FuncFormatter(short))
            axes.locator_params(nbins=5)
            self.trails.append(_Trail(axes, strip, colour))
        grid["truth"].set_ylabel(names[y])
        grid["learned"].tick_params(labelleft=False)
        strip.set(xlim=(0, self.times[-1]), ylim=_limits(seen, x), ylabel=names[x],
                  xlabel=_time_words(scales))  # fmt: skip
        strip.yaxis.set_major_formatter(FuncFormatter(short))
        strip.locator_params(axis="y", nbins=3)
        self.clock = grid["learned"].set_title("", loc="right", color=SOFT)
        self.clock.set_animated(True)
        self.words = "t = {:.1f} Lyapunov times" if scales.lyapunov_time != 1 else "t = {:.1f}"
        # Laid out once, and what rests is drawn once: it is most of the work.
        self.canvas.draw()
        self.figure.set_layout_engine("none")
        self.rest = self.canvas.copy_from_bbox(self.figure.bbox)

    def picture(self, place: float) -> Image.Image:
        """Everything up to this frame of the courses, which may lie between two."""
        end = round(FINER * place) + 1
        recent = max(0, end - round(FINER * self.window / self.unit))
        self.canvas.restore_region(self.rest)
        for trail, points in zip(self.trails, self.paths, strict=True):
            trail.show(self.times, points[:, self.plane], recent, end)
        self.clock.set_text(self.words.format(self.times[end - 1]))
        self.figure.draw_artist(self.clock)
        return Image.fromarray(np.array(self.canvas.buffer_rgba())[..., :3])


class _Trail:
    """A course in its portrait: faint where it was, strong where it comes from, a dot now."""

    def __init__(self, axes: Axes, strip: Axes, colour: str):
        self.axes, self.strip = axes, strip
        new: dict[str, Any] = {"color": colour, "animated": True}
        (self.past,) = axes.plot([], [], lw=0.8, alpha=0.45, **new)
        (self.recent,) = axes.plot([], [], lw=2.0, **new)
        (self.head,) = axes.plot([], [], "o", ms=6, mec="white", mew=0.8, **new)
        (self.series,) = strip.plot([], [], lw=1.4, **new)

    def show(self, times: np.ndarray, points: np.ndarray, recent: int, end: int) -> None:
        self.past.set_data(*points[: recent + 1].T)
        self.recent.set_data(*points[recent:end].T)
        self.head.set_data(*points[end - 1 : end].T)
        self.series.set_data(times[:end], points[:end, 0])
        for line in (self.past, self.recent, self.head):
            self.axes.draw_artist(line)
        self.strip.draw_artist(self.series)


def _smooth(course: Float[np.ndarray, "frames channels"]) -> Float[np.ndarray, "points channels"]:
    """A cubic spline through the frames as far as they are finite; nothing is drawn after that."""
    from scipy.interpolate import CubicSpline

    fine = np.full((FINER * (len(course) - 1) + 1, course.shape[1]), np.nan)
    # What is about to leave the range of numbers would overflow in the spline; NaN is lost too.
    lost = np.logical_not((np.abs(course) <= 1e30).all(axis=1))
    kept = int(lost.argmax()) if lost.any() else len(course)
    if kept >= 2:
        points = FINER * (kept - 1) + 1
        fine[:points] = CubicSpline(np.arange(kept), course[:kept])(np.arange(points) / FINER)
    elif kept == 1:
        fine[0] = course[0]
    return fine


def _draw_histogram(axes: Axes, truth: np.ndarray, learned: np.ndarray, colour: str) -> None:
    """The truth filled, the learned one a line; what lies far outside is counted in a line."""
    values, made = truth.ravel(), learned.ravel()
    margin = 0.15 * (values.max() - values.min()) or 0.5
    edges = np.linspace(values.min() - margin, values.max() + margin, 61)
    width = edges[1] - edges[0]
    inside = made[np.isfinite(made)]
    inside = inside[(inside >= edges[0]) & (inside <= edges[-1])]
    for each, total in ((values, values.size), (inside, made.size)):
        heights = np.histogram(each, edges)[0] / (total * width)
        if each is values:
            axes.stairs(heights, edges, fill=True, color=FAINT)
        else:
            axes.stairs(heights, edges, color=colour, lw=1.5, baseline=None)
    outside = 1 - inside.size / made.size
    if outside > 0.001:
        axes.text(0.98, 0.97, f"{outside:.1%} outside".replace("%", " %"), color=colour, size=8.5,
                  ha="right", va="top", transform=axes.transAxes)  # fmt: skip
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, None))


def _colours(report: RolloutReport) -> dict[str, str]:
    """The models of the report with their colours, the learned one first."""
    models = dict.fromkeys(
        [*MODEL_COLOURS, *(m for held in report.predicted.values() for m in held)]
    )
    there = [model for model in models if all(model in held for held in report.predicted.values())]
    spare = iter(COLOURS[4:7] * len(there))
    return {model: MODEL_COLOURS.get(model) or next(spare) for model in there}


def _groups(scales: Scales) -> list[np.ndarray]:
    """The channels of each panel: each its own, or all points of a field together."""
    total = scales.mean.size
    if scales.fields:
        return list(np.arange(total).reshape(scales.fields, -1))
    shown = np.unique(np.linspace(0, total - 1, min(total, MOST_PANELS)).round().astype(int))
    return [np.array([channel]) for channel in shown]


def _names(channels: Sequence[str], count: int) -> list[str]:
    return [label(name) for name in channels] or [f"Channel {index}" for index in range(count)]


def _drawable(errors: np.ndarray) -> np.ndarray:
    """On a logarithmic axis neither nothing nor infinity has a place: both go to its rims."""
    return np.clip(errors, 1e-9, 1e9)


def _limits(seen: Sequence[np.ndarray], channel: int) -> tuple[float, float]:
    """Of the truth, with room: a rollout that leaves it leaves the picture."""
    low = min(rows[:, channel].min() for rows in seen)
    high = max(rows[:, channel].max() for rows in seen)
    margin = 0.06 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def _time_words(scales: Scales) -> str:
    return "Time (Lyapunov times)" if scales.lyapunov_time != 1 else "Time"
