"""Observation encoders and decoders: an MLP for everything that is a vector, a small CNN for images.

There are two CNNs. `Encoder` and `Decoder` are DreamerV3's, which pool and upsample images of any size.
`StridedEncoder` and `StridedDecoder` are those of PlaNet, Dreamer V1 and DreamerV2: stride 2, images of 64x64.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastwm import ops
from fastwm.nn.distributions import Categorical, SquaredError, SymlogSquaredError, UnitNormal
from fastwm.nn.layers import (
    DREAMER_V3,
    MLP,
    BlockLinear,
    Conv2d,
    Dense,
    RMSNorm,
    Style,
    UpsampleConv2d,
    Widths,
    glorot_,
    linear,
    linear_weights,
    norm,
    norm_act,
)
from fastwm.nn.spaces import SpaceDict, SpaceError, classes, encode, in_order, is_image, shape, total_width, width
from fastwm.ops import symlog

MAX_GRID = 16


def split_space(space: SpaceDict) -> tuple[SpaceDict, SpaceDict]:
    """(vectors, images)."""
    images = {key: leaf for key, leaf in space.items() if is_image(leaf)}
    return {key: leaf for key, leaf in space.items() if key not in images}, images


class ConvStage(nn.Module):
    """Convolution -> norm over channels -> activation; `pool` halves the image before the norm."""

    def __init__(self, conv: nn.Module, channels: int, style: Style, pool: bool = False):
        super().__init__()
        self.conv, self.norm = conv, norm(channels, style)
        self.activation, self.pool = style.activation, pool

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        x = self.conv(x)
        if self.pool:
            x = F.max_pool2d(x, 2, ceil_mode=True)
        return norm_act(x.movedim(1, -1), self.norm, self.activation).movedim(-1, 1)


class VectorDecoder(nn.Module):
    """MLP on the latent state -> one linear layer for every vector; a decoder of images extends it."""

    real: type[SquaredError]
    """Prediction of a vector that is not discrete."""
    vectors: SpaceDict

    def add_vectors(self, inputs: int, units: int, layers: Widths, style: Style) -> None:
        self.mlp = MLP(inputs, units, layers, style)
        self.heads = nn.ModuleList(linear(self.mlp.out_dim, width(leaf), style) for leaf in self.vectors.values())

    def decode_vectors(self, x: Tensor, onehot: Tensor | None) -> dict[str, SquaredError | Categorical]:
        """The distribution of every vector, from features as `MLP.then` reads them."""
        layers = [linear_weights(head, f"heads[{i}] of the decoder") for i, head in enumerate(self.heads)]
        out = ops.LinearWeights(*(torch.cat(part) for part in zip(*layers)))
        parts = self.mlp.then(out, x, onehot).split([len(layer.bias) for layer in layers], -1)
        outputs: dict[str, SquaredError | Categorical] = {}
        for (key, leaf), y in zip(self.vectors.items(), parts):
            if classes(leaf):
                outputs[key] = Categorical(y.reshape(*y.shape[:-1], *shape(leaf), classes(leaf)))
            else:
                outputs[key] = self.real(y.reshape(*y.shape[:-1], *shape(leaf)), len(shape(leaf)))
        return outputs


# DreamerV3


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


class Encoder(nn.Module):
    """Observation dictionary -> tokens [..., E]: the vector features, then the image features in (H, W, C) order.

    Vectors are squashed by symlog (discrete ones become one-hot), images are scaled to [-0.5, 0.5].
    """

    def __init__(self, space: SpaceDict, units: int, layers: Widths, depth: int, mults: tuple[int, ...], kernel: int):
        super().__init__()
        self.vectors, self.images = split_space(space)
        self.continuous = {key for key, leaf in self.vectors.items() if not classes(leaf)}
        self.out_dim = 0
        if self.vectors:
            self.mlp = MLP(total_width(self.vectors), units, layers)
            self.out_dim += self.mlp.out_dim
        if self.images:
            channels = [sum(shape(leaf)[2] for leaf in self.images.values()), *(depth * mult for mult in mults)]
            self.cnn = nn.Sequential(
                *(ConvStage(Conv2d(i, o, kernel), o, DREAMER_V3, pool=True) for i, o in pairwise(channels))
            )
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


class Decoder(VectorDecoder):
    """Latent state -> a prediction of every observation.

    Vectors: an MLP on [stoch, deter] and one linear layer a key; squared error in symlog space, or a categorical.
    Images: a coarse map from deter (block-diagonal) plus one from stoch, then nearest upsampling and convolutions.
    """

    real = SymlogSquaredError

    def __init__(
        self, space: SpaceDict, deter: int, stoch: int, units: int, layers: Widths, depth: int, mults: tuple[int, ...],
        kernel: int, blocks: int,
    ):  # fmt: skip
        super().__init__()
        self.vectors, self.images = split_space(space)
        if self.vectors:
            self.add_vectors(stoch + deter, units, layers, DREAMER_V3._replace(stoch_first=True))
        if self.images:
            self.grid = grid_size(self.images, len(mults))
            self.blocks = blocks
            channels = [depth * mult for mult in reversed(mults)]
            size = prod(self.grid) * channels[0]
            self.from_deter = BlockLinear(deter, size, blocks)
            self.stoch_hidden = Dense(stoch, 2 * units)
            self.from_stoch = linear(2 * units, size, DREAMER_V3)
            self.norm = RMSNorm(channels[0])
            self.cnn = nn.Sequential(
                *(ConvStage(UpsampleConv2d(i, o, kernel), o, DREAMER_V3) for i, o in pairwise(channels))
            )
            self.out = UpsampleConv2d(channels[-1], sum(shape(leaf)[2] for leaf in self.images.values()), kernel)

    def forward(self, deter: Tensor, stoch: Tensor) -> "dict[str, SquaredError | Categorical]":
        """`deter` [..., D], `stoch` [..., S*C] -> a distribution with `.loss(target)` for every observation key."""
        outputs = self.decode_vectors(deter, stoch) if self.vectors else {}
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
        x = self.out(self.cnn(norm_act(x0 + x1, self.norm, "silu").movedim(-1, 1))).movedim(1, -1)
        full_height, full_width = shape(next(iter(self.images.values())))[:2]
        return torch.sigmoid(x[:, :full_height, :full_width].float())


# PlaNet, Dreamer V1 and DreamerV2

IMAGE_SIZE = 64
ENCODER_KERNELS = (4, 4, 4, 4)  # 64 -> 31 -> 14 -> 6 -> 2
DECODER_KERNELS = (5, 5, 6, 6)  # 1 -> 5 -> 13 -> 30 -> 64


def strided(inputs: int, outputs: int, kernel: int, transposed: bool = False) -> "nn.Conv2d | nn.ConvTranspose2d":
    """Convolution, or its transpose, of stride 2 without padding; Glorot-uniform weights."""
    conv = (nn.ConvTranspose2d if transposed else nn.Conv2d)(inputs, outputs, kernel, stride=2)
    glorot_(conv)
    return conv


def image_channels(images: SpaceDict) -> int:
    """Channels of all images together; they must be 64x64."""
    for key, leaf in images.items():
        if shape(leaf)[:2] != (IMAGE_SIZE, IMAGE_SIZE):
            raise SpaceError(f"image {key!r} is {shape(leaf)[0]}x{shape(leaf)[1]}, but must be 64x64: use size 64")
    return sum(shape(leaf)[2] for leaf in images.values())


class StridedEncoder(nn.Module):
    """Prepared observations -> tokens [..., E]: the image's features in (H, W, C) order, then the vectors'.

    Images, and vectors, are concatenated in `order`, or by name where it is empty. `conv_style` is the CNN's style.
    """

    def __init__(
        self, space: SpaceDict, units: int, layers: Widths, depth: int, style: Style, conv_style: Style,
        order: Sequence[str] = (),
    ):  # fmt: skip
        super().__init__()
        vectors, images = split_space(space)
        self.vectors, self.images = in_order(vectors, order), in_order(images, order)
        self.out_dim = 0
        if self.images:
            widths = [image_channels(self.images), *(depth * 2**i for i in range(4))]
            stages = zip(pairwise(widths), ENCODER_KERNELS)
            self.cnn = nn.Sequential(*(ConvStage(strided(i, o, k), o, conv_style) for (i, o), k in stages))
            self.out_dim += 2 * 2 * widths[-1]
        if self.vectors:
            self.mlp = MLP(total_width(self.vectors), units, layers, style)
            self.out_dim += self.mlp.out_dim

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        tokens = []
        if self.images:
            image = torch.cat([obs[key] for key in self.images], -1)  # [..., 64, 64, C]
            x = self.cnn(image.flatten(0, -4).movedim(-1, 1))
            tokens.append(x.movedim(1, -1).reshape(*image.shape[:-3], -1))
        if self.vectors:
            tokens.append(self.mlp(encode(self.vectors, obs, list(self.vectors))))
        return torch.cat(tokens, -1)


class StridedDecoder(VectorDecoder):
    """Features -> a distribution of every prepared observation: N(mean, 1), or a categorical where it is discrete.

    The channels of the images are in `order`, or by name where it is empty.
    """

    real = UnitNormal

    def __init__(
        self, space: SpaceDict, inputs: int, units: int, layers: Widths, depth: int, style: Style, conv_style: Style,
        order: Sequence[str] = (),
    ):  # fmt: skip
        super().__init__()
        self.vectors, images = split_space(space)
        self.images = in_order(images, order)
        if self.images:
            widths = [32 * depth, 4 * depth, 2 * depth, depth]
            self.conv_in = linear(inputs, widths[0], style)
            stages = zip(pairwise(widths), DECODER_KERNELS)
            self.cnn = nn.Sequential(*(ConvStage(strided(i, o, k, True), o, conv_style) for (i, o), k in stages))
            self.conv_out = strided(depth, image_channels(self.images), DECODER_KERNELS[-1], transposed=True)
        if self.vectors:
            self.add_vectors(inputs, units, layers, style)

    def forward(self, x: Tensor, onehot: Tensor | None = None) -> dict[str, SquaredError | Categorical]:
        """[onehot, x] [..., F] -> distributions [..., *shape]."""
        outputs: dict[str, SquaredError | Categorical] = {}
        if self.images:
            feat = x if onehot is None else torch.cat([onehot, x], -1)
            coarse = self.conv_in(feat.flatten(0, -2))[..., None, None]
            image = self.conv_out(self.cnn(coarse)).movedim(1, -1)  # [N, 64, 64, C]
            image = image.reshape(*x.shape[:-1], *image.shape[1:])
            for key, part in zip(self.images, image.split([shape(leaf)[2] for leaf in self.images.values()], -1)):
                outputs[key] = UnitNormal(part, 3)
        return outputs | self.decode_vectors(x, onehot) if self.vectors else outputs
