"""Mechanisms, one small file each: `(key, theta) -> Latent`."""

from sgjax.simulators._base import AbstractODESimulator as AbstractODESimulator
from sgjax.simulators._base import AbstractSimulator as AbstractSimulator
from sgjax.simulators._base import Latent as Latent
from sgjax.simulators._calibration import Calibration as Calibration
from sgjax.simulators._calibration import calibrate_steps as calibrate_steps
from sgjax.simulators._calibration import shipped_errors as shipped_errors
from sgjax.simulators._chain_binomial import (
    AbstractChainBinomialSimulator as AbstractChainBinomialSimulator,
)
from sgjax.simulators._checks import check_equations as check_equations
from sgjax.simulators._forms import choose_forms as choose_forms
from sgjax.simulators._forms import forms as forms
from sgjax.simulators._forms import with_forms as with_forms
from sgjax.simulators._held import AbstractControlledSimulator as AbstractControlledSimulator
from sgjax.simulators._mixture import MechanismMixture as MechanismMixture
from sgjax.simulators._mixture import replace_mechanisms as replace_mechanisms
from sgjax.simulators._sde import AbstractSDESimulator as AbstractSDESimulator
from sgjax.simulators._semilinear import (
    AbstractSemilinearSimulator as AbstractSemilinearSimulator,
)
from sgjax.simulators._stochastic import (
    AbstractStochasticSimulator as AbstractStochasticSimulator,
)
from sgjax.simulators._tolerances import Tolerances as Tolerances
from sgjax.simulators._tolerances import calibrate_tolerances as calibrate_tolerances
from sgjax.simulators.advection import Advection as Advection
from sgjax.simulators.allee import Allee as Allee
from sgjax.simulators.burgers import Burgers as Burgers
from sgjax.simulators.cart_pole import CartPole as CartPole
from sgjax.simulators.exponential_decay import ExponentialDecay as ExponentialDecay
from sgjax.simulators.fitzhugh_nagumo import FitzHughNagumo as FitzHughNagumo
from sgjax.simulators.gompertz import Gompertz as Gompertz
from sgjax.simulators.gravity import Gravity as Gravity
from sgjax.simulators.harmonic_oscillator import HarmonicOscillator as HarmonicOscillator
from sgjax.simulators.kuramoto_sivashinsky import (
    KuramotoSivashinsky as KuramotoSivashinsky,
)
from sgjax.simulators.logistic import Logistic as Logistic
from sgjax.simulators.lorenz63 import Lorenz63 as Lorenz63
from sgjax.simulators.lorenz96 import Lorenz96 as Lorenz96
from sgjax.simulators.lotka_volterra import LotkaVolterra as LotkaVolterra
from sgjax.simulators.michaelis_menten import MichaelisMenten as MichaelisMenten
from sgjax.simulators.one_compartment import OneCompartment as OneCompartment
from sgjax.simulators.ornstein_uhlenbeck import OrnsteinUhlenbeck as OrnsteinUhlenbeck
from sgjax.simulators.richards import Richards as Richards
from sgjax.simulators.robertson import Robertson as Robertson
from sgjax.simulators.rosenzweig_macarthur import RosenzweigMacArthur as RosenzweigMacArthur
from sgjax.simulators.seair import SEAIR as SEAIR
from sgjax.simulators.seir import SEIR as SEIR
from sgjax.simulators.sir import SIR as SIR
from sgjax.simulators.sirs import SIRS as SIRS
from sgjax.simulators.stochastic_sir import StochasticSIR as StochasticSIR
