import math
from collections.abc import Sequence

import torch
from torch import Tensor

MASK = 0xFFFFFFFF  # words are held in int64, which no product of theirs below leaves


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of a counter of four words under a key of two: four words, in int64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high_a, low_a = _multiply(0xD2511F53, c0)
        high_b, low_b = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def _multiply(a: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low word of a product of two words."""
    upper, lower = a * (x >> 16), a * (x & 0xFFFF)  # below 2^48: their sum would fit, shifted it would not
    high = (upper + (lower >> 16)) >> 16
    low = (((upper & 0xFFFF) << 16) + lower) & MASK
    return high, low


def _words(seed_offset: Tensor, count: int, first: int) -> Tensor:
    """`[..., blocks, 4]` in int64."""
    blocks = first + torch.arange((count + 3) // 4, device=seed_offset.device)
    seed, offset = seed_offset[..., None].unbind(-2)  # [..., 1]
    counter = (offset & MASK, (offset >> 32) & MASK, blocks & MASK, (blocks >> 32) & MASK)
    words = philox4x32(counter, (seed & MASK, (seed >> 32) & MASK))
    return torch.stack(torch.broadcast_tensors(*words), -1)


def philox_bits(seed_offset: Tensor, count: int, first: int = 0) -> Tensor:
    """Random words, `[..., count]`: see `fastwm.ops.philox_bits`."""
    words = _words(seed_offset, count, first).flatten(-2)[..., :count]
    return ((words ^ 0x80000000) - 0x80000000).to(torch.int32)  # as int32 of the same bits


def philox_uniform(seed_offset: Tensor, count: int, first: int = 0) -> Tensor:
    """Uniform numbers, `[..., count]`: see `fastwm.ops.philox_uniform`."""
    return (_words(seed_offset, count, first).flatten(-2)[..., :count] >> 8).float() * 2**-24


def philox_normal(seed_offset: Tensor, count: int, first: int = 0) -> Tensor:
    """Normal numbers, `[..., count]`: see `fastwm.ops.philox_normal`. Rounded from float64."""
    x, y = _words(seed_offset, count, first).unflatten(-1, (2, 2)).unbind(-1)  # [..., blocks, 2]
    radius = (-2 * ((x >> 9).double() * 2**-23 + 2**-24).log()).sqrt()
    angle = 2 * math.pi * 2**-24 * (y >> 8).double()
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(-3)[..., :count].float()
