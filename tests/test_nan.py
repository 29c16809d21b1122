"""NaN in is NaN out, in every operator, on every backend: in what depends on it, and in no other row."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from tests.backends import Target
from tests.cases import Case, Draw
from tests.cases.run import reference, run
from tests.test_contract import every_case

pytestmark = [pytest.mark.usefixtures("poisoned_memory")]

B, ROW = 37, 1  # rows, more than a tile of 32, and no other size of a case; the row that gets the NaN


class NaNDraw(Draw):
    """The last step of the row that gets the NaN starts anew: nothing of it may be left there."""

    def flags(self, *shape: int, share: float = 0.2) -> Tensor:
        is_first = super().flags(*shape, share=share)
        if len(shape) == 2:
            is_first[:-1, ROW], is_first[-1, ROW] = False, True
        return is_first


def marks(x: Tensor) -> Tensor:
    return x.isnan() if x.is_floating_point() else torch.zeros_like(x, dtype=torch.bool)


def differs(x: Tensor, y: Tensor) -> Tensor:
    """Where numbers differ by more than the rounding of a product, which may depend on where its operands lie."""
    return ~torch.isclose(x.double(), y.double(), rtol=1e-5, atol=1e-6)


def others(x: Tensor) -> Tensor:
    """The rows without NaN; nothing of what has no rows."""
    axis = x.shape.index(B) if B in x.shape else None
    return x[:0] if axis is None else x.index_select(axis, torch.arange(B)[torch.arange(B) != ROW].to(x.device))


def changed(leaves: list[Any], i: int, value: float) -> list[Any]:
    """One number of leaf `i` is another: the middle one of the row, or of a weight."""
    x = leaves[i].detach().clone()
    part = x.select(x.shape.index(B), ROW) if B in x.shape else x
    flat = part.reshape(-1).clone()
    flat[len(flat) // 2] = value if math.isnan(value) else flat[len(flat) // 2] + value
    part.copy_(flat.view(part.shape))
    return [*leaves[:i], x.requires_grad_(leaves[i].requires_grad), *leaves[i + 1 :]]


def check(case: Case, dtype: torch.dtype, device: str = "cpu") -> None:
    leaves, spec = tree_flatten(case.make(NaNDraw(dtype), **case.rows))
    leaves = [x.detach().to(device).requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in leaves]
    clean, plain = run(case, tree_unflatten(leaves, spec)), reference(case, tree_unflatten(leaves, spec))
    assert not any(marks(x).any() for x in clean.values())
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or not leaf.numel() or i in case.constants:
            continue
        broken = tree_unflatten(changed(leaves, i, math.nan), spec)
        ours, wanted = run(case, broken), reference(case, broken)
        moved = reference(case, tree_unflatten(changed(leaves, i, 0.37), spec))
        by_row = B in leaf.shape
        depends = {name: differs(x, moved[name]) for name, x in plain.items()}
        for name, x in ours.items():
            where = f"{case.name}: NaN in leaf {i} {list(leaf.shape)}, {name} {list(x.shape)}"
            missing = marks(wanted[name]) & ~marks(x)
            surplus = marks(x) & ~marks(wanted[name])
            if name.startswith("output"):
                missing |= depends[name] & ~marks(x) if x.is_floating_point() else False
                assert not surplus.any(), where
            # NaN in a row of a weight that no latent selects is not read by kernels.
            assert not (missing & (by_row | depends[name])).any(), where
            if by_row:
                assert torch.equal(others(x), others(clean[name])), where


@every_case
def test_nan_in_is_nan_out(on: Target, case: Case) -> None:
    if on.backend == "cpu":
        pytest.skip("at every instruction set, below")
    check(case, torch.float32, on.device)


@every_case
def test_nan_in_is_nan_out_at_every_instruction_set(isa: str, case: Case) -> None:
    check(case, torch.float64 if isa == "baseline" else torch.float32)
