"""Checks of the arguments of recurrent models, where the names are still known."""

import torch
from torch import Tensor, nn


def check_precision(rssm: nn.Module) -> None:
    """Refuse a recurrent model converted by `.half()` or `.bfloat16()`."""
    weight = next(rssm.parameters())
    if weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"the RSSM's parameters are {weight.dtype}: keep them in float32, and use torch.autocast(device, "
            "torch.bfloat16) for products in bfloat16"
        )


def check_time_major(rows: int, **sequences: Tensor) -> None:
    """Refuse sequences that are not [T, B, ...] with the B rows of the state."""
    for name, x in sequences.items():
        if x.ndim < 2 or x.shape[1] != rows:
            swapped = x.ndim > 1 and x.shape[0] == rows
            raise ValueError(
                f"expected {name} time-major [T, B, ...] with the state's B = {rows}, got {list(x.shape)}"
                + (f": it looks batch-major, use {name}.transpose(0, 1)" if swapped else "")
            )
