"""C of World Models: one small layer from what V and M know to the action."""

import itertools
from typing import Literal

import torch
from torch import Tensor, nn

from fastwm.nn.fused import plain

Squash = Literal["tanh", "car"]
Features = Literal["z", "zh", "zch"]


class Controller(nn.Module):
    """`action = squash(W [z, c, h] + b)`, with `hidden` tanh units between where that is not 0.

    Features are z, [z, h] or [z, c, h]: the latent of now, and M's state from before it. Published sizes: CarRacing
    "zh" with bias 867 parameters, "z" 99, "z" with 40 hidden units 1,443; Doom "zch" without bias 1,088. Zero weights.

    Source: Ha and Schmidhuber, "World Models", appendix A.3, and their code
    """

    def __init__(
        self,
        latents: int,
        state: int,
        actions: int,
        squash: Squash,
        features: Features = "zh",
        bias: bool = True,
        hidden: int = 0,
    ):
        super().__init__()
        self.squash, self.features = squash, features
        width = {"z": latents, "zh": latents + state, "zch": latents + 2 * state}[features]
        widths = [width, hidden, actions] if hidden else [width, actions]
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=bias) for i, o in itertools.pairwise(widths))
        for p in self.parameters():
            nn.init.zeros_(p)

    def forward(self, z: Tensor, h: Tensor, c: Tensor) -> Tensor:
        """`[..., Z]`, `[..., H]` twice -> the action `[..., A]` as M sees it."""
        x = self.inputs(z, h, c)
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else torch.tanh(x))
        return squash(x, self.squash)

    def inputs(self, z: Tensor, h: Tensor, c: Tensor) -> Tensor:
        """The features side by side."""
        return torch.cat({"z": (z,), "zh": (z, h), "zch": (z, c, h)}[self.features], -1)

    def linears(self) -> list[nn.Linear]:
        return [plain(layer, nn.Linear, f"layers[{i}] of the controller") for i, layer in enumerate(self.layers)]

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def split(self, vector: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Flat parameters `[..., size]` -> weight `[..., out, in]` and bias `[..., out]` of every layer.

        The order is the original's: a layer's biases, then its weights, feature by feature.
        """
        layers: list[tuple[Tensor, Tensor | None]] = []
        at = 0
        for layer in self.linears():
            bias = None
            if layer.bias is not None:
                bias, at = vector[..., at : at + layer.out_features], at + layer.out_features
            weight = vector[..., at : at + layer.weight.numel()]
            at += layer.weight.numel()
            layers.append((weight.unflatten(-1, (layer.in_features, layer.out_features)).mT, bias))
        return layers

    def vector(self) -> Tensor:
        """All parameters, flat [size]: the inverse of `load_vector`."""
        parts = [p for layer in self.linears() for p in (layer.bias, layer.weight.mT.flatten()) if p is not None]
        return torch.cat(parts).detach()

    @torch.no_grad()
    def load_vector(self, vector: Tensor) -> None:
        """Take the parameters from a flat vector [size]."""
        if vector.shape != (self.size,):
            raise ValueError(f"expected {self.size} parameters, got {list(vector.shape)}")
        for layer, (weight, bias) in zip(self.linears(), self.split(vector)):
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)

    def act_many(self, vectors: Tensor, z: Tensor, h: Tensor, c: Tensor) -> Tensor:
        """Each row by its own parameters: vectors `[B, size]` -> actions `[B, A]`."""
        x = self.inputs(z, h, c)
        for i, (weight, bias) in enumerate(self.split(vectors)):
            x = torch.einsum("boi,bi->bo", weight, x if i == 0 else torch.tanh(x))
            x = x if bias is None else x + bias
        return squash(x, self.squash)


def squash(x: Tensor, kind: Squash) -> Tensor:
    """tanh; for the car then gas (u + 1) / 2 and brake max(u, 0): zero weights drive at half gas, unbraked."""
    u = torch.tanh(x)
    if kind == "car":
        u = torch.stack([u[..., 0], (u[..., 1] + 1) / 2, u[..., 2].clamp(0, 1)], -1)
    return u
