"""Dreams of World Models: the recorded ones, every backend against the reference, and each row for itself."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fastwm
from fastwm.ops import MDNRNNWeights, Rollouts, mdn_rnn_imagine, philox_uniform
from tests.backends import Target, needs_cpu, needs_kernel

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_kernel("mdn_rnn_imagine")]
reference = sys.modules["fastwm.ref.mdn_rnn_imagine"]

Golden = dict[str, Tensor]


def load(name: str) -> Golden:
    with np.load(Path(__file__).parent / "golden" / name) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "fb"}
    return {key: x.double() if x.dtype.is_floating_point else x for key, x in arrays.items()}


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load("mdn_rnn.npz")


def recorded_weights(kernel: Tensor, bias: Tensor, out_weight: Tensor, out_bias: Tensor) -> MDNRNNWeights:
    hidden = kernel.shape[1] // 4
    return MDNRNNWeights(kernel[:-hidden].T, kernel[-hidden:].T, bias, out_weight.T, out_bias)


@pytest.fixture
def recorded_noise(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor, Tensor], None]:
    """Makes the reference draw these numbers [T, Z], by the step in `seed_offset`."""

    def replay(uniform: Tensor, normal: Tensor) -> None:
        monkeypatch.setattr(reference, "philox_uniform", lambda stream, count: uniform[stream[:, 1]])
        monkeypatch.setattr(reference, "philox_normal", lambda stream, count, first: normal[stream[:, 1]])

    return replay


@pytest.fixture
def forced_ref() -> Iterator[None]:
    with fastwm.backend("ref"):
        yield


@pytest.mark.usefixtures("forced_ref")
def test_recorded_dream_of_the_published_car(recorded_noise: Callable[[Tensor, Tensor], None]) -> None:
    """Published weights, their best controller on [z, h], temperature 1."""
    g = load("mdn_rnn_car_pretrained.npz")
    w = recorded_weights(g["lstm_kernel"], g["lstm_bias"], g["out_w"], g["out_b"])
    recorded_noise(g["dream/uniform"], g["dream/normal"])
    z0, stream = g["dream/z"][:1], torch.zeros(1, 2, dtype=torch.int64)
    result = mdn_rnn_imagine(
        z0, g["controller_w"].T[None], g["controller_b"][None], w, stream, 20, squash="car", forget_bias=1,
        order="ijfo", trajectories=True,
    )  # fmt: skip
    assert result.z is not None and result.action is not None
    assert_close(result.z[:, 0], g["dream/z"][1:], atol=1e-4, rtol=1e-4)  # recorded in float32
    assert_close(result.action[:, 0], g["dream/action"], atol=1e-5, rtol=1e-5)
    assert result.lengths.tolist() == [20] and result.returns.tolist() == [20]


@pytest.mark.usefixtures("forced_ref")
@pytest.mark.parametrize("tau", ["0.5", "1.0", "1.25"])
@pytest.mark.parametrize("task", ["car", "doom"])
def test_recorded_samples(
    golden: Golden, recorded_noise: Callable[[Tensor, Tensor], None], monkeypatch: pytest.MonkeyPatch, task: str,
    tau: str,
) -> None:  # fmt: skip
    """The dream environment runs on after its end, with a zeroed state: there the next dream begins."""
    w = recorded_weights(*(golden[f"{task}/params0/{x}"] for x in ("lstm_kernel", "lstm_bias", "out_w", "out_b")))
    sample = {key: golden[f"{task}/sample/tau{tau}/{key}"] for key in ("uniform", "normal", "z")}
    actions, steps = golden[f"{task}/sample/actions"].reshape(len(sample["z"]), -1), len(sample["z"])
    done = golden.get(f"{task}/sample/tau{tau}/done", torch.zeros(steps, dtype=torch.bool))
    recorded_noise(sample["uniform"], sample["normal"])
    start, z0 = 0, golden[f"{task}/sample/z0"][None]
    while start < steps:
        given = iter(actions[start:])
        monkeypatch.setattr(reference, "_act", lambda z, *rest, given=given: next(given)[None].expand(len(z), -1))
        result = mdn_rnn_imagine(
            z0, torch.zeros(1, actions.shape[1], z0.shape[1], dtype=torch.float64), None, w,
            torch.tensor([[0, start]]), steps - start, ("done",) if task == "doom" else (), float(tau),
            forget_bias=1, order="ijfo", trajectories=True,
        )  # fmt: skip
        length = int(result.lengths)
        assert result.z is not None and result.done is not None
        assert_close(result.z[:length, 0], sample["z"][start : start + length], atol=1e-5, rtol=1e-5)
        assert torch.equal(result.done[:length, 0], done[start : start + length])
        assert not result.z[length:].any() and not result.done[length:].any()
        start, z0 = start + length, result.z[length - 1]
    assert task == "car" or done.any()


def make(
    task: str, P: int = 3, rollouts: int = 4, Z: int = 5, H: int = 12, K: int = 5, features: str = "zch",
    dtype: torch.dtype = torch.float64, extra: tuple[str, ...] | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """Arguments without the number of steps, and the keywords; dreams end after some steps in Doom."""
    torch.manual_seed(0)
    car, N = task == "car", P * rollouts
    A = 3 if car else 1
    extra = (() if car else ("done",)) if extra is None else extra
    width = {"z": Z, "zh": Z + H, "zch": Z + 2 * H}[features]
    inputs = Z + A + (not car)

    def weight(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype) / shape[-1] ** 0.5

    w = MDNRNNWeights(weight(4 * H, inputs), weight(4 * H, H), weight(4 * H), weight(len(extra) + 3 * Z * K, H),
                      weight(len(extra) + 3 * Z * K))  # fmt: skip
    if "done" in extra:
        w.out_weight[extra.index("done")] *= 4
        w.out_bias[extra.index("done")] = -1
    stream = torch.stack([torch.full((N,), 7), torch.arange(N) << 32], -1)
    args = (weight(N, Z), weight(P, A, width), weight(P, A) if car else None, w, stream)
    return args, dict(extra=extra, squash="car" if car else "tanh", forget_bias=1.0, order="ijfo", temperature=1.15)


def rollout(made: tuple[tuple[Any, ...], dict[str, Any]], steps: int = 9, **changed: Any) -> Rollouts:
    args, options = made
    return mdn_rnn_imagine(*args, steps, **options | dict(trajectories=True) | changed)


@pytest.mark.parametrize("task", ["car", "doom"])
def test_each_row_follows_its_own_controller_and_stream(task: str) -> None:
    """A row alone, with its candidate's controller, is what it is in the batch."""
    made = make(task)
    (z, controllers, bias, w, stream), options = made
    whole = rollout(made)
    for n in range(len(z)):
        p = slice(n // 4, n // 4 + 1)
        alone = (z[n : n + 1], controllers[p], None if bias is None else bias[p], w, stream[n : n + 1])
        row = rollout((alone, options))
        assert_close(row.lengths, whole.lengths[n : n + 1])
        assert_close(row.returns, whole.returns[n : n + 1])
        assert row.z is not None and whole.z is not None
        assert_close(row.z[:, 0], whole.z[:, n])


def test_lengths_and_returns() -> None:
    """Last step of a dream: the step that ends a dream counts, its reward too, and nothing is written behind it."""
    made = make("doom", extra=("reward", "done"))
    result = rollout(made, 20)
    assert result.z is not None and result.action is not None and result.done is not None
    assert len(result.lengths.unique()) > 1 and result.lengths.min() < 20
    ended = result.done.any(0)
    assert torch.equal(result.done.float().argmax(0)[ended] + 1, result.lengths[ended])
    assert (result.lengths[~ended] == 20).all()
    for n, length in enumerate(result.lengths):
        assert result.z[:length, n].any(-1).all() and not result.z[length:, n].any()
        assert result.action[:length, n].all() and not result.action[length:, n].any()
    short = rollout(made, 5)  # a sum over fewer steps is a part of it
    early = result.lengths <= 5
    assert early.any() and torch.equal(short.returns[early], result.returns[early])
    assert not torch.equal(short.returns, result.returns)
    counted = make("doom")
    assert_close(rollout(counted).returns, rollout(counted).lengths.double())


def test_temperature() -> None:
    """Temperature: it sharpens the weights, and widens the noise by its square root."""
    made = make("car", rollouts=2)
    args, options = made
    z = [rollout(made, 1, temperature=t).z for t in (1e-12, 1.0, 1.0)]
    assert torch.equal(z[1], z[2]) and not torch.allclose(z[0], z[1])
    w = args[3]
    single = MDNRNNWeights(w.weight_ih, w.weight_hh, w.bias, torch.zeros(15, 12).double(), torch.zeros(15).double())
    by_tau = {t: rollout(((*args[:3], single, args[4]), options), 1, temperature=t).z for t in (0.25, 1.0, 4.0)}
    assert_close(by_tau[0.25] * 2, by_tau[1.0])
    assert_close(by_tau[4.0] / 2, by_tau[1.0])


TASKS = {
    "car": ("car", {}),
    "doom": ("doom", {}),
    "reads z": ("car", dict(features="z", Z=1, H=3, K=1, extra=("reward",))),
    "reads z, h": ("doom", dict(features="zh", Z=32, H=40, P=2, rollouts=70)),
    "reward first": ("doom", dict(extra=("reward", "done"), Z=9, H=37, K=4)),
    "no dreams": ("doom", dict(rollouts=0)),
}


def move(made: Any, device: str) -> Any:
    (z, controllers, bias, w, stream), options = made
    bias = None if bias is None else bias.to(device)
    w = MDNRNNWeights(*(x.to(device) for x in w))
    return (z.to(device), controllers.to(device), bias, w, stream.to(device)), options


@pytest.mark.parametrize("logit", [-1e-6, 0.0, 1e-6])
def test_the_end_is_certain_at_every_temperature(logit: float, native: Target) -> None:
    """Certain end: a dream ends where the logit is above 0, strictly; temperature does not touch it."""
    made = move(make("doom"), native.device)
    made[0][3].out_weight[0], made[0][3].out_bias[0] = 0, logit
    for temperature in (0.01, 1.0, 1.3):
        lengths = rollout(made, 7, temperature=temperature).lengths
        assert (lengths == (1 if logit > 0 else 7)).all()
    made = move(make("doom"), native.device)
    first = [rollout(made, 1, temperature=temperature) for temperature in (0.01, 1.3)]
    assert torch.equal(first[0].done, first[1].done) and not torch.equal(first[0].z, first[1].z)


@pytest.mark.parametrize("order", ["ijfo", "ifgo"])
@pytest.mark.parametrize("task", TASKS)
def test_equals_reference(task: str, order: str, native: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole trajectories in float64, once both draw the same normal numbers: they are rounded differently."""
    name, sizes = TASKS[task]
    made = move(make(name, **sizes), native.device)
    if native.backend != "triton":  # which has no kernel
        monkeypatch.setattr(reference, "philox_normal", getattr(torch.ops, native.library).philox_normal)
    for steps in (1, 2, 70):
        ours = rollout(made, steps, order=order)
        with fastwm.backend("ref"):
            exact = rollout(made, steps, order=order)
        assert torch.equal(ours.lengths, exact.lengths)
        assert_close(tuple(ours), tuple(exact), atol=1e-10, rtol=1e-10)
        short = rollout(made, steps, order=order, trajectories=False)
        assert short.z is None and torch.equal(short.returns, ours.returns)
    assert task in ("car", "reads z", "no dreams") or len(ours.lengths.unique()) > 2


def take(made: Any, rows: Tensor) -> Any:
    """Some rows, each with its controller to itself."""
    (z, controllers, bias, w, stream), options = made
    candidate = rows // (len(z) // len(controllers))
    bias = None if bias is None else bias[candidate]
    return (z[rows], controllers[candidate], bias, w, stream[rows]), options


@needs_cpu
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_a_row_does_not_depend_on_its_neighbours(bf16: bool) -> None:
    """Rows on their own, bit by bit: alone, among 1024, in another order, by any number of threads."""
    made = make("doom", P=64, rollouts=16, Z=6, H=35, dtype=torch.float32)
    before = torch.get_num_threads()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        whole = rollout(made, 40)
        assert len(whole.lengths.unique()) > 20
        some = [torch.tensor([n]) for n in (0, 511, 1023)]
        for rows in (*some, torch.arange(1023, -1, -1), torch.arange(3, 1024, 17)):
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                part = rollout(take(made, rows), 40)
                torch.set_num_threads(before)
                assert torch.equal(part.lengths, whole.lengths[rows])
                assert torch.equal(part.returns, whole.returns[rows])
                for got, want in zip(part[2:], whole[2:]):
                    assert got is not None and want is not None and torch.equal(got, want[:, rows])


@needs_cpu
def test_bf16_products() -> None:
    """Its error is at most twice that of plain autocast; without bfloat16 in the CPU there is none."""
    made = make("car", Z=20, H=60, rollouts=50, dtype=torch.float32)
    exact, plain = rollout(made, 1), make("car", Z=20, H=60, rollouts=50)
    with fastwm.backend("ref"):
        exact = rollout(plain, 1)
    with torch.autocast("cpu", torch.bfloat16):
        ours = rollout(made, 1)
        with fastwm.backend("ref"):
            theirs = rollout(made, 1)
    assert ours.z is not None and theirs.z is not None and exact.z is not None
    assert ours.z.dtype == torch.float32
    ours_error, their_error = ((x.z.double() - exact.z).abs().quantile(0.9) for x in (ours, theirs))
    assert ours_error <= 2 * their_error


def test_streams() -> None:
    """Step t draws from (seed, offset + t), so the offset can skip steps; equal pairs give equal luck."""
    made = make("car", P=1, rollouts=3, features="z")
    (z, controllers, bias, w, stream), options = made
    same = rollout(((z[:1].expand(3, -1), controllers, bias, w, stream[:1].expand(3, -1)), options))
    assert same.z is not None
    assert torch.equal(same.z[:, 0], same.z[:, 1]) and torch.equal(same.z[:, 0], same.z[:, 2])
    one = MDNRNNWeights(w.weight_ih, w.weight_hh, w.bias, torch.zeros(15, 12).double(), torch.zeros(15).double())
    long = rollout(((z, controllers, bias, one, stream), options))
    late = rollout(((z, controllers, bias, one, stream + torch.tensor([0, 4])), options), 5)
    assert long.z is not None and late.z is not None
    assert torch.equal(late.z, long.z[4:])
    assert_close(philox_uniform(stream, 5), philox_uniform(stream.clone(), 5))
