"""Learned simulators, rolled out and judged by one protocol."""

from sgjax.rollout._rollout import rollout as rollout
from sgjax.rollout.protocol import RolloutReport as RolloutReport
from sgjax.rollout.protocol import Scales as Scales
from sgjax.rollout.protocol import evaluate_rollout as evaluate_rollout
from sgjax.rollout.protocol import judge as judge
from sgjax.rollout.speed import SpeedUp as SpeedUp
from sgjax.rollout.speed import speed_up as speed_up
