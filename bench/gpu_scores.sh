#!/usr/bin/env bash
# A published task on a machine with a CUDA GPU, under the official preset: bench/gpu_scores.sh walker_walk|pong DIR [SECONDS] [--smoke]
#   walker_walk   about 90,000 updates of size1m; the published curve is near its end by then
#   pong          the whole of atari100k: 100,000 decisions, 25,000 updates of size12m
# Stops after SECONDS (default 600) with a checkpoint, and goes on from it when called again. Leaves in DIR the log, the metrics and,
# where the run came to its end, reproduce.json, .md and .png. The training folder is DIR/run. Needs a Python with a CUDA torch, Triton and
# what the extra `agents` names, and builds the library if it does not load. Set PYTHON to choose the interpreter.
# `--smoke` shows within a minute, on any machine, that everything runs.
set -euo pipefail
case "${1:-}" in
  walker_walk) suite=(dmc_proprio --tasks walker_walk --steps 92000) ;;
  pong) suite=(atari100k --tasks pong) ;;
  *) echo "usage: bench/gpu_scores.sh walker_walk|pong DIR [SECONDS] [--smoke]" >&2; exit 2 ;;
esac
[ $# -ge 2 ] || { echo "name a folder for the results" >&2; exit 2; }
seconds="${3:-600}" smoke="${4:-}"
[ -n "$smoke" ] && suite=("${suite[@]:0:3}" --smoke)
mkdir -p "$2"
out="$(cd "$2" && pwd)"
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
export PYTHONPATH="$PWD:$PWD/build_tools"
if [ -z "$smoke" ]; then
  "$python" -c 'import torch; assert torch.cuda.is_available()' || { echo "no CUDA device for $python" >&2; exit 2; }
  "$python" -c "from fastwm import _lib; raise SystemExit(not _lib.has_cuda)" 2>/dev/null ||
    FASTWM_CUDA=1 "$python" setup.py -q build_ext --inplace
fi
code=0
timeout --signal TERM --kill-after 60 "$seconds" \
  "$python" -m fastwm.cli reproduce "${suite[@]}" --seeds 1 --logdir "$out/run" 2>&1 | tee "$out/reproduce.log" || code=$?
find "$out/run" -name metrics.jsonl -exec cp {} "$out/metrics.jsonl" \;
cp "$out/run"/reproduce.* "$out" 2>/dev/null || echo "not finished: the same command continues"
exit "$code"
