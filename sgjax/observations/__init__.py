"""Observation models, one small file each: `(key, theta, signal) -> Observed`."""

from sgjax.observations._base import AbstractMissingness as AbstractMissingness
from sgjax.observations._base import AbstractNoise as AbstractNoise
from sgjax.observations._base import AbstractObservation as AbstractObservation
from sgjax.observations._base import AbstractTransform as AbstractTransform
from sgjax.observations._base import Chain as Chain
from sgjax.observations._base import Observed as Observed
from sgjax.observations._base import log_densities as log_densities
from sgjax.observations._base import log_likelihood as log_likelihood
from sgjax.observations.binomial import Binomial as Binomial
from sgjax.observations.binomial_reporting import BinomialReporting as BinomialReporting
from sgjax.observations.gaussian import Gaussian as Gaussian
from sgjax.observations.late_start import LateStart as LateStart
from sgjax.observations.log_normal import LogNormal as LogNormal
from sgjax.observations.missing_at_random import MissingAtRandom as MissingAtRandom
from sgjax.observations.missing_block import MissingBlock as MissingBlock
from sgjax.observations.negative_binomial import NegativeBinomial as NegativeBinomial
from sgjax.observations.poisson import Poisson as Poisson
from sgjax.observations.reporting_delay import ReportingDelay as ReportingDelay
from sgjax.observations.subsample import Subsample as Subsample
from sgjax.observations.under_reporting import UnderReporting as UnderReporting
from sgjax.observations.varying_length import VaryingLength as VaryingLength
from sgjax.observations.weekday_effect import WeekdayEffect as WeekdayEffect
