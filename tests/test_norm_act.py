"""Norms with an activation: values by hand, and rows that are hard to norm. See test_contract.py for the rest."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

import fastwm
from fastwm import ops
from tests.backends import Target

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# name -> whether it takes a bias, and the same from torch's own parts
NORMS: dict[str, tuple[bool, Callable[..., Tensor]]] = {
    "rms_norm": (False, lambda x, w, eps: F.rms_norm(x, w.shape, w, eps)),
    "rms_norm_silu": (False, lambda x, w, eps: F.silu(F.rms_norm(x, w.shape, w, eps))),
    "layer_norm_silu": (True, lambda x, w, b, eps: F.silu(F.layer_norm(x, w.shape, w, b, eps))),
    "layer_norm_elu": (True, lambda x, w, b, eps: F.elu(F.layer_norm(x, w.shape, w, b, eps))),
}
norms = pytest.mark.parametrize("name", NORMS)


def inputs(name: str, *shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0) -> list:
    """x [*shape], weight, and for LayerNorm bias [D]; the affine parameters in the type computed in."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(shape, generator=generator, dtype=torch.float64) + 1
    affine = [torch.randn(shape[-1], generator=generator, dtype=torch.float64) for _ in range(1 + NORMS[name][0])]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [x.to(device, dtype), *(a.to(device, wide) for a in affine)]


def with_grads(name: str, args: list[Tensor], seed: int = 1, **options: float) -> list[Tensor]:
    """The output and the gradients of all arguments under a random cotangent."""
    leaves = [x.detach().requires_grad_() for x in args]
    y = getattr(ops, name)(*leaves, **options)
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(y.shape, generator=generator, dtype=torch.float64).bfloat16().to(y)  # the same in any dtype
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent)]


# Against the reference


@norms
def test_reference_is_made_of_torchs_norms(name: str) -> None:
    args = inputs(name, 5, 7)
    with fastwm.backend("ref"):
        assert_close(getattr(ops, name)(*args, eps=0.3), NORMS[name][1](*args, 0.3))


def test_values_by_hand(on: Target) -> None:
    x, ones = torch.tensor([3.0, 4.0], device=on.device), torch.ones(2, device=on.device)
    rms = torch.tensor([3.0, 4.0]) / (12.5 + 0.5) ** 0.5
    assert_close(ops.rms_norm(x, ones, eps=0.5).cpu(), rms)
    assert_close(ops.rms_norm_silu(x, ones, eps=0.5).cpu(), rms * torch.sigmoid(rms))
    layer = torch.tensor([-0.5, 0.5]) / (0.25 + 0.5) ** 0.5 + 1
    assert_close(ops.layer_norm_silu(x, ones, ones, eps=0.5).cpu(), layer * torch.sigmoid(layer))
    assert_close(ops.layer_norm_elu(x, ones, -3 * ones, eps=0.5).cpu(), torch.exp(layer - 4) - 1)


def test_large_and_small_rows_stay_finite(native: Target) -> None:
    x = torch.tensor([[1e15, -1e15, 0, 0], [1e-30, 0, 0, 0], [0, 0, 0, 0]], device=native.device)
    for name, (bias, _) in NORMS.items():
        args = [x, torch.ones(4, device=native.device), *([torch.zeros(4, device=native.device)] if bias else [])]
        assert all(bool(y.isfinite().all()) for y in with_grads(name, args))


def test_layer_norm_survives_a_large_mean(native: Target) -> None:
    """The variance by squares less the squared mean would be lost to rounding here."""
    x, w, b = inputs("layer_norm_silu", 4, 96, dtype=torch.float32, device=native.device)
    x = (1024 * x).round() / 1024 + 4096  # exact in float32
    exact = F.silu(F.layer_norm(x.double(), w.shape, w.double(), b.double(), 1e-3))
    assert_close(ops.layer_norm_silu(x, w, b).double(), exact, atol=2e-3, rtol=2e-3)
