"""How close are amortised posteriors to the reference posteriors of sbibm, by C2ST?

`python -m benchmarks.posterior [--quick] [--task sir] [--budget online|1k|10k|100k] [--seeds 3]`

For each task and seed one network is trained and answers all ten published observations; each
answer, 10,000 draws against the 10,000 published ones, is scored as there: accuracy of a classifier
(0.5 is perfect), not folded, beside its fold max(a, 1 - a). Beside the plain draws stand those that
the likelihood corrected by importance weights, which is another kind of method. Baselines: the
prior, the exact sampler (the floor), and NUTS where asked. What is stored is not run again.
"""

import dataclasses
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.record import circumstances, finish, keep, kept
from benchmarks.sbibm_exact import exact_draws, nuts_draws
from benchmarks.sbibm_files import NUM_OBSERVATIONS, Published, published
from benchmarks.sbibm_tasks import TASKS, Draws, Task, make_task
from benchmarks.sbibm_training import Setting, train_in_budget, train_online
from sgjax.diagnostics.two_sample import c2st
from sgjax.predictors import Posterior
from sgjax.priors import sample_prior
from sgjax.references import amortisation_break_even, importance_posterior

BUDGETS = {"online": None, "1k": 1000, "10k": 10_000, "100k": 100_000}
STEPS = {"online": 50_000, "1k": 5000, "10k": 10_000, "100k": 30_000}
KINDS = ("amortised", "corrected")
BATCHES = {"online": 512, "1k": 100, "10k": 200, "100k": 500}


Draw: TypeAlias = Callable[[int, Published], tuple[Draws, dict[str, Any]]]
"""The place of an observation and its record -> draws, and what is to be told about them."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run."""

    quick: bool = False
    """One observation of one task at a toy budget, under a minute; its numbers mean nothing."""
    task: str = "all"
    """A name in sbibm, or all of them."""
    budget: Literal["online", "1k", "10k", "100k"] = "online"
    """Simulations in all, held-out ones included; endless when online."""
    head: str = "gaussian_mixture"
    """The family of the posterior, by the name of its head."""
    steps: int | None = None
    """Updates; by default as many as `STEPS` has for the budget."""
    batch_size: int | None = None
    """Simulations in an update; by default that of `BATCHES`. Rounded down to divide a budget."""
    width: int = 256
    depth: int = 3
    learning_rate: float = 1e-3
    seeds: int = 1
    """Independent networks."""
    proposals: int = 100_000
    """Weighted draws for the correction, ten times as many where fewer leave too little; 0 for no
    correction."""
    prior_share: float = 0.05
    """The share of those that are drawn from the prior."""
    baselines: bool = True
    """Score the prior and the exact sampler too."""
    nuts: int = 0
    """Score NUTS on the first so many observations; also tells when amortising pays."""
    store: bool = True
    """Keep the result under benchmarks/results/ and go on from what is there."""


def main(options: Options) -> None:
    """Runs what is not stored yet, task by task."""
    if options.quick:
        options = dataclasses.replace(
            options, task="two_moons", steps=100, width=32, proposals=20_000, store=False
        )
    for name in TASKS if options.task == "all" else (options.task,):
        _run(name, options)


def _run(name: str, options: Options) -> None:
    task, file = make_task(name), f"posterior_{name}"
    records = [published(name, 1 + i) for i in range(1 if options.quick else NUM_OBSERVATIONS)]
    if options.quick:
        records = [dataclasses.replace(each, draws=each.draws[:200]) for each in records]
    before = kept(file) if options.store else {}
    baselines, runs = before.get("baselines", {}), before.get("runs", {})
    result = {"task": name, "baselines": baselines, "runs": runs}

    def fill(part: dict[str, Any], label: str, make: Callable[[], dict[str, Any]]) -> None:
        if label not in part:
            part[label] = make()
            if options.store:
                keep(file, result)

    for label, draw in _baselines(task, options).items():
        chosen = records[: options.nuts] if label == "NUTS" else records
        fill(
            baselines,
            label,
            lambda draw=draw, chosen=chosen: circumstances() | _score_all(chosen, draw),
        )
    setting = _setting(options)
    labels = {seed: f"{setting.label}_seed_{seed}" for seed in range(options.seeds)}
    for seed, label in labels.items():
        fill(runs, label, lambda seed=seed: _one(task, records, setting, seed, options))
    _show(name, setting, baselines, {seed: runs[label] for seed, label in labels.items()})
    finish(file, result, store=options.store)


def _setting(options: Options) -> Setting:
    return Setting(
        budget=BUDGETS[options.budget],
        head=options.head,
        num_steps=options.steps or STEPS[options.budget],
        batch_size=options.batch_size or BATCHES[options.budget],
        width=options.width,
        depth=options.depth,
        learning_rate=options.learning_rate,
    )


def _one(
    task: Task, records: list[Published], setting: Setting, seed: int, options: Options
) -> dict[str, Any]:
    """Trains one network and scores its answers, as they are and corrected."""
    key = jax.random.key(seed)
    training = train_online if setting.budget is None else train_in_budget
    predictor, spent = training(task.study, setting, key)
    answer = lambda record: predictor(task.observed(record.data))

    def plain(index: int, record: Published) -> tuple[Draws, dict[str, Any]]:
        own = jax.random.fold_in(key, index)
        start = time.perf_counter()  # compilation included, as in the seconds of NUTS
        draws = task.columns(answer(record).sample(own, len(record.draws)))
        return draws, {"seconds": time.perf_counter() - start}

    def corrected(index: int, record: Published) -> tuple[Draws, dict[str, Any]]:
        own = jax.random.fold_in(key, 1000 + index)
        return _corrected(task, answer(record), own, len(record.draws), options)

    scores = {"amortised": _score_all(records, plain)}
    if options.proposals:
        scores["corrected"] = _score_all(records, corrected)
    return {**circumstances(), **dataclasses.asdict(setting), "seed": seed, **spent, **scores}


def _corrected(
    task: Task, posterior: Posterior, key: jax.Array, num: int, options: Options
) -> tuple[Draws, dict[str, Any]]:
    """As many different draws by their weights, which say beside them how far to trust them."""
    start = time.perf_counter()
    for factor in (1, 10):
        with warnings.catch_warnings(record=True):  # the diagnostics say it
            found = importance_posterior(
                posterior,
                key,
                num_samples=factor * options.proposals,
                prior_share=options.prior_share,
            )
        # Draws without replacement keep the law only while they are few of the effective ones.
        if found.diagnostics["ess"] >= 2 * num:
            break
    drawn = found.resample(key, num, replace=found.weights.size < num)
    facts = {name: found.diagnostics[name] for name in ("ess", "pareto_k", "trusted")}
    return task.columns(drawn), {
        "seconds": time.perf_counter() - start,
        "proposals": found.diagnostics["num_samples"],
        **facts,
    }


def _baselines(task: Task, options: Options) -> dict[str, Draw]:
    """By label, how to draw without a network."""

    def prior(index: int, record: Published) -> tuple[Draws, dict[str, Any]]:
        keys = jax.random.split(jax.random.key(index), len(record.draws))
        law = next(iter(task.study.priors.values()))
        return task.columns(jax.vmap(lambda key: sample_prior(key, law))(keys)), {}

    def exact(index: int, record: Published) -> tuple[Draws, dict[str, Any]]:
        return exact_draws(task, record.data, len(record.draws), jax.random.key(index))

    def nuts(index: int, record: Published) -> tuple[Draws, dict[str, Any]]:
        return nuts_draws(task, record.data, len(record.draws), jax.random.key(index))

    chosen: dict[str, Draw] = {"prior": prior, "exact": exact} if options.baselines else {}
    return chosen | ({"NUTS": nuts} if options.nuts else {})


def _score_all(records: list[Published], draw: Draw) -> dict[str, Any]:
    """C2ST of every observation, with how many of the draws are distinct, and their summary."""
    rows = []
    for index, record in enumerate(records):
        draws, facts = draw(index, record)
        test = c2st(record.draws, draws, seed=1)
        row = {"c2st": test.accuracy, "folded": test.folded, **facts}
        rows.append({**row, "draws": len(draws), "distinct": len(np.unique(draws, axis=0))})
    scores = [row["c2st"] for row in rows]
    return {
        "mean": statistics.fmean(scores),
        "median": statistics.median(scores),
        "sd": statistics.pstdev(scores),
        "folded_mean": statistics.fmean(row["folded"] for row in rows),
        "observations": rows,
    }


def _show(name: str, setting: Setting, baselines: dict, runs: dict[int, dict]) -> None:
    table = Table(title=f"{name}, {setting.label}: C2ST (0.5 is perfect)")
    for column in ("draws of", "mean", "folded", "median", "sd", "fewest distinct"):
        table.add_column(column)
    rows = dict(baselines)
    for seed, run in runs.items():
        rows |= {f"{kind}, seed {seed}": run[kind] for kind in KINDS if kind in run}
    for label, scores in rows.items():
        numbers = (scores[entry] for entry in ("mean", "folded_mean", "median", "sd"))
        distinct = min(row["distinct"] for row in scores["observations"])
        table.add_row(label, *(f"{number:.3f}" for number in numbers), f"{distinct:,}")
    console = Console()
    console.print(table)
    for seed, run in runs.items():
        console.print(
            f"seed {seed}: {run['simulations']:,} simulations, {run['wall_seconds']:.0f} s of "
            f"training with compilation, on {run['hardware']}"
        )
        if "NUTS" in baselines:
            seconds = [_mean_seconds(scores) for scores in (run["amortised"], baselines["NUTS"])]
            series = amortisation_break_even(run["wall_seconds"], *seconds)
            console.print(f"        beats NUTS on each series from {series:,.0f} series on")


def _mean_seconds(scores: dict[str, Any]) -> float:
    return statistics.fmean(row["seconds"] for row in scores["observations"])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
