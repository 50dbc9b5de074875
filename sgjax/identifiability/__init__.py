"""What data can tell of each quantity a study asks for, and what they cannot."""

from sgjax.identifiability.contraction import Contraction as Contraction
from sgjax.identifiability.contraction import Direction as Direction
from sgjax.identifiability.contraction import Identifiability as Identifiability
from sgjax.identifiability.contraction import Local as Local
from sgjax.identifiability.contraction import Stratum as Stratum
from sgjax.identifiability.contraction import identifiability as identifiability
from sgjax.identifiability.fisher import FisherInformation as FisherInformation
from sgjax.identifiability.fisher import fisher_information as fisher_information
