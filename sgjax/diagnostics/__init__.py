"""Whether a predictor's uncertainty is right, judged on fresh simulations."""

from sgjax.diagnostics.calibration import Calibration as Calibration
from sgjax.diagnostics.calibration import calibrate as calibrate
