"""Counter-based random numbers: known answers and distributions. See test_contract.py for the rest."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fastwm.ops import philox_bits, philox_normal, philox_uniform
from fastwm.ops.philox import rand, randn
from tests.backends import Target

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DRAWS = [philox_bits, philox_uniform, philox_normal]
NORMAL_TOLERANCE = 3e-6  # as documented


def streams(*pairs: tuple[int, int], device: str = "cpu") -> Tensor:
    return torch.tensor(pairs, device=device)


def signed(low: int, high: int) -> int:
    """Two words as an int64 of the same bits."""
    return int.from_bytes((low | high << 32).to_bytes(8, "little"), "little", signed=True)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_known_answers(on: Target, counter: list[int], key: list[int], expected: list[int]) -> None:
    """Random123's kat_vectors for philox4x32, 10 rounds: the same on every backend."""
    stream = streams((signed(*key), signed(*counter[:2])), device=on.device)
    words = philox_bits(stream, 4, first=signed(*counter[2:]))[0]
    assert [word & 0xFFFFFFFF for word in words.tolist()] == expected
    values = philox_uniform(stream, 4, first=signed(*counter[2:]))[0]
    assert values.tolist() == [(word >> 8) / 2**24 for word in expected]


def test_normal_by_hand(on: Target) -> None:
    """Box and Muller of the known words of the zero counter, in float64."""
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    expected = []
    for x, y in (words[:2], words[2:]):
        radius, angle = math.sqrt(-2 * math.log(((x >> 9) + 0.5) / 2**23)), 2 * math.pi * (y >> 8) / 2**24
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    drawn = philox_normal(streams((0, 0), device=on.device), 4)[0]
    assert_close(drawn.double().cpu(), torch.tensor(expected, dtype=torch.float64), atol=NORMAL_TOLERANCE, rtol=0)


def test_numbers_depend_only_on_where_they_stand(on: Target) -> None:
    """Rows on their own: a stream is the same alone, among others, in any order, and cut into pieces."""
    pairs = streams(*((9, dream << 32 | 5) for dream in range(70)), device=on.device)
    whole, order = philox_uniform(pairs, (3, 5)), torch.randperm(70)
    assert torch.equal(philox_uniform(pairs[order], (3, 5)), whole[order])
    assert torch.equal(philox_uniform(pairs[13], (3, 5)), whole[13])
    assert torch.equal(philox_uniform(pairs, 7), whole.flatten(1)[:, :7])
    assert torch.equal(philox_uniform(pairs, 7, first=2), whole.flatten(1)[:, 8:])
    assert len(whole.flatten().unique()) > 1000


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.__name__)
def test_seed_and_offset_both_change_everything(on: Target, draw) -> None:  # type: ignore[no-untyped-def]
    pairs = streams((1, 0), (1 + 2**32, 0), (2, 0), (1, 1), (1, 2**32), device=on.device)
    x = draw(pairs, 100)
    for i in range(5):
        assert ((x[i] == x).float().mean(-1) < 0.02).sum() == 4


def test_distributions(on: Target) -> None:
    n = 200_000 if on.backend != "triton" else 20_000
    pair = streams((11, 0), device=on.device)
    u = philox_uniform(pair, n)[0].double().cpu()  # CUDA's histogram has no deterministic form
    assert u.min() >= 0 and u.max() < 1
    counts = torch.histc(u, 20, 0, 1)
    assert ((counts - n / 20).square() / (n / 20)).sum() < 52  # 19 degrees of freedom: one in ten thousand
    x = philox_normal(pair, n)[0].double()
    edges = torch.linspace(0, 1, 21, dtype=torch.float64, device=x.device)[1:-1]
    counts = torch.bincount(torch.searchsorted(edges, torch.special.ndtr(x)), minlength=20)
    assert ((counts - n / 20).square() / (n / 20)).sum() < 52
    assert abs(x.mean()) < 4 / math.sqrt(n) and abs(x.square().mean() - 1) < 6 / math.sqrt(n)
    pairs_of_a_block = x.reshape(-1, 4)
    correlation = (pairs_of_a_block.T @ pairs_of_a_block) / len(pairs_of_a_block)
    assert (correlation - torch.eye(4).to(correlation)).abs().max() < 12 / math.sqrt(n)


@pytest.mark.parametrize(("draw", "mean", "std"), [(rand, 0.5, 12**-0.5), (randn, 0.0, 1.0)])
def test_rand_follows_torchs_seed(draw, mean: float, std: float) -> None:  # type: ignore[no-untyped-def]
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws += [draw(100, 200, 3, device=torch.device("cpu")) for _ in range(2)]
    assert draws[0].shape == (100, 200, 3) and draws[0].dtype == torch.float32
    assert torch.equal(draws[0], draws[2]) and torch.equal(draws[1], draws[3])
    for other in (draws[1], draws[4]):
        assert (draws[0] == other).float().mean() < 0.01
    for x in draws:
        assert abs(x.mean() - mean) < 5 * std / 60000**0.5 and abs(x.std() / std - 1) < 0.02


# Contracts


@pytest.mark.gpu
def test_a_cuda_graph_advances_its_own_stream() -> None:
    pair = streams((1, 0), device="cuda")
    philox_uniform(pair, 8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = philox_uniform(pair, 8)
        pair[:, 1] += 1
    pair[:, 1] = 0
    for step in range(3):
        graph.replay()
        assert torch.equal(drawn.cpu(), philox_uniform(streams((1, step)), 8))
