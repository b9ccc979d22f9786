"""The fault matrix: ``python -m tests.faults [--list] [--only NAME]``; exits 0 only if each outcome is as promised.

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
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.faults.cell import Fault, play
from tests.faults.databases import make_templates
from tests.faults.listed import FAULTS, Skipped

AT_ONCE = 3  # cells that run at the same time
ROW = "{:<42} {:<10}  {:<11}  {}"


def run(fault: Fault, kind: str, folder: Path) -> tuple[str, str]:
    """Return the outcome in a word, and the time to recover or what is wrong."""
    try:
        took = play(fault, kind, folder, folder.parent)
    except Skipped as why:
        return "skipped", str(why)
    except Exception as error:
        return "NOT SO", f"{error if isinstance(error, AssertionError) else repr(error)} ({folder})"
    shutil.rmtree(folder)
    return "as promised", f"{took:.1f} s of {fault.within:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the faults, and inject none")
    parser.add_argument("--only", metavar="NAME", default="", help="only faults with this in their name or database")
    options = parser.parse_args()
    cells = [(fault, kind) for fault in FAULTS for kind in fault.on if options.only in f"{fault.name}, {kind}"]
    if options.list or not cells:
        print(*(f"{fault.name}, {kind}" for fault, kind in cells), sep="\n")
        return not cells
    began = time.monotonic()
    found: dict[int, tuple[str, str]] = {}
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    folder.chmod(0o755)  # PostgreSQL does not run as root
    make_templates(folder)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        cell = {pool.submit(run, *cells[number], folder / f"{number:03}"): number for number in range(len(cells))}
        for future in as_completed(cell):
            (fault, kind), (outcome, detail) = cells[cell[future]], future.result()
            found[cell[future]] = outcome, detail
            print(f"{len(found)}/{len(cells)} {fault.name}, {kind}: {outcome}, {detail}", file=sys.stderr, flush=True)
    print(ROW.format("fault", "database", "outcome", "recovery"))
    for number, (fault, kind) in enumerate(cells):
        outcome, detail = found[number]
        print(ROW.format(fault.name, kind, outcome, detail if outcome == "as promised" else "").rstrip())
    for number, (fault, kind) in enumerate(cells):
        if found[number][0] != "as promised":
            print(f"\n{fault.name}, {kind}: {': '.join(found[number])}")
    bad, skipped = (sum(outcome == word for outcome, _ in found.values()) for word in ("NOT SO", "skipped"))
    minutes = (time.monotonic() - began) / 60
    print(f"\n{len(cells)} faults in {minutes:.0f} minutes: {bad} not as promised, {skipped} skipped.")
    if not bad:
        shutil.rmtree(folder)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
