"""How the command starts: what is heard of libraries, and where compiled programs are kept."""

import logging
import os
import sys
import warnings
from pathlib import Path

import jax


def set_up() -> None:
    """Quiets what users hear of by one message, and keeps compiled programs between commands."""
    # What a user gets one message about orbax tells the log at length, and threads that its failed
    # writes leave behind tell the error stream.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda told: None
    warnings.filterwarnings("ignore", message=".*compilation cache.*")
    if jax.config.values.get("jax_compilation_cache_dir"):
        return  # the user has a place for them
    # Compiled programs are kept between commands, the many small ones of a predictor's making too;
    # a folder that cannot be written costs only time.
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(home / "sgjax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
