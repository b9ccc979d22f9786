"""As a user would: from nothing to `done` against a server that is not ours, and out of an installed wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_installed_wheel_upgrades_a_database_from_any_folder(tmp_path: Path) -> None:
    """The migrations, views and all are in the wheel."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True
    )
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (wheel,) = tmp_path.glob("tracker-*.whl")
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = os.environ | {"TRACKER_DATABASE_URL": "sqlite:///w.db"}
    for words in (("db", "upgrade"), ("db", "check"), ("status",)):
        command = [python.with_name("tracker"), *words]
        done = subprocess.run(command, cwd=elsewhere, env=env, text=True, capture_output=True)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
