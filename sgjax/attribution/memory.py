"""Whether a table fits the devices, asked before it is made."""

import os

import jax
from jax.sharding import Mesh

from sgjax.devices import from_all

SHARE = 0.9
"""How much of the free memory a table may take: searches need some as well."""


def check_memory(rows: int, bytes_each: int, dtype: str, mesh: Mesh | None) -> None:
    """Raises `ValueError` where a device (the host, for CPU devices) lacks room for its rows.

    Where the mesh spans several processes, all raise it.
    """
    needed, free = rows * bytes_each, float(from_all(free_bytes(), mesh).min())
    if needed > SHARE * free:
        raise ValueError(
            f"The index needs {needed / 2**30:.3g} GiB on each device and {free / 2**30:.3g} GiB "
            f"are free: at most {int(SHARE * free / bytes_each):,} simulations of dtype '{dtype}' "
            "fit on one. Choose a smaller `dtype` ('bfloat16', 'int8'), fewer simulations or more "
            "devices; or search the stream without an index (`attribute`, `Search`)."
        )


def free_bytes() -> float:
    """Memory that is free for each local device."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    # CPU devices share the memory of the host.
    return _host_bytes() / jax.local_device_count()


def _host_bytes() -> float:
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            found = dict(line.split(":", 1) for line in lines)
        return 1024 * float(found["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
