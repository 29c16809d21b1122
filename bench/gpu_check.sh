#!/usr/bin/env bash
# Builds, tests and measures on a machine with a CUDA GPU, in one go: bench/gpu_check.sh DIR
# Needs a Python with a CUDA torch (2.11 or newer), Triton, setuptools, pytest, pytest-benchmark, hypothesis and what the extra
# `agents` names (EnvPool may be missing); installs nothing. Uses pytest-xdist where it is there. Leaves logs and JSON in DIR, what matters most first, and takes about
# 8 minutes. Set PYTHON to choose the interpreter, BENCH_SECONDS to cut the suite short. A library that loads is not built again.
set -uo pipefail
[ $# -eq 1 ] || { echo "usage: bench/gpu_check.sh DIR" >&2; exit 2; }
cd "$(dirname "$0")/.."
mkdir -p "$1"
out="$(cd "$1" && pwd)"
python="${PYTHON:-python3}"
status=0

step() {  # step NAME SECONDS COMMAND...: run with a time limit, keep the log, remember a failure
  local name="$1" limit="$2"
  shift 2
  local start=$SECONDS
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  local code=$?
  echo "$name: exit $code after $((SECONDS - start)) s"
  [ $code -eq 0 ] || { status=1; tail -n 15 "$out/$name.log"; }
}

"$python" -c 'import torch; assert torch.cuda.is_available()' || { echo "no CUDA device for $python" >&2; exit 2; }
export PYTHONPATH="$PWD:$PWD/build_tools"
has_cuda() { "$python" -c "from fastwm import _lib; raise SystemExit(not (_lib.has_cuda and _lib.host))" 2>/dev/null; }
has_cuda || step build 240 env FASTWM_CUDA=1 "$python" setup.py build_ext --inplace
step doctor 60 "$python" -m fastwm.cli doctor
has_cuda || { echo "the CUDA library does not load: see $out/doctor.log" >&2; exit 1; }
workers=()
"$python" -c "import xdist" 2>/dev/null && workers=(-n "$(nproc)")
step test_gpu 180 "$python" -m pytest -q --tb=short -m gpu "${workers[@]}"
for size in size1m size12m; do
  for precision in bf16 fp32; do
    step "update-$size-$precision" 40 "$python" -m fastwm.cli bench update --size "$size" --precision "$precision" \
      --device cuda --json "$out/update-$size-$precision.json"
  done
done
step update-eager 60 env FASTWM_BACKEND=ref "$python" -m fastwm.cli bench update --size size1m --precision bf16 \
  --device cuda --no-graph --json "$out/update-eager.json"
export FASTWM_BENCH_DEVICE=cuda
first=(bench/bench_{rssm_observe,scans,mdn_rnn_imagine}.py)
families=("${first[@]}")
for file in bench/bench_*.py; do [[ " ${first[*]} " == *" $file "* ]] || families+=("$file"); done
step bench "${BENCH_SECONDS:-240}" "$python" -m pytest -q "${families[@]}" --benchmark-only \
  --benchmark-json="$out/bench.json"
[ -s "$out/bench.json" ] && "$python" bench/report.py "$out/bench.json" >"$out/tables.md"
if command -v compute-sanitizer >/dev/null; then
  step memcheck 90 compute-sanitizer --tool memcheck --error-exitcode 9 \
    "$python" -m pytest -q -x -m gpu -k "lambda_return and not compile and not hypothesis" tests/test_lambda_return.py
fi
"$python" - "$out" <<'PY'
import json, subprocess, sys
import torch
commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
facts = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda, "commit": commit}
open(f"{sys.argv[1]}/machine.json", "w").write(json.dumps(facts, indent=1))
PY
exit $status
