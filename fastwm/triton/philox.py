"""Counter-based random numbers: one program a run of blocks of four numbers, of however many streams."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastwm.triton._library import operator

BLOCK = 256
TURN = tl.constexpr(2 * math.pi)


@triton.jit
def _words(seed, offset, block):  # type: ignore[no-untyped-def]
    """Not tl.randint4x, which puts the words of the counter elsewhere."""
    return tl.philox(
        seed,
        (offset & 0xFFFFFFFF).to(tl.uint32),
        ((offset >> 32) & 0xFFFFFFFF).to(tl.uint32),
        (block & 0xFFFFFFFF).to(tl.uint32),
        ((block >> 32) & 0xFFFFFFFF).to(tl.uint32),
    )


@triton.jit
def philox_unit(x):  # type: ignore[no-untyped-def]
    """A word as a number in [0, 1)."""
    return (x >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def philox_gauss(x, y):  # type: ignore[no-untyped-def]
    """Two words as two standard normal numbers. Cosine of half a turn less: a smaller angle is rounded less."""
    radius = tl.sqrt(-2 * tl.log((x >> 9).to(tl.float32) * 1.1920928955078125e-07 + 5.9604644775390625e-08))
    angle = (philox_unit(y) - 0.5) * TURN
    return -radius * tl.cos(angle), -radius * tl.sin(angle)


@triton.jit
def _draw(seed_offset, out, streams, count, per_stream, first, KIND: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    thread = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = thread < streams * per_stream
    stream = thread // per_stream
    block = thread - stream * per_stream
    seed = tl.load(seed_offset + 2 * stream, mask, 0)
    offset = tl.load(seed_offset + 2 * stream + 1, mask, 0)
    a, b, c, d = _words(seed, offset, first + block)
    if KIND == "uniform":
        a, b, c, d = philox_unit(a), philox_unit(b), philox_unit(c), philox_unit(d)
    elif KIND == "normal":
        a, b = philox_gauss(a, b)
        c, d = philox_gauss(c, d)
    else:
        a, b, c, d = (
            a.to(tl.int32, bitcast=True),
            b.to(tl.int32, bitcast=True),
            c.to(tl.int32, bitcast=True),
            d.to(tl.int32, bitcast=True),
        )
    i = 4 * block
    at = out + stream * count + i
    tl.store(at, a, mask & (i < count))
    tl.store(at + 1, b, mask & (i + 1 < count))
    tl.store(at + 2, c, mask & (i + 2 < count))
    tl.store(at + 3, d, mask & (i + 3 < count))


def _launch(kind: str, dtype: torch.dtype, seed_offset: Tensor, count: int, first: int) -> Tensor:
    out = seed_offset.new_empty((*seed_offset.shape[:-1], count), dtype=dtype)
    streams, per_stream = seed_offset.numel() // 2, triton.cdiv(count, 4)
    if out.numel():
        with torch.cuda.device_of(seed_offset):
            _draw[(triton.cdiv(streams * per_stream, BLOCK),)](
                seed_offset.contiguous(), out, streams, count, per_stream, first, KIND=kind, BLOCK=BLOCK
            )
    return out


@operator
def philox_bits(seed_offset: Tensor, count: int, first: int) -> Tensor:
    return _launch("bits", torch.int32, seed_offset, count, first)


@operator
def philox_uniform(seed_offset: Tensor, count: int, first: int) -> Tensor:
    return _launch("uniform", torch.float32, seed_offset, count, first)


@operator
def philox_normal(seed_offset: Tensor, count: int, first: int) -> Tensor:
    return _launch("normal", torch.float32, seed_offset, count, first)
