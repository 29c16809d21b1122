"""Recurrent cells on fused gates, as modules whose weights can be exchanged with PyTorch's and the peers' cells.

Every cell is called as `cell(input, hx=None, is_first=None)`: `input` `[..., X]`, `hx` the carry `[..., D]` (zeros
when it is None), and `is_first` `[...]` boolean resets the carry, and stops its gradient, before the step.
`fastwm.nn.cell_weights` translates state dicts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastwm import ops
from fastwm.nn.fused import plain
from fastwm.nn.layers import BlockLinear, Dense
from fastwm.ops.cell_steps import InputOrder, in_dtype_of


class GRUCell(nn.GRUCell):
    """`torch.nn.GRUCell` with fused gates and `is_first`: same parameters, same state dict. Dreamer V1's cell."""

    def forward(self, input: Tensor, hx: Tensor | None = None, is_first: Tensor | None = None) -> Tensor:
        """`input` [..., X], `hx` [..., D] -> next `hx` [..., D]."""
        hx = _zeros(input, self.hidden_size) if hx is None else hx
        return ops.gru_step(input, hx, *self.params, is_first)

    @property
    def params(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The parameters in the order of `fastwm.ops.gru_step`."""
        return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh


class LSTMCell(nn.LSTMCell):
    """`torch.nn.LSTMCell` with fused gates and `is_first`: same parameters, same state dict.

    `forget_bias` is added to the forget gate at run time: 1 makes this World Models' cell.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        forget_bias: float = 0.0,
    ):
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.forget_bias = forget_bias

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, is_first: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`input` [..., X], `hx` = (h, c), each [..., D] -> next (h, c)."""
        h, c = (_zeros(input, self.hidden_size),) * 2 if hx is None else hx
        weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        return ops.lstm_step(input, h, c, *weights, is_first, self.forget_bias)


class PlanetGRUCell(nn.Module):
    """PlaNet's cell (TensorFlow's GRUBlockCell): reset before the recurrent product, an update gate that keeps.

    Glorot-uniform weights; the gates' biases start at 1, the candidate's at 0.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.weight_ru = nn.Parameter(torch.empty(2 * hidden_size, input_size + hidden_size))
        self.bias_ru = nn.Parameter(torch.ones(2 * hidden_size))
        self.weight_c = nn.Parameter(torch.empty(hidden_size, input_size + hidden_size))
        self.bias_c = nn.Parameter(torch.zeros(hidden_size))
        nn.init.xavier_uniform_(self.weight_ru)
        nn.init.xavier_uniform_(self.weight_c)

    def forward(self, input: Tensor, hx: Tensor | None = None, is_first: Tensor | None = None) -> Tensor:
        """`input` [..., X], `hx` [..., D] -> next `hx` [..., D]."""
        hx = _zeros(input, self.hidden_size) if hx is None else hx
        return ops.planet_gru_step(input, hx, *self.params, is_first)

    @property
    def params(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The parameters in the order of `fastwm.ops.planet_gru_step`."""
        return self.weight_ru, self.bias_ru, self.weight_c, self.bias_c


class LayerNormGRUCell(nn.Module):
    """The cell of DreamerV2, and of DreamerV3's first version: one LayerNorm over all gates.

    Args:
        bias: of the product; DreamerV2 has one, DreamerV3 has none.
        order: of the product's inputs: "xh" in DreamerV2 and dreamerv3-torch, "hx" in DreamerV3 and sheeprl.
        eps: of the norm; update_bias: a constant of the update gate.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        order: InputOrder = "xh",
        eps: float = 1e-3,
        update_bias: float = -1.0,
    ):
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.order, self.update_bias = order, update_bias
        self.linear = nn.Linear(input_size + hidden_size, 3 * hidden_size, bias=bias)
        self.layer_norm = nn.LayerNorm(3 * hidden_size, eps=eps)

    def forward(self, input: Tensor, hx: Tensor | None = None, is_first: Tensor | None = None) -> Tensor:
        """`input` [..., X], `hx` [..., D] -> next `hx` [..., D]."""
        hx = _zeros(input, self.hidden_size) if hx is None else hx
        eps = self.layer_norm.eps
        return ops.layernorm_gru_step(input, hx, *self.params, is_first, self.order, eps, self.update_bias)

    @property
    def params(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """The parameters in the order of `fastwm.ops.layernorm_gru_step`."""
        linear = plain(self.linear, nn.Linear, "linear of LayerNormGRUCell")
        norm = plain(self.layer_norm, nn.LayerNorm, "layer_norm of LayerNormGRUCell")
        return linear.weight, linear.bias, norm.weight, norm.bias


class BlockGRUCell(nn.Module):
    """DreamerV3's recurrent core: embeddings of the carry and of every input, a block layer, the gates.

    Every block sees its own slice of the carry and all embeddings; its outputs split, within the block, into
    reset, cand and update (see `fastwm.ops.block_gru_gates`). With `input_size=(S*C, A)` this is the core of
    DreamerV3, r2dreamer's `Deter`; with one input it is TorchRL's `DreamerV3BlockGRUCell`. Actions are to be
    scaled by the caller.

    Args:
        input_size: the width of the input, or the widths of several, which are embedded apart.
        hidden_size: D, the carry's width, which `blocks` divides.
        embed_size: the width of each embedding.
        layers: block-diagonal layers in front of the gates.
    """

    def __init__(
        self,
        input_size: int | Sequence[int],
        hidden_size: int,
        embed_size: int = 512,
        blocks: int = 8,
        layers: int = 1,
        update_bias: float = -1.0,
    ):
        super().__init__()
        sizes = (input_size,) if isinstance(input_size, int) else tuple(input_size)
        self.hidden_size, self.blocks, self.update_bias = hidden_size, blocks, update_bias
        self.embed_carry = Dense(hidden_size, embed_size)
        self.embed_inputs = nn.ModuleList(Dense(size, embed_size) for size in sizes)
        first = hidden_size + (1 + len(sizes)) * embed_size * blocks
        widths = [first] + (layers - 1) * [hidden_size]
        self.hidden = nn.Sequential(*(Dense(width, hidden_size, blocks) for width in widths))
        self.gates = BlockLinear(hidden_size, 3 * hidden_size, blocks)

    @property
    def params(self) -> ops.BlockGRUWeights:
        """The parameters as `fastwm.ops.block_gru_scan` takes them."""
        embeds, hidden = (
            tuple(plain(layer, Dense, f"{name}[{i}] of BlockGRUCell").params for i, layer in enumerate(part))
            for name, part in (("embed_inputs", self.embed_inputs), ("hidden", self.hidden))
        )
        carry = plain(self.embed_carry, Dense, "embed_carry of BlockGRUCell").params
        return ops.BlockGRUWeights(
            carry, embeds, hidden, plain(self.gates, BlockLinear, "gates of BlockGRUCell").params
        )

    def forward(
        self, input: Tensor | Sequence[Tensor], hx: Tensor | None = None, is_first: Tensor | None = None
    ) -> Tensor:
        """`input` [..., X], or one tensor for each of `input_size`; `hx` [..., D] -> next `hx` [..., D]."""
        inputs = (input,) if isinstance(input, Tensor) else tuple(input)
        hx = _zeros(inputs[0], self.hidden_size) if hx is None else ops.reset_carry(hx, is_first)
        carry = in_dtype_of(self.gates.weight, hx)
        embeds = [self.embed_carry(carry), *(embed(x) for embed, x in zip(self.embed_inputs, inputs, strict=True))]
        x = torch.cat(embeds, -1).unsqueeze(-2)  # [..., 1, (1 + inputs) * U]
        x = x.expand(*x.shape[:-2], self.blocks, x.shape[-1])
        own = hx.unflatten(-1, (self.blocks, self.hidden_size // self.blocks)).to(x.dtype)  # [..., G, D/G]
        x = self.hidden(torch.cat([own, x], -1).flatten(-2))
        return ops.block_gru_step(x, hx, self.gates.weight, self.gates.bias, update_bias=self.update_bias)


def _zeros(like: Tensor, width: int) -> Tensor:
    return like.new_zeros(*like.shape[:-1], width)
