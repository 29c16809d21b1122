"""The layers every DreamerV3 network is built from: Linear -> RMSNorm -> SiLU, and their block-diagonal form."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastwm import ops
from fastwm.nn.fused import is_plain, plain

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

    def __init__(self, inputs: int, outputs: int, outscale: float = 1.0):
        self.outscale = outscale
        super().__init__(inputs, outputs)

    def reset_parameters(self) -> None:
        truncated_normal_(self.weight, self.in_features, self.outscale)
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
    """`x / sqrt(mean(x^2) + 1e-4) * scale` over the last axis, computed in float32."""

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


class Dense(nn.Module):
    """Linear -> RMSNorm -> SiLU; block-diagonal where `blocks` is given (the norm still spans the whole width)."""

    def __init__(self, inputs: int, outputs: int, blocks: int | None = None):
        super().__init__()
        self.linear = BlockLinear(inputs, outputs, blocks) if blocks else Linear(inputs, outputs)
        self.norm = RMSNormSiLU(outputs)

    @property
    def params(self) -> ops.DenseWeights:
        kind: type[BlockLinear | Linear] = BlockLinear if isinstance(self.linear, BlockLinear) else Linear
        norm = plain(self.norm, RMSNormSiLU, "norm of Dense")
        return ops.DenseWeights(*plain(self.linear, kind, "linear of Dense").params, norm.weight)

    @property
    def is_plain(self) -> bool:
        """Whether `params` say all that the layer computes."""
        linear = is_plain(self.linear, Linear) or is_plain(self.linear, BlockLinear)
        return linear and is_plain(self.norm, RMSNormSiLU)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.linear(x))
        return y


class MLP(nn.Sequential):
    """`layers` Dense layers of `units`. A layer put in their place is called as it is."""

    def __init__(self, inputs: int, units: int, layers: int):
        super().__init__(*(Dense(inputs if i == 0 else units, units) for i in range(layers)))

    @property
    def params(self) -> tuple[ops.DenseWeights, ...]:
        return tuple(plain(layer, Dense, f"layer {i} of MLP").params for i, layer in enumerate(self))

    @property
    def is_plain(self) -> bool:
        """Whether `params` say all that the layers compute."""
        return all(isinstance(layer, Dense) and is_plain(layer, Dense) and layer.is_plain for layer in self)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs] -> [..., units]`: all but the last layer's norm in one call."""
        if len(self) < 2 or not self.is_plain:
            return super().forward(x)
        *layers, last = self.params
        w = ops.MLPWeights(tuple(layers), ops.LinearWeights(last.weight, last.bias))
        return ops.rms_norm_silu(ops.mlp(x, w, eps=RMSNorm.eps), last.norm, RMSNorm.eps)
