#!/usr/bin/env bash
# All that is to be measured on a GPU, in one run of under ten minutes. Logs and tables come into a folder (default:
# gpu_results), and as one archive, FOLDER/all.tar.gz.
#
#     bash tests/benchmarks/gpu.sh [FOLDER]
#
# PYTHON (default: python) has the package with its test extra, and a torch that sees the GPU.
set -uo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
out=${1:-gpu_results}
mkdir -p "$out"
mapped=$(mktemp -d)
trap 'rm -rf "$mapped"' EXIT
export PYTHONUNBUFFERED=1
status=0

run() { # name, seconds, command
    local name=$1 limit=$2
    shift 2
    echo "== $name"
    # An interrupted benchmark still writes what it measured.
    if ! timeout -s INT -k 5 "$limit" "$@" 2>&1 | tee "$out/$name.log"; then
        status=1
        echo "== $name: failed, or took more than $limit s" | tee -a "$out/$name.log"
    fi
}

bench() { # name, seconds, script, options
    run "$1" "$2" "$python" "tests/benchmarks/$3" --device cuda --json "$out/$1.json" "${@:4}"
}

if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    echo "expected a torch that sees a GPU, found none; set PYTHON" >&2
    exit 2
fi
# The GPU against the CPU, within the tolerances of the golden tests.
run tests 80 "$python" -m pytest -q -m gpu -p no:cacheprovider
# A labelled series of 61 x 1024² with its tomogram; the weights' values do not matter to the time.
bench profile_1024 70 profile_simulation.py --size 1024 --bin 2 --precision bfloat16
bench profile_1024_float32 40 profile_simulation.py --size 1024 --bin 2 --repeats 0
bench training 70 training.py --repeats 2
bench training_spawned 70 training.py --workers 1 --repeats 1
bench scaling 60 scaling.py --precision bfloat16 --sizes 256 1024 --tilts 4 16 --repeats 2
# 61 x 3500² from a specimen of 1000 x 3500 x 3500 voxels, which lies on disk in half precision.
bench profile_3500 150 profile_simulation.py --size 3500 --depth 1000 --bin 4 --precision bfloat16 --repeats 0 \
    --mapped "$mapped"
tar -czf "$out/all.tar.gz" -C "$out" --exclude=all.tar.gz .
exit $status
