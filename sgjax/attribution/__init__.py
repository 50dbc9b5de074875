"""Back-to-simulation attribution: a prediction explained by the simulations nearest to it."""

from sgjax.attribution.explain import attribute as attribute
from sgjax.attribution.index import SimulationIndex as SimulationIndex
from sgjax.attribution.neighbours import Nearest as Nearest
from sgjax.attribution.neighbours import Neighbours as Neighbours
from sgjax.attribution.neighbours import neighbours as neighbours
from sgjax.attribution.search import Search as Search
from sgjax.attribution.space import Space as Space
