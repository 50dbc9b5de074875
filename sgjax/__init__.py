"""Simulation-grounded neural networks: endless on-device simulations, trained predictors."""

import os

os.environ.setdefault("EQX_ON_ERROR", "nan")
