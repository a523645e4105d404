"""Damaged files: what comes is the same data, other data that can be, or an error that names the file; nothing else."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz._mutations import mutated
from tests.fuzz._outcomes import Counts, digest, judge, summary
from tests.fuzz._own_samples import OWN
from tests.fuzz._samples import SAMPLES, Sample

#: How many damages of each file; a thousand by night.
TRIES = int(os.environ.get("FAKET_AUG_FUZZ", "50"))
#: Where the counts are written, if anywhere.
TABLE = os.environ.get("FAKET_AUG_FUZZ_TABLE")
#: Memory, KiB, that all damages of one file may add to the process: a file's size times a constant, and some libraries.
MORE_MEMORY = 400 * 1024


ALL: dict[str, Sample] = SAMPLES | OWN


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, Counts]]:
    """The counts of all readers."""
    counts: dict[str, Counts] = {}
    yield counts
    if TABLE:
        Path(TABLE).write_text(summary(counts))


@pytest.mark.parametrize("name", ALL)
def test_damaged_files(name: str, tmp_path: Path, table: dict[str, Counts]) -> None:
    """Damage leads to the same data, to other possible data, or to one sentence that names the file."""
    sample, counts = ALL[name], table.setdefault(name, Counts())
    path = tmp_path / sample.file
    sample.make(path)
    whole, content = digest(sample.read(path)), path.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(TRIES):
        path.write_bytes(mutated(content, seed, text=sample.text))
        judge(lambda: sample.read(path), sample.error(path), whole, counts, f"seed {seed}", checksum=sample.checksum)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert not counts.wrong, "\n".join([f"{len(counts.wrong)} of {counts.tried}:", *counts.wrong[:12]])
    assert more < MORE_MEMORY, f"{more / 1024:.0f} MiB more"
