from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm import ref
from fastwm.ops._backend import (
    KERNEL_DTYPES,
    Operator,
    Shapes,
    bf16_products,
    check_shapes,
    check_widths,
    no_vmap,
    select,
)
from fastwm.ops.norm_act import ACTIVATIONS, activate, rms_norm_silu
from fastwm.weights import DenseWeights, LayerWeights, MLPWeights

__all__ = ["MLPWeights", "mlp"]


def mlp(x: Tensor, w: MLPWeights, onehot: Tensor | None = None, eps: float = 1e-4) -> Tensor:
    """The Dreamers' heads in one call: Linear -> norm -> activation layers, then a linear one.

        y_0 = [x, onehot],   y_i = silu(rms_norm(W_i y_{i-1} + b_i) * s_i),   mlp = W_out y_L + b_out

    That is DreamerV3; PlaNet, V1 and V2 have LayerNorm or no norm, and another activation (see `MLPWeights`).

    Rows pass through all layers while they are in cache; the backward reads the layers before their norms. The
    second part of the input is for latents: what is zero in it costs nothing.

    Args:
        x: `[..., D]`, float32 or float64.
        w: the parameters: layers `[U_0, D + Z]`, `[U_1, U_0]`, ..., and the output `[O, U_L]`. The kernels serve
            layers of one width; others are computed layer by layer.
        onehot: `[..., Z]`, any values but mostly zeros. None: Z = 0.
        eps: epsilon of the norms.

    Returns:
        `[..., O]`. Differentiable once in x, onehot and all weights; with the `ref` backend any number of times.
        Under autocast to bfloat16 the products inside are in bfloat16 with float32 sums where the CPU has them,
        and all else stays float32; with `ref` it is as autocast has it.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or no layer.

    Source: Hafner et al., "Mastering diverse control tasks through world models" (2025) and its official code
    """
    _check(x, w, onehot)
    library = _forward.library(x) if x.dtype in KERNEL_DTYPES and even(w) else None
    if library is None:
        return ref.mlp(x, w, onehot, eps) if select(x) is None else by_layers(x, w, onehot, eps)
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    latents = x.new_empty(rows.shape[0], 0) if onehot is None else onehot.reshape(rows.shape[0], onehot.shape[-1])
    inputs = (rows, latents, *weight_tensors(w))
    save = wants_gradient(*inputs)
    y: Tensor = _forward(library, *inputs, ACTIVATIONS[w.activation], eps, save, bf16_products(x))[0]
    return y.view(*x.shape[:-1], y.shape[-1])


def made(library: str, y: Tensor, pre: Tensor, x: Tensor, z: Tensor, w: tuple[Tensor, ...], eps: float) -> Tensor:
    """What `mlp` gives for x `[..., D]`, z `[..., Z]` and `weight_tensors` with RMSNorms, where another operator has
    made it: its values `y` `[..., O]`, and `pre` `[L, N, U]`, its layers before their norms, for the derivative."""
    rows = [part.reshape(part.shape[:-1].numel(), part.shape[-1]) for part in (x, z)]
    options = ACTIVATIONS["silu"], eps, True, bf16_products(x)
    out: Tensor = _Made.apply(library, y.flatten(0, -2), pre, *rows, *w, *options)
    return out.view(y.shape)


def even(w: MLPWeights) -> bool:
    """Whether all layers have one width, as the kernels need it."""
    return len({len(layer.weight) for layer in w.layers}) == 1


def wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def by_layers(x: Tensor, w: MLPWeights, onehot: Tensor | None = None, eps: float = 1e-4) -> Tensor:
    """`mlp` out of torch's products and fused norms, where no kernel takes rows through all layers."""
    x = x if onehot is None else torch.cat([x, onehot], -1)
    for layer in w.layers:
        x = dense(x, layer, eps, w.activation)
    return F.linear(x, *w.out)


def dense(x: Tensor, layer: DenseWeights | LayerWeights, eps: float, activation: str = "silu") -> Tensor:
    x = F.linear(x, layer.weight, layer.bias)
    if isinstance(layer, DenseWeights):
        return rms_norm_silu(x, layer.norm, eps)
    return activate(x, layer.scale, layer.shift, eps, activation)


def weight_tensors(w: MLPWeights) -> tuple[Tensor, ...]:
    """Weight, bias and norm [0..2, U] of the first layer, and of all others, stacked [count, ...]; the output's
    weight and bias."""

    def parts(layer: DenseWeights | LayerWeights) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias, *norm = layer
        norms = [part for part in norm if part is not None]
        return (
            weight,
            weight.new_zeros(len(weight)) if bias is None else bias,
            torch.stack(norms) if len(norms) > 1 else norms[0][None] if norms else weight.new_empty(0, len(weight)),
        )

    first, *rest = map(parts, w.layers)
    if rest:
        return *first, *(torch.stack(part) for part in zip(*rest)), *w.out
    units = len(first[0])
    return *first, first[0].new_empty(0, units, units), *(part.new_empty(0, *part.shape) for part in first[1:]), *w.out


def _check(x: Tensor, w: MLPWeights, onehot: Tensor | None) -> None:
    if x.dim() == 0 or not w.layers:
        raise ValueError(f"expected x [..., D] and at least one layer, got {list(x.shape)} and {len(w.layers)} layers")
    if w.activation not in ("silu", "elu", "relu") or (
        w.activation != "silu" and isinstance(w.layers[0], DenseWeights)
    ):
        raise ValueError(f"expected activation silu (alone behind an RMSNorm), elu or relu, got {w.activation!r}")
    if onehot is not None and (onehot.shape[:-1] != x.shape[:-1] or onehot.dtype != x.dtype):
        raise ValueError(
            f"expected onehot [..., Z] like x {list(x.shape)} {x.dtype}, got {list(onehot.shape)} {onehot.dtype}"
        )
    inputs = x.shape[-1] + (0 if onehot is None else onehot.shape[-1])
    check_shapes("x", x, {"x": (x, x.shape), **mlp_shapes("mlp", w, inputs, len(w.out.bias))}, {})


def mlp_shapes(name: str, w: MLPWeights, inputs: int, outputs: int) -> Shapes:
    """The shapes of an MLP's parameters; raises ValueError where its layers are of several types."""
    shapes: Shapes = {}
    layer: Any
    for i, layer in enumerate(w.layers):
        units = len(layer.weight)
        check_widths(units=units)
        kinds = [(type(each), [part is None for part in each]) for each in (layer, w.layers[0])]
        if kinds[0] != kinds[1]:
            raise ValueError("expected all layers alike: of one type, with the same parts")
        if isinstance(layer, LayerWeights) and (layer.scale is None) != (layer.shift is None):
            raise ValueError("expected a LayerNorm with both scale and shift, or none")
        shapes[f"{name}.layers[{i}].weight"] = layer.weight, (units, inputs)
        needed = isinstance(layer, DenseWeights)
        for part, x in zip(layer._fields[1:], layer[1:]):
            if needed or x is not None:
                shapes[f"{name}.layers[{i}].{part}"] = x, (units,)
        inputs = units
    shapes[f"{name}.out.weight"] = w.out.weight, (outputs, inputs)
    shapes[f"{name}.out.bias"] = w.out.bias, (outputs,)
    return shapes


# The operator fastwm::mlp takes x, z, then w, b, norm of the first layer, ws, bs, norms of the others, w_out, b_out,
# and activation, eps, save, bf16. A norm is [k, U]: RMSNorm's scale, LayerNorm's scale and shift, or nothing.


def _fake(x: Tensor, z: Tensor, *rest: Any) -> Any:
    _, b, _, ws, _, _, _, b_out, _, _, save, _ = rest
    return x.new_empty(x.shape[0], len(b_out)), x.new_empty(1 + len(ws) if save else 0, x.shape[0], len(b))


def _fake_backward(grad: Tensor, pre: Tensor, x: Tensor, z: Tensor, *rest: Any) -> Any:
    *weights, _, _, inputs, own, _ = rest
    rows, new = x.shape[0] if inputs else 0, x.new_empty
    return new(rows, x.shape[1]), new(rows, z.shape[1]), new(sum(w.numel() for w in weights) if own else 0)


def _keep(ctx: Any, pre: Tensor, inputs: tuple[Any, ...]) -> None:
    *read, ctx.activation, ctx.eps, _, ctx.bf16 = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(pre, *read)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _keep(ctx, output[1], inputs)
    ctx.mark_non_differentiable(output[1])


def _derivative(library: str, ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 14
    pre, x, z, *weights = ctx.saved_tensors
    _, b, norm, ws, bs, norms, w_out, b_out = weights
    needed = ctx.needs_input_grad[-14:]
    inputs, own = any(needed[:2]), any(needed[2:])
    options = ctx.activation, ctx.eps, inputs, own, ctx.bf16
    d_x, d_z, d_weights = _backward(library, grad, pre, x, z, *weights, *options)
    d_inputs = (d_x, d_z) if inputs else (None, None)
    if not own:
        return *d_inputs, *(None,) * 12
    U, D = len(b), x.shape[1]
    sizes = [U * D, U * z.shape[1], *map(Tensor.numel, (ws, w_out, b, bs, b_out, norm, norms))]
    d_wx, d_wz, d_ws, d_w_out, d_b, d_bs, d_b_out, d_norm, d_norms = d_weights.split(sizes)
    d_w = torch.cat([d_wx.view(U, D), d_wz.view(U, -1)], 1) if z.shape[1] else d_wx.view(U, D)
    shaped = [d.view_as(w) for d, w in ((d_norm, norm), (d_ws, ws), (d_bs, bs), (d_norms, norms), (d_w_out, w_out))]
    return *d_inputs, d_w, d_b, *shaped, d_b_out, None, None, None, None


class _Made(torch.autograd.Function):
    @staticmethod
    def forward(library: str, y: Tensor, pre: Tensor, *inputs: Any) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.library, _, pre, *read = inputs
        _keep(ctx, pre, tuple(read))

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        return None, None, None, *_derivative(ctx.library, ctx, grad)


_backward = Operator("mlp_backward", fake=_fake_backward, vmap=no_vmap("mlp"))
_forward = Operator("mlp", fake=_fake, vmap=no_vmap("mlp"), backward=_derivative, setup_context=_setup_context)
