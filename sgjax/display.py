"""What the commands show in the terminal: progress, tables, one line each of what ships."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sgjax import datasets, observations, simulators
from sgjax._page import DASH
from sgjax.analysis import Analysis, describe_prior_predictive
from sgjax.devices import is_first
from sgjax.diagnostics import Diagnosis
from sgjax.mismatch import MismatchReport
from sgjax.observations import Observed
from sgjax.plots import plot_prior_predictive
from sgjax.predictors import CannotGive, Posterior
from sgjax.rollout import RolloutReport
from sgjax.runs import Session
from sgjax.studies import READY_MADE
from sgjax.training import Report


class Training:
    """A progress bar that is a callback of `train`: loss, simulations per second, valid share."""

    def __init__(self, console: Console, num_steps: int):
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._task = self._progress.add_task("compiling", total=num_steps, numbers="")
        self._plain = not console.is_terminal
        self._console, self._tenth = console, 0

    def __enter__(self) -> "Training":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, report: Report) -> None:
        # A learned simulator's loss goes on falling where three decimals are all zero.
        loss = f"{report.loss:.3f}" if abs(report.loss) >= 0.1 else f"{report.loss:.2g}"
        numbers = (
            f"loss {loss} · {report.simulations_per_second:,.0f} simulations/s · "
            f"{report.valid_share:.1%} valid"
            + (f" · {report.skipped:,} updates left out" if report.skipped else "")
        )
        self._progress.update(
            self._task, completed=report.step, numbers=numbers, description="training"
        )
        tenth = 10 * report.step // report.num_steps
        # A log file gets a line now and then instead of a moving bar.
        if self._plain and tenth > self._tenth:
            self._tenth = tenth
            left = f"{report.seconds_left:.0f} s left"
            self._console.print(f"step {report.step:,}/{report.num_steps:,} · {numbers} · {left}")


def show_list(console: Console) -> None:
    """What ships, one line each."""
    studies = {name: ready.summary for name, ready in READY_MADE.items()}
    _names(console, "Studies (sgjax train NAME)", studies)
    _mechanisms(console)
    _names(console, "Observation models (sgjax.observations)", _exports(observations))
    series = {
        name: f"{value.values.shape[0]} times, {value.unit}; {value.source.split(',')[0]}"
        for name, value in vars(datasets).items()
        if isinstance(value, datasets.Dataset)
    }
    _names(console, "Data sets (sgjax.datasets)", series)


def _mechanisms(console: Console) -> None:
    """The mechanisms with the error of their steps, over their own prior and times."""
    errors, told = simulators.shipped_errors(), {}
    for name, summary in _exports(simulators).items():
        row = errors.get(name)
        error = f"{row['q999']:.0e}" if row is not None else ""
        told[name] = f"{error:<5}  {summary}"
    _names(console, "Mechanisms (sgjax.simulators), and the error of their steps", told)
    console.print(
        "  The error is that of all but 0.1 % of 4,096 prior draws, as a share of the channel's "
        "largest value.\n  For another prior or other times `sgjax.simulators.calibrate_steps` "
        "measures it.",
        soft_wrap=True,
    )


def show_posterior(console: Console, posterior: Posterior) -> None:
    """Mechanism probabilities and estimates within each."""
    if len(posterior.mechanisms) > 1:
        table = Table(title="Probability of each mechanism, among these mechanisms only")
        for column in ("mechanism", "probability", "before the data"):
            table.add_column(column, justify="left" if column == "mechanism" else "right")
        prior = posterior.study.mechanism_probabilities
        for name, share in posterior.mechanisms.items():
            table.add_row(name, f"{share:.3f}", f"{prior[name]:.3f}")
        console.print(table)
    if "parameters" in posterior.blocks:
        try:
            estimates = posterior.estimates()
        except CannotGive:
            _show_quantiles(console, posterior)
        else:
            for mechanism, rows in estimates.items():
                _numbers(console, f"Estimates within {mechanism}", rows)
    if "forecast" in posterior.blocks:
        _show_forecast(console, posterior)
    if "latent" in posterior.blocks:
        values = posterior.latent((0.05, 0.5, 0.95))
        rows = {
            name: dict(zip(("q05", "q50", "q95"), map(float, row), strict=True))
            for name, row in values.items()
        }
        _numbers(console, "Functions of the latent course", rows)


def show_neighbours(console: Console, analysis: Analysis, limit: int = 8) -> None:
    """The nearest simulations and how unusual the data are."""
    table = Table(
        title=f"The {limit} nearest simulations of {analysis.result['mismatch']['searched']:,}"
    )
    for column in ("id", "distance", "mechanism", "parameters"):
        table.add_column(column)
    for row in analysis.result["neighbours"][:limit]:
        theta = ", ".join(f"{name} {_short(value)}" for name, value in row["theta"].items())
        table.add_row(f"{row['id']:,}", f"{row['distance']:.3f}", row["mechanism"], theta)
    console.print(table)
    if analysis.attributed is not None:
        _show_attributed(console, analysis.result["attributed"])
    show_mismatch(console, analysis.result)


def _show_attributed(console: Console, attributed: Mapping[str, Any]) -> None:
    """The nearest simulations as a posterior."""
    shares, errors = attributed["mechanisms"], attributed["mechanisms_error"]
    for mechanism, rows in attributed["estimates"].items():
        where = f" within {mechanism}" if len(shares) > 1 else ""
        _numbers(console, f"From the {attributed['k']:,} nearest simulations{where}", rows)
    if len(shares) > 1:
        words = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
        console.print(
            f"Mechanisms by the nearest simulations: {words} (± {max(errors.values()):.3f})"
        )
    for note in attributed["notes"]:
        console.print(note, soft_wrap=True)


@contextlib.contextmanager
def searching(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A line that says how many simulations are searched."""
    words = "searching the nearest simulations"
    with console.status(words) as status:
        yield lambda done, total: status.update(f"{words}: {done:,} of {total:,}")


def show_mismatch(console: Console, result: Mapping[str, Any]) -> None:
    """How unusual the data are, and what the mechanisms' probabilities rest on."""
    mismatch = result["mismatch"]
    console.print(f"{mismatch['verdict']} (p = {mismatch['p_value']:.3f})")
    for mechanism, p in mismatch["posterior_predictive_p"].items():
        if p is not None:
            console.print(f"Posterior predictive p within {mechanism}: {p:.3f}")
    for row in result["sensitivity"]:
        shares = ", ".join(f"{name} {value:.3f}" for name, value in row["probabilities"].items())
        size = min(row["effective_sample_size"].values())
        console.print(
            f"With {row['prior']}: {shares}, among these mechanisms only "
            f"(effective sample size {size:.0%})"
        )


def show_mismatch_report(console: Console, report: MismatchReport) -> None:
    """Every test of the data against the simulations, and the whole in words."""
    size = "the series" if report.num_real == 1 else f"{report.num_real:,} series"
    table = Table(title=f"Tests of {size} against {report.num_simulated:,} fresh simulations")
    for column in ("test", "value", "simulated", "p", "adjusted", "small p shows"):
        left = column in ("test", "small p shows")
        table.add_column(column, justify="left" if left else "right")
    for row in report.table():
        numbers = (row["value"], row["null_median"], row["p_value"], row["p_adjusted"])
        name = f"[bold]{row['test']}[/bold]" if row["primary"] else row["test"]
        table.add_row(name, *(f"{number:.3g}" for number in numbers), row["certifies"])
    console.print(table)
    for bound in report.bounds:
        console.print(
            f"Total variation of the {bound.space}: {bound.lower_limit:.3f} at least (95 %), "
            f"{bound.estimate:.3f} estimated, from {bound.num_real:,} held-out series."
        )
    for note in report.notes:
        console.print(note, soft_wrap=True)
    bounds = ", ".join(f"{e:g}: {bound:g} B" for e, bound in report.risk_bounds().items())
    console.print(f"Real risk beyond the simulated one, by assumed total variation: {bounds}")
    console.print(report.verdict, soft_wrap=True)


def show_calibration(console: Console, summary: Mapping[str, Mapping[str, Any]]) -> None:
    """Coverage of the 90 % intervals."""
    if not summary:
        return
    table = Table(title="Share of truths inside the 90 % interval, on fresh simulations")
    for column in ("quantity", "coverage", "by thirds of the predicted sd", "± se"):
        table.add_column(column, justify="left" if column == "quantity" else "right")
    for name, row in summary.items():
        thirds = "  ".join(f"{share:.3f}" for share in row["coverage_90_by_sd_tercile"])
        error = f"{row['standard_error']:.3f}"
        table.add_row(name, f"{row['coverage_90']:.3f}", thirds, error)
    console.print(table)


def show_diagnosis(console: Console, diagnosis: Diagnosis) -> None:
    """Every test of the posteriors, what they know, and the whole in words."""
    known = {key: skill.value for key, skill in diagnosis.contractions.items()}
    judged = {(row["about"], row["mechanism"]): row for row in diagnosis.table()}
    every = dict.fromkeys([*judged, *known])
    for mechanism in dict.fromkeys(mechanism for _, mechanism in every):
        where = f" within {mechanism}" if mechanism else ""
        table = Table(title=f"Tests of the posteriors{where}; p is over all tests together")
        for column in ("tested", "p", "bias, sds", "width", "contraction", "error found"):
            left = column in ("tested", "error found")
            table.add_column(column, justify="left" if left else "right", no_wrap=column == "p")
        for about, within in every:
            if within == mechanism:
                row = judged.get((about, within), {})
                numbers = [_decimals(row.get("p_adjusted"), 3)]
                numbers += [_decimals(row.get(name), 2) for name in ("bias", "width")]
                numbers.append(_decimals(known.get((about, within)), 2))
                table.add_row(about, *numbers, row["verdict"] if row.get("wrong") else "")
        console.print(table)
    for (about, mechanism), skill in diagnosis.gains.items():
        where = f" within {mechanism}" if mechanism else ""
        console.print(
            f"The data tell {skill.value:.2f} ± {skill.standard_error:.2f} nats about the "
            f"{about}{where}."
        )
    for note in diagnosis.notes:
        console.print(f"Not judged: {note}", soft_wrap=True)
    console.print(diagnosis.summary)


def show_rollout(console: Console, report: RolloutReport) -> None:
    """What a learned simulator and what it must beat came to, a table a world."""
    for name, world in report.worlds.items():
        courses, steps, _ = world.truth.shape
        table = Table(title=f"{name}: {courses:,} held-out courses of {steps:,} steps")
        table.add_column("model")
        for column in ("one step", "valid", "quartiles", "histograms", "survival"):
            table.add_column(column, justify="right")
        for row in report.rows:
            if row["world"] == name:
                low, middle, high = row["valid times"]["0.4"]
                table.add_row(
                    row["model"],
                    "" if row["one step"] is None else f"{row['one step']:.2g}",
                    f"{middle:.2f}",
                    f"{low:.2f}{DASH}{high:.2f}",
                    f"{row['histogram distance']:.3f}",
                    f"{100 * row['survival']:.0f} %",
                    style="bold" if row["model"] == "learned" else None,
                )
        console.print(table)
    unit = "" if report.scales.lyapunov_time == 1 else " in Lyapunov times,"
    console.print(
        "One step: its relative error. Valid: how long errors stay within 0.4 deviations,"
        f"{unit} the median over courses and quartiles. Histograms: how far the rollouts' values "
        "lie from the truth's, in deviations. Survival: rollouts that stay finite and near.",
        soft_wrap=True,
    )


def _decimals(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:.{places}f}"


@contextlib.contextmanager
def counting(console: Console, words: str) -> Iterator[Callable[[int], None]]:
    """A line that says how many simulations are done."""
    with console.status(words) as status:
        yield lambda done: status.update(f"{words}: {done:,} done")


def save_prior_predictive(session: Session, observed: Observed, before: Mapping[str, Any]) -> Path:
    """Draws the prior predictive over the data into the run's folder."""
    path = session.run.folder / "prior_predictive.png"
    if is_first():
        plot_prior_predictive(session.study, observed, before).savefig(path, dpi=150)
    return path


def prior_predictive_verdict(before: Mapping[str, Any]) -> str:
    """Whether the prior expects such data."""
    return describe_prior_predictive(before)["verdict"]


def _show_quantiles(console: Console, posterior: Posterior) -> None:
    for mechanism, prior in posterior.study.priors.items():
        names = [name for name in posterior.study.specs["parameters"].names if name in prior]
        rows = {}
        for name in names:
            values = posterior.quantile(name, (0.05, 0.5, 0.95), mechanism)
            rows[name] = dict(zip(("q05", "q50", "q95"), map(float, values), strict=True))
        _numbers(console, f"Estimates within {mechanism}", rows)


def _show_forecast(console: Console, posterior: Posterior) -> None:
    ahead = posterior.forecast((0.05, 0.5, 0.95))
    names = posterior.study.specs["forecast"].names
    columns = ahead.reshape(3, -1).T
    rows = {
        name: dict(zip(("q05", "q50", "q95"), map(float, row), strict=True))
        for name, row in zip(names, columns, strict=True)
    }
    _numbers(console, "Forecast", rows)


def _numbers(console: Console, title: str, rows: Mapping[str, Mapping[Any, float]]) -> None:
    table = Table(title=title)
    table.add_column("quantity")
    columns = list(next(iter(rows.values())))
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[column]:.4g}" for column in columns))
    console.print(table)


def _names(console: Console, title: str, rows: Mapping[str, str]) -> None:
    console.print(f"\n[bold]{title}[/bold]")
    width = max(map(len, rows), default=0)
    for name, words in rows.items():
        console.print(f"  {name:<{width}}  {words}", soft_wrap=True)


def _exports(module: Any) -> dict[str, str]:
    """The concrete classes of a package with the first sentence of their docstrings."""
    return {
        name: (inspect.getdoc(value) or "").splitlines()[0]
        for name, value in vars(module).items()
        if inspect.isclass(value) and not inspect.isabstract(value) and _has_prior(value)
    }


def _has_prior(kind: type) -> bool:
    return any(
        field.name == "prior" for field in getattr(kind, "__dataclass_fields__", {}).values()
    )


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(f"{number:.3g}" for number in value) + "]"
    return f"{value:.3g}"
