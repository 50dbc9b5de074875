"""What a predictor is judged against: `(study, mechanism, record) -> exact posterior`."""

from sgjax.references.grid import grid_posterior as grid_posterior
from sgjax.references.likelihood import LogJoint as LogJoint
from sgjax.references.likelihood import log_joint as log_joint
from sgjax.references.nuts import nuts_posterior as nuts_posterior
from sgjax.references.posterior import ReferencePosterior as ReferencePosterior
from sgjax.references.posterior import mechanism_probabilities as mechanism_probabilities
from sgjax.references.stored import compute_reference as compute_reference
from sgjax.references.stored import load_reference as load_reference
