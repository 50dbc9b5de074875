"""Simulation-grounded neural networks: train on endless on-device simulations, apply to real data.

A simulation is a pure function of a key and a number; everything else follows from that.
"""

import os as _os
import sys as _sys

# Equinox reads this once, when it is imported. Anything but "nan" leaves host callbacks in the
# compiled solves: round trips on accelerators, and a compilation cache that never hits.
if "equinox" in _sys.modules and _os.environ.get("EQX_ON_ERROR") != "nan":
    import warnings as _warnings

    _warnings.warn(
        "equinox was imported before sgjax without EQX_ON_ERROR=nan: simulations will keep host "
        "callbacks and will not be cached. Import sgjax first, or set EQX_ON_ERROR=nan.",
        stacklevel=2,
    )
_os.environ.setdefault("EQX_ON_ERROR", "nan")

# The command keeps compiled programs from start to start. XLA would remark on each, at length, that
# it was tuned for this processor; it reads this when it is loaded, and still raises its errors.
if _os.path.basename((_sys.argv or [""])[0]) == "sgjax":
    _os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from sgjax import datasets as datasets
from sgjax import devices as devices
from sgjax import diagnostics as diagnostics
from sgjax import losses as losses
from sgjax import observations as observations
from sgjax import predictors as predictors
from sgjax import priors as priors
from sgjax import references as references
from sgjax import samplers as samplers
from sgjax import simulators as simulators
from sgjax import solvers as solvers
from sgjax import steppers as steppers
from sgjax import studies as studies
from sgjax import tasks as tasks
from sgjax.attribution import AttributedPosterior as AttributedPosterior
from sgjax.attribution import Neighbours as Neighbours
from sgjax.attribution import SimulationIndex as SimulationIndex
from sgjax.attribution import attribute as attribute
from sgjax.attribution import attribute_posterior as attribute_posterior
from sgjax.attribution import check_sufficiency as check_sufficiency
from sgjax.attribution import choose_k as choose_k
from sgjax.checkpoint import Checkpointer as Checkpointer
from sgjax.diagnostics import calibrate as calibrate
from sgjax.diagnostics import diagnose as diagnose
from sgjax.identifiability import fisher_information as fisher_information
from sgjax.identifiability import identifiability as identifiability
from sgjax.mismatch import Mismatch as Mismatch
from sgjax.mismatch import MismatchReport as MismatchReport
from sgjax.mismatch import check_mismatch as check_mismatch
from sgjax.mismatch import report_mismatch as report_mismatch
from sgjax.predictors import Posterior as Posterior
from sgjax.predictors import Predictor as Predictor
from sgjax.rollout import evaluate_rollout as evaluate_rollout
from sgjax.rollout import judge as judge
from sgjax.rollout import rollout as rollout
from sgjax.stream import SimulationStream as SimulationStream
from sgjax.study import Study as Study
from sgjax.tasks import Estimate as Estimate
from sgjax.tasks import Forecast as Forecast
from sgjax.tasks import Identify as Identify
from sgjax.tasks import NextState as NextState
from sgjax.tasks import Several as Several
from sgjax.training import Optimisation as Optimisation
from sgjax.training import print_report as print_report
from sgjax.training import train as train
