"""How far real data lie from the simulated world: p-values, divergences, and what they mean."""

from sgjax.mismatch.nearest import Mismatch as Mismatch
from sgjax.mismatch.nearest import check_nearest as check_mismatch
from sgjax.mismatch.predictive import observed_of as observed_of
from sgjax.mismatch.predictive import posterior_predictive_p as posterior_predictive_p
from sgjax.mismatch.predictive import prior_predictive as prior_predictive
