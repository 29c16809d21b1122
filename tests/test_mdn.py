"""Mixture densities: values by hand, recorded ones, sampling. See test_contract.py for the rest."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fastwm
from fastwm.ops import mdn_nll, mdn_sample
from tests.backends import Target

pytestmark = pytest.mark.usefixtures("poisoned_memory")

KINDS = ["each", "joint"]  # a mixture for each number, or one for the vector


def parameters(
    *shape: int, kind: str = "each", dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0
) -> list[Tensor]:
    """logits, mean and log_std of mean's shape `[..., Z, K]`."""
    generator = torch.Generator().manual_seed(seed)
    logits, mean, log_std = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    logits = logits if kind == "each" else logits[..., 0, :].contiguous()
    return [x.to(device, dtype) for x in (logits, mean, 0.5 * log_std)]


def values(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 10) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def uniforms(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 20) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def numbers(*x: float, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(x, dtype=dtype, device=device)


def nll_of_one(params: list[list[float]], y: float, on: Target, dtype: torch.dtype = torch.float64) -> float:
    logits, mean, log_std = (numbers(*x, device=on.device, dtype=dtype)[None] for x in params)
    return mdn_nll(logits, mean, log_std, numbers(y, device=on.device, dtype=dtype)).item()


def with_grads(args: list[Tensor], seed: int = 1) -> list[Tensor]:
    """The nll and its four gradients under a random cotangent."""
    leaves = [x.detach().requires_grad_() for x in args]
    nll = mdn_nll(*leaves)
    cotangent = torch.rand(nll.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(nll)
    return [nll.detach(), *torch.autograd.grad(nll, leaves, cotangent)]


def components(logits: Tensor, u: Tensor, temperature: float = 1.0) -> Tensor:
    """The component of every draw: component k always gives the number k."""
    shape = logits.shape if logits.dim() == u.dim() + 1 else (*logits.shape[:-1], 1, logits.shape[-1])
    mean = torch.arange(logits.shape[-1], device=u.device).to(u).expand(shape)
    return mdn_sample(logits, mean, torch.full_like(mean, -math.inf), temperature, u, torch.zeros_like(u))


# Values by hand (traps of the spec)


@pytest.mark.parametrize(
    ("logits", "mean", "log_std", "y", "expected"),
    [
        ([0], [0], [0], 0, 0.9189385332),
        ([0, 0], [-1, 1], [0, 0], 0, 1.4189385332),
        ([1, 2, 3, 4, 5], [-2, -1, 0, 1, 2], [-1, -0.5, 0, 0.5, 1], 0.3, 1.8108027428),
        ([101, 102, 103, 104, 105], [-2, -1, 0, 1, 2], [-1, -0.5, 0, 0.5, 1], 0.3, 1.8108027428),
        ([0], [0], [math.log(0.1)], 0, -1.3836465598),
        ([0, 0], [0, 0], [-10, -10], 1, 242582588.62),
        ([1000, 0], [0, 5], [0, 0], 0, 0.9189385332),
        ([-math.inf, 0], [0, 1], [0, 0], 0, 1.4189385332),
    ],
    ids=["trap1", "trap2", "trap3", "trap3-shifted", "trap4", "trap5-narrow", "trap5-wide", "no-weight"],
)
def test_nll_by_hand(on: Target, logits, mean, log_std, y, expected) -> None:  # type: ignore[no-untyped-def]
    params = [logits, mean, log_std]
    assert_close(nll_of_one(params, y, on), expected, atol=1e-10, rtol=1e-10)
    assert_close(nll_of_one(params, y, on, torch.float32), expected, atol=1e-6, rtol=1e-6)


def test_narrow_components_have_finite_gradients(on: Target) -> None:
    """Mixture likelihood.

    Exp then log would be infinite. A component too narrow for float32 altogether takes no share.
    """
    for log_stds in ([-10.0, -10.0], [0.0, -50.0]):
        args = [numbers(*x, dtype=torch.float32, device=on.device) for x in ([0, 0], [0, 0], log_stds)]
        nll, *grads = with_grads([x[None] for x in args] + [numbers(1, dtype=torch.float32, device=on.device)])
        assert nll.isfinite().all()
        if on.backend != "ref" or log_stds[1] == -10:
            assert all(g.isfinite().all() for g in grads)


def test_each_and_joint_are_different_models(on: Target) -> None:
    """Two mixtures: equal weights, means -1 and 1 in both dimensions, at (1, -1)."""
    mean = numbers(-1, 1, device=on.device).expand(2, 2)
    log_std, y = torch.full_like(mean, math.log(0.1)), numbers(1, -1, device=on.device)
    each = mdn_nll(torch.zeros_like(mean), mean, log_std, y)
    assert_close(each, torch.full_like(y, -0.6904993793), atol=1e-9, rtol=0)
    joint = mdn_nll(torch.zeros_like(mean[0]), mean, log_std, y)
    assert joint.shape == ()
    assert_close(joint.item(), 197.2327, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_is_not_squeezed_away(on: Target, kind: str) -> None:
    """Squeezed batch: batch and time of one; and each row's loss is its own."""
    args = [*parameters(4, 1, 3, 5, kind=kind, device=on.device), values(4, 1, 3, device=on.device)]
    nll = mdn_nll(*args)
    assert nll.shape == ((4, 1, 3) if kind == "each" else (4, 1))
    assert_close(nll, torch.stack([mdn_nll(*(x[i] for x in args)) for i in range(4)]))
    assert mdn_nll(*(x[:1] for x in args)).shape == nll[:1].shape


@pytest.mark.parametrize(
    ("temperature", "weight", "mean", "variance"),
    [
        (1.0, 0.75, 0.5, 1.0),
        (0.5, 0.9, None, None),
        (1.15, 0.722183, 0.444366, 1.090039),
        (1.3, 0.699535, 0.399071, 1.165743),
        (2.0, 0.633975, None, None),
        (0.1, 0.999983, 0.999966, 0.025068),
    ],
)
def test_temperature(on: Target, temperature: float, weight: float, mean: float | None, variance: float | None) -> None:
    """Temperature: weights (1/4, 3/4), means -1 and 1, std 1/2; the std is multiplied by sqrt(temperature)."""
    n = 20000 if on.backend != "triton" else 2000
    logits = numbers(0.25, 0.75, device=on.device).log().expand(n, 2)
    u = (torch.arange(n, device=on.device) + 0.5).double() / n
    share = components(logits, u, temperature).mean().item()
    assert_close(share, weight, atol=1.01 / n, rtol=0)
    if mean is None:
        return
    means = numbers(-1, 1, device=on.device).expand(n, 2)
    log_std = torch.full_like(means, math.log(0.5))
    normal = values(n, device=on.device)
    normal = (normal - normal.mean()) / normal.std(correction=0)
    drawn = mdn_sample(logits, means, log_std, temperature, u, normal)
    tolerance = 5 / math.sqrt(n)
    assert_close(drawn.mean().item(), mean, atol=tolerance / 10, rtol=0)
    assert_close(drawn.var().item(), variance, atol=tolerance, rtol=0)
    noise = mdn_sample(logits[:1], means[:1], log_std[:1], temperature, u[-1:], numbers(2, device=on.device))
    assert_close(noise.item(), 1 + 0.5 * math.sqrt(temperature) * 2)


def test_very_low_temperature_beside_a_peaked_row(on: Target) -> None:
    """One maximum for all: subtracted, it would leave the flat row with weights of zero."""
    logits = numbers(1000, 0, 0, 0, 0, 0, 0, 0, dtype=torch.float32, device=on.device).reshape(2, 4).expand(8, 2, 4)
    u = ((torch.arange(8, device=on.device) + 0.5) / 8)[:, None].expand(8, 2)
    k = components(logits, u, 0.01)
    assert k[:, 0].eq(0).all()
    assert k[:, 1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ends_of_the_uniform(on: Target, dtype: torch.dtype) -> None:
    """Tail of the cumulated weights.

    The largest u, whatever the weights round to, and u = 0 never draw a class of no weight.
    """
    logits = values(500, 7, seed=3, dtype=dtype, device=on.device)
    logits[:, [0, 6]] = -math.inf
    for u, lowest, highest in [(1 - 2**-24, 4, 5), (1.0, 5, 5), (0.0, 1, 1)]:
        k = components(logits, torch.full((500,), u, dtype=dtype, device=on.device))
        assert k.min() >= lowest and k.max() <= highest
    assert components(torch.zeros_like(logits[:, :1]), torch.rand(500, dtype=dtype, device=on.device)).eq(0).all()


def test_exact_boundaries_belong_to_the_next_component(on: Target) -> None:
    logits = torch.zeros(5, 4, device=on.device)
    u = torch.tensor([0.0, 0.25, 0.5, 0.75, 0.2499999], device=on.device)
    assert components(logits, u).tolist() == [0, 1, 2, 3, 0]


# Recorded numbers


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "golden" / "mdn_rnn.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if file[name].dtype.kind in "fb"}


@pytest.mark.parametrize("run", ["car/step0", "car/step1", "car/carry_start", "doom/step0", "doom/as_released"])
def test_recorded_likelihood(on: Target, golden: dict[str, Tensor], run: str) -> None:
    """The mean over batch, time and dimensions. Normalised logits are logits too."""
    params = [golden[f"{run}/{name}"].to(on.device) for name in ("logmix", "mean", "logstd")]
    target = golden[run.split("/")[0] + "/z"][:, 1:].to(on.device)
    cost = golden[f"{run}/{'cost' if 'car' in run else 'z_cost'}"]
    assert_close(mdn_nll(*params, target).mean().cpu(), cost, atol=1e-6, rtol=1e-6)


def test_recorded_gradient(on: Target, golden: dict[str, Tensor]) -> None:
    """That of the output layer's bias: columns are logits, means and log-stds, a dimension: the column layout."""
    params = [golden[f"car/step0/{name}"].to(on.device).requires_grad_() for name in ("logmix", "mean", "logstd")]
    grads = torch.autograd.grad(mdn_nll(*params, golden["car/z"][:, 1:].to(on.device)).mean(), params)
    bias = torch.stack([x.sum((0, 1)) for x in grads], -2).flatten()  # [Z * 3 * K]
    assert_close(bias.cpu(), golden["car/step0/grad/out_b"], atol=1e-7, rtol=1e-5)


def test_recorded_joint_likelihood(on: Target, golden: dict[str, Tensor]) -> None:
    mean, log_std = (x.transpose(-1, -2).to(on.device) for x in (golden["joint/mu"], golden["joint/sigma"].log()))
    target = golden["joint/next_latent"].transpose(0, 1).to(on.device)
    nll = mdn_nll(golden["joint/logpi"].to(on.device), mean, log_std, target)
    assert_close(nll.cpu(), golden["joint/gmm_per_step"], atol=2e-5, rtol=2e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.25])
@pytest.mark.parametrize("run", ["car", "doom"])
def test_recorded_dream(on: Target, golden: dict[str, Tensor], run: str, temperature: float) -> None:
    """A dream step by step, the recorded latent fed each time: LSTM, output, tempered sample."""
    prefix, drawn = f"{run}/sample", {}
    for name in ("uniform", "normal", "z"):
        drawn[name] = golden[f"{prefix}/tau{temperature}/{name}"].double().to(on.device)
    names = ("lstm_kernel", "lstm_bias", "out_w", "out_b")
    kernel, bias, out_w, out_b = (golden[f"{run}/params0/{name}"].double().to(on.device) for name in names)
    z, restart = golden[f"{prefix}/z0"].double().to(on.device), 1.0
    c = h = torch.zeros(kernel.shape[1] // 4, dtype=torch.float64, device=on.device)
    for t, action in enumerate(golden[f"{prefix}/actions"].double().to(on.device)):
        inputs = [z, action] if run == "car" else [z, action[None], action.new_tensor([restart])]
        c, h = (c, h) if run == "car" else (c * (1 - restart), h * (1 - restart))
        i, j, f, o = (torch.cat([*inputs, h]) @ kernel + bias).chunk(4)
        c = c * torch.sigmoid(f + 1) + torch.sigmoid(i) * torch.tanh(j)
        h = torch.tanh(c) * torch.sigmoid(o)
        out = h @ out_w + out_b
        if run == "doom":
            restart, out = float(out[0] > 0), out[1:]
        params = out.unflatten(-1, (-1, 3, 5)).unbind(-2)
        sample = mdn_sample(*params, temperature, drawn["uniform"][t], drawn["normal"][t])
        assert_close(sample, drawn["z"][t], atol=1e-5, rtol=1e-5)
        z = sample


# Against the reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_uniforms_same_components(native: Target, dtype: torch.dtype) -> None:
    """On every backend, except where u lies within rounding of a boundary, which is left out."""
    n = 20000 if native.backend != "triton" else 2000
    logits, u = values(n, 5, dtype=dtype), uniforms(n, dtype=dtype)
    cdf = logits.double().softmax(-1).cumsum(-1)
    clear = (cdf - u.double()[:, None]).abs().amin(-1) > 1e-6
    assert clear.double().mean() > 0.999
    expected = (cdf[:, :-1] <= u[:, None]).sum(-1).to(dtype)
    assert torch.equal(components(logits.to(native.device), u.to(native.device)).cpu()[clear], expected[clear])


def test_chi_square(on: Target) -> None:
    """Torch's own draws, seeded, against the weights: 6 degrees of freedom, 27.9 is one in ten thousand."""
    n = 20000 if on.backend != "triton" else 2000
    torch.manual_seed(4)
    logits = values(7, seed=5, device=on.device)
    means = torch.arange(7.0, device=on.device).double().expand(n, 7)
    drawn = mdn_sample(logits.expand(n, 7), means, torch.full_like(means, -math.inf))
    counts, expected = torch.bincount(drawn.long(), minlength=7), n * logits.softmax(-1)
    assert ((counts - expected).square() / expected).sum() < 27.9
    noise = mdn_sample(logits.expand(n, 7), means * 0, means * 0)
    assert abs(noise.mean()) < 4 / math.sqrt(n) and abs(noise.var() - 1) < 6 / math.sqrt(n)


@pytest.mark.parametrize("kind", KINDS)
def test_one_component_serves_the_whole_vector_where_joint(on: Target, kind: str) -> None:
    mean = torch.arange(5.0, device=on.device).expand(400, 6, 5)
    logits = torch.zeros(400, 6, 5, device=on.device)
    torch.manual_seed(0)
    drawn = mdn_sample(logits if kind == "each" else logits[:, 0], mean, torch.full_like(mean, -math.inf))
    alike = (drawn == drawn[:, :1]).all(-1)
    assert alike.all() if kind == "joint" else not alike.any()


def test_a_row_does_not_depend_on_its_batch(on: Target) -> None:
    """Rows on their own, where noise is given."""
    params = parameters(20, 4, 5, device=on.device)
    u, n = uniforms(20, 4, device=on.device), values(20, 4, device=on.device)
    whole, order = mdn_sample(*params, 1.15, u, n), torch.randperm(20)
    for i in (0, 7, 19):
        assert torch.equal(mdn_sample(*(x[i : i + 1] for x in params), 1.15, u[i : i + 1], n[i : i + 1])[0], whole[i])
    assert torch.equal(mdn_sample(*(x[order] for x in params), 1.15, u[order], n[order]), whole[order])


@pytest.mark.parametrize("layout", ["dense", "interleaved", "offset"])
@pytest.mark.parametrize("k", range(1, 10))
def test_every_number_of_components_in_full_tiles(native: Target, k: int, layout: str) -> None:
    """float32 runs of up to eight numbers take a way of their own on the CPU, where 64 of them are together."""
    if native.backend == "triton" and native.device == "cpu" and (k not in (1, 5) or layout == "dense"):
        pytest.skip("the interpreter is slow, and has one way for all")
    rows, z = (6, 64) if native.backend != "triton" else (2, 3)
    out = values(rows, z * 3 * k + 1, dtype=torch.float32, device=native.device)[:, layout == "offset" :]
    params = list(out[:, : z * 3 * k].unflatten(-1, (z, 3, k)).unbind(-2))
    params = [x.contiguous() for x in params] if layout == "dense" else params
    args = [*params, values(rows, z, dtype=torch.float32, device=native.device)]
    ours = with_grads(args)
    means = torch.arange(float(k), device=native.device).expand(rows, z, k).contiguous()
    u = uniforms(rows, z, dtype=torch.float32, device=native.device)
    drawn = mdn_sample(params[0], means, torch.full_like(means, -math.inf), 1.0, u, u)
    with fastwm.backend("ref"):
        exact = with_grads([x.double() for x in args])
        expected = mdn_sample(params[0], means, torch.full_like(means, -math.inf), 1.0, u, u)
    for x, truth in zip(ours, exact, strict=True):
        assert_close(x.double(), truth, atol=1e-5 * truth.abs().max().item(), rtol=1e-5)
    assert (drawn != expected).sum() <= 1  # a u within rounding of a boundary


# Gradients


def test_samples_have_no_gradient(on: Target) -> None:
    assert not mdn_sample(*(x.requires_grad_() for x in parameters(2, 3, 4, device=on.device))).requires_grad


# Contracts


def test_compiled_sampling_draws_its_own_noise() -> None:
    torch._dynamo.reset()
    params = parameters(50, 3, 5)
    sample = torch.compile(lambda *x: mdn_sample(*x), fullgraph=True, backend="aot_eager")
    assert not torch.equal(sample(*params), sample(*params))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(on: Target, dtype: torch.dtype) -> None:
    args = [x.to(dtype) for x in [*parameters(4, 3, 5, device=on.device), values(4, 3, device=on.device)]]
    nll = mdn_nll(*args[:3], args[3].float())
    assert nll.dtype == torch.float32
    assert torch.equal(nll, mdn_nll(*(x.float() for x in args)))
    assert mdn_sample(*args[:3]).dtype == torch.float32
    with torch.autocast(on.device, torch.bfloat16):
        assert mdn_nll(*args).dtype == torch.float32
