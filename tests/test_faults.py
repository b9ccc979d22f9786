"""The fault matrix, summarised: ``python -m tests.faults`` shows its table and takes the name of one fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_fault_ends_as_promised() -> None:
    """Nothing is lost or invented, gaps and needs show each fault, and recovery comes in time."""
    done = subprocess.run([sys.executable, "-m", "tests.faults"], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout
