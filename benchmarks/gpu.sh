#!/usr/bin/env bash
# Everything there is to check and measure on a GPU, from a bare checkout: checks first, measures second, tables last.
#
#     bash benchmarks/gpu.sh                # about half an hour on an H100
#     bash benchmarks/gpu.sh --smoke        # tiny sizes, on any machine: only that everything runs
#
# Figures go to benchmarks/results/{kernels,gpu_prefill,gpu_train}.json (with OUT=FOLDER, there), logs beside them. Uses PYTHON (default: python3)
# with what it has installed; installs the package first where its dependencies are missing.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results}
SMOKE=("$@")
export PYTHONPATH="$PWD:$PWD/cli${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TRITON_DEFAULT_FP_FUSION=1
mkdir -p "$OUT"
"$PYTHON" -c "import pydantic, triton, ttt_docs" 2>/dev/null || "$PYTHON" -m pip install --quiet --editable ".[dev,gpu]"

if [ "${#SMOKE[@]}" = 0 ]; then
    echo "== checks"
    "$PYTHON" -m pytest -m gpu -q tests/kernels/test_triton.py tests/kernels/test_triton_attention.py tests/model/test_device.py
fi
status=0
measure() { # a benchmark that fails must not keep the others from running
    local name=$1
    shift
    echo "== $name"
    "$PYTHON" "benchmarks/$name.py" "$@" "${SMOKE[@]}" --json "$OUT/$name.json" 2>&1 | tee "$OUT/$name.log" || status=1
}
measure kernels
measure gpu_prefill --fp8
measure gpu_train

echo
echo "== tables"
for name in kernels gpu_prefill gpu_train; do
    sed -n '/^$/,$p' "$OUT/$name.log" | grep '^|' || true
done
exit $status
