"""The demo of learned simulators: train one of Lorenz's convection, judge it, draw it."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import numpyro.distributions as dist
from rich.console import Console
from rich.markup import escape

from sgjax import display, steppers
from sgjax._interrupt import Interrupted, Terminated
from sgjax.checkpoint import make_folder, new_folder, versions
from sgjax.devices import describe_hardware, is_first, on_first
from sgjax.observations import Chain
from sgjax.predictors import Predictor
from sgjax.priors import fold_name
from sgjax.report import write_result
from sgjax.rollout import RolloutReport, judge
from sgjax.rollout_plots import animate, draw_errors, draw_statistics
from sgjax.runs import RUNS
from sgjax.simulators import Lorenz63
from sgjax.stream import SimulationStream
from sgjax.study import Study
from sgjax.tasks import NextState
from sgjax.training import Optimisation, Report, train

LYAPUNOV_TIME = 1 / 0.9056
"""Of Lorenz's system at its usual parameters: in it, an error grows by e."""

WARM_UP = 5.0
"""After it a course is on the attractor, wherever it began."""

GAP = 0.05


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is trained and judged: all that decides how long the demo takes."""

    steps: int = 1500
    batch_size: int = 32
    """Courses per update; each frame of a course is an example."""
    learning_rate: float = 2e-3
    width: int = 128
    depth: int = 2
    frames: int = 64
    """Of a course in training."""
    judged_steps: int = 256
    """Of a rollout."""
    courses: int = 64
    """Held-out ones of each world."""
    stored: int = 2048
    """Simulated courses that the baselines are made from."""
    pictures: int = 240
    """Of the animation."""

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise ValueError(f"--{name} must be positive; got {value}.")


SIZES = Sizes()


def lorenz(frames: int, rho: tuple[float, float] = (26.0, 30.0)) -> Study:
    """Courses on the attractor, of so many frames; `rho` is told, the rest nearly fixed."""
    about = lambda value: dist.Uniform(0.999 * value, 1.001 * value)
    prior = {
        "sigma": about(10.0),
        "beta": about(8 / 3),
        "rho": dist.Uniform(*rho),
        "initial_x": dist.Normal(0.0, 8.0),
        "initial_y": dist.Normal(0.0, 8.0),
        "initial_z": dist.Uniform(5.0, 40.0),
    }
    simulator = Lorenz63(prior=prior, ts=[WARM_UP + GAP * i for i in range(frames)])
    return Study(simulator, Chain(), NextState(), known=("rho",), name="rollout")


def run_demo(
    console: Console, folder: Path | None = None, seed: int = 0, steps: int | None = None
) -> Path:
    """Trains, judges, draws and writes it all into a new folder, which it returns.

    Raises `RunError` where the folder exists already.
    """
    sizes = SIZES if steps is None else dataclasses.replace(SIZES, steps=steps)
    study, key = lorenz(sizes.frames), jax.random.key(seed)
    with _made(folder or new_folder(RUNS, study.name)) as made:
        console.print("Learning to step [bold]Lorenz's convection[/bold] of 1963, a chaotic system")
        predictor, last = _train(console, study, key, sizes)
        console.print(
            f"Trained on {last.simulations:,} courses of {sizes.frames} frames in "
            f"{last.seconds:.0f} s (and {last.compile_seconds:.0f} s of compilation)."
        )
        worlds = {
            "as trained": lorenz(sizes.judged_steps + 1),
            "rho outside (31 to 33)": lorenz(sizes.judged_steps + 1, (31.0, 33.0)),
        }
        with console.status(f"judging rollouts of {sizes.judged_steps} steps"):
            report = judge(
                predictor,
                worlds,
                fold_name(key, "judge"),
                courses=sizes.courses,
                stored=sizes.stored,
                lyapunov_time=LYAPUNOV_TIME,
            )
        display.show_rollout(console, report)
        if is_first():
            result = {
                "rows": report.rows,
                "options": dataclasses.asdict(sizes),
                "seed": seed,
                "training": dataclasses.asdict(last),
                "versions": versions(),
                "hardware": describe_hardware(),
            }
            write_result(made, result, "rollout.json")
            with console.status("drawing"):
                _draw(made, report, study.channels, sizes)
    _close(console, report, made)
    return made


def _train(
    console: Console, study: Study, key: jax.Array, sizes: Sizes
) -> tuple[Predictor, Report]:
    with console.status("measuring scales"):
        fresh = steppers.for_study(
            study, fold_name(key, "predictor"), width=sizes.width, depth=sizes.depth
        )
    stream = SimulationStream(study, fold_name(key, "stream"), sizes.batch_size)
    reports: list[Report] = []
    with display.Training(console, sizes.steps) as progress:
        try:
            predictor = train(
                fresh,
                stream,
                sizes.steps,
                optimisation=Optimisation(learning_rate=sizes.learning_rate),
                interval=min(50, sizes.steps),
                callbacks=[progress, reports.append],
            )
        except Interrupted as stop:
            # Unlike a run, the demo keeps nothing to go on from, and must not say so.
            raise (
                Terminated if stop.signal == stop.signal.SIGTERM else KeyboardInterrupt
            ) from None
    return predictor, reports[-1]


def _draw(folder: Path, report: RolloutReport, channels: tuple[str, ...], sizes: Sizes) -> None:
    draw_errors(report).savefig(folder / "errors.png", dpi=150)
    draw_statistics(report, channels).savefig(folder / "statistics.png", dpi=150)
    # x and z, in which the attractor has its two wings.
    animate(report, folder / "rollout.gif", plane=(0, 2), channels=channels, frames=sizes.pictures)


def _close(console: Console, report: RolloutReport, folder: Path) -> None:
    world = next(iter(report.worlds))
    lasts = {model: report.row(world, model)["valid time"] for model in ("learned", "its solver")}
    console.print(
        f"Rollouts of the learned simulator are valid for {lasts['learned']:.1f} Lyapunov times "
        f"(median); those of the solver that trained it, whose rounding grows too, for "
        f"{lasts['its solver']:.1f}.",
        soft_wrap=True,
    )
    console.print("\nrollout.gif     the truth beside a rollout of median length")
    console.print("errors.png      errors against time, beside what must be beaten")
    console.print("statistics.png  values of long rollouts, beside the truth's")
    console.print("rollout.json    the whole table, options, versions")
    console.print(f"Folder: [bold]{escape(str(folder))}[/bold]")


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """The new folder; it is taken away again where nothing was put into it."""
    made = Path(on_first(lambda: str(make_folder(folder))))
    try:
        yield made
    except BaseException:
        if is_first():
            with contextlib.suppress(OSError):
                made.rmdir()
        raise
