#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under nine minutes, on a machine that has Python alone.
#
#   results/benchmarks/gpu.sh OUT [WHEELS]
#
# OUT gets a log for each step, profiles, the runs' summaries and steps.csv (step, seconds, code).
# WHEELS is a folder of wheels where there is no network: the project's, PyTorch with CUDA,
# onnxruntime-gpu, and tensorrt where it is to be tried. A step that fails does not end the others.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out=$(mkdir -p "${1:?give a folder for what is measured}" && cd "$1" && pwd)
wheels=${2:-}
budget=530  # seconds of all steps together
python=$out/venv/bin/python

left() { echo $((budget - SECONDS)); }

step() {  # step NAME SECONDS COMMAND...: at most so long, and no longer than what is left
    local name=$1 most=$2 began=$SECONDS code
    shift 2
    [ "$most" -lt "$(left)" ] || most=$(left)
    if [ "$most" -lt 5 ]; then
        echo "$name,0,not reached" >>"$out/steps.csv"
        return
    fi
    timeout "$most" "$@" >"$out/$name.log" 2>&1
    code=$?
    echo "$name,$((SECONDS - began)),$code" | tee -a "$out/steps.csv"
}

install() {
    local from=()
    [ -z "$wheels" ] || from=(--no-index --find-links "$wheels")
    python3 -m venv "$out/venv" && "$python" -m pip install -q "${from[@]}" "$@"
}

: >"$out/steps.csv"
step install 150 bash -c "$(declare -f install); wheels='$wheels' python='$python' out='$out'; install . pytest hypothesis"
# The package with CUDA takes the place of the one without; both install the same module.
step onnxruntime 60 "$python" -m pip install -q ${wheels:+--no-index --find-links "$wheels"} \
    --force-reinstall --no-deps onnxruntime-gpu
step card 20 nvidia-smi -q -d CLOCK,PERFORMANCE,POWER
step doctor 20 "$out/venv/bin/haq" doctor
step tests 60 "$python" -m pytest -q -p no:cacheprovider tests/runs/test_devices.py \
    tests/hw_profiles/test_onnx_runtime.py tests/hw_profiles/test_engine.py
# A fine-tuned episode where networks are trained, on the device and on the CPU.
for device in cuda cpu; do
    step "episode-$device" 60 "$out/venv/bin/haq" search --model digits_cnn --device "$device" \
        --evaluation finetune --agent uniform --budget avg_weight_bits=4 --out "$out/run-$device"
done
for provider in cuda tensorrt; do
    for model in digits_cnn resnet20 "mobilenet_v2 --size 64"; do
        name=${model%% *}-$provider
        # shellcheck disable=SC2086 - a model and its options
        step "profile-$name" 45 "$out/venv/bin/haq" profile --model $model \
            --provider "$provider" --rounds 60 --out "$out/$name.json"
    done
done
for profile in "$out"/digits_cnn-*.json; do
    [ -e "$profile" ] || continue
    name=$(basename "$profile" .json)
    step "search-$name" 40 "$out/venv/bin/haq" search --device cuda --target "$profile" \
        --budget latency=80%fp32 --agent ilp --out "$out/search-$name"
done
step card-after 20 nvidia-smi -q -d CLOCK,PERFORMANCE,POWER
rm -rf "$out/venv"
cat "$out/steps.csv"
