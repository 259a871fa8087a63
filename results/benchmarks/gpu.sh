#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under nine minutes, on a machine that has Python alone.
#
#   results/benchmarks/gpu.sh OUT [WHEELS]
#   results/benchmarks/gpu.sh --dry OUT      # the same steps on the CPU, by the Python in $PYTHON
#
# OUT gets a log for each step, profiles, the runs' summaries and steps.csv (step, seconds, code or
# why it was not done). WHEELS is a folder of wheels where there is no network: the project's, PyTorch
# with CUDA, onnxruntime-gpu, and tensorrt. A step that fails does not end the others; what it needs
# and is not there is said in steps.csv.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

dry=
if [ "${1:-}" = --dry ]; then dry=1 && shift; fi
out=$(mkdir -p "${1:?give a folder for what is measured}" && cd "$1" && pwd)
wheels=${2:-}
budget=530  # seconds of all steps together
device=cuda providers=tensorrt rounds=60 python=$out/venv/bin/python
models=(resnet20 mobilenet_v2) size=(--size 32) floats=(--floats float16)
if [ -n "$dry" ]; then
    device=cpu providers=cpu rounds=2 python=${PYTHON:-python3}
    models=(digits_mlp) size=() floats=()
fi
haq() { step "$1" "$2" "$(dirname "$python")/haq" "${@:3}"; }

left() { echo $((budget - SECONDS)); }

step() {  # step NAME SECONDS COMMAND...: at most so long, and no longer than what is left
    local name=$1 most=$2 began=$SECONDS code
    shift 2
    [ "$most" -lt "$(left)" ] || most=$(left)
    if [ "$most" -lt 5 ]; then
        skipped "$name" "no time was left"
        return 1
    fi
    timeout "$most" "$@" >"$out/$name.log" 2>&1
    code=$?
    echo "$name,$((SECONDS - began)),$code" | tee -a "$out/steps.csv"
    return "$code"
}

skipped() { echo "$1,0,not done: $2" | tee -a "$out/steps.csv"; }

pip_install() {  # pip_install NAME SECONDS PACKAGE...
    local from=()
    [ -z "$wheels" ] || from=(--no-index --find-links "$wheels")
    step "$1" "$2" "$python" -m pip install -q "${from[@]}" "${@:3}"
}

: >"$out/steps.csv"
if [ -z "$dry" ]; then
    step venv 30 python3 -m venv "$out/venv"
    pip_install install 120 . pytest hypothesis nvidia-ml-py
    # The package with CUDA takes the place of the one without; both install the same module.
    pip_install onnxruntime 40 --force-reinstall --no-deps onnxruntime-gpu
    pip_install tensorrt 60 tensorrt || providers=
    step card 20 nvidia-smi -q -d CLOCK,PERFORMANCE,POWER
fi
haq doctor 20 doctor
step tests 60 "$python" -m pytest -q -p no:cacheprovider tests/runs/test_devices.py \
    tests/hw_profiles/test_onnx_runtime.py tests/hw_profiles/test_engine.py \
    tests/hw_profiles/test_card.py
# Profiles: float16 and int8 engines, and mixed ones that check the predictions.
profile_of() {  # profile_of MODEL SECONDS OPTION...
    local provider name
    for provider in $providers; do
        name=$1-$provider
        haq "profile-$name" "$2" profile --model "$1" "${@:3}" --provider "$provider" \
            "${floats[@]}" --rounds "$rounds" --out "$out/$name.json"
        if [ -e "$out/$name.json" ]; then
            haq "cost-$name" 20 cost --model "$1" "${@:3}" --target "$out/$name.json"
        else
            skipped "cost-$name" "there is no profile, see profile-$name.log"
        fi
    done
}
[ -n "$providers" ] || skipped profiles "TensorRT was not installed, see tensorrt.log"
profile_of "${models[0]}" 120 "${size[@]}"
# A search needs data that every machine has: the digits, on a profile of their network.
profile_of digits_cnn 60
for provider in $providers; do
    [ ! -e "$out/digits_cnn-$provider.json" ] ||
        haq "search-$provider" 60 search --device "$device" --agent ilp \
            --target "$out/digits_cnn-$provider.json" --budget latency=200%fp32 \
            --budget size=50%fp32 --out "$out/search-$provider"
done
# Whole networks in ONNX Runtime: its CUDA provider has no integer convolutions, so no choice of bits.
for model in "${models[@]}"; do
    step "whole-$model" 30 "$python" results/benchmarks/gpu.py --model "$model" \
        --provider "$device" --rounds "$rounds" --out "$out/whole-$model.json"
done
# A fine-tuned episode where networks are trained, on the device and on the CPU.
for where in cpu "$device"; do
    [ ! -e "$out/run-$where" ] || continue
    haq "episode-$where" 60 search --model digits_cnn --device "$where" --evaluation finetune \
        --agent uniform --budget avg_weight_bits=4 --out "$out/run-$where"
done
for model in "${models[@]:1}"; do
    profile_of "$model" 150 "${size[@]}"
done
if [ -z "$dry" ]; then
    step card-after 20 nvidia-smi -q -d CLOCK,PERFORMANCE,POWER
    rm -rf "$out/venv"
fi
cat "$out/steps.csv"
