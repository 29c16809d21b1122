"""Observation encoder and decoder of PlaNet, Dreamer V1 and V2: an MLP for vectors, four convolutions for images."""

from collections.abc import Mapping
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from fastwm import ops
from fastwm.nn.distributions import Categorical, UnitNormal
from fastwm.nn.encoder import split_space
from fastwm.nn.fused import plain
from fastwm.nn.gru_rssm import EPS
from fastwm.nn.keras import DenseMLP, glorot_linear, norm_act
from fastwm.nn.spaces import SpaceDict, SpaceError, classes, encode, shape, total_width

IMAGE_SIZE = 64
ENCODER_KERNELS = (4, 4, 4, 4)  # 64 -> 31 -> 14 -> 6 -> 2
DECODER_KERNELS = (5, 5, 6, 6)  # 1 -> 5 -> 13 -> 30 -> 64


class ConvStage(nn.Module):
    """Convolution, or its transpose, of stride 2 without padding -> LayerNorm over channels -> activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, activation: str, norm: bool, transposed: bool = False):
        super().__init__()
        self.conv = glorot_conv(inputs, outputs, kernel, transposed)
        self.norm = nn.LayerNorm(outputs, eps=EPS) if norm else None
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        return norm_act(self.conv(x).movedim(1, -1), self.norm, self.activation).movedim(-1, 1)


def glorot_conv(inputs: int, outputs: int, kernel: int, transposed: bool) -> "nn.Conv2d | nn.ConvTranspose2d":
    """Of stride 2 without padding, initialised as Keras does."""
    conv = (nn.ConvTranspose2d if transposed else nn.Conv2d)(inputs, outputs, kernel, stride=2)
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def image_channels(images: SpaceDict) -> int:
    """Of all images together; they must be 64x64."""
    for key, leaf in images.items():
        if shape(leaf)[:2] != (IMAGE_SIZE, IMAGE_SIZE):
            raise SpaceError(f"image {key!r} is {shape(leaf)[0]}x{shape(leaf)[1]}, but must be 64x64: use size 64")
    return sum(shape(leaf)[2] for leaf in images.values())


class ConvEncoder(nn.Module):
    """Prepared observations -> tokens [..., E]: the image's features in (H, W, C) order, then the vectors'."""

    def __init__(
        self, space: SpaceDict, units: int, layers: int, depth: int, activation: str, conv_activation: str, norm: bool
    ):
        super().__init__()
        self.vectors, self.images = split_space(space)
        self.out_dim = 0
        if self.images:
            widths = [image_channels(self.images), *(depth * 2**i for i in range(4))]
            self.cnn = nn.Sequential(
                *(ConvStage(i, o, k, conv_activation, norm) for (i, o), k in zip(pairwise(widths), ENCODER_KERNELS))
            )
            self.out_dim += 2 * 2 * widths[-1]
        if self.vectors:
            self.mlp = DenseMLP(total_width(self.vectors), units, layers, activation, norm)
            self.out_dim += self.mlp.out_dim

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        tokens = []
        if self.images:
            image = torch.cat([obs[key] for key in sorted(self.images)], -1)  # [..., 64, 64, C]
            x = self.cnn(image.flatten(0, -4).movedim(-1, 1))
            tokens.append(x.movedim(1, -1).reshape(*image.shape[:-3], -1))
        if self.vectors:
            tokens.append(self.mlp(encode(self.vectors, obs)))
        return torch.cat(tokens, -1)


class ConvDecoder(nn.Module):
    """Features -> a distribution of every prepared observation: N(mean, 1), or a categorical where it is discrete."""

    def __init__(
        self, space: SpaceDict, inputs: int, units: int, layers: int, depth: int, activation: str, conv_activation: str,
        norm: bool,
    ):  # fmt: skip
        super().__init__()
        self.vectors, self.images = split_space(space)
        if self.images:
            widths = [32 * depth, 4 * depth, 2 * depth, depth]
            self.conv_in = glorot_linear(inputs, widths[0])
            self.cnn = nn.Sequential(
                *(
                    ConvStage(i, o, k, conv_activation, norm, transposed=True)
                    for (i, o), k in zip(pairwise(widths), DECODER_KERNELS)
                )
            )
            self.conv_out = glorot_conv(depth, image_channels(self.images), DECODER_KERNELS[-1], transposed=True)
        if self.vectors:
            self.mlp = DenseMLP(inputs, units, layers, activation, norm)
            widths = [prod(shape(leaf)) * (classes(leaf) or 1) for leaf in self.vectors.values()]
            self.heads = nn.ModuleList(glorot_linear(self.mlp.out_dim, outputs) for outputs in widths)

    def forward(self, x: Tensor, onehot: Tensor | None = None) -> dict[str, UnitNormal | Categorical]:
        """[onehot, x] [..., F] -> distributions [..., *shape]."""
        batch = x.shape[:-1]
        outputs: dict[str, UnitNormal | Categorical] = {}
        if self.images:
            feat = x if onehot is None else torch.cat([onehot, x], -1)
            coarse = self.conv_in(feat.flatten(0, -2))[..., None, None]
            image = self.conv_out(self.cnn(coarse)).movedim(1, -1)  # [N, 64, 64, C]
            image = image.reshape(*batch, *image.shape[1:])
            keys = sorted(self.images)
            for key, part in zip(keys, image.split([shape(self.images[key])[2] for key in keys], -1)):
                outputs[key] = UnitNormal(part, 3)
        if self.vectors:
            heads = [plain(head, nn.Linear, f"heads[{i}] of the decoder") for i, head in enumerate(self.heads)]
            out = ops.LinearWeights(*(torch.cat(part) for part in zip(*((head.weight, head.bias) for head in heads))))
            parts = self.mlp.then(out, x, onehot).split([head.out_features for head in heads], -1)
            for (key, leaf), part in zip(self.vectors.items(), parts):
                y = part.reshape(*batch, *shape(leaf), *[classes(leaf)] * bool(classes(leaf)))
                outputs[key] = Categorical(y) if classes(leaf) else UnitNormal(y, len(shape(leaf)))
        return outputs
