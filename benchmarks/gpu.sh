#!/usr/bin/env bash
# Everything there is to check and measure on a GPU, from a bare checkout: checks first, measures second, tables last.
#
#     bash benchmarks/gpu.sh                           # about half an hour on an H100
#     bash benchmarks/gpu.sh checks kernels            # only these; the others are gpu_prefill and gpu_train
#     bash benchmarks/gpu.sh --smoke                   # tiny sizes, on any machine: only that everything runs
#
# Figures go to benchmarks/results/{kernels,gpu_prefill,gpu_train}.json as they come, logs beside them (with OUT=FOLDER,
# there). PYTHON (default: python3) must have torch and triton. What else the scripts import and it has not, pip puts
# into build/gpu-packages; PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER takes it from wheels, without a network.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results}
SMOKE=
if [ "${1:-}" = --smoke ]; then
    SMOKE=--smoke
    shift
fi
STEPS=${*:-checks kernels gpu_prefill gpu_train}
export PYTHONPATH="$PWD:$PWD/tests:$PWD/build/gpu-packages${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 TRITON_DEFAULT_FP_FUSION=1
mkdir -p "$OUT"

cuda=$("$PYTHON" -c "import torch, triton; print(torch.cuda.is_available())") || {
    echo "Error: $PYTHON needs torch and triton" >&2
    exit 1
}
missing=$("$PYTHON" -c "
from importlib.util import find_spec
print(*(name for name in ('pydantic', 'platformdirs', 'tqdm', 'charset_normalizer', 'pytest') if not find_spec(name)))")
# shellcheck disable=SC2086 # below, lists of words, or none
[ -z "$missing" ] || "$PYTHON" -m pip install --quiet --target build/gpu-packages $missing
[ "$cuda" = True ] || export TRITON_INTERPRET=1

status=0
run() { # what fails must not keep the rest from running
    local name=$1
    shift
    echo "== $name"
    "$PYTHON" "$@" 2>&1 | tee "$OUT/$name.log" || status=1
}
for step in $STEPS; do
    case $step in
        # Without the tests' conftest.py, which imports what only a full installation has.
        checks)
            run checks -m pytest -m gpu --noconftest -p no:cacheprovider --disable-warnings ${SMOKE:+--collect-only} \
                tests/kernels/test_triton.py tests/kernels/test_triton_attention.py \
                tests/kernels/test_triton_heads.py tests/ttt/test_device.py
            ;;
        kernels | gpu_train) run "$step" "benchmarks/$step.py" $SMOKE --json "$OUT/$step.json" ;;
        gpu_prefill) run gpu_prefill benchmarks/gpu_prefill.py --fp8 $SMOKE --json "$OUT/gpu_prefill.json" ;;
        *)
            echo "Error: no step $step: checks, kernels, gpu_prefill or gpu_train" >&2
            exit 2
            ;;
    esac
done

echo
echo "== tables"
for step in $STEPS; do
    if [ "$step" = checks ]; then
        grep . "$OUT/checks.log" | tail -n 1
    else
        sed -n '/^$/,$p' "$OUT/$step.log" | grep '^|' || true
    fi
done
exit $status
