"""How a process waits for its threads, and what it keeps of its memory."""

import os
import subprocess
import sys

import pytest

from fastwm.process import CHOSEN_BY, SPINS


def output_of(code: str, **environment: str) -> str:
    """All that a fresh Python prints, OpenMP's settings as it read them included."""
    inherited = {name: value for name, value in os.environ.items() if name not in CHOSEN_BY}
    environment = inherited | {"OMP_DISPLAY_ENV": "VERBOSE"} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout + done.stderr


def test_threads_sleep_soon_where_fastwm_is_imported_before_torch() -> None:
    printed = output_of("import fastwm; print(fastwm.info()['threads wait'])")
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in printed
    assert f"GOMP_SPINCOUNT={SPINS}, set by fastwm" in printed


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "77"), ("OMP_WAIT_POLICY", "ACTIVE")])
def test_a_choice_of_the_users_stays(name: str, value: str) -> None:
    printed = output_of("import fastwm; print(fastwm.info()['threads wait'])", **{name: value})
    assert f"{name} = '{value}'" in printed
    assert f"GOMP_SPINCOUNT = '{SPINS}'" not in printed
    assert f"{name}={value}\n" in printed


def test_where_torch_came_first_the_facts_say_what_to_do() -> None:
    printed = output_of("import torch, fastwm; print(fastwm.info()['threads wait'])")
    assert f"GOMP_SPINCOUNT = '{SPINS}'" not in printed
    assert f"import fastwm before torch, or set GOMP_SPINCOUNT={SPINS}" in printed


def test_a_settled_process_ends_without_a_word() -> None:
    """Triton's bindings call what is still frozen at the end a leak, on thirty lines."""
    pytest.importorskip("triton")
    code = "import triton._C.libtriton; from fastwm import settle; settle()"
    assert output_of(code, OMP_DISPLAY_ENV="FALSE") == ""
