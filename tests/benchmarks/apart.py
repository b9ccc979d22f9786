"""Measures a function in a process of its own, so that neither what was done before nor the parent's memory counts."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import monotonic, process_time


@dataclass(frozen=True, slots=True)
class Measured:
    """What a call took: seconds by the clock and of this process's CPU time, and its most memory in megabytes."""

    seconds: float
    cpu_seconds: float
    megabytes: float


def measure(function: Callable[..., None], *arguments: str) -> Measured:
    """Return what a call of *function*, of a module's top level, takes in a new process; its error is raised here."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, function, *arguments).result()


def _measure(function: Callable[..., None], *arguments: str) -> Measured:
    began, cpu = monotonic(), process_time()
    function(*arguments)
    took, cpu_took = monotonic() - began, process_time() - cpu
    # Not getrusage(): its ru_maxrss begins with what the parent had when it forked.
    kilobytes = re.search(r"^VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return Measured(took, cpu_took, int(kilobytes[1]) / 1024 if kilobytes else 0.0)
