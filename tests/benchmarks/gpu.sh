#!/usr/bin/env bash
# All that is to be measured on a GPU, in one run of under ten minutes; tables come into a folder (default: gpu_results).
#
#     bash tests/benchmarks/gpu.sh [FOLDER]
#
# PYTHON (default: python) has the package with its test extra, and a torch that sees the GPU.
set -uo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
out=${1:-gpu_results}
mkdir -p "$out"
export PYTHONUNBUFFERED=1
status=0

run() { # name, seconds, command
    local name=$1 limit=$2
    shift 2
    echo "== $name"
    timeout "$limit" "$@" 2>&1 | tee "$out/$name.log" || { status=1; echo "== $name: failed, or took more than $limit s"; }
}

"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || { echo "expected a GPU, found none" >&2; exit 2; }

# GPU against CPU, within the tolerances of the golden tests.
run tests 90 "$python" -m pytest -q -m gpu -p no:cacheprovider
bench() { run "$1" "$2" "$python" "tests/benchmarks/${3}" --device cuda --json "$out/$1.json" "${@:4}"; }
# A labelled series of 61 x 1024² with its tomogram; the weights' values do not matter to the time.
bench profile_1024 60 profile_simulation.py --size 1024 --bin 2 --precision bfloat16
bench profile_1024_float32 60 profile_simulation.py --size 1024 --bin 2 --repeats 1
# 61 x 3500² from a specimen of 1000 x 3500 x 3500 voxels, which lies on disk in half precision.
bench profile_3500 180 profile_simulation.py --size 3500 --depth 1000 --bin 4 --precision bfloat16 --repeats 0 \
    --mapped "$(mktemp -d)"
# DeepFinder's loop, fed by the dataset and by patches in memory.
bench training 60 training.py
bench training_spawned 75 training.py --workers 1 --repeats 3
bench scaling 75 scaling.py --precision bfloat16 --sizes 256 512 1024 --repeats 2
exit $status
