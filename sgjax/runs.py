"""A run from start to report: `study, preset, seed -> folder`, and a run's predictor from disk."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from sgjax._types import PRNGKey
from sgjax.analysis import Analysis, analyse
from sgjax.attribution.progress import Telling
from sgjax.checkpoint import (
    Checkpointer,
    Log,
    Run,
    RunError,
    locked,
    new_folder,
    sha256,
    versions,
)
from sgjax.devices import describe_hardware, is_first, mesh_for, on_first
from sgjax.diagnostics import Calibration, Diagnosis, calibrate, diagnose
from sgjax.held_out import HeldOutScore
from sgjax.predictors import Posterior, Predictor, for_study
from sgjax.priors import fold_name
from sgjax.references import load_reference
from sgjax.report import write_report, write_result
from sgjax.simulators import choose_forms, forms, with_forms
from sgjax.stream import SimulationStream
from sgjax.studies import READY_MADE, Preset, ReadyMade, StudyError, load_file
from sgjax.study import Study
from sgjax.tasks import NextState
from sgjax.training import Callback, Optimisation, Trainer, train

RUNS = Path("sgjax-runs")
"""Where runs are kept unless a folder is named."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a study comes from: its ready-made name, or the user's file."""

    study: Study
    ready: ReadyMade | None
    path: Path | None

    @classmethod
    def find(cls, text: str) -> "Source":
        """The study of a ready-made name or of a Python file; raises `StudyError`."""
        if text in READY_MADE:
            return cls(READY_MADE[text].study(), READY_MADE[text], None)
        if text.endswith(".py"):
            try:
                study = load_file(Path(text))
            except ValueError as error:
                raise StudyError(f"{text}: {error}") from error
            if isinstance(study.task, NextState):
                raise StudyError(
                    f"{text} asks for the next state. A learned simulator is trained in Python: "
                    "`steppers.for_study`, then `train`, then `rollout`."
                )
            return cls(study, None, Path(text))
        raise StudyError(
            f"There is no study {text!r}. Ready-made: {', '.join(READY_MADE)}; or give a Python "
            "file that makes a `Study` object, such as my_study.py."
        )

    def with_simulator(self, simulator: Any) -> "Source":
        """The same source with the simulator in other forms."""
        return dataclasses.replace(self, study=dataclasses.replace(self.study, simulator=simulator))

    def describe(self) -> dict[str, Any]:
        """What a run remembers of it."""
        if self.path is None:
            return {"kind": "ready-made", "name": self.study.name}
        return {"kind": "file", "name": self.study.name, "sha256": sha256(self.path)}


@dataclasses.dataclass(frozen=True)
class Saving:
    """When states are kept, and which."""

    every_seconds: float = 60.0
    every_steps: int | None = None
    """Also after so many steps."""
    keep: int = 2
    """The last so many; the best by held-out score besides."""
    held_out: int = 4096
    """Simulations that a state is scored on when it is kept; 0 for no score."""


@dataclasses.dataclass(frozen=True)
class Session:
    """One run in progress, or read back."""

    run: Run
    source: Source
    preset: Preset
    seed: int

    @classmethod
    def start(cls, source: Source, preset: Preset, seed: int, folder: Path | None) -> "Session":
        """Makes the folder of a new run. Wrong sizes are refused before anything is made."""
        session = cls(Run(Path(), {}), source, preset, seed)
        _ = session.stream, session.key
        identity = {"fingerprint": source.study.fingerprint(), "parts": source.study.parts()}
        source = source.with_simulator(choose_forms(source.study.simulator, preset.batch_size))
        settings = {
            "study": source.describe(),
            **identity,
            "forms": forms(source.study.simulator),
            "preset": dataclasses.asdict(preset),
            "seed": seed,
        }

        def create() -> str:
            made = folder or new_folder(RUNS, source.study.name)
            Run.create(made, settings)
            if source.path is not None:
                shutil.copyfile(source.path, made / "study.py")
            return str(made)

        run = Run.open(Path(on_first(create)))
        # What process 0 has measured and kept, on all.
        source = source.with_simulator(with_forms(source.study.simulator, run.settings["forms"]))
        return cls(run, source, preset, seed)

    @classmethod
    def open(cls, folder: Path, study_file: Path | None = None) -> "Session":
        """Reads a run back. One made from a user's file needs that file named: it is executed."""
        run = Run.open(folder)
        try:
            kind, name = run.settings["study"]["kind"], run.settings["study"]["name"]
            preset, seed = Preset(**run.settings["preset"]), run.settings["seed"]
            chosen = run.settings["forms"]
        except (KeyError, TypeError) as error:
            raise RunError(f"{folder / 'run.json'} is incomplete or altered: {error}.") from None
        if kind == "file" and study_file is None:
            raise RunError(
                f"{folder} was made from a study file, which is Python code. Name the file to run: "
                f"--study {folder / 'study.py'}"
            )
        source = Source.find(str(study_file) if study_file is not None else name)
        run.check_study(source.study.fingerprint(), source.study.parts())
        source = source.with_simulator(with_forms(source.study.simulator, chosen))
        return cls(run, source, preset, seed)

    @property
    def study(self) -> Study:
        """The study of the run."""
        return self.source.study

    @cached_property
    def key(self) -> PRNGKey:
        """The root of every random number of the run."""
        return jax.random.key(self.seed)

    @cached_property
    def stream(self) -> SimulationStream:
        """The simulations that the run trains on."""
        size = self.preset.batch_size
        mesh = mesh_for(size, self.study.simulator.mechanism_table.size)
        return SimulationStream(self.study, fold_name(self.key, "stream"), size, mesh)

    def train(self, callbacks: Sequence[Callback] = (), saving: Saving | None = None) -> Predictor:
        """Trains, or goes on where the run stopped; one training at a time, states as `saving`."""
        with contextlib.ExitStack() as held:
            # Process 0 holds the folder for all of a cluster.
            on_first(lambda: held.enter_context(locked(self.run.folder)))
            log = self._log
            checkpointer = self._checkpointer(saving or Saving())
            anew = on_first(lambda: checkpointer.latest_step is None)
            try:
                return train(
                    self._blank(measure=anew),
                    self.stream,
                    self.preset.num_steps,
                    optimisation=self._optimisation,
                    callbacks=[lambda report: log.add(dataclasses.asdict(report)), *callbacks],
                    checkpoints=checkpointer,
                )
            finally:
                checkpointer.close()

    def predictor(self, best: bool = False) -> Predictor:
        """The trained predictor, or that of the `best` held-out score among the states kept.

        Raises `RunError` where the run never kept a state.
        """
        checkpointer, trainer = Checkpointer(self.run.checkpoints, create=False), self._trainer
        try:
            step = checkpointer.best_step if best else None
            state = checkpointer.restore(trainer.initial_state(), step)
        finally:
            checkpointer.close()
        if state is None:
            raise RunError(
                f"{self.run.folder} has no checkpoint yet; "
                f"`sgjax train --resume {self.run.folder}` goes on with it."
            )
        return trainer.predictor(state)

    def calibrate(self, predictor: Predictor, num_simulations: int = 10_000) -> Calibration:
        """Judges the predictor on simulations it never saw."""
        key = fold_name(self.key, "calibration")
        return calibrate(predictor, self.stream, key, num_simulations)

    def diagnose(
        self, predictor: Predictor, num_simulations: int, progress: Callable[[int], None]
    ) -> Diagnosis:
        """Every diagnostic of its posteriors, on simulations it never saw."""
        key = fold_name(self.key, "diagnosis")
        return diagnose(
            predictor, self.stream, key, num_simulations=num_simulations, progress=progress
        )

    def analyse(
        self,
        predictor: Predictor,
        posterior: Posterior,
        num_simulations: int = 200_000,
        progress: Telling = False,
    ) -> Analysis:
        """All there is to say of one series, `num_simulations` being searched for the nearest."""
        alternatives = self.source.ready.alternatives if self.source.ready else {}
        analysis = analyse(
            predictor,
            self.stream,
            posterior,
            fold_name(self.key, "analysis"),
            alternatives=alternatives,
            num_simulations=num_simulations,
            progress=progress,
        )
        analysis.result.update(
            seed=self.seed, versions=versions(), hardware=describe_hardware(), training=self.totals
        )
        return analysis

    def report(
        self, folder: Path, analysis: Analysis, calibration: Calibration | None, own_data: bool
    ) -> Path:
        """Writes `result.json` and `report.html`; returns the page.

        `own_data` says that the series is the one that the study was made for, whose exact
        posterior is then shown beside.
        """
        if calibration is not None:
            analysis.result["calibration"] = calibration.summary()
        if own_data and self.source.ready is not None and self.source.ready.has_reference:
            reference = load_reference(self.study.name)
            analysis.result["reference"] = reference["estimates"]
            analysis.result["reference_mechanisms"] = reference["mechanisms"]
        if not is_first():
            return folder
        write_result(folder, analysis.result)
        return write_report(
            folder,
            analysis,
            calibration=calibration,
            curve=self.curve,
            settings=self.run.settings,
        )

    @property
    def curve(self) -> list[dict[str, Any]]:
        """What training reported, one row per interval."""
        return self._log.rows()

    @property
    def _log(self) -> Log:
        return Log(self.run.folder / "metrics.jsonl")

    @property
    def totals(self) -> dict[str, float]:
        """Simulations and seconds over all sessions of the run."""
        rows = self.curve
        if not rows:
            return {}
        seconds = sum(row["interval_seconds"] for row in rows)
        return {
            "simulations": rows[-1]["simulations"],
            "seconds": seconds,
            "compile_seconds": max(row["compile_seconds"] for row in rows),
            "simulations_per_second": rows[-1]["simulations"] / max(seconds, 1e-9),
            "valid_share": sum(row["valid_share"] * row["steps"] for row in rows)
            / sum(row["steps"] for row in rows),
            "steps": rows[-1]["step"],
        }

    def _checkpointer(self, saving: Saving) -> Checkpointer:
        score = (
            HeldOutScore(self._trainer, self.stream, saving.held_out) if saving.held_out else None
        )
        return Checkpointer(
            self.run.checkpoints,
            saving.every_seconds,
            saving.keep,
            every_steps=saving.every_steps,
            score=score,
        )

    @property
    def _trainer(self) -> Trainer:
        """The structure of the run's states, without measured scales."""
        blank = self._blank(measure=False)
        return Trainer(blank, self.stream, self._optimisation, self.preset.num_steps)

    @property
    def _optimisation(self) -> Optimisation:
        return Optimisation(learning_rate=self.preset.learning_rate)

    def _blank(self, measure: bool) -> Predictor:
        preset = self.preset
        heads = {"parameters": preset.head} if "parameters" in self.study.specs else {}
        return for_study(
            self.study,
            fold_name(self.key, "predictor"),
            encoder=preset.encoder,
            heads=heads,
            width=preset.width,
            depth=preset.depth,
            measure=measure,
        )
