from collections.abc import Sequence

import torch
from torch import Tensor

from fastwm import ref
from fastwm.ops._backend import (
    KERNEL_DTYPES,
    Operator,
    Shapes,
    bf16_products,
    check_shapes,
    check_widths,
    layer_shapes,
    no_vmap,
)
from fastwm.ops.cell_steps import in_dtype_of
from fastwm.ops.linear import linear
from fastwm.ops.norm_act import rms_norm_silu
from fastwm.weights import BlockGRUWeights

__all__ = ["BlockGRUWeights", "block_gru_scan"]


def block_gru_scan(
    inputs: Tensor | Sequence[Tensor], h: Tensor, w: BlockGRUWeights, is_first: Tensor | None = None,
    update_bias: float = -1.0, eps: float = 1e-4,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Walk DreamerV3's recurrent core through a whole sequence in one call.

        e = [dense(h), dense(x_1), ..., dense(x_I)],   y = dense_g([h_g, e]) for every block g
        r, c, u = blocks(y),   u = sigmoid(u + update_bias),   h' = u tanh(sigmoid(r) c) + (1 - u) h

    with `dense` a linear layer, an RMS norm and a SiLU. What the inputs ask for waits for no step and is done in two
    large products before the walk. With one input this is TorchRL's `DreamerV3BlockGRU`.

    Args:
        inputs: `[T, B, X]`, T >= 1, or several of that form, which are embedded apart.
        h: `[B, D]`, the carry before the first step, float32 or float64.
        w: the parameters, of the carry's dtype, see `BlockGRUWeights`.
        is_first: `[T, B]` bool. Where it is set the carry before the step is zero, and no gradient passes.
        update_bias, eps: a constant of the update gate; epsilon of the RMS norms.

    Returns:
        The carry after every step `[T, B, D]`, and after the last `[B, D]`. Differentiable once in inputs, h and all
        weights; with the `ref` backend any number of times. Under autocast to bfloat16 the products are in bfloat16
        where the CPU has them, those inside the walk with float32 sums, and the carry stays float32; with `ref` it is
        as autocast has it. Kernels have one hidden layer: more take the `ref` path.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or T = 0.

    Source: Hafner et al., "Mastering diverse control tasks through world models" (2025) and its official code
    """
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    _check(inputs, h, w, is_first)
    if is_first is None:
        is_first = torch.zeros(inputs[0].shape[:2], dtype=torch.bool, device=h.device)
    library = _forward.library(h) if h.dtype in KERNEL_DTYPES and len(w.hidden) == 1 else None
    if library is None:
        inputs = tuple(in_dtype_of(layer.weight, x) for x, layer in zip(inputs, w.embed_inputs))
        return ref.block_gru_scan(inputs, h, w, is_first, update_bias, eps)
    block, units = w.gates.weight.shape[1], len(w.embed_carry.weight)
    (hidden,) = w.hidden
    own, of_carry, of_inputs = hidden.weight.split([block, units, len(inputs) * units], 1)
    bf16 = bf16_products(h)
    hidden_in = _of_inputs(inputs, h, w, of_inputs, eps, bf16)
    tensors = (hidden_in, is_first, h, *w.embed_carry, own, of_carry, hidden.norm, *w.gates)
    save = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    output: Tensor = _forward(library, *tensors, update_bias, eps, save, bf16)
    return output, output[-1]


def _of_inputs(
    inputs: tuple[Tensor, ...], h: Tensor, w: BlockGRUWeights, weight: Tensor, eps: float, bf16: bool
) -> Tensor:
    """The part of the hidden layer that comes from the inputs, with its bias [T, B, D]; `weight` [G, I U, D/G]."""
    embeds = [
        rms_norm_silu(linear(x.to(h.dtype), layer.weight, layer.bias, bf16), layer.norm, eps)
        for x, layer in zip(inputs, w.embed_inputs)
    ]  # fmt: skip
    (hidden,) = w.hidden
    return linear(torch.cat(embeds, -1), weight, hidden.bias, bf16)


def _check(inputs: tuple[Tensor, ...], h: Tensor, w: BlockGRUWeights, is_first: Tensor | None) -> None:
    shapes = [list(x.shape) for x in inputs]
    if len(inputs) != len(w.embed_inputs) or not inputs:
        raise ValueError(f"expected an input for each of {len(w.embed_inputs)} embeddings, got {shapes}")
    if any(x.dim() != 3 or len(x) == 0 or not x.is_floating_point() for x in inputs) or h.dim() != 2:
        raise ValueError(f"expected inputs [T, B, X] with T >= 1 and h [B, D], got {shapes} and {list(h.shape)}")
    if is_first is not None and is_first.dtype != torch.bool:
        raise ValueError(f"expected is_first to be bool, got {is_first.dtype}")
    (T, B, _), D = inputs[0].shape, h.shape[1]
    G, U = len(w.gates.weight), len(w.embed_carry.weight)
    if G == 0 or D % G:
        raise ValueError(f"a carry of width {D} does not divide into {G} blocks")
    if not w.hidden:
        raise ValueError("a block GRU needs a hidden layer")
    J = D // G
    data: Shapes = {} if is_first is None else {"is_first": (is_first, (T, B))}
    expected: Shapes = {
        "h": (h, (B, D)), **layer_shapes("embed_carry", w.embed_carry, (U, D)),
        **layer_shapes("gates", w.gates, (G, J, 3 * J)),
    }  # fmt: skip
    for i, (x, layer) in enumerate(zip(inputs, w.embed_inputs)):
        data[f"input {i}"] = x, (T, B, layer.weight.shape[-1])
        expected |= layer_shapes(f"embedding {i}", layer, (U, layer.weight.shape[-1]))
    for i, layer in enumerate(w.hidden):
        width = J if i else J + (1 + len(inputs)) * U
        expected |= layer_shapes(f"hidden layer {i}", layer, (G, width, J))
    check_shapes("h", h, expected, data)
    check_widths(h=D, units=U)


_forward = Operator("block_gru_scan", no_vmap("block_gru_scan"))
