"""How equations are stepped: `vector field, state, times -> trajectory`, made for ensembles.

Each policy is a `Steps`: fixed Runge-Kutta steps (the default), symplectic steps for mechanics,
exponential steps for stiff linear parts, adaptive steps, all of them diffrax solves; and adaptive
steps in lanes, explicit or for stiff systems, which are much faster for ensembles.
"""

from sgjax.solvers._base import AbstractSubSteps as AbstractSubSteps
from sgjax.solvers._base import GridSteps as GridSteps
from sgjax.solvers._base import Steps as Steps
from sgjax.solvers._base import depends as depends
from sgjax.solvers._base import forward_mode as forward_mode
from sgjax.solvers._base import repeat as repeat
from sgjax.solvers._base import step_grid as step_grid
from sgjax.solvers._base import take_rows as take_rows
from sgjax.solvers._tableaus import TABLEAUS as TABLEAUS
from sgjax.solvers.adaptive import AdaptiveSteps as AdaptiveSteps
from sgjax.solvers.exponential import ExponentialSteps as ExponentialSteps
from sgjax.solvers.exponential import Semilinear as Semilinear
from sgjax.solvers.lanes import LaneSteps as LaneSteps
from sgjax.solvers.pointwise import obstacle as obstacle
from sgjax.solvers.runge_kutta import FEW as FEW
from sgjax.solvers.runge_kutta import FixedSteps as FixedSteps
from sgjax.solvers.runge_kutta import Form as Form
from sgjax.solvers.symplectic import SPLITTINGS as SPLITTINGS
from sgjax.solvers.symplectic import SymplecticSteps as SymplecticSteps
