"""examples/slurm_train.sh starts torchrun on every machine, with what SLURM tells and what its user says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "slurm_train.sh"
#: What the cluster's programs do, as far as the script sees.
PROGRAMS = {
    "scontrol": '[ "$*" = "show hostnames gpu[07-08]" ] && printf "gpu07\\ngpu08\\n"',
    "srun": 'exec "$@"',
    "torchrun": 'for word in "$@"; do echo "$word"; done; echo "threads $OMP_NUM_THREADS"',
}


def test_command(tmp_path: Path) -> None:
    for name, body in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    told = {"SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "31"}
    environment = os.environ | told | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "-eu", str(SCRIPT), "--output", "my run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "--nnodes=2",
        "--nproc-per-node=4",
        "--rdzv-backend=c10d",
        "--rdzv-id=31",
        "--rdzv-endpoint=gpu07:29500",
        "examples/train_deepfinder.py",
        *("--device", "cuda", "--workers", "4", "--output", "my run"),
        "threads 1",
    ]
    assert len(SCRIPT.read_text().splitlines()) == 10
