"""The vectorised elementary functions: error in units of the last place against float64, and the edges."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fastwm import _lib

sys.path.insert(0, str(Path(__file__).parent.parent / "build_tools"))
import native

pytestmark = pytest.mark.skipif(_lib.host is None, reason="native library not built")

inf, nan = float("inf"), float("nan")

# function -> (exact, range, bound of the error in ulp, results at EDGES)
FUNCTIONS: dict[str, tuple[Callable[..., torch.Tensor], tuple[float, float], float, list[float]]] = {
    "exp": (torch.exp, (-103.5, 88.7), 1.1, [1, 1, inf, 0, nan, inf, 0]),
    "exp_normal": (torch.exp, (-87.3, 88.3), 1.1, [1, 1, inf, 0, nan, inf, 0]),
    "expm1": (torch.expm1, (-30, 88.7), 2, [0, 0, inf, -1, nan, inf, -1]),
    "log": (torch.log, (1e-45, 3e38), 1.1, [-inf, -inf, inf, nan, nan, np.log(1e30), nan]),
    "log1p": (torch.log1p, (-0.999999, 3e38), 2, [0, -0.0, inf, nan, nan, np.log(1e30), nan]),
    "tanh": (torch.tanh, (-12, 12), 2.4, [0, -0.0, 1, -1, nan, 1, -1]),
    "sigmoid": (torch.sigmoid, (-87, 40), 2.4, [0.5, 0.5, 1, 0, nan, 1, 0]),
    "silu": (F.silu, (-85, 1e4), 2.5, [0, -0.0, inf, -0.0, nan, 1e30, -0.0]),
    "elu": (F.elu, (-30, 1e4), 2, [0, 0, inf, -1, nan, 1e30, -1]),
    "softplus": (
        lambda x: torch.logaddexp(x, torch.zeros_like(x)),
        (-103.5, 1e4),
        2,
        [np.log(2), np.log(2), inf, 0, nan, 1e30, 0],
    ),
}
EDGES = [0.0, -0.0, inf, -inf, nan, 1e30, -1e30]


Apply = Callable[[str, NDArray], NDArray]


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    """tests/vecmath_kernel.cpp, compiled as the kernels are."""
    torch_found, cxx = native.find_torch(), native.find_compiler()
    if torch_found is None or cxx is None:
        pytest.skip("no C++ compiler")
    tools = native.Toolchain(cxx, torch_found, native.ROOT / "build" / "vecmath")
    steps = tools.compile_kernel(Path(__file__).parent / "vecmath_kernel.cpp")
    native.run_parallel(steps)
    return ctypes.CDLL(str(native.link([cxx], tools.work / "vecmath.so", steps)))


@pytest.fixture(params=_lib.host.isa_levels() if _lib.host else [])
def apply(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Apply:
    """A function of vecmath.h over an array, at one instruction set level."""
    function = getattr(library, f"vecmath_{request.param}")

    def applied(name: str, x: NDArray) -> NDArray:
        out = np.ascontiguousarray(x).copy()
        assert out.dtype in (np.float32, np.float64)
        number, doubles = list(FUNCTIONS).index(name), out.dtype == np.float64
        function(number, doubles, ctypes.c_int64(out.size), out.ctypes.data_as(ctypes.c_void_p))
        return out

    return applied


def points(low: float, high: float) -> NDArray[np.float32]:
    """Dense between the bounds, and over all magnitudes down to the subnormal."""
    tiny = np.geomspace(1e-45, max(abs(low), abs(high)), 60_000)
    every = np.concatenate([np.linspace(max(low, -200), min(high, 200), 60_001), tiny, -tiny])
    return every[(every >= low) & (every <= high)].astype(np.float32)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_in_units_of_the_last_place(apply: Apply, name: str) -> None:
    exact, (low, high), bound, _ = FUNCTIONS[name]
    x = points(low, high)
    truth = exact(torch.from_numpy(x.astype(np.float64))).numpy()
    ulp = np.spacing(np.abs(truth).astype(np.float32)).astype(np.float64)
    error = np.abs(apply(name, x) - truth) / ulp
    assert error.max() <= bound, (error.max(), x[error.argmax()])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_edges(apply: Apply, name: str, dtype: type) -> None:
    expected = np.array(FUNCTIONS[name][3], dtype)
    got = apply(name, np.array(EDGES, dtype))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    if name in ("log1p", "tanh", "silu"):  # these keep the sign of zero
        zero = expected == 0
        assert (np.signbit(got[zero]) == np.signbit(expected[zero])).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_is_libms(apply: Apply, name: str) -> None:
    exact, (low, high), _, _ = FUNCTIONS[name]
    x = points(low, high).astype(np.float64)
    np.testing.assert_allclose(apply(name, x), exact(torch.from_numpy(x)).numpy(), rtol=1e-14)
