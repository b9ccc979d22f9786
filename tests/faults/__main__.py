"""The fault matrix: ``python -m tests.faults [--only NAME]``; exits 0 only if each outcome is as promised.

Each fault is real, with a daemon process, a server on loopback and a database of its own. At the end all jobs must be
done, each transition must be an answer of the server, and a gap must cover the fault. `tracker status` must have shown
the need, and must not show it any more. `audit verify` must find nothing, and no file may hold a secret.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.faults.cell import Fault, play
from tests.faults.databases import make_templates
from tests.faults.listed import FAULTS

AT_ONCE = 3  # cells that run at the same time


def run(fault: Fault, kind: str, folder: Path) -> tuple[str, str, str, str]:
    """Return a row of the table: the fault, the database, the outcome, and the time to recover or what is wrong."""
    try:
        took = play(fault, kind, folder, folder.parent)
    except Exception as error:  # its folder stays
        return fault.name, kind, "NOT SO", f"{error if isinstance(error, AssertionError) else repr(error)} ({folder})"
    shutil.rmtree(folder)
    return fault.name, kind, "as promised", f"{took:.1f} s of {fault.within:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", metavar="NAME", default="", help="those with this in their name or database")
    options = parser.parse_args()
    cells = [(fault, kind) for fault in FAULTS for kind in fault.on if options.only in f"{fault.name}, {kind}"]
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    folder.chmod(0o755)  # PostgreSQL does not run as root
    make_templates(folder)
    outcomes = Counter[str]()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        rows = [pool.submit(run, *cell, folder / f"{number:03}") for number, cell in enumerate(cells)]
        for row in as_completed(rows):
            print("{:<38} {:<10}  {:<11}  {}".format(*row.result()), flush=True)
            outcomes[row.result()[2]] += 1
    minutes = (time.monotonic() - began) / 60
    print(f"{len(cells)} faults in {minutes:.0f} minutes:", ", ".join(f"{n} {word}" for word, n in outcomes.items()))
    if outcomes["NOT SO"]:
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
