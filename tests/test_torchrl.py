"""Our cells in TorchRL's modules: weights copied, equal outputs and gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from fastwm import nn as fnn
from fastwm.nn import cell_weights

pytest.importorskip("torchrl", reason="TorchRL is not installed")

from torchrl.modules import DreamerV3BlockGRU, DreamerV3BlockGRUCell, GRUCell, LSTMCell, RSSMPrior, RSSMPriorV3

B, X, D, U, A = 6, 12, 16, 8, 3


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomised(module: Any) -> Any:
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(randn(*p.shape, seed=100 + i) * 0.4)
    return module


def with_grads(fn: Callable[..., Any], module: nn.Module, *inputs: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs and gradients of the inputs, and the gradients of `module`'s parameters as a state dict."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = fn(*leaves)
    out = out if isinstance(out, tuple) else (out,)
    names, parameters = zip(*module.named_parameters(), strict=True)
    cotangents = [randn(*y.shape, seed=9 + i) for i, y in enumerate(out)]
    grads = torch.autograd.grad(out, [*leaves, *parameters], cotangents)
    return [*out, *grads[: len(leaves)]], dict(zip(names, grads[len(leaves) :], strict=True))


def assert_same(ours: Any, theirs: Any, convert: Callable[..., Any] = dict) -> None:
    """Outputs, gradients of inputs, and of parameters: a gradient is translated as its parameter is."""
    assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    assert_close(ours[1], convert(theirs[1]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_block_gru_cell(layers: int) -> None:
    sizes = dict(projection_size=U, num_blocks=4, num_layers=layers)
    theirs = randomised(DreamerV3BlockGRUCell(X, D, **sizes))
    ours = fnn.BlockGRUCell(X, D, embed_size=U, blocks=4, layers=layers)
    ours.load_state_dict(cell_weights.block_gru_from_torchrl(theirs.state_dict()))
    x, h = randn(B, X), randn(B, D, seed=1)
    assert_same(with_grads(ours, ours, x, h), with_grads(theirs, theirs, x, h), cell_weights.block_gru_from_torchrl)
    assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_block_gru_over_time_with_resets(layers: int) -> None:
    theirs = randomised(DreamerV3BlockGRU(X, D, projection_size=U, num_blocks=4, num_layers=layers))
    ours = fnn.BlockGRU(X, D, embed_size=U, blocks=4, layers=layers)
    ours.load_state_dict(cell_weights.block_gru_from_torchrl(theirs.cell.state_dict()))
    x, h, is_first = randn(B, 5, X), randn(B, D, seed=1), randn(B, 5, seed=2) > 0.5

    def batch_major(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        output, last = ours(x.transpose(0, 1), h, is_first.T)
        return output.transpose(0, 1), last

    def convert(grads: dict[str, Tensor]) -> dict[str, Tensor]:
        return cell_weights.block_gru_from_torchrl({k.removeprefix("cell."): g for k, g in grads.items()})

    want = with_grads(lambda x, h: theirs(x, h, is_first), theirs, x, h)
    assert_same(with_grads(batch_major, ours, x, h), want, convert)


def test_gru_and_lstm_cells() -> None:
    x, h, c = randn(B, X), randn(B, D, seed=1), randn(B, D, seed=2)
    gru, lstm = randomised(GRUCell(X, D)), randomised(LSTMCell(X, D))
    our_gru, our_lstm = fnn.GRUCell(X, D), fnn.LSTMCell(X, D)
    our_gru.load_state_dict(gru.state_dict())
    our_lstm.load_state_dict(lstm.state_dict())
    assert_same(with_grads(our_gru, our_gru, x, h), with_grads(gru, gru, x, h))
    ours, theirs = (with_grads(lambda x, h, c, cell=cell: cell(x, (h, c)), cell, x, h, c) for cell in (our_lstm, lstm))
    assert_same(ours, theirs)


class Spec:
    """What RSSMPrior reads of an action's spec."""

    shape = torch.Size([A])


def test_gru_inside_dreamer_v1s_prior() -> None:
    rssm = randomised(RSSMPrior(Spec(), hidden_dim=D, rnn_hidden_dim=D, state_dim=4, action_dim=A))
    state, belief, action, noise = (randn(B, n, seed=n) for n in (4, D, A, 4))
    run = lambda *args: rssm(*args, noise=noise)  # noqa: E731
    theirs = with_grads(run, rssm, state, belief, action)
    ours = fnn.GRUCell(D, D)
    ours.load_state_dict(rssm.rnn.state_dict())
    rssm.rnn = ours
    assert_same(with_grads(run, rssm, state, belief, action), theirs)


@pytest.mark.parametrize("kind", ["gru", "block_gru"])
def test_cells_inside_dreamer_v3s_prior(kind: Any) -> None:
    sizes = dict(hidden_dim=U, rnn_hidden_dim=D, num_categoricals=3, num_classes=4, action_dim=A, action_shape=(A,))
    rssm = randomised(RSSMPriorV3(**sizes, recurrent_model=kind, num_blocks=4))
    state, belief, action = randn(B, 12), randn(B, D, seed=1), randn(B, A, seed=2).tanh()
    uniform = torch.rand(B, 3, generator=torch.Generator().manual_seed(3))
    run = lambda *args: rssm(*args, _uniform=uniform)  # noqa: E731
    (out, grads) = with_grads(run, rssm, state, belief, action)

    class Core(nn.Module):
        """The call of TorchRL's private block GRU."""

        def __init__(self) -> None:
            super().__init__()
            self.cell = fnn.BlockGRUCell((12, A), D, embed_size=U, blocks=4)

        def forward(self, state: Tensor, belief: Tensor, action: Tensor) -> Tensor:
            return self.cell((state, action), belief)

    theirs = rssm.rnn.state_dict()
    if kind == "gru":
        rssm.rnn = fnn.GRUCell(U, D)
        rssm.rnn.load_state_dict(theirs)
    else:
        rssm.rnn = Core()
        rssm.rnn.cell.load_state_dict(cell_weights.block_gru_from_torchrl(theirs))

    def convert(grads: dict[str, Tensor]) -> dict[str, Tensor]:
        if kind == "gru":
            return grads
        core = {k.removeprefix("rnn."): g for k, g in grads.items() if k.startswith("rnn.")}
        core = {f"rnn.cell.{k}": g for k, g in cell_weights.block_gru_from_torchrl(core).items()}
        return core | {k: g for k, g in grads.items() if not k.startswith("rnn.")}

    assert_same(with_grads(run, rssm, state, belief, action), (out, grads), convert)
