"""How far real data lie from the simulated world: p-values, divergences, and what they mean."""

from sgjax.mismatch.check import check_mismatch as check_mismatch
from sgjax.mismatch.classifier import TotalVariation as TotalVariation
from sgjax.mismatch.many import report_mismatch as report_mismatch
from sgjax.mismatch.nearest import Mismatch as Mismatch
from sgjax.mismatch.predictive import observed_of as observed_of
from sgjax.mismatch.predictive import posterior_predictive_p as posterior_predictive_p
from sgjax.mismatch.predictive import prior_predictive as prior_predictive
from sgjax.mismatch.report import Divergence as Divergence
from sgjax.mismatch.report import MismatchReport as MismatchReport
