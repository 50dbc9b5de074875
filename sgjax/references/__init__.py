"""What a predictor is judged against: `(study, mechanism, record) -> exact posterior`."""

from sgjax.references.conjugate import NormalPosterior as NormalPosterior
from sgjax.references.conjugate import linear_gaussian_posterior as linear_gaussian_posterior
from sgjax.references.evidence import Evidence as Evidence
from sgjax.references.evidence import evidence as evidence
from sgjax.references.evidence import mechanism_posterior as mechanism_posterior
from sgjax.references.fit import Fit as Fit
from sgjax.references.fit import criterion_weights as criterion_weights
from sgjax.references.fit import fit as fit
from sgjax.references.fit import fit_mechanisms as fit_mechanisms
from sgjax.references.grid import grid_posterior as grid_posterior
from sgjax.references.importance import Corrected as Corrected
from sgjax.references.importance import amortisation_break_even as amortisation_break_even
from sgjax.references.importance import correct as correct
from sgjax.references.importance import importance_posterior as importance_posterior
from sgjax.references.likelihood import LogJoint as LogJoint
from sgjax.references.likelihood import log_joint as log_joint
from sgjax.references.nuts import nuts_posterior as nuts_posterior
from sgjax.references.posterior import ReferencePosterior as ReferencePosterior
from sgjax.references.posterior import mechanism_probabilities as mechanism_probabilities
from sgjax.references.profile import Profile as Profile
from sgjax.references.profile import profile_likelihood as profile_likelihood
from sgjax.references.stored import compute_reference as compute_reference
from sgjax.references.stored import load_reference as load_reference
from sgjax.references.weights import pareto_smooth as pareto_smooth
