"""The vectorised elementary functions: error in units of the last place against float64, and the edges."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fastwm import _lib

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


def apply(name: str, x: NDArray) -> NDArray:
    assert _lib.host is not None
    out = x.copy()
    _lib.host.vecmath(name, out)
    return out


def points(low: float, high: float) -> NDArray[np.float32]:
    """Dense between the bounds, and over all magnitudes down to the subnormal."""
    tiny = np.geomspace(1e-45, max(abs(low), abs(high)), 60_000)
    every = np.concatenate([np.linspace(max(low, -200), min(high, 200), 60_001), tiny, -tiny])
    return every[(every >= low) & (every <= high)].astype(np.float32)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_in_units_of_the_last_place(name: str) -> None:
    exact, (low, high), bound, _ = FUNCTIONS[name]
    x = points(low, high)
    truth = exact(torch.from_numpy(x.astype(np.float64))).numpy()
    ulp = np.spacing(np.abs(truth).astype(np.float32)).astype(np.float64)
    error = np.abs(apply(name, x) - truth) / ulp
    assert error.max() <= bound, (error.max(), x[error.argmax()])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_edges(name: str, dtype: type) -> None:
    expected = np.array(FUNCTIONS[name][3], dtype)
    got = apply(name, np.array(EDGES, dtype))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    if name in ("log1p", "tanh", "silu"):  # these keep the sign of zero
        zero = expected == 0
        assert (np.signbit(got[zero]) == np.signbit(expected[zero])).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_is_libms(name: str) -> None:
    exact, (low, high), _, _ = FUNCTIONS[name]
    x = points(low, high).astype(np.float64)
    np.testing.assert_allclose(apply(name, x), exact(torch.from_numpy(x)).numpy(), rtol=1e-14)


def test_wrong_arguments_are_explained() -> None:
    assert _lib.host is not None
    with pytest.raises(ValueError, match="unknown function 'sin'"):
        _lib.host.vecmath("sin", np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="float32 or float64"):
        _lib.host.vecmath("exp", np.zeros(1, np.int64))
