#!/usr/bin/env bash
# All that is to be measured on a GPU, in one run of 480 s at most. Logs and tables come into a folder (default:
# gpu_results), and as one archive, FOLDER/all.tar.gz; FOLDER/summary.txt says what ran, how long, and what failed.
#
#     bash tests/benchmarks/gpu.sh [FOLDER]
#
# PYTHON (default: python3) has a torch that sees the GPU. The package need not be installed. WHEELS names a folder with
# wheels of what else is missing, which are unpacked aside (README.md lists them). DEVICE=cpu tries it all without a GPU,
# at small sizes.
set -uo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
out=${1:-gpu_results}
mkdir -p "$out"
aside=$(mktemp -d)
trap 'rm -rf "$aside"' EXIT
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
status=0
: >"$out/summary.txt"

say() {
    echo "== $*" | tee -a "$out/summary.txt"
}

run() { # name, seconds, command
    local name=$1 limit=$2 begun=$SECONDS
    shift 2
    echo "== $name"
    # An interrupted benchmark still writes what it measured.
    timeout -s INT -k 5 "$limit" "$@" 2>&1 | tee "$out/$name.log"
    local code=${PIPESTATUS[0]}
    case $code in
    0) say "$name: $((SECONDS - begun)) s" ;;
    124 | 130 | 137) say "$name: cut after $limit s; what was measured before is kept" ;;
    *) status=1 && say "$name: failed with status $code after $((SECONDS - begun)) s; see $name.log" ;;
    esac
}

bench() { # name, seconds, script, options
    run "$1" "$2" "$python" "tests/benchmarks/$3" --device "$device" --json "$out/$1.json" "${@:4}"
}

# What is missing ----------------------------------------------------------------------------------------------------
if [ -n "${WHEELS:-}" ]; then
    "$python" -m pip install -q --no-index --no-deps --target "$aside" "$WHEELS"/*.whl || exit 2
fi
export PYTHONPATH="$PWD:$aside${PYTHONPATH:+:$PYTHONPATH}"
if ! "$python" -c 'from importlib.metadata import version; version("faket_aug")' 2>/dev/null; then
    # Records tell the package's version: where it is not installed, its name and version lie beside the wheels.
    version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' faket_aug/__init__.py)
    mkdir -p "$aside/faket_aug-$version.dist-info"
    printf 'Metadata-Version: 2.1\nName: faket_aug\nVersion: %s\n' "$version" >"$aside/faket_aug-$version.dist-info/METADATA"
fi
"$python" - "$device" <<'EOF' || exit 2
import importlib.util
import sys

#: By the name that is imported, the name of the package.
NEEDED = {
    **{name: name for name in ("torch", "numpy", "scipy", "mrcfile", "kornia", "safetensors", "gemmi", "torch_ctf")},
    **{"skimage": "scikit-image", "pytest": "pytest", "hypothesis": "hypothesis", "matplotlib": "matplotlib"},
}
missing = [package for name, package in NEEDED.items() if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"expected {', '.join(missing)} for {sys.executable}, found none; set PYTHON, or WHEELS")
import torch

if sys.argv[1] != "cpu" and not torch.cuda.is_available():
    sys.exit(f"expected a torch that sees a GPU, found {torch.__version__} without; set PYTHON, or DEVICE=cpu to try")
import faket_aug

name = torch.cuda.get_device_name() if sys.argv[1] != "cpu" else "no GPU"
print(f"faket_aug {faket_aug.__version__}, torch {torch.__version__}, {name}")
EOF

# What is measured ---------------------------------------------------------------------------------------------------
# The GPU against the CPU, within the tolerances of the golden tests; only files with such tests are imported.
mapfile -t files < <(grep -rlE 'mark\.gpu' tests --include='test_*.py')
if [ "$device" = cpu ]; then
    run tests 90 "$python" -m pytest -q -m gpu -p no:cacheprovider --collect-only "${files[@]}"
    bench profile_small 60 profile_simulation.py --size 64 --depth 24 --tilts 5 --repeats 1
    bench training 90 training.py --size 48 --tilts 5 --patch-size 16 --batch-size 2 --patches 8 --steps 4 --repeats 1
    bench scaling 60 scaling.py --sizes 32 --tilts 2 --tilts-size 32 --repeats 1
    bench kernels 30 kernels.py --size 32 --repeats 1
    bench graphs 30 graphs.py --sizes 32 --tilts 2 --repeats 1
else
    run tests 85 "$python" -m pytest -q -m gpu -p no:cacheprovider "${files[@]}"
    # A labelled series of 61 x 1024² from 200 x 1024² with its tomogram; the weights' values do not matter to the time.
    bench profile_1024 60 profile_simulation.py --size 1024 --depth 200 --bin 2 --precision bfloat16
    FAKET_AUG_TRITON=0 bench profile_1024_plain 40 profile_simulation.py --size 1024 --depth 200 --bin 2 \
        --precision bfloat16
    bench kernels 20 kernels.py
    # The style transfer of 16 tilts of 512² and of 1024², in turn with CUDA graphs and without.
    bench graphs 25 graphs.py
    bench profile_1024_float32 40 profile_simulation.py --size 1024 --depth 200 --bin 2 --repeats 0
    # 60 steps of 25 x 56³ a round, in which three tomograms are exchanged.
    bench training 70 training.py --steps 60 --patches 500 --repeats 2
    bench scaling 35 scaling.py --precision bfloat16 --sizes 256 1024 --tilts 4 16 --repeats 2
    # 61 x 3500² from a specimen of 1000 x 3500 x 3500 voxels, which lies on disk in half precision.
    bench profile_3500 95 profile_simulation.py --size 3500 --depth 1000 --bin 4 --precision bfloat16 --repeats 0 \
        --mapped "$aside"
fi
say "$SECONDS s in all"
tar -czf "$out/all.tar.gz" -C "$out" --exclude=all.tar.gz .
exit $status
