#!/usr/bin/env bash
# Everything that only a GPU can tell, in one call of at most nine minutes: the GPU tests, fp16 training under ZeRO 1, 2
# and 3, and training questions per second against the plain path. Prints one table; OUT/gpu.json has the figures.
#
#     bash benchmarks/gpu.sh OUT [WHEELS]
#
# The machine has CUDA, torch >= 2.11 and no network. Python packages that it lacks are installed from the directory
# WHEELS into OUT/site, nothing else is touched. Where there is a network, wheels for its Python come from
#
#     DS_BUILD_OPS=0 pip wheel deepspeed --no-deps --no-build-isolation -w WHEELS
#     pip download -d WHEELS --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 NAME...
#
# and the first line of this script's output names what is missing. Exit codes: 0 all is well, 1 something failed,
# 2 no GPU or no wheel.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: bash benchmarks/gpu.sh OUT [WHEELS]" >&2
    exit 2
fi
mkdir -p "$1/logs"
out=$(realpath "$1")
wheels=${2:+$(realpath "$2")}
cd "$(dirname "$(realpath "$0")")/.."
python=${PYTHON:-python3}
export PYTHONPATH="$out/site:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
deadline=$((SECONDS + 520))

"$python" - <<'PY' || exit 2
import sys
try:
    import torch
except ImportError:
    sys.exit("gpu.sh: no torch in this Python; it has to be there, with CUDA")
if not torch.cuda.is_available():
    sys.exit(f"gpu.sh: torch {torch.__version__} sees no CUDA device on this machine")
PY

# distribution=module, of what this project and deepspeed import; torch and what it needs are there.
packages="deepspeed=deepspeed webdataset=webdataset pydantic=pydantic pydantic_core=pydantic_core
annotated_types=annotated_types typing_inspection=typing_inspection typing_extensions=typing_extensions hjson=hjson
braceexpand=braceexpand msgspec=msgspec msgpack=msgpack einops=einops psutil=psutil packaging=packaging tqdm=tqdm
transformers=transformers tokenizers=tokenizers safetensors=safetensors peft=peft scipy=scipy numpy=numpy
huggingface_hub=huggingface_hub accelerate=accelerate regex=regex py-cpuinfo=cpuinfo iniconfig=iniconfig pluggy=pluggy
pillow=PIL pyyaml=yaml tensorboard=tensorboard pytest=pytest hypothesis=hypothesis"
missing=$("$python" -c '
import importlib.util, sys
pairs = [word.split("=") for word in sys.argv[1].split()]
print(*(name for name, module in pairs if importlib.util.find_spec(module) is None))' "$packages")
if [ -n "$missing" ]; then
    echo "missing here: $missing"
    if [ -z "$wheels" ]; then
        echo "gpu.sh: give a directory with wheels of $missing as the second argument" >&2
        exit 2
    fi
    # shellcheck disable=SC2086 # one word per package
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --find-links "$wheels" --target "$out/site" \
        $missing || { echo "gpu.sh: not all of these wheels are in $wheels, or not for this Python" >&2; exit 2; }
fi

# part NAME SECONDS COMMAND...: runs it within its own limit and the whole script's; the report judges what it left.
part() {
    local name=$1 limit=$2 left=$((deadline - SECONDS)) began=$SECONDS code=0
    shift 2
    if [ "$left" -lt 10 ]; then
        echo "$name: left out, the time is up"
        return
    fi
    timeout --kill-after=5 $((limit < left ? limit : left)) "$@" >"$out/logs/$name.log" 2>&1 || code=$?
    echo "$name: exit code $code after $((SECONDS - began)) s"
    if [ "$code" -ne 0 ]; then
        tail -n 15 "$out/logs/$name.log"
    fi
}

duoflow=("$python" -m trainer.cli)
rm -rf "$out/runs" "$out/tests.xml" "$out"/step.*.json "$out/scenes" "$out/shards"
part tests 150 "$python" -m pytest tests/gpu -m gpu -q -p no:cacheprovider --junitxml "$out/tests.xml"
part scenes 60 "${duoflow[@]}" scenes "$out/scenes" --images 1200 --seed 1
for split in train val; do
    part "shards.$split" 60 "${duoflow[@]}" shards build --format gqa --images "$out/scenes/images" \
        --questions "$out/scenes/${split}_balanced_questions.json" --out "$out/shards/$split"
done
for stage in 1 2 3; do
    part "zero$stage" 90 "$python" -m trainer.train benchmarks/gpu_recipe.yaml "run.directory=$out/runs" \
        "run.name=zero$stage" "data.train=$out/shards/train" "data.val=$out/shards/val" \
        "engine.policy=ds_configs/zero$stage.json"
done
for images in 2 8; do
    part "step.$images" 120 "${duoflow[@]}" bench step --reference --device cuda --images "$images" \
        --json "$out/step.$images.json"
done
"$python" benchmarks/gpu_report.py "$out" --json "$out/gpu.json"
