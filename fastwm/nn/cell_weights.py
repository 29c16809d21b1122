"""State dicts of other projects' recurrent cells, as those of `fastwm.nn.cells`.

Each function takes a state dict and returns one for `load_state_dict`; tensors that need no change are shared.
PyTorch's GRUCell and LSTMCell, and TorchRL's cells of those names, need no translation.
"""

import torch
from torch import Tensor

StateDict = dict[str, Tensor]


def planet_gru_from_tensorflow(
    gate_kernel: Tensor, gate_bias: Tensor, cand_kernel: Tensor, cand_bias: Tensor
) -> StateDict:
    """TensorFlow's `GRUBlockCell`, kernels [X + D, 2D] and [X + D, D], for `PlanetGRUCell`."""
    return {"weight_ru": gate_kernel.mT, "bias_ru": gate_bias, "weight_c": cand_kernel.mT, "bias_c": cand_bias}


def gru_from_keras(kernel: Tensor, recurrent_kernel: Tensor, bias: Tensor) -> StateDict:
    """Keras' `GRUCell` with reset_after=True, as in Dreamer V1: kernels [X, 3D] and [D, 3D], bias [2, 3D], columns
    in the order z, r, n, for `GRUCell`, whose rows are r, z, n."""

    def rows(x: Tensor) -> Tensor:
        z, r, n = x.chunk(3, -1)
        return torch.cat([r, z, n], -1).mT if x.dim() > 1 else torch.cat([r, z, n])

    return {
        "weight_ih": rows(kernel),
        "weight_hh": rows(recurrent_kernel),
        "bias_ih": rows(bias[0]),
        "bias_hh": rows(bias[1]),
    }


def lstm_from_tensorflow(kernel: Tensor, bias: Tensor, input_size: int) -> StateDict:
    """TensorFlow's `LSTMCell`, as in World Models: kernel [X + D, 4D], one bias [4D], columns in the order i, j, f, o,
    for `LSTMCell(..., forget_bias=1.0)`, whose rows are i, f, g, o."""
    i, j, f, o = kernel.mT.chunk(4)
    b_i, b_j, b_f, b_o = bias.chunk(4)
    weight, bias_ih = torch.cat([i, f, j, o]), torch.cat([b_i, b_f, b_j, b_o])
    return {
        "weight_ih": weight[:, :input_size],
        "weight_hh": weight[:, input_size:],
        "bias_ih": bias_ih,
        "bias_hh": torch.zeros_like(bias_ih),
    }


def layernorm_gru_from_dreamerv3_torch(state: StateDict) -> StateDict:
    """dreamerv3-torch's `GRUCell`, for `LayerNormGRUCell(..., bias=False, order="xh")`."""
    names = {"layers.GRU_linear": "linear", "layers.GRU_norm": "layer_norm"}
    return _renamed(state, names)


def layernorm_gru_from_sheeprl(state: StateDict) -> StateDict:
    """sheeprl's `LayerNormGRUCell`, for `LayerNormGRUCell(..., order="hx")` of the same `bias`. The names are the same;
    give the module the `eps` of the norm that sheeprl was configured with."""
    return dict(state)


def block_gru_from_r2dreamer(state: StateDict) -> StateDict:
    """r2dreamer's `Deter`, for `BlockGRUCell((S*C, A), ...)`. Its block weights are [out/G, in/G, G]."""
    names = {"_dyn_in0": "embed_carry", "_dyn_in1": "embed_inputs.0", "_dyn_in2": "embed_inputs.1"}
    parts = {"0": "linear", "1": "norm"}
    mapped = {f"{theirs}.{i}": f"{ours}.{part}" for theirs, ours in names.items() for i, part in parts.items()}
    for layer in range(_count(state, "_dyn_hid.dyn_hid_{}.weight")):
        mapped[f"_dyn_hid.dyn_hid_{layer}"] = f"hidden.{layer}.linear"
        mapped[f"_dyn_hid.norm_{layer}"] = f"hidden.{layer}.norm"
    renamed = _renamed(state, mapped | {"_dyn_gru": "gates"})
    return {name: x.permute(2, 1, 0) if x.dim() == 3 else x for name, x in renamed.items()}


def block_gru_from_torchrl(state: StateDict) -> StateDict:
    """TorchRL's `DreamerV3BlockGRUCell`, for `BlockGRUCell` of one input, or the `rnn` of its `RSSMPriorV3` with
    recurrent_model="block_gru", for `BlockGRUCell((S*C, A), ...)`.

    The public cell's first block layer reads [carry slice, input, carry embedding], ours [carry slice, carry
    embedding, input]."""
    if "input_linear.weight" not in state:
        names = {"belief": "embed_carry", "state": "embed_inputs.0", "action": "embed_inputs.1"}
        mapped = {f"{theirs}_projection.{i}": f"{ours}.{part}"
                  for theirs, ours in names.items() for i, part in (("0", "linear"), ("1", "norm"))}  # fmt: skip
        for layer in range(_count(state, "hidden_layers.{}.weight", step=3)):
            mapped[f"hidden_layers.{3 * layer}"] = f"hidden.{layer}.linear"
            mapped[f"hidden_layers.{3 * layer + 1}"] = f"hidden.{layer}.norm"
        return _renamed(state, mapped | {"gates": "gates"})

    mapped = {"gates": "gates"}
    for theirs, ours in {"hidden": "embed_carry", "input": "embed_inputs.0"}.items():
        mapped |= {f"{theirs}_linear": f"{ours}.linear", f"{theirs}_norm": f"{ours}.norm"}
    for layer in range(_count(state, "dynamic_linears.{}.weight")):
        mapped |= {
            f"dynamic_linears.{layer}": f"hidden.{layer}.linear",
            f"dynamic_norms.{layer}": f"hidden.{layer}.norm",
        }
    renamed = _renamed(state, mapped)
    embed = len(renamed["embed_carry.norm.weight"])
    weight = renamed["hidden.0.linear.weight"]  # [G, D/G + 2U, D/G]
    own, of_input, of_carry = weight.split([weight.shape[1] - 2 * embed, embed, embed], 1)
    return renamed | {"hidden.0.linear.weight": torch.cat([own, of_carry, of_input], 1)}


def _renamed(state: StateDict, names: dict[str, str]) -> StateDict:
    """`state` with every module's name changed; KeyError for a module that `names` lacks."""
    return {f"{names[module]}.{parameter}": x
            for (module, _, parameter), x in ((name.rpartition("."), x) for name, x in state.items())}  # fmt: skip


def _count(state: StateDict, name: str, step: int = 1) -> int:
    count = 0
    while name.format(step * count) in state:
        count += 1
    return count
