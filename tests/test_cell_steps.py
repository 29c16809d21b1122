"""Steps and modules of recurrent cells: equal to PyTorch's and the papers' cells, resets, weights from elsewhere."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import fastwm
from fastwm import nn as fnn
from fastwm import ops
from fastwm.nn import cell_weights
from tests.backends import INTERPRETED, Target

# Products and gates, of which the gates have tests of their own: the interpreter is too slow for both.
pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.skipif(INTERPRETED, reason="slow")]

X, D, B = 5, 8, 6


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def randomised(module: Any, device: str = "cpu") -> Any:
    """`module` in float64, every parameter random: also those that start at a constant."""
    module = module.double().to(device)
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(randn(*p.shape, seed=100 + i) * 0.5)
    return module


def with_grads(fn: Callable[..., Any], *leaves: Tensor) -> list[Tensor]:
    leaves = tuple(x.detach().requires_grad_() for x in leaves)
    out = fn(*leaves)
    out = out if isinstance(out, tuple) else (out,)
    cotangents = [randn(*y.shape, seed=9 + i, device=str(y.device)) for i, y in enumerate(out)]
    return [*(y.detach() for y in out), *torch.autograd.grad(out, leaves, cotangents)]


CELLS: dict[str, Callable[[], Any]] = {
    "gru": lambda: fnn.GRUCell(X, D),
    "planet": lambda: fnn.PlanetGRUCell(X, D),
    "layernorm": lambda: fnn.LayerNormGRUCell(X, D),
    "layernorm-hx": lambda: fnn.LayerNormGRUCell(X, D, bias=False, order="hx"),
    "block": lambda: fnn.BlockGRUCell(X, D, embed_size=4, blocks=2),
    "block-two-layers": lambda: fnn.BlockGRUCell((X,), D, embed_size=4, blocks=4, layers=2),
    "lstm": lambda: fnn.LSTMCell(X, D, forget_bias=1.0),
}
every_cell = pytest.mark.parametrize("name", CELLS)


def step(cell: Any, x: Tensor, h: Tensor, c: Tensor, is_first: Tensor | None = None) -> tuple[Tensor, ...]:
    if isinstance(cell, nn.LSTMCell):
        return cell(x, (h, c), is_first)
    return (cell(x, h, is_first),)


# ------------------------------------------------------------------------------------------ against PyTorch's


@pytest.mark.parametrize("bias", [True, False])
def test_gru_is_torchs(on: Target, bias: bool) -> None:
    theirs = randomised(nn.GRUCell(X, D, bias=bias), on.device)
    ours = fnn.GRUCell(X, D, bias=bias).double().to(on.device)
    ours.load_state_dict(theirs.state_dict())
    x, h = randn(B, X, device=on.device), randn(B, D, seed=1, device=on.device)
    assert_close(with_grads(ours, x, h), with_grads(theirs, x, h))
    for a, b in [((x,), (x,)), ((x[0], h[0]), (x[0], h[0]))]:
        assert_close(ours(*a), theirs(*b))


@pytest.mark.parametrize("bias", [True, False])
def test_lstm_is_torchs(on: Target, bias: bool) -> None:
    theirs = randomised(nn.LSTMCell(X, D, bias=bias), on.device)
    ours = fnn.LSTMCell(X, D, bias=bias).double().to(on.device)
    ours.load_state_dict(theirs.state_dict())
    x, h, c = (randn(B, n, seed=n, device=on.device) for n in (X, D, D))
    assert_close(*(with_grads(lambda x, h, c: cell(x, (h, c)), x, h, c) for cell in (ours, theirs)))  # noqa: B023
    for args in [(x,), (x[0], (h[0], c[0]))]:
        assert_close(ours(*args), theirs(*args))


def test_lstm_over_time_is_torchs(on: Target) -> None:
    theirs = randomised(nn.LSTM(X, D), on.device)
    cell = fnn.LSTMCell(X, D).double().to(on.device)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in theirs.state_dict().items()})
    x, state, hs = randn(7, B, X, device=on.device), None, []
    for t in range(7):
        state = cell(x[t], state)
        hs.append(state[0])
    assert_close(torch.stack(hs), theirs(x)[0])


# --------------------------------------------------------------------------------------- against the equations


def test_planet_resets_before_the_product(on: Target) -> None:
    """T6, G7: tanh((r h) W) = [-0.14987862, 0.12385269], not tanh(r (h W))."""
    to = dict(dtype=torch.float64, device=on.device)
    x, h = torch.zeros(1, 0, **to), torch.tensor([[0.2, -0.4]], **to)
    bias_ru = torch.tensor([0.5, -0.5, -1e3, -1e3], **to)  # u = 0: the carry is the candidate
    weight_c, zero = torch.tensor([[0.0, 1.0], [1.0, 0.0]], **to), torch.zeros(2, **to)
    got = ops.planet_gru_step(x, h, torch.zeros(4, 2, **to), bias_ru, weight_c, zero)
    assert_close(got, torch.tensor([[-0.14987862, 0.12385269]], **to), atol=1e-8, rtol=0)


def test_planet_by_its_equations(on: Target) -> None:
    cell = randomised(fnn.PlanetGRUCell(X, D), on.device)
    x, h = randn(B, X, device=on.device), randn(B, D, seed=1, device=on.device)

    def equations(x: Tensor, h: Tensor) -> Tensor:
        r, u = torch.sigmoid(torch.cat([x, h], -1) @ cell.weight_ru.T + cell.bias_ru).chunk(2, -1)
        c = torch.tanh(torch.cat([x, r * h], -1) @ cell.weight_c.T + cell.bias_c)
        return u * h + (1 - u) * c

    assert_close(with_grads(cell, x, h), with_grads(equations, x, h))
    assert (fnn.PlanetGRUCell(X, D).bias_ru == 1).all()


@pytest.mark.parametrize("order", ["xh", "hx"])
def test_layernorm_gru_by_its_equations(on: Target, order: Any) -> None:
    """Gate order, Bias under the norm, Concatenation order.

    DreamerV2 reads [x, h] and has a bias under the norm; V3's first version reads [h, x], without.
    """
    cell = randomised(fnn.LayerNormGRUCell(X, D, bias=order == "xh", order=order), on.device)
    x, h = randn(B, X, device=on.device), randn(B, D, seed=1, device=on.device)

    def equations(x: Tensor, h: Tensor) -> Tensor:
        y = F.linear(torch.cat([x, h] if order == "xh" else [h, x], -1), cell.linear.weight, cell.linear.bias)
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + 1e-3).sqrt()
        r, c, u = (y * cell.layer_norm.weight + cell.layer_norm.bias).chunk(3, -1)
        u = torch.sigmoid(u - 1)
        return u * torch.tanh(torch.sigmoid(r) * c) + (1 - u) * h

    parameters = list(cell.parameters())
    assert_close(with_grads(cell, x, h), with_grads(equations, x, h))
    cotangent = randn(B, D, seed=3, device=on.device)
    assert_close(*(torch.autograd.grad(fn(x, h), parameters, cotangent) for fn in (cell, equations)))


def test_block_gru_step_by_its_equations(on: Target) -> None:
    """Block split: three gates within every block."""
    G = 2
    x, h, weight, bias = (
        randn(*s, seed=i, device=on.device) for i, s in enumerate([(B, 6), (B, D), (G, 3, 12), (24,)])
    )

    def equations(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        blocks = []
        for g in range(G):
            y = x[:, 3 * g : 3 * g + 3] @ weight[g] + bias[12 * g : 12 * g + 12]
            r, c, u = y.chunk(3, -1)
            u = torch.sigmoid(u - 1)
            blocks.append(u * torch.tanh(torch.sigmoid(r) * c) + (1 - u) * h[:, 4 * g : 4 * g + 4])
        return torch.cat(blocks, -1)

    assert_close(with_grads(ops.block_gru_step, x, h, weight, bias), with_grads(equations, x, h, weight, bias))


def test_world_models_step_by_hand(on: Target) -> None:
    """Forget bias: a constant, and TensorFlow's order by argument and by import."""
    kernel = torch.full((2, 4), 0.1, dtype=torch.float64, device=on.device)
    x, h, c = (torch.full((1, 1), v, dtype=torch.float64, device=on.device) for v in (1.0, 0.5, -0.25))
    got = ops.lstm_step(x, h, c, kernel[:1].mT, kernel[1:].mT, forget_bias=1.0, order="ijfo")
    want = torch.tensor([[-0.0588069643, -0.1098624686]], dtype=torch.float64, device=on.device)
    assert_close(torch.cat(got, -1), want, atol=1e-9, rtol=0)

    kernel, bias = randn(X + D, 4 * D, device=on.device), randn(4 * D, seed=1, device=on.device)
    cell = fnn.LSTMCell(X, D, forget_bias=1.0).double().to(on.device)
    cell.load_state_dict(cell_weights.lstm_from_tensorflow(kernel, bias, X))
    h, c = (randn(B, D, seed=s, device=on.device) for s in (2, 3))
    ours = (h, c)
    for t in range(3):
        x = randn(B, X, seed=4 + t, device=on.device)
        i, j, f, o = (torch.cat([x, h], -1) @ kernel + bias).chunk(4, -1)
        c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(j)
        h = torch.sigmoid(o) * torch.tanh(c)
        ours = cell(x, ours)
    assert_close(ours, (h, c))


# ------------------------------------------------------------------------------------------------------ resets


@every_cell
def test_reset_forgets_and_stops_the_gradient(on: Target, name: str) -> None:
    """Reset: such a row is one that starts from zero, whatever its carry, even NaN; the
    others are bitwise those of a step without resets."""
    cell = randomised(CELLS[name](), on.device)
    x, h, c = (randn(B, n, seed=n + i, device=on.device).requires_grad_() for i, n in enumerate((X, D, D)))
    is_first = torch.tensor([True, False] * 3, device=on.device)
    got = step(cell, x, h, c, is_first)
    free, zero = step(cell, x, h, c), step(cell, x, torch.zeros_like(h), torch.zeros_like(c))
    for y, kept, fresh in zip(got, free, zero, strict=True):
        assert torch.equal(y[~is_first], kept[~is_first])
        assert torch.equal(y[is_first], fresh[is_first])
        assert not torch.equal(kept[is_first], fresh[is_first])
    d_h, d_c = torch.autograd.grad(sum(y.sum() for y in got), (h, c), materialize_grads=True)
    assert not d_h[is_first].any()
    assert d_h[~is_first].all()
    assert not d_c[is_first].any()
    poisoned = [v.detach().masked_fill(is_first[:, None], torch.nan) for v in (h, c)]
    assert_close(step(cell, x, *poisoned, is_first), got)


@every_cell
def test_no_carry_is_a_zero_carry(on: Target, name: str) -> None:
    cell = randomised(CELLS[name](), on.device)
    x, zero = randn(B, X, device=on.device), torch.zeros(B, D, dtype=torch.float64, device=on.device)
    got = cell(x)
    assert_close(got if isinstance(got, tuple) else (got,), step(cell, x, zero, zero))


@every_cell
def test_leading_dimensions(on: Target, name: str) -> None:
    cell = randomised(CELLS[name](), on.device)
    x, h, c = (randn(2, 3, n, seed=n, device=on.device) for n in (X, D, D))
    is_first = torch.tensor([[True, False, False], [False, True, False]], device=on.device)
    flat = step(cell, x.flatten(0, 1), h.flatten(0, 1), c.flatten(0, 1), is_first.flatten())
    for y, want in zip(step(cell, x, h, c, is_first), flat, strict=True):
        assert_close(y.flatten(0, 1), want)


def test_wrong_resets_are_explained() -> None:
    h = torch.zeros(B, D)
    for wrong, message in [
        (torch.zeros(B), r"is_first \[6\] torch.bool cpu, got \[6\] torch.float32"),
        (torch.zeros(B, 1, dtype=torch.bool), r"got \[6, 1\]"),
        (torch.zeros(B, dtype=torch.bool, device="meta"), "meta"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.reset_carry(h, wrong)
    with pytest.raises(ValueError, match="'xxh'"):
        ops.layernorm_gru_step(h, h, torch.zeros(24, 16), None, torch.ones(24), torch.zeros(24), order="xxh")  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------- precision and compile


@every_cell
def test_autocast_keeps_the_carry(on: Target, name: str) -> None:
    """Mixed precision: bfloat16 products, float32 carry, norm and gates."""
    cell = randomised(CELLS[name](), on.device)
    x, h, c = (randn(B, n, seed=n, device=on.device) for n in (X, D, D))
    exact = step(cell, x, h, c)
    cell.float()
    with torch.autocast(on.device, torch.bfloat16):
        got = step(cell, x.float(), h.float(), c.float())
        sum(y.sum() for y in got).backward()
    assert all(y.dtype == torch.float32 for y in got)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in cell.parameters())
    assert_close(tuple(y.double() for y in got), exact, atol=5e-2, rtol=5e-2)


@every_cell
def test_bfloat16_weights_beside_a_float32_carry(on: Target, name: str) -> None:
    cell = randomised(CELLS[name](), on.device)
    x, h, c = (randn(B, n, seed=n, device=on.device) for n in (X, D, D))
    exact = step(cell, x, h, c)
    got = step(cell.bfloat16(), x.bfloat16(), h.float(), c.float())
    assert all(y.dtype == torch.float32 for y in got)
    assert_close(tuple(y.double() for y in got), exact, atol=5e-2, rtol=5e-2)


@every_cell
def test_compiles_whole(native: Target, name: str) -> None:
    torch._dynamo.reset()
    cell = randomised(CELLS[name](), native.device)
    x, h, c = (randn(B, n, seed=n, device=native.device) for n in (X, D, D))
    is_first = torch.tensor([True, False] * 3, device=native.device)
    compiled = torch.compile(lambda *args: step(cell, *args), fullgraph=True, backend="aot_eager")
    got, want = compiled(x, h, c, is_first), step(cell, x, h, c, is_first)
    assert_close(got, want)
    grads = (torch.autograd.grad(sum(y.sum() for y in out), list(cell.parameters())) for out in (got, want))
    assert_close(*grads)


# -------------------------------------------------------------------------------------- weights from elsewhere


def test_planet_weights_from_tensorflow() -> None:
    theirs = [randn(*s, seed=i) for i, s in enumerate([(X + D, 2 * D), (2 * D,), (X + D, D), (D,)])]
    cell = fnn.PlanetGRUCell(X, D).double()
    cell.load_state_dict(cell_weights.planet_gru_from_tensorflow(*theirs))
    x, h = randn(B, X), randn(B, D, seed=7)
    r, u = torch.sigmoid(torch.cat([x, h], -1) @ theirs[0] + theirs[1]).chunk(2, -1)
    c = torch.tanh(torch.cat([x, r * h], -1) @ theirs[2] + theirs[3])
    assert_close(cell(x, h), u * h + (1 - u) * c)


def test_gru_weights_from_keras() -> None:
    """Dreamer V1's cell: columns z, r, n, and a bias for each product."""
    kernel, recurrent, bias = randn(X, 3 * D), randn(D, 3 * D, seed=1), randn(2, 3 * D, seed=2)
    cell = fnn.GRUCell(X, D).double()
    cell.load_state_dict(cell_weights.gru_from_keras(kernel, recurrent, bias))
    x, h = randn(B, X, seed=3), randn(B, D, seed=4)
    x_z, x_r, x_n = (x @ kernel + bias[0]).chunk(3, -1)
    h_z, h_r, h_n = (h @ recurrent + bias[1]).chunk(3, -1)
    z, n = torch.sigmoid(x_z + h_z), torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    assert_close(cell(x, h), z * h + (1 - z) * n)


@pytest.mark.parametrize("project", ["dreamerv3-torch", "sheeprl"])
def test_layernorm_gru_weights(project: str) -> None:
    """dreamerv3-torch reads [input, state], sheeprl [state, input]; in both the layers are a Linear and a LayerNorm."""
    weight, scale, shift = randn(3 * D, X + D), randn(3 * D, seed=1), randn(3 * D, seed=2)
    x, h = randn(B, X, seed=3), randn(B, D, seed=4)
    if project == "sheeprl":
        names, order, inputs = ("linear", "layer_norm"), "hx", torch.cat([h, x], -1)
    else:
        names, order, inputs = ("layers.GRU_linear", "layers.GRU_norm"), "xh", torch.cat([x, h], -1)
    state = {f"{names[0]}.weight": weight, f"{names[1]}.weight": scale, f"{names[1]}.bias": shift}
    convert = {"sheeprl": cell_weights.layernorm_gru_from_sheeprl}.get(
        project, cell_weights.layernorm_gru_from_dreamerv3_torch
    )
    cell = fnn.LayerNormGRUCell(X, D, bias=False, order=order).double()  # type: ignore[arg-type]
    cell.load_state_dict(convert(state))
    gates = F.layer_norm(inputs @ weight.T, (3 * D,), scale, shift, 1e-3)
    with fastwm.backend("ref"):
        assert_close(cell(x, h), ops.block_gru_gates(gates, h, 1))


@pytest.mark.parametrize("layers", [1, 2])
def test_block_gru_weights_from_r2dreamer(layers: int) -> None:
    """Block weights are [out/G, in/G, G] there; inputs in the order carry, stoch, action."""
    G, U, sizes = 2, 4, (D, 6, 3)
    state, shapes = {}, {}
    for i, size in enumerate(sizes):
        shapes |= {f"_dyn_in{i}.0.weight": (U, size), f"_dyn_in{i}.0.bias": (U,), f"_dyn_in{i}.1.weight": (U,)}
    for i in range(layers):
        width = D // G + 3 * U if i == 0 else D // G
        shapes |= {f"_dyn_hid.dyn_hid_{i}.weight": (D // G, width, G), f"_dyn_hid.dyn_hid_{i}.bias": (D,)}
        shapes |= {f"_dyn_hid.norm_{i}.weight": (D,)}
    shapes |= {"_dyn_gru.weight": (3 * D // G, D // G, G), "_dyn_gru.bias": (3 * D,)}
    state = {name: randn(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    cell = fnn.BlockGRUCell(sizes[1:], D, embed_size=U, blocks=G, layers=layers).double()
    cell.load_state_dict(cell_weights.block_gru_from_r2dreamer(state))

    def norm_silu(x: Tensor, scale: Tensor) -> Tensor:
        return F.silu(F.rms_norm(x.float(), scale.shape, scale.float(), 1e-4).double())

    def block_linear(x: Tensor, name: str) -> Tensor:
        y = torch.einsum("bgi,oig->bgo", x.unflatten(-1, (G, -1)), state[f"{name}.weight"])
        return y.flatten(1) + state[f"{name}.bias"]

    h, z, a = (randn(B, size, seed=50 + size) for size in sizes)
    embeds = []
    for i, v in enumerate((h, z, a)):
        y = F.linear(v, state[f"_dyn_in{i}.0.weight"], state[f"_dyn_in{i}.0.bias"])
        embeds.append(norm_silu(y, state[f"_dyn_in{i}.1.weight"]))
    x = torch.cat(embeds, -1)
    x = torch.cat([h.unflatten(-1, (G, -1)), x[:, None].expand(-1, G, -1)], -1).flatten(1)
    for i in range(layers):
        x = norm_silu(block_linear(x, f"_dyn_hid.dyn_hid_{i}"), state[f"_dyn_hid.norm_{i}.weight"])
    with fastwm.backend("ref"):
        want = ops.block_gru_gates(block_linear(x, "_dyn_gru"), h, G)
    assert_close(cell((z, a), h), want, atol=1e-6, rtol=1e-6)
