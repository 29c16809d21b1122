"""Recurrent layers over whole sequences: `torch.nn.GRU` and `LSTM`, and a LayerNorm GRU, with `is_first` resets."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastwm import ops
from fastwm.nn.arguments import check_time_major
from fastwm.nn.cells import LayerNormGRUCell


class GRU(nn.RNNBase):
    """`torch.nn.GRU` on one scan a layer, with `is_first`: same arguments, same parameters, same state dict.

    Raises:
        ValueError: for `bidirectional=True`, which no world model is.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )
        _one_direction(self)

    def forward(self, input: Tensor, hx: Tensor | None = None, is_first: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Every step's carry of the last layer, and each layer's last carry.

        Args:
            input: `[T, B, X]`, or `[B, T, X]` if `batch_first`, or `[T, X]`.
            hx: `[L, B, D]`, or `[L, D]` beside `[T, X]`; zeros when it is None.
            is_first: bool, of input's shape without its last dimension: the carries are zero before these steps.

        Returns:
            output like `input` with D numbers for X, and the carries like `hx`.
        """
        x, (h,), is_first = _time_major(self, input, is_first, hx)
        last = []
        for layer in range(self.num_layers):
            x = _dropout(self, x, layer)
            x, h_T = ops.gru_scan(x, h[layer], *_weights(self, layer), is_first)
            last.append(h_T)
        return _as_given(self, input, x), _carry(input, last)


class LSTM(nn.RNNBase):
    """`torch.nn.LSTM` on one scan a layer, with `is_first`: same arguments, same parameters, same state dict.

    `forget_bias` is added to the forget gates at run time: 1 makes this World Models' cell.

    Raises:
        ValueError: for `bidirectional=True` or a `proj_size`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        forget_bias: float = 0.0,
    ):
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device,
            dtype,
        )  # fmt: skip
        _one_direction(self)
        self.forget_bias = forget_bias

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, is_first: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Every step's h of the last layer, and each layer's last (h, c). Shapes are those of `GRU`, `hx` = (h, c)."""
        x, (h, c), is_first = _time_major(self, input, is_first, *(hx or (None, None)))
        last_h, last_c = [], []
        for layer in range(self.num_layers):
            x = _dropout(self, x, layer)
            weights = _weights(self, layer)
            x, h_T, c_T = ops.lstm_scan(x, h[layer], c[layer], *weights, is_first, self.forget_bias)
            last_h.append(h_T)
            last_c.append(c_T)
        return _as_given(self, input, x), (_carry(input, last_h), _carry(input, last_c))


class LayerNormGRU(LayerNormGRUCell):
    """A sequence of `LayerNormGRUCell`: the same arguments and the same state dict, one scan for all steps."""

    def forward(  # type: ignore[override]
        self, input: Tensor, hx: Tensor | None = None, is_first: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`input` [T, B, X], `hx` [B, D], `is_first` [T, B] -> every step's carry [T, B, D], the last [B, D]."""
        if hx is None:
            hx = self.linear.weight.new_zeros(input.shape[1], self.hidden_size)
        check_time_major(hx.shape[0], input=input)
        eps = self.layer_norm.eps
        return ops.layernorm_gru_scan(input, hx, *self.params, is_first, self.order, eps, self.update_bias)


def _one_direction(layers: nn.RNNBase) -> None:
    if layers.bidirectional or layers.proj_size:
        raise ValueError("bidirectional layers and projections are not supported: use torch.nn")


def _weights(layers: nn.RNNBase, layer: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    weight_ih, weight_hh = (layers.get_parameter(f"{name}_l{layer}") for name in ("weight_ih", "weight_hh"))
    bias_ih, bias_hh = (getattr(layers, f"{name}_l{layer}", None) for name in ("bias_ih", "bias_hh"))
    return weight_ih, weight_hh, bias_ih, bias_hh


def _time_major(
    layers: nn.RNNBase, input: Tensor, is_first: Tensor | None, *carries: Tensor | None
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """Input and resets as `[T, B, ...]`, the carries as `[L, B, D]`."""
    if not isinstance(input, Tensor) or input.dim() not in (2, 3):
        got = list(input.shape) if isinstance(input, Tensor) else type(input).__name__
        raise ValueError(f"expected a tensor of 2 or 3 dimensions, got {got}; packed sequences become `is_first`")
    x = input.unsqueeze(1) if input.dim() == 2 else input.transpose(0, 1) if layers.batch_first else input
    if is_first is not None and is_first.shape != input.shape[:-1]:
        raise ValueError(f"expected is_first {list(input.shape[:-1])}, got {list(is_first.shape)}")
    if is_first is not None:
        is_first = is_first.unsqueeze(1) if input.dim() == 2 else is_first.T if layers.batch_first else is_first
    shape = (layers.num_layers, *((x.shape[1],) if input.dim() == 3 else ()), layers.hidden_size)
    full = []
    for carry in carries:
        if carry is not None and carry.shape != shape:
            other = (*shape[:1], *x.shape[:1], *shape[2:])
            swapped = carry.dim() == 3 and tuple(carry.shape) == other
            hint = f"; input {list(input.shape)} is time-major [T, B, X] unless batch_first" if swapped else ""
            raise ValueError(f"expected carries {list(shape)}, got {list(carry.shape)}{hint}")
        carry = _weights(layers, 0)[1].new_zeros(shape) if carry is None else carry
        full.append(carry.unsqueeze(1) if input.dim() == 2 else carry)
    return x, full, is_first


def _dropout(layers: nn.RNNBase, x: Tensor, layer: int) -> Tensor:
    return F.dropout(x, layers.dropout, layers.training) if layer > 0 and layers.dropout > 0 else x


def _as_given(layers: nn.RNNBase, input: Tensor, output: Tensor) -> Tensor:
    return output.squeeze(1) if input.dim() == 2 else output.transpose(0, 1) if layers.batch_first else output


def _carry(input: Tensor, last: list[Tensor]) -> Tensor:
    carry = torch.stack(last)
    return carry.squeeze(1) if input.dim() == 2 else carry
