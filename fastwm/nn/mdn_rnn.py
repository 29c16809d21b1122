"""M of World Models: an LSTM that predicts the next latent as a mixture of Gaussians."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastwm.nn.arguments import check_time_major
from fastwm.nn.fused import plain
from fastwm.nn.mdn import MDNHead, Mixture
from fastwm.nn.recurrent import LSTM
from fastwm.ops import MDNRNNWeights

LSTMState = tuple[Tensor, Tensor]
HEADS = ("done", "reward")


class Prediction(NamedTuple):
    """M's prediction after every step, `[T, B, ...]`."""

    mixture: Mixture
    heads: dict[str, Tensor]
    """`done` (a logit) and `reward`, [T, B], where M has them."""
    hidden: Tensor


class MDNRNNLoss(NamedTuple):
    total: Tensor
    latent: Tensor
    """Negative log-likelihood in nats a latent dimension (in all, where joint)."""
    heads: dict[str, Tensor]
    per_latent: Tensor
    """[Z], or [] where joint."""


class MDNRNN(nn.Module):
    """LSTM with a constant forget bias of 1 and a mixture density head; time-major `[T, B, ...]`.

    The input is `[z, action]`, with `restart` also a flag that is 1 at the first step of an episode. `heads` are the
    extra outputs, in this order: "done" (a logit) and "reward". Published sizes: 32 latents, 3 actions, 256 units
    have 422,368 parameters (CarRacing); 64, 1, 512 with restart and done 1,678,785 (Doom). The LSTM's second bias,
    which PyTorch's has and the original has not, stays zero and is not trained.

    Source: Ha and Schmidhuber, "World Models", appendix A.2, and their code; `joint` is ctallec/world-models'
    """

    def __init__(
        self,
        latents: int,
        actions: int,
        hidden: int,
        components: int = 5,
        restart: bool = False,
        heads: tuple[str, ...] = (),
        joint: bool = False,
        forget_bias: float = 1.0,
    ):
        super().__init__()
        if not set(heads) <= set(HEADS) or len(set(heads)) < len(heads):
            raise ValueError(f"MDNRNN: heads are any of {HEADS}, each once, not {heads!r}")
        self.latents, self.actions, self.hidden, self.restart = latents, actions, hidden, restart
        self.heads = heads
        self.lstm = LSTM(latents + actions + restart, hidden, forget_bias=forget_bias)
        weight_ih, weight_hh, bias_ih, bias_hh = self.lstm_parameters()
        bias_hh.requires_grad_(False).zero_()
        limit = (6 / (latents + actions + restart + 5 * hidden)) ** 0.5  # Glorot's, of one kernel on [input, h]
        nn.init.uniform_(weight_ih, -limit, limit)
        nn.init.uniform_(weight_hh, -limit, limit)
        limit = (3 / (4 * hidden)) ** 0.5
        nn.init.uniform_(bias_ih, -limit, limit)
        self.head = MDNHead(hidden, latents, components, len(heads), joint)

    def lstm_parameters(self) -> tuple[nn.Parameter, ...]:
        """weight_ih, weight_hh, bias_ih, bias_hh."""
        return tuple(self.lstm.get_parameter(f"{n}_l0") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))

    def initial(self, batch: int) -> LSTMState:
        """(h, c) of zeros, [B, H]."""
        zeros = self.head.linear.weight.new_zeros(batch, self.hidden)
        return zeros, zeros

    def forward(
        self, z: Tensor, action: Tensor, state: LSTMState | None = None, is_first: Tensor | None = None
    ) -> tuple[Prediction, LSTMState]:
        """`z` [T, B, Z], `action` [T, B, A], `is_first` [T, B] bool -> what follows each step, and the last (h, c).

        Where `is_first` is set the state is zeroed before the step, and no gradient passes.
        """
        rows = z.shape[1] if state is None else state[0].shape[0]
        check_time_major(rows, z=z, action=action, **({} if is_first is None else {"is_first": is_first}))
        x = self._inputs(z, action, is_first)
        hidden, state = self._scan(x, state or self.initial(rows), is_first)
        mixture, extra = self.head(hidden)
        return Prediction(mixture, dict(zip(self.heads, extra.unbind(-1))), hidden), state

    def advance(self, z: Tensor, action: Tensor, state: LSTMState, is_first: Tensor | None = None) -> LSTMState:
        """The state after one step on `[B, ...]`, without a prediction."""
        first = None if is_first is None else is_first[None]
        return self._scan(self._inputs(z[None], action[None], first), state, first)[1]

    def step(
        self, z: Tensor, action: Tensor, state: LSTMState, is_first: Tensor | None = None
    ) -> tuple[Prediction, LSTMState]:
        """One step on `[B, ...]`."""
        first = None if is_first is None else is_first[None]
        prediction, state = self(z[None], action[None], state, first)
        mixture = Mixture(*(x[0] for x in prediction.mixture))
        return Prediction(mixture, {k: x[0] for k, x in prediction.heads.items()}, prediction.hidden[0]), state

    def _inputs(self, z: Tensor, action: Tensor, is_first: Tensor | None) -> Tensor:
        if not self.restart:
            return torch.cat([z, action], -1)
        flag = z.new_zeros(z.shape[:-1]) if is_first is None else is_first.to(z.dtype)
        return torch.cat([z, action, flag[..., None]], -1)

    def _scan(self, x: Tensor, state: LSTMState, is_first: Tensor | None) -> tuple[Tensor, LSTMState]:
        hidden, (h, c) = self.lstm(x, (state[0][None], state[1][None]), is_first)
        return hidden, (h[0], c[0])

    def loss(
        self,
        prediction: Prediction,
        z: Tensor,
        targets: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        done_weight: float = 10.0,
        reward_weight: float = 1.0,
    ) -> MDNRNNLoss:
        """The loss of predictions against what came.

            latent = mean over T, B and Z of the negative log-likelihood of z
            done   = mean over T, B of (1 + (done_weight - 1) y) BCE(logit, y)
            reward = mean over T, B of the squared error
            total  = latent + done + reward_weight * reward

        A joint mixture's likelihood is of the whole vector, and `total` is divided by `Z + len(targets)`.

        Args:
            z: `[T, B, Z]`, the latents that followed; targets: `done` and `reward` [T, B]; heads without a
                target are left out.
            mask: `[T, B]` bool, the steps that count for `latent` (all by default). Leave out a step whose next row
                belongs to another episode, which the model cannot foresee.
        """
        nll = prediction.mixture.nll(z)  # [T, B, Z], or [T, B] where joint
        if mask is None:
            per_latent = nll.mean((0, 1))
        else:
            weight = mask.to(nll.dtype)
            per_latent = (nll * (weight[..., None] if nll.dim() == 3 else weight)).sum((0, 1)) / weight.sum().clamp(1)
        latent, heads, targets = per_latent.mean(), {}, targets or {}
        if "done" in targets:
            heads["done"] = done_loss(prediction.heads["done"], targets["done"], done_weight)
        if "reward" in targets:
            heads["reward"] = reward_weight * (prediction.heads["reward"] - targets["reward"]).square().mean()
        total = latent + sum(heads.values())
        if self.head.joint:
            total = total / (self.latents + len(heads))
        return MDNRNNLoss(total, latent, heads, per_latent)

    def rollout_weights(self) -> MDNRNNWeights:
        """The parameters as `fastwm.ops.mdn_rnn_imagine` takes them; `forget_bias` is an argument of its own."""
        plain(self.lstm, LSTM, "lstm of MDNRNN")
        weight_ih, weight_hh, bias_ih, bias_hh = self.lstm_parameters()
        linear = plain(plain(self.head, MDNHead, "head of MDNRNN").linear, nn.Linear, "head.linear of MDNRNN")
        weights = (weight_ih, weight_hh, bias_ih + bias_hh, linear.weight, linear.bias)
        return MDNRNNWeights(*(x.detach() for x in weights))


def done_loss(logit: Tensor, done: Tensor, weight: float = 10.0) -> Tensor:
    """Mean binary cross-entropy in which an end counts `weight` times; the divisor is the plain number of steps."""
    done = done.to(logit.dtype)
    return F.binary_cross_entropy_with_logits(logit, done, 1 + (weight - 1) * done)
