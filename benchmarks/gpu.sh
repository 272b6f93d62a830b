#!/bin/sh
# What only a GPU can show, in at most eight minutes and one folder: benchmarks/gpu.sh OUT [--device cpu]
# With --device cpu all steps run on the CPU in tiny settings, to show that they work; their numbers mean nothing.
set -u
cd "$(dirname "$0")/.." || exit 1
out=${1:?give a folder for the results: benchmarks/gpu.sh OUT [--device cpu]}
device=cuda
small=
quick=
if [ "${2:-}" = --device ]; then device=${3:-cuda}; fi
if [ "$device" = cpu ]; then
    small="--images 4 --batch 4 --side 64"
    quick=--quick
elif ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "no GPU that torch can use; benchmarks/gpu.sh OUT --device cpu shows that the steps run" >&2
    exit 1
fi
mkdir -p "$out"
python -c 'import torch; print(torch.__version__, torch.cuda.device_count(), "GPUs")' | tee "$out/device.txt"
# shellcheck disable=SC2086  # several words
timeout 150 python benchmarks/gpu_checks.py "$out" --device "$device" $small 2>&1 | tee "$out/checks.txt"
count=$(python -c 'import torch; print(max(2, torch.cuda.device_count()))')
images=$([ "$device" = cpu ] && echo 4 || echo 200)
timeout 60 python -m xaieval.cli score --nproc "$count" --device "$device" --max-images "$images" --no-progress \
    --out "$out/processes" 2>&1 | tee "$out/processes.txt"
timeout 60 python -m pytest -q -n 0 -p no:cacheprovider -m gpu tests/end_to_end/test_devices.py \
    tests/models/test_fal.py tests/models/test_gate_statistics.py 2>&1 | tee "$out/tests.txt" | tail -3
speed() {  # a step of benchmarks/speed, and the seconds that it may take
    seconds=$1
    shift
    # shellcheck disable=SC2086  # several words
    timeout "$seconds" python benchmarks/speed "$@" --only resnet50 --device "$device" --out "$out/speed" $quick 2>&1 |
        tee -a "$out/speed.txt"
}
speed 120 peers --settings 4x1 --rounds 3 --no-compiling
speed 60 limit --settings 4x1 --rounds 3
speed 60 growth --parts maps
echo "written to $out"
