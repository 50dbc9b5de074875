"""The command line: `sgjax demo | list | train | predict | explain | check`."""

import dataclasses
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg, subcommand

from sgjax import display
from sgjax._interrupt import Interrupted, Terminated, terminable
from sgjax._startup import set_up
from sgjax.checkpoint import RunError, latest_run, make_folder, new_folder
from sgjax.devices import ends_with_others, initialise, is_first
from sgjax.diagnosis_page import write_check
from sgjax.diagnostics import Calibration
from sgjax.mismatch import prior_predictive, report_mismatch
from sgjax.observations import Observed
from sgjax.predictors import CannotGive, Posterior, Predictor, as_observed
from sgjax.priors import fold_name
from sgjax.reading import DataError, read_csv
from sgjax.rollout_demo import run_demo
from sgjax.runs import RUNS, Saving, Session, Source
from sgjax.studies import READY_MADE, Preset, StudyError
from sgjax.training import DivergedError, InvalidSimulationsError

console = Console(highlight=False)

USER_ERRORS = (
    RunError,
    TimeoutError,
    DataError,
    StudyError,
    InvalidSimulationsError,
    DivergedError,
    ValueError,
)
"""What a user can mend: one message and exit status 2."""


class UsageError(ValueError):
    """Options that do not go together."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Study the influenza outbreak of 1978, or learn a simulator and judge it, in minutes."""

    what: Positional[Literal["influenza", "rollout"]] = "influenza"
    """The outbreak from simulation to report, or rollouts of a learned simulator."""
    folder: Path | None = None
    """The new folder for the results; by default one under sgjax-runs/."""
    seed: int = 0
    """Decides every random number."""
    steps: int | None = None
    """Updates, instead of the demo's own number."""

    def run(self) -> None:
        _join()
        if self.what == "rollout":
            run_demo(console, self.folder, self.seed, self.steps)
            return
        source = Source.find("influenza_1978")
        assert source.ready is not None
        _train_and_report(source, _with(source.ready.demo, steps=self.steps), self)


@dataclasses.dataclass(frozen=True)
class List:
    """List the studies, mechanisms, observation models and data sets that ship."""

    def run(self) -> None:
        display.show_list(console)


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a predictor on a ready-made study or on your own, and report on its data."""

    study: Annotated[Positional[str | None], arg(metavar="STUDY")] = None
    """A ready-made study (see `sgjax list`), or your Python file with a Study object."""
    folder: Path | None = None
    """The new folder for the run; by default one under sgjax-runs/."""
    resume: tuple[Path, ...] | None = None
    """Go on with the run in this folder; with none named, with the latest under sgjax-runs/."""
    seed: int = 0
    """Decides every random number."""
    steps: int | None = None
    """Updates, each on a batch of fresh simulations."""
    batch_size: int | None = None
    """Simulations per update, over all devices."""
    learning_rate: float | None = None
    """The peak of the schedule."""
    encoder: str | None = None
    """How the series is read: mlp, convolution or transformer."""
    width: int | None = None
    """Number of features."""
    depth: int | None = None
    """Blocks of the encoder."""
    head: str | None = None
    """The distribution of the parameters: gaussian_mixture, spline_flow, flow_matching, gaussian,
    quantile or point."""
    save_seconds: float = 60.0
    """States are kept after so many seconds."""
    save_steps: int | None = None
    """States are kept after so many updates too."""
    keep: int = 2
    """The last so many states are kept, and the one of the best held-out score."""
    coordinator: str | None = None
    """On a cluster that is not found by itself: host:port of process 0."""
    processes: int | None = None
    """How many processes there are."""
    process: int | None = None
    """Which of them this is, counted from 0."""

    def run(self) -> None:
        _join(self.coordinator, self.processes, self.process)
        sizes = ("steps", "batch_size", "learning_rate", "encoder", "width", "depth", "head")
        changes = {name: getattr(self, name) for name in sizes}
        saving = Saving(self.save_seconds, self.save_steps, self.keep)
        if self.resume is not None:
            if any(value is not None for value in changes.values()) or self.folder is not None:
                raise UsageError("--resume goes on with the run as it was; give no other option.")
            _finish(self._resumed(self.resume), saving)
            return
        if self.study is None:
            raise UsageError(f"Name a study ({', '.join(READY_MADE)}) or your Python file.")
        source = Source.find(self.study)
        preset = source.ready.full if source.ready is not None else Preset()
        _train_and_report(source, _with(preset, **changes), self, saving)

    def _resumed(self, named: tuple[Path, ...]) -> Session:
        # A run of a user's file executes that file: the one named on the command line.
        files = [Path(text) for text in (self.study, *named) if text and str(text).endswith(".py")]
        folders = [folder for folder in named if folder not in files]
        if len(folders) > 1 or len(files) > 1:
            raise UsageError(f"--resume goes on with one run; {len(folders)} folders are named.")
        if folders:
            return Session.open(folders[0], *files)
        folder = latest_run(RUNS, None if files else self.study)
        console.print(f"Going on with {escape(str(folder))}")
        return Session.open(folder, *files)


Series = Annotated[Positional[Path], arg(metavar="DATA.csv")]


@dataclasses.dataclass(frozen=True)
class OnRun:
    """What the commands on a finished run have in common."""

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The folder of a run, as `sgjax train` or `sgjax demo` named it."""
    study: Path | None = dataclasses.field(default=None, kw_only=True)
    """Your study file, where the run was made from one. It will be executed."""
    known: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    """Known quantities of the study, such as `--known population=763`."""
    best: bool = dataclasses.field(default=False, kw_only=True)
    """Take the state of the best held-out score instead of the last."""

    def session(self) -> Session:
        """The run, read back."""
        return Session.open(self.run_folder, self.study)

    def posterior(self, session: Session, data: Path) -> tuple[Predictor, Posterior]:
        """The trained predictor and what it says of a series; bad data are refused first."""
        observed = read_csv(data, session.study)
        given = _known(session, self.known)
        predictor = session.predictor(self.best)
        return predictor, predictor(observed, given)


@dataclasses.dataclass(frozen=True)
class Predict(OnRun):
    """Estimate from your own series: what the trained predictor says of DATA.csv."""

    data: Series
    """One row per time, one column per channel; empty cells are missing values."""

    def run(self) -> None:
        _, posterior = self.posterior(self.session(), self.data)
        display.show_posterior(console, posterior)


@dataclasses.dataclass(frozen=True)
class Explain(OnRun):
    """Explain a series by its nearest simulations, and say how unusual it is."""

    data: Series
    """One row per time, one column per channel; empty cells are missing values."""
    simulations: int = 200_000
    """How many are searched for the nearest; up to a million or so are kept while it searches."""
    folder: Path | None = None
    """The new folder for the report; by default one inside the run's."""

    def run(self) -> None:
        if self.simulations < 1000:
            raise UsageError("--simulations must be at least 1000.")
        session = self.session()
        predictor, posterior = self.posterior(session, self.data)
        folder = make_folder(self.folder or new_folder(session.run.folder, "explain"))
        with display.searching(console) as progress:
            analysis = session.analyse(predictor, posterior, self.simulations, progress)
        page = session.report(folder, analysis, None, own_data=False)
        display.show_posterior(console, posterior)
        display.show_neighbours(console, analysis)
        console.print(f"\nReport: [bold]{escape(str(page))}[/bold]")


@dataclasses.dataclass(frozen=True)
class Check(OnRun):
    """Check the predictor's posteriors on fresh simulations, and your data for mismatch."""

    data: Annotated[Positional[Path | None], arg(metavar="[DATA.csv]")] = None
    """Optional: a series whose distance to the simulated world is judged."""
    simulations: int = 10_000
    """Fresh simulations to judge the intervals on."""
    posteriors: int = 1_000
    """Of these, how many to test whole posteriors on, with 255 draws each."""
    folder: Path | None = None
    """The new folder for the page; by default one inside the run's."""

    def run(self) -> None:
        if self.simulations < 100 or self.posteriors < 100:
            raise UsageError("--simulations and --posteriors must be at least 100.")
        session, posterior = self.session(), None
        if self.data is None:
            predictor = session.predictor(self.best)
        else:
            predictor, posterior = self.posterior(session, self.data)
        folder = make_folder(self.folder or new_folder(session.run.folder, "check"))
        if posterior is not None:
            with display.searching(console) as progress:
                analysis = session.analyse(predictor, posterior, progress=progress)
                report = report_mismatch(predictor, session.stream, [posterior], progress=progress)
            display.show_mismatch(console, analysis.result)
            display.show_mismatch_report(console, report)
        calibration = _calibrate(session, predictor, self.simulations)
        words = f"testing posteriors on {self.posteriors:,} fresh simulations"
        with display.counting(console, words) as progress:
            diagnosis = session.diagnose(predictor, self.posteriors, progress)
        display.show_diagnosis(console, diagnosis)
        page = write_check(folder, session.study, diagnosis, calibration)
        console.print(f"\nPage: [bold]{escape(str(page))}[/bold]")


Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[List, subcommand("list")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Predict, subcommand("predict")]
    | Annotated[Explain, subcommand("explain")]
    | Annotated[Check, subcommand("check")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command.

    Exit status 0, also for training that SIGTERM stopped, all being kept; 2 for what a user can
    mend; 130 after Ctrl-C; 143 for another command that SIGTERM stopped; 1 where another process of
    a cluster is lost.
    """
    set_up()
    command = tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]
        prog="sgjax",
        description=__doc__,
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    try:
        with terminable(), ends_with_others():
            command.run()
    except Interrupted as stop:
        console.print(f"\nStopped after step {stop.step}; everything up to it is kept.")
        sys.exit(0 if stop.signal == signal.SIGTERM else 130)
    except Terminated:
        console.print("\nStopped.")
        keeps = isinstance(command, Train) or getattr(command, "what", "") == "influenza"
        sys.exit(0 if keeps else 143)
    except KeyboardInterrupt:
        console.print("\nStopped.")
        sys.exit(130)
    except USER_ERRORS as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error.filename or 'A file'}: {error.strerror or error}.")


def _refuse(message: str) -> NoReturn:
    # Escaped, since a header such as [/b] in a user's file is no markup of ours.
    text = f"[red]sgjax:[/red] {escape(message)}"
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)
    sys.exit(2)


def _join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins a cluster where there is one, before anything is computed; process 0 speaks for all."""
    joined = initialise(coordinator, processes, process)
    console.quiet = not is_first()
    console.print(joined)


def _with(preset: Preset, **changes: object) -> Preset:
    given = {name: value for name, value in changes.items() if value is not None}
    if "steps" in given:
        given["num_steps"] = given.pop("steps")
    return dataclasses.replace(preset, **given)  # pyright: ignore[reportArgumentType]


def _train_and_report(
    source: Source, preset: Preset, command: Demo | Train, saving: Saving | None = None
) -> None:
    session = Session.start(source, preset, command.seed, command.folder)
    mesh = session.stream.mesh
    count = 1 if mesh is None else mesh.size
    console.print(f"Training on [bold]{escape(source.study.name)}[/bold]")
    if count < len(jax.devices()):
        console.print(
            f"{count} of {len(jax.devices())} devices are used: more do not share batches of "
            f"{session.preset.batch_size} evenly; change --batch-size."
        )
    if source.ready is not None:
        _show_prior_predictive(session)
    _finish(session, saving)


def _show_prior_predictive(session: Session) -> None:
    """Before any training: would this prior ever produce such data?"""
    observed = _own_data(session)
    key = fold_name(session.key, "prior predictive")
    with console.status("drawing the prior predictive"):
        before = prior_predictive(session.study, key, observed)
    path = display.save_prior_predictive(session, observed, before)
    console.print(f"{display.prior_predictive_verdict(before)} Picture: {path}")


def _own_data(session: Session) -> Observed:
    assert session.source.ready is not None
    return as_observed(session.study, session.source.ready.data.values)


def _finish(session: Session, saving: Saving | None = None) -> None:
    with display.Training(console, session.preset.num_steps) as progress:
        predictor = session.train([progress], saving)
    totals = session.totals
    console.print(
        f"Trained on {totals['simulations']:,.0f} simulations in {totals['seconds']:.0f} s "
        f"(and {totals['compile_seconds']:.0f} s of compilation)."
    )
    calibration = _calibrate(session, predictor, 10_000)
    if session.source.ready is not None:
        posterior = predictor(_own_data(session))
        with display.searching(console) as progress:
            analysis = session.analyse(predictor, posterior, progress=progress)
        page = session.report(session.run.folder, analysis, calibration, own_data=True)
        display.show_posterior(console, posterior)
        display.show_neighbours(console, analysis)
        console.print(f"\nReport: [bold]{escape(str(page))}[/bold]")
    console.print(f"Run: [bold]{escape(str(session.run.folder))}[/bold]")


def _calibrate(session: Session, predictor: Predictor, count: int) -> Calibration | None:
    try:
        with console.status(f"judging intervals on {count:,} fresh simulations"):
            calibration = session.calibrate(predictor, count)
    except CannotGive as missing:
        console.print(f"Intervals are not judged: {missing}")
        return None
    display.show_calibration(console, calibration.summary())
    return calibration


def _known(session: Session, texts: tuple[str, ...]) -> dict[str, float]:
    names, given = session.study.known, {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            given[name] = float(value)
        except ValueError:
            raise UsageError(f"--known {text}: write it as name=number.") from None
        if name not in names or not np.isfinite(given[name]):
            raise UsageError(f"--known {text}: the study's known quantities are {list(names)}.")
    return given
