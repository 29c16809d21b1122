import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastwm import ref
from fastwm.ops._backend import Operator, select, vmap_rows


def philox_uniform(seed_offset: Tensor, shape: int | Sequence[int], first: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) that depend on nothing but where they stand.

    A pair (seed, offset) names a stream of numbers, of which the first `prod(shape)` fill the result. Nothing is
    kept between calls, so equal arguments give equal numbers, bit by bit, on every backend and device. A dream
    that draws from streams of its own, `(seed, dream << 32 | step)`, is the same in any batch and order.

        number i = (word i % 4 of Philox4x32-10(key = seed, counter = (offset, first + i // 4)) >> 8) / 2^24

    Args:
        seed_offset: `[..., 2]` int64: seed and offset, any 64 bits each. On the device where the numbers are
            wanted: it is read there, without synchronising, so a CUDA graph may advance it.
        shape: of each stream's numbers.
        first: the block of four numbers to begin with, which continues a stream: 64 bits, counted modulo 2^64.

    Returns:
        `[..., *shape]` float32, contiguous.

    Raises:
        ValueError: `seed_offset` is not `[..., 2]` int64, or `shape` is negative somewhere.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011
    """
    return _draw("uniform", seed_offset, shape, first)


def philox_normal(seed_offset: Tensor, shape: int | Sequence[int], first: int = 0) -> Tensor:
    """Standard normal numbers: as `philox_uniform`, two words giving two numbers by Box and Muller.

    The words are the same everywhere; the numbers agree between backends to 3e-6, as logarithms and cosines
    are rounded differently. The largest possible is 5.77.
    """
    return _draw("normal", seed_offset, shape, first)


def philox_bits(seed_offset: Tensor, shape: int | Sequence[int], first: int = 0) -> Tensor:
    """Random 32-bit words, as int32: as `philox_uniform`, before they are made numbers."""
    return _draw("bits", seed_offset, shape, first)


def rand(*shape: int, device: torch.device) -> Tensor:
    """`torch.rand` in float32; on the CPU by all threads, from a seed that torch's generator gives."""
    return philox_uniform(_seed(), shape) if device.type == "cpu" else torch.rand(shape, device=device)


def randn(*shape: int, device: torch.device) -> Tensor:
    """`torch.randn`, as `rand`."""
    return philox_normal(_seed(), shape) if device.type == "cpu" else torch.randn(shape, device=device)


def _seed() -> Tensor:
    return torch.randint(2**62, (2,))


def _draw(kind: str, seed_offset: Tensor, shape: int | Sequence[int], first: int) -> Tensor:
    if seed_offset.dtype != torch.int64 or seed_offset.dim() == 0 or seed_offset.shape[-1] != 2:
        raise ValueError(f"expected seed_offset [..., 2] of int64, got {list(seed_offset.shape)} {seed_offset.dtype}")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(size < 0 for size in shape):
        raise ValueError(f"expected a shape without negative sizes, got {list(shape)}")
    count = math.prod(shape)
    library = select(seed_offset, torch.float32)
    if library is None:
        numbers = getattr(ref, f"philox_{kind}")(seed_offset, count, first)
    else:
        numbers = _OPERATORS[kind](library, seed_offset, count, first)
    return numbers if len(shape) == 1 else numbers.reshape((*seed_offset.shape[:-1], *shape))


_OPERATORS = {kind: Operator(f"philox_{kind}", vmap_rows) for kind in ("bits", "uniform", "normal")}
