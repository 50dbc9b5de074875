"""Runs on disk: a folder with settings, weights and what was measured, that outlives its process.

A state is complete or not there at all, and each is held against its SHA-256 before it is read.
"""

from sgjax.checkpoint._checkpointer import Checkpointer as Checkpointer
from sgjax.checkpoint._files import RunError as RunError
from sgjax.checkpoint._files import sha256 as sha256
from sgjax.checkpoint._files import write_json as write_json
from sgjax.checkpoint._lock import LOCK as LOCK
from sgjax.checkpoint._lock import locked as locked
from sgjax.checkpoint._log import Log as Log
from sgjax.checkpoint._manifest import fault_of as fault_of
from sgjax.checkpoint._run import Run as Run
from sgjax.checkpoint._run import latest_run as latest_run
from sgjax.checkpoint._run import make_folder as make_folder
from sgjax.checkpoint._run import new_folder as new_folder
from sgjax.checkpoint._run import versions as versions
