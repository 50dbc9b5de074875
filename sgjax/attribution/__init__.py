"""Back-to-simulation attribution: a prediction explained by the simulations nearest to it."""

from sgjax.attribution.choose_k import ChoiceOfK as ChoiceOfK
from sgjax.attribution.choose_k import choose_k as choose_k
from sgjax.attribution.explain import attribute as attribute
from sgjax.attribution.index import SimulationIndex as SimulationIndex
from sgjax.attribution.neighbours import Nearest as Nearest
from sgjax.attribution.neighbours import Neighbours as Neighbours
from sgjax.attribution.neighbours import neighbours as neighbours
from sgjax.attribution.posterior import AttributedPosterior as AttributedPosterior
from sgjax.attribution.posterior import attribute_posterior as attribute_posterior
from sgjax.attribution.search import Search as Search
from sgjax.attribution.source import Source as Source
from sgjax.attribution.space import Space as Space
from sgjax.attribution.sufficiency import Sufficiency as Sufficiency
from sgjax.attribution.sufficiency import check_sufficiency as check_sufficiency
