"""The MLP over many rows: layer by layer, what gets a gradient, and weights that do not fit each other.

See test_contract.py for the rest.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from fastwm.ops import LayerWeights, mlp
from fastwm.ops.mlp import by_layers
from tests.backends import Target, needs_cpu, needs_kernel
from tests.cases import CASES
from tests.cases.run import assert_near, raw_call, raw_calls, reference, run

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_kernel("mlp")]

FORMS = [name for name in CASES if name.startswith("mlp")]


@needs_cpu
@pytest.mark.parametrize("name", FORMS)
def test_layer_by_layer_equals_reference(name: str) -> None:
    """As where no kernel takes rows through all layers."""
    case = CASES[name]
    for sizes in case.sizes:
        args = case.args(sizes)
        assert_near(case, run(replace(case, operator=by_layers_of), args), reference(case, args), 1e-10, sizes)


def by_layers_of(x: Tensor, w: Any, onehot: Tensor | None) -> Tensor:
    return by_layers(x, w, onehot)


def test_latents_are_a_part_of_the_input(on: Target) -> None:
    x, w, onehot = CASES["mlp"].args()
    assert_close(mlp(x, w, onehot), mlp(torch.cat([x, onehot], -1), w))


@needs_cpu
@pytest.mark.parametrize("name", ["mlp", "mlp-layer_norm-silu"])
def test_fixed_weights_get_no_gradient_and_the_input_the_same(name: str) -> None:
    case = CASES[name]
    x, w, onehot = case.args(dict(lead=(1300,)))
    fixed = pytree.tree_map_only(Tensor, Tensor.detach, w)
    whole, alone = run(case, (x, w, onehot)), run(case, (x, fixed, onehot))
    assert set(alone) == {"output 0", "gradient of [0]", "gradient of [2]"}
    assert all(torch.equal(x, whole[key]) for key, x in alone.items())
    *_, (op, _, outputs) = raw_calls(case, (x, fixed, onehot))
    assert "mlp_backward" in str(op) and outputs[2].shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, plain, normed: w._replace(layers=(LayerWeights(*w.layers[0]),)), "both scale and shift"),
        (lambda w, plain, normed: w._replace(activation="elu"), "activation silu"),
        (lambda w, plain, normed: w._replace(layers=(w.layers[0], *plain.layers[1:])), "alike"),
        (lambda w, plain, normed: plain._replace(layers=(*plain.layers[:1], normed.layers[1])), "alike"),
    ],
)
def test_weights_that_do_not_fit_each_other_are_explained(change: Callable[..., Any], message: str) -> None:
    x, w, onehot = CASES["mlp"].args()
    plain, normed = (CASES[f"mlp-{name}"].args()[1] for name in ("plain-elu", "layer_norm-elu"))
    with pytest.raises(ValueError, match=message):
        mlp(x, change(w, plain, normed), onehot)


@needs_cpu
@pytest.mark.parametrize(("name", "activation"), [("mlp", 2), ("mlp-plain-elu", 4)])
def test_an_unknown_activation_of_the_raw_operator_is_refused(name: str, activation: int) -> None:
    op, args = raw_call(CASES[name], CASES[name].args())
    with pytest.raises(RuntimeError, match="RMSNorm goes with SiLU|no such activation"):
        op(*(args | {"activation": activation}).values())
