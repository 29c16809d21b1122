#!/usr/bin/env bash
# Install a wheel into a fresh environment and run the tests of operators there, with no compiler on PATH.
#
#     build_tools/try_wheel.sh dist/fastwm-*.whl
set -euo pipefail
wheel="$(realpath "$1")"
checkout="$(cd "$(dirname "$0")/.." && pwd)"
there="$(mktemp -d)"
trap 'rm -rf "$there"' EXIT

"${PYTHON:-python3}" -m venv "$there/venv"
"$there/venv/bin/python" -m pip install --quiet "$wheel" pytest hypothesis
mkdir "$there/run"
cp -r "$checkout/tests" "$there/run"  # the checkout's fastwm must not be found
cd "$there/run"
unset CXX CC NVCC CUDA_HOME PYTHONPATH
export PATH="$there/venv/bin" FASTWM_BACKEND=cpu
for compiler in c++ g++ clang++ cc nvcc; do
    if command -v "$compiler"; then echo "there is a compiler: $compiler"; exit 1; fi
done
python -m fastwm.cli doctor
unset FASTWM_BACKEND
OMP_NUM_THREADS=1 python -m pytest -q -p no:cacheprovider -c /dev/null --rootdir . \
    tests/test_lambda_return.py tests/test_two_hot.py tests/test_categorical.py tests/test_block_gru_scan.py \
    tests/test_rssm_observe.py tests/test_mdn.py
