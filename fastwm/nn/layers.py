"""The layers that all networks are built from: Linear -> norm -> activation, in the style of each paper."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastwm import ops
from fastwm.nn.fused import is_plain, plain
from fastwm.ops._backend import autocast_is_on
from fastwm.ops.norm_act import activate

Widths = int | Sequence[int]
"""Hidden layers: their number, each of a network's `units`, or the width of each."""


class Style(NamedTuple):
    """The norm, activation and initialisation of the layers of one paper.

    `PLANET`, `DREAMER_V1`, `DREAMER_V2` and `DREAMER_V3`, which the defaults are, are those of the papers.
    """

    norm: Literal["rms", "layer", "none"] = "rms"
    """Norm between the product and the activation."""
    activation: Literal["silu", "elu", "relu"] = "silu"
    init: Literal["truncated_normal", "glorot_uniform"] = "truncated_normal"
    """Initial weights; biases start at zero."""
    eps: float = 1e-4
    """Epsilon of the norms."""
    stoch_first: bool = False
    """Whether heads read the features as [stoch, deter] rather than [deter, stoch]."""

    def normed(self, norm: bool) -> "Style":
        """This style with a LayerNorm, or with no norm: an option of the papers before DreamerV3."""
        return self._replace(norm="layer" if norm else "none")


PLANET = Style("none", "relu", "glorot_uniform", 1e-3, stoch_first=True)
"""PlaNet's style, and that of Dreamer V1's convolutions."""
DREAMER_V1 = PLANET._replace(activation="elu")
"""Dreamer V1's style."""
DREAMER_V2 = DREAMER_V1
"""DreamerV2's style, of dense layers and convolutions."""
DREAMER_V3 = Style()
"""DreamerV3's style."""


FEW_ROWS = 256  # from which a fused MLP is no slower than its layers, as `ops.linear`

# A standard normal cut at two standard deviations has a standard deviation of 0.8796; this brings it back to one.
TRUNCATED_STD = 1.1368


def truncated_normal_(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Fill `weight` with a cut normal of standard deviation `scale / sqrt(fan_in)`."""
    std = TRUNCATED_STD / math.sqrt(fan_in)
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    with torch.no_grad():
        weight.mul_(scale)


class Linear(nn.Linear):
    """`torch.nn.Linear` with DreamerV3's initialisation: fan-in truncated normal times `outscale`, zero bias."""

    def __init__(self, inputs: int, outputs: int, outscale: float = 1.0, bias: bool = True):
        self.outscale = outscale
        super().__init__(inputs, outputs, bias)

    def reset_parameters(self) -> None:
        truncated_normal_(self.weight, self.in_features, self.outscale)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def params(self) -> ops.LinearWeights:
        return ops.LinearWeights(self.weight, self.bias)


class BlockLinear(nn.Module):
    """Block-diagonal linear layer: `blocks` independent products, side by side.

    Weight `[G, in/G, out/G]`, bias `[out]`. The initialisation uses the full input width as fan-in, as the
    official code does (`sqrt(G)` smaller than per-block scaling would be).
    """

    def __init__(self, inputs: int, outputs: int, blocks: int):
        super().__init__()
        if inputs % blocks or outputs % blocks:
            raise ValueError(f"BlockLinear: {inputs} inputs and {outputs} outputs must divide into {blocks} blocks")
        self.blocks = blocks
        self.weight = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks))
        self.bias = nn.Parameter(torch.zeros(outputs))
        truncated_normal_(self.weight, inputs)

    @property
    def params(self) -> ops.LinearWeights:
        return ops.LinearWeights(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in] -> [..., out]`."""
        batch = x.shape[:-1]
        x = x.reshape(-1, self.blocks, self.weight.shape[1]).transpose(0, 1)  # [G, N, in/G]
        x = torch.bmm(x, self.weight).transpose(0, 1)  # [N, G, out/G]
        return x.reshape(*batch, -1) + self.bias


class Conv2d(nn.Conv2d):
    """Stride-1 convolution that keeps the image size, with DreamerV3's initialisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__(inputs, outputs, kernel, padding="same")

    def reset_parameters(self) -> None:
        truncated_normal_(self.weight, self.weight[0].numel())
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class UpsampleConv2d(Conv2d):
    """Nearest upsampling by two and then the convolution, as a convolution of the coarse image.

    The taps that read the same coarse pixel are summed first, for each of the four positions a fine pixel can have
    in it: 9 products instead of 25 where the kernel has width 5, and no fine image but the result.
    """

    folding: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__(inputs, outputs, kernel)
        reach = kernel // 2
        self.register_buffer("folding", torch.zeros(2, 2 * ((reach + 1) // 2) + 1, kernel), persistent=False)
        for position in range(2):
            for tap in range(kernel):
                self.folding[position, (position + tap - reach) // 2 + (reach + 1) // 2, tap] = 1

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W] -> [N, C', 2H, 2W]`."""
        with torch.autocast(x.device.type, enabled=False):
            weight = torch.einsum("pax,qby,oixy->pqoiab", self.folding, self.folding, self.weight).flatten(0, 2)
        bias = None if self.bias is None else self.bias.repeat(4)
        y = F.conv2d(x, weight, bias, padding="same").movedim(1, -1).unflatten(-1, (2, 2, -1))  # [N, H, W, 2, 2, C']
        return y.transpose(2, 3).flatten(3, 4).flatten(1, 2).movedim(-1, 1)


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * scale` over the last axis, computed in float32."""

    eps = 1e-4

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


class RMSNormSiLU(RMSNorm):
    """RMSNorm followed by SiLU, in one pass."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm_silu(x, self.weight, self.eps)


def linear(inputs: int, outputs: int, style: Style, outscale: float = 1.0, bias: bool = True) -> nn.Linear:
    """A linear layer with the initialisation of a style; `outscale` scales DreamerV3's."""
    if style.init == "truncated_normal":
        return Linear(inputs, outputs, outscale, bias)
    layer = nn.Linear(inputs, outputs, bias)
    glorot_(layer)
    return layer


def glorot_(layer: nn.Module) -> None:
    """Set the weight of a linear or convolutional layer to Glorot-uniform values and its bias to zero."""
    nn.init.xavier_uniform_(layer.get_parameter("weight"))
    if layer.bias is not None:
        nn.init.zeros_(layer.get_parameter("bias"))


def norm(width: int, style: Style) -> RMSNorm | nn.LayerNorm | None:
    """The norm of a style over the last axis."""
    if style.norm == "none":
        return None
    return RMSNorm(width) if style.norm == "rms" else nn.LayerNorm(width, style.eps)


def norm_act(x: Tensor, norm: nn.Module | None, activation: str) -> Tensor:
    """`activation(norm(x))` over the last axis [..., D]; fastwm's and torch's own norms in one pass."""
    if norm is None:
        return activate(x, None, None, 0.0, activation)
    if is_plain(norm, RMSNorm) and activation == "silu":
        return ops.rms_norm_silu(x, norm.weight, norm.eps)  # type: ignore[arg-type]
    if is_plain(norm, nn.LayerNorm):
        return activate(x, norm.weight, norm.bias, norm.eps, activation)  # type: ignore[arg-type]
    return activate(norm(x), None, None, 0.0, activation)


def linear_weights(layer: nn.Module, where: str) -> ops.LinearWeights:
    """The parameters of a linear layer that a fused operator computes; see `fastwm.nn.fused.plain`."""
    layer = plain(layer, nn.Linear, where)
    return ops.LinearWeights(layer.weight, layer.bias)


class Dense(nn.Module):
    """Linear -> norm -> activation, in a style; `blocks` make it block-diagonal, and the norm spans all of them."""

    def __init__(
        self, inputs: int, outputs: int, blocks: int | None = None, style: Style = DREAMER_V3, bias: bool = True
    ):
        super().__init__()
        self.style = style
        self.linear = BlockLinear(inputs, outputs, blocks) if blocks else linear(inputs, outputs, style, bias=bias)
        self.norm: nn.Module | None = norm(outputs, style)

    @property
    def params(self) -> Any:
        """`fastwm.ops.DenseWeights` with an RMSNorm, else `fastwm.ops.LayerWeights`."""
        kind: type[BlockLinear | nn.Linear] = BlockLinear if isinstance(self.linear, BlockLinear) else nn.Linear
        linear = plain(self.linear, kind, "linear of Dense")
        if self.norm is None:
            return ops.LayerWeights(linear.weight, linear.bias)
        if self.style.norm == "rms":
            return ops.DenseWeights(linear.weight, linear.bias, plain(self.norm, RMSNorm, "norm of Dense").weight)
        norm = plain(self.norm, nn.LayerNorm, "norm of Dense")
        return ops.LayerWeights(linear.weight, linear.bias, norm.weight, norm.bias)

    @property
    def is_plain(self) -> bool:
        """Whether `params` and the style say all that the layer computes."""
        if not (is_plain(self.linear, nn.Linear) or is_plain(self.linear, BlockLinear)):
            return False
        if self.norm is None or self.style.norm == "none":
            return self.norm is None and self.style.norm == "none"
        kind = RMSNorm if self.style.norm == "rms" else nn.LayerNorm
        fused = self.style.norm == "layer" or self.style.activation == "silu"
        return fused and is_plain(self.norm, kind) and bool(self.norm.eps == self.style.eps)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs] -> [..., outputs]`."""
        return norm_act(self.linear(x), self.norm, self.style.activation)


def few_rows(x: Tensor) -> bool:
    """Whether x [..., D] has too few rows for a fused call: packing the weights would cost more than it saves.

    An exported program takes any number. Under autocast the fused call rounds less, and serves all.
    """
    if torch.compiler.is_exporting() or autocast_is_on(x):
        return False
    return x.shape[:-1].numel() < FEW_ROWS


class MLP(nn.Sequential):
    """Dense layers in a style: `layers` of `units`, or of the widths that `layers` lists; none is the identity.

    A layer put in their place is called as it is.
    """

    def __init__(self, inputs: int, units: int, layers: Widths, style: Style = DREAMER_V3):
        widths = (inputs, *((units,) * layers if isinstance(layers, int) else layers))
        super().__init__(*(Dense(i, o, style=style) for i, o in pairwise(widths)))
        self.style, self.out_dim = style, widths[-1]

    @property
    def params(self) -> tuple[Any, ...]:
        """The parameters of every layer: see `Dense.params`."""
        return tuple(plain(layer, Dense, f"layer {i} of MLP").params for i, layer in enumerate(self))

    @property
    def is_plain(self) -> bool:
        """Whether `params` and the style say all that the layers compute."""
        return all(
            isinstance(layer, Dense) and is_plain(layer, Dense) and layer.style == self.style and layer.is_plain
            for layer in self
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs] -> [..., out_dim]`: of many rows all but the last layer's norm in one call."""
        if len(self) < 2 or few_rows(x) or not self.is_plain:
            return super().forward(x)
        *layers, last = self.params
        w = ops.MLPWeights(tuple(layers), ops.LinearWeights(last.weight, last.bias), self.style.activation)
        norm: Any = self[-1].norm
        return norm_act(ops.mlp(x, w, eps=self.style.eps), norm, self.style.activation)

    def then(self, out: ops.LinearWeights, x: Tensor, onehot: Tensor | None = None) -> Tensor:
        """These layers and a linear one: of many rows in one call.

        They read x `[..., inputs]`; or, where `onehot` `[..., Z]` is given apart, because its zeros cost nothing then,
        [x, onehot], or [onehot, x] in a style with `stoch_first`.
        """
        if not self or few_rows(x) or not self.is_plain:
            parts = [x] if onehot is None else [onehot, x] if self.style.stoch_first else [x, onehot]
            return F.linear(self(torch.cat(parts, -1)), *out)
        first, *rest = self.params
        if onehot is not None and self.style.stoch_first:  # `ops.mlp` reads [x, onehot]
            columns = first.weight.split([onehot.shape[-1], x.shape[-1]], 1)
            first = first._replace(weight=torch.cat(columns[::-1], 1))
        return ops.mlp(x, ops.MLPWeights((first, *rest), out, self.style.activation), onehot, self.style.eps)
