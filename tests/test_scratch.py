"""CPU kernels measure their scratch memory by a dry run; a piece beyond that size ends the process."""

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
PROGRAM = """
#include "cpu/primitives/arena.h"
#include <cstdio>
#include <cstdlib>

int main(int, char** argv) {
  using namespace fastwm::FASTWM_ISA;
  const int more = std::atoi(argv[1]);
  char* bytes;
  double* zeros;
  int calls = 0;
  const Arena arena([&](Arena& a) {
    bytes = a.take<char>(100 + (calls++ ? more : 0));
    zeros = a.take_zeros<double>(3);
  });
  const bool aligned = reinterpret_cast<unsigned long>(zeros) % 64 == 0;
  std::printf("%d calls, %d bytes, %s, %g", calls, static_cast<int>(arena.bytes()), aligned ? "aligned" : "not aligned",
              zeros[0] + zeros[1] + zeros[2]);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no compiler")
    folder = tmp_path_factory.mktemp("scratch")
    source = folder / "scratch.cpp"
    source.write_text(PROGRAM)
    flags = ["-std=c++17", "-DFASTWM_ISA=baseline", f"-I{CSRC}", f"-I{CSRC / 'include'}"]
    subprocess.run([compiler, *flags, source, CSRC / "cpu/memory.cpp", "-o", folder / "scratch"], check=True)
    return folder / "scratch"


def test_scratch_is_measured(program: Path) -> None:
    done = subprocess.run([program, "0"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout == "2 calls, 192 bytes, aligned, 0"


def test_scratch_beyond_what_was_measured_ends_the_process(program: Path) -> None:
    done = subprocess.run([program, "64"], capture_output=True, text=True)
    assert done.returncode < 0
    assert done.stderr == "fastwm: a kernel takes more scratch memory than it has measured\n"
