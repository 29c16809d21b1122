"""Observation encoder and decoder: an MLP for everything that is a vector, a small CNN for images."""

from collections.abc import Mapping
from itertools import pairwise
from math import ceil, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastwm import ops
from fastwm.nn.distributions import Categorical, SquaredError, SymlogSquaredError
from fastwm.nn.fused import plain
from fastwm.nn.layers import MLP, BlockLinear, Conv2d, Dense, Linear, RMSNorm, RMSNormSiLU, UpsampleConv2d
from fastwm.nn.spaces import SpaceDict, SpaceError, classes, encode, is_image, shape, total_width
from fastwm.ops import symlog

MAX_GRID = 16


def split_space(space: SpaceDict) -> tuple[SpaceDict, SpaceDict]:
    """(vectors, images)."""
    images = {key: leaf for key, leaf in space.items() if is_image(leaf)}
    return {key: leaf for key, leaf in space.items() if key not in images}, images


def grid_size(images: SpaceDict, stages: int) -> tuple[int, int]:
    """Height and width of the coarsest feature map; every stage halves, rounding up."""
    sizes = {shape(leaf)[:2] for leaf in images.values()}
    if len(sizes) > 1:
        given = ", ".join(f"{key} {shape(leaf)[0]}x{shape(leaf)[1]}" for key, leaf in images.items())
        raise SpaceError(f"all images must have one size, got {given}: resize them, for example by --env-args size 64")
    height, width = sizes.pop()
    grid = ceil(height / 2**stages), ceil(width / 2**stages)
    if max(grid) > MAX_GRID:
        raise SpaceError(f"image of {height}x{width} is too large (at most {MAX_GRID * 2**stages}); use a smaller size")
    return grid


class ConvNorm(nn.Module):
    """Convolution, then RMSNorm over channels and SiLU; the convolution halves the image (`pool`) or doubles it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, pool: bool):
        super().__init__()
        self.conv = (Conv2d if pool else UpsampleConv2d)(inputs, outputs, kernel)
        self.norm = RMSNormSiLU(outputs)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        x = self.conv(x)
        if self.pool:
            x = F.max_pool2d(x, 2, ceil_mode=True)
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Encoder(nn.Module):
    """Observation dictionary -> tokens [..., E]: the vector features, then the image features in (H, W, C) order.

    Vectors are squashed by symlog (discrete ones become one-hot), images are scaled to [-0.5, 0.5].
    """

    def __init__(self, space: SpaceDict, units: int, layers: int, depth: int, mults: tuple[int, ...], kernel: int):
        super().__init__()
        self.vectors, self.images = split_space(space)
        self.continuous = {key for key, leaf in self.vectors.items() if not classes(leaf)}
        self.out_dim = 0
        if self.vectors:
            self.mlp = MLP(total_width(self.vectors), units, layers)
            self.out_dim += units
        if self.images:
            channels = [sum(shape(leaf)[2] for leaf in self.images.values()), *(depth * mult for mult in mults)]
            self.cnn = nn.Sequential(*(ConvNorm(i, o, kernel, pool=True) for i, o in pairwise(channels)))
            self.out_dim += prod(grid_size(self.images, len(mults))) * channels[-1]

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        tokens = []
        if self.vectors:
            vectors = {key: symlog(obs[key].float()) if key in self.continuous else obs[key] for key in self.vectors}
            tokens.append(self.mlp(encode(self.vectors, vectors)))
        if self.images:
            image = torch.cat([obs[key] for key in sorted(self.images)], -1)  # [..., H, W, C]
            batch = image.shape[:-3]
            x = (image.flatten(0, -4).movedim(-1, 1) / 255).sub_(0.5)  # [N, C, H, W]
            x = self.cnn(x)
            tokens.append(x.movedim(1, -1).reshape(*batch, -1))
        return torch.cat(tokens, -1)


class Decoder(nn.Module):
    """Latent state -> a prediction of every observation.

    Vectors: an MLP on [stoch, deter] and one linear layer a key; squared error in symlog space, or a categorical.
    Images: a coarse map from deter (block-diagonal) plus one from stoch, then nearest upsampling and convolutions.
    """

    def __init__(
        self, space: SpaceDict, deter: int, stoch: int, units: int, layers: int, depth: int, mults: tuple[int, ...],
        kernel: int, blocks: int,
    ):  # fmt: skip
        super().__init__()
        self.vectors, self.images = split_space(space)
        if self.vectors:
            self.mlp = MLP(stoch + deter, units, layers)
            widths = [prod(shape(leaf)) * (classes(leaf) or 1) for leaf in self.vectors.values()]
            self.heads = nn.ModuleList(Linear(units, width) for width in widths)
        if self.images:
            self.grid = grid_size(self.images, len(mults))
            self.blocks = blocks
            channels = [depth * mult for mult in reversed(mults)]
            size = prod(self.grid) * channels[0]
            self.from_deter = BlockLinear(deter, size, blocks)
            self.stoch_hidden = Dense(stoch, 2 * units)
            self.from_stoch = Linear(2 * units, size)
            self.norm = RMSNormSiLU(channels[0])
            self.cnn = nn.Sequential(*(ConvNorm(i, o, kernel, pool=False) for i, o in pairwise(channels)))
            self.out = UpsampleConv2d(channels[-1], sum(shape(leaf)[2] for leaf in self.images.values()), kernel)

    def forward(self, deter: Tensor, stoch: Tensor) -> "dict[str, SquaredError | Categorical]":
        """`deter` [..., D], `stoch` [..., S*C] -> a distribution with `.loss(target)` for every observation key."""
        outputs: dict[str, SquaredError | Categorical] = {}
        if self.vectors:
            heads = [plain(head, Linear, f"heads[{i}] of the decoder") for i, head in enumerate(self.heads)]
            out = ops.LinearWeights(*(torch.cat(part) for part in zip(*(head.params for head in heads))))
            first, *rest = self.mlp.params  # of [stoch, deter]
            of_stoch, of_deter = first.weight.split([stoch.shape[-1], deter.shape[-1]], 1)
            layers = (first._replace(weight=torch.cat([of_deter, of_stoch], 1)), *rest)
            x = ops.mlp(deter, ops.MLPWeights(layers, out), stoch, RMSNorm.eps)
            for (key, leaf), y in zip(self.vectors.items(), x.split([len(head.bias) for head in heads], -1)):
                if classes(leaf):
                    outputs[key] = Categorical(y.reshape(*y.shape[:-1], *shape(leaf), classes(leaf)))
                else:
                    outputs[key] = SymlogSquaredError(y.reshape(*y.shape[:-1], *shape(leaf)), len(shape(leaf)))
        if self.images:
            image = self.decode_image(deter.flatten(0, -2), stoch.flatten(0, -2))
            image = image.reshape(*deter.shape[:-1], *image.shape[1:])
            depths = [shape(leaf)[2] for leaf in self.images.values()]
            for key, part in zip(self.images, image.split(depths, -1)):
                outputs[key] = SquaredError(part, 3)
        return outputs

    def decode_image(self, deter: Tensor, stoch: Tensor) -> Tensor:
        """Images in [0, 1], channels last [N, H, W, C]."""
        height, width = self.grid
        x0 = self.from_deter(deter).reshape(-1, self.blocks, height, width, self.norm.weight.numel() // self.blocks)
        x0 = x0.movedim(1, 3).flatten(3)  # [N, h, w, C]
        x1 = self.from_stoch(self.stoch_hidden(stoch)).reshape(x0.shape)
        x = self.out(self.cnn(self.norm(x0 + x1).movedim(-1, 1))).movedim(1, -1)
        full_height, full_width = shape(next(iter(self.images.values())))[:2]
        return torch.sigmoid(x[:, :full_height, :full_width].float())
