from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm import ref
from fastwm.ops._backend import (
    KERNEL_DTYPES,
    Library,
    Operator,
    Shapes,
    bf16_products,
    check_shapes,
    check_widths,
    layer_shapes,
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
    inputs = (rows, latents, *mlp_layers(w))
    save = wants_gradient(*inputs)
    y: Tensor = _forward(library, *inputs, ACTIVATIONS[w.activation], eps, save, bf16_products(x))
    return y.view(*x.shape[:-1], y.shape[-1])


def made(library: Library, y: Tensor, pre: Tensor, x: Tensor, z: Tensor, w: tuple[Tensor, ...], eps: float) -> Tensor:
    """`mlp` of x `[..., D]`, z `[..., Z]` and `mlp_layers` with RMSNorms, evaluated by another operator: attaches the
    gradient to the outputs `y` `[..., O]` by `pre` `[L, N, U]`, the layers before their norms."""
    rows = [part.reshape(part.shape[:-1].numel(), part.shape[-1]) for part in (x, z)]
    options = ACTIVATIONS["silu"], eps, True, bf16_products(x)
    out: Tensor = _Made.apply(*rows, *w, *options, library, y.flatten(0, -2), pre)[0]
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


def mlp_layers(w: MLPWeights) -> tuple[Tensor, ...]:
    """An MLP with layers of one width as operators take it: the members of the declared type `MlpLayers`."""

    def parts(layer: DenseWeights | LayerWeights) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias, *norm = layer
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        match [part for part in norm if part is not None]:
            case []:
                return weight, bias, weight.new_empty(0, len(weight))
            case [scale]:
                return weight, bias, scale[None]
            case norms:
                return weight, bias, torch.stack(norms)

    first, *rest = map(parts, w.layers)
    if rest:
        return *first, *(torch.stack(part) for part in zip(*rest)), *w.out
    weight, bias, norm = first
    square = weight.new_empty(0, len(weight), len(weight))
    return *first, square, bias.new_empty(0, *bias.shape), norm.new_empty(0, *norm.shape), *w.out


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
        if len({(type(each), *(part is None for part in each)) for each in w.layers}) > 1:
            raise ValueError("expected all layers alike: of one type, with the same parts")
        if isinstance(layer, LayerWeights) and (layer.scale is None) != (layer.shift is None):
            raise ValueError("expected a LayerNorm with both scale and shift, or none")
        shapes |= layer_shapes(f"{name}.layers[{i}]", layer, (units, inputs))
        inputs = units
    return shapes | layer_shapes(f"{name}.out", w.out, (outputs, inputs))


class _Made(torch.autograd.Function):
    """`mlp` for its gradient alone: the operator's arguments, then its library and its outputs, made elsewhere."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        *_, y, pre = inputs
        return y.view_as(y), pre.view_as(pre)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *arguments, ctx.library, _, _ = inputs
        assert _forward.setup_context
        _forward.setup_context(ctx, tuple(arguments), output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return *_forward.derivative(ctx.library, ctx, *grads), None, None, None


_forward = Operator("mlp", no_vmap("mlp"))
