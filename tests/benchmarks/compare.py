"""Compare a benchmark's new table with a kept one; print what changed by more than the spread of both.

    python tests/benchmarks/stages.py --json new.json
    python tests/benchmarks/compare.py tests/benchmarks/results/stages.json new.json

The exit status is 1 if anything got slower (or a ratio smaller) by more than the spread, 2 if the tables cannot be
compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

#: What takes less than this is not compared, in seconds.
SHORTEST = 1e-3
#: Peaks of memory that grow by less than this share are the same.
MEMORY = 0.15
#: A change that is smaller than this share is none, whatever the spread.
LEAST = 0.05


def spread(values: list[float]) -> float:
    """Half of the range, as a share of the median; that of a single run is not known, and taken to be large."""
    if len(values) < 2:
        return 0.25
    return (max(values) - min(values)) / 2 / median(values)


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, float, float, bool]]:
    """Give name, factor (new over old), spread and whether it got worse, of what changed by more than the spread."""
    kept = {row["name"]: row for row in old["rows"]}
    found = []
    for row in new["rows"]:
        before = kept.get(row["name"])
        # Ratios, where there are some: both sides were measured in one run, so the machine's mood is not in them.
        key = "ratios" if "ratios" in row else "seconds"
        if before is not None and row.get("peak_gib", 0) > (1 + MEMORY) * before.get(
            "peak_gib", row.get("peak_gib", 0)
        ):
            found.append((f"{row['name']}, peak memory", row["peak_gib"] / before["peak_gib"], MEMORY, True))
        if before is None or key not in before or min(median(r["seconds"]) for r in (row, before)) < SHORTEST:
            continue
        factor = median(row[key]) / median(before[key])
        least = max(LEAST, spread(row[key]) + spread(before[key]))
        if abs(factor - 1) > least:
            found.append((row["name"], factor, least, (factor < 1) == (key == "ratios")))
    return found


def main() -> int:
    """Print the changes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="the kept table")
    parser.add_argument("new", type=Path)
    options = parser.parse_args()
    old, new = (json.loads(path.read_text()) for path in (options.old, options.new))
    for name in ("benchmark", "settings"):
        if old[name] != new[name]:
            print(f"expected tables of the same {name}, got {old[name]} and {new[name]}", file=sys.stderr)
            return 2
    if old["machine"] != new["machine"]:
        print(f"other machines, so only ratios mean much: {old['machine']} and {new['machine']}")
    found = changes(old, new)
    for name, factor, least, worse in found:
        print(f"{name:40s} x {factor:.2f} (spread {least:.2f}): {'worse' if worse else 'better'}")
    names = [{row["name"] for row in table["rows"]} for table in (old, new)]
    for missing in sorted(names[0] - names[1]):
        print(f"{missing:40s} is not in the new table")
    if not found:
        print(f"{len(names[0] & names[1])} rows: nothing changed by more than the spread")
    return int(any(worse for *_, worse in found))


if __name__ == "__main__":
    sys.exit(main())
