"""DreamerV3's recurrent core over whole sequences."""

from collections.abc import Sequence

from torch import Tensor

from fastwm import ops
from fastwm.nn.cells import BlockGRUCell
from fastwm.nn.layers import RMSNorm


class BlockGRU(BlockGRUCell):
    """A `BlockGRUCell` over a sequence in one call: same arguments, same parameters, same state dict.

    With one input it is TorchRL's `DreamerV3BlockGRU`, time-major; `cell_weights.block_gru_from_torchrl` translates
    the state dict of its `cell`.
    """

    def forward(  # type: ignore[override]
        self, input: Tensor | Sequence[Tensor], hx: Tensor | None = None, is_first: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`input` [T, B, X], or one tensor for each of `input_size`; `hx` [B, D], zeros when None; `is_first` [T, B].

        Returns the carry after every step [T, B, D] and after the last [B, D]. See `fastwm.ops.block_gru_scan`.
        """
        if hx is None:
            x = input if isinstance(input, Tensor) else input[0]
            hx = self.gates.weight.new_zeros(x.shape[-2], self.hidden_size)
        return ops.block_gru_scan(input, hx, self.params, is_first, self.update_bias, RMSNorm.eps)
