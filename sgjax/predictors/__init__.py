"""Predictors: networks that turn a series into predictive distributions."""

from sgjax.predictors._base import AbstractHead as AbstractHead
from sgjax.predictors._base import AbstractPredictive as AbstractPredictive
from sgjax.predictors._base import ByMechanism as ByMechanism
from sgjax.predictors._base import CannotGive as CannotGive
from sgjax.predictors._posterior import Posterior as Posterior
from sgjax.predictors._posterior import find_task as find_task
from sgjax.predictors._posterior import natural as natural
from sgjax.predictors._posterior import summarise as summarise
from sgjax.predictors._predictor import Predictor as Predictor
from sgjax.predictors._predictor import as_observed as as_observed
from sgjax.predictors._predictor import for_study as for_study
from sgjax.predictors.categorical import Categorical as Categorical
from sgjax.predictors.convolution import Convolution as Convolution
from sgjax.predictors.encoders import MLP as MLP
from sgjax.predictors.encoders import AbstractEncoder as AbstractEncoder
from sgjax.predictors.encoders import InputShape as InputShape
from sgjax.predictors.gaussian import Gaussian as Gaussian
from sgjax.predictors.gaussian_mixture import GaussianMixture as GaussianMixture
from sgjax.predictors.network import Network as Network
from sgjax.predictors.network import build_network as build_network
from sgjax.predictors.point import Point as Point
from sgjax.predictors.quantile import Quantiles as Quantiles
from sgjax.predictors.scaling import InputScaling as InputScaling
from sgjax.predictors.scaling import Scaled as Scaled
from sgjax.predictors.transformer import Transformer as Transformer
