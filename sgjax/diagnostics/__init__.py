"""Whether a predictor's uncertainty is right, judged on fresh simulations."""

from sgjax.diagnostics.calibration import Calibration as Calibration
from sgjax.diagnostics.calibration import calibrate as calibrate
from sgjax.diagnostics.two_sample import C2ST as C2ST
from sgjax.diagnostics.two_sample import MMD as MMD
from sgjax.diagnostics.two_sample import c2st as c2st
from sgjax.diagnostics.two_sample import mmd as mmd
from sgjax.diagnostics.two_sample import sliced_wasserstein as sliced_wasserstein
from sgjax.diagnostics.two_sample import wasserstein_1 as wasserstein_1
