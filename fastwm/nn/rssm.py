"""DreamerV3's recurrent state-space model: a block-diagonal GRU with categorical latents."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastwm import ops
from fastwm.nn.distributions import Categorical
from fastwm.nn.heads import Action
from fastwm.nn.layers import MLP, BlockLinear, Dense, Linear, RMSNorm


class State(NamedTuple):
    """Latent state: `deter` [..., D] and `stoch` [..., S, C], one-hot."""

    deter: Tensor
    stoch: Tensor

    @property
    def feat(self) -> Tensor:
        """[deter, stoch] [..., D + S*C], what the heads read."""
        return torch.cat([self.deter, self.stoch.flatten(-2)], -1)

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """`feat` before it is put together: dense and one-hot, as the heads take it at less cost."""
        return self.deter, self.stoch.flatten(-2)

    def flatten(self) -> "State":
        """Merge time and batch: [T, B, ...] -> [T*B, ...]."""
        return State(self.deter.flatten(0, 1), self.stoch.flatten(0, 1))

    def detach(self) -> "State":
        return State(self.deter.detach(), self.stoch.detach())


class BlockGRU(nn.Module):
    """The recurrent core: `h' = u * c + (1 - u) * h` from embeddings of deter, stoch and action.

    Every block sees its own slice of deter and all three embeddings; its outputs split, within the block, into
    reset, cand and update with `r = sigmoid(reset)`, `c = tanh(r * cand)`, `u = sigmoid(update - 1)`.
    """

    def __init__(self, deter: int, stoch: int, action: int, hidden: int, blocks: int):
        super().__init__()
        self.blocks = blocks
        self.embed_deter = Dense(deter, hidden)
        self.embed_stoch = Dense(stoch, hidden)
        self.embed_action = Dense(action, hidden)
        self.hidden = Dense(deter + 3 * hidden * blocks, deter, blocks)
        self.gates = BlockLinear(deter, 3 * deter, blocks)

    def forward(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """`deter` [B, D], `stoch` [B, S*C], `action` [B, A] -> next deter [B, D]."""
        action = action / action.abs().clamp(min=1).detach()
        x = torch.cat([self.embed_deter(deter), self.embed_stoch(stoch), self.embed_action(action)], -1)
        x = x[:, None].expand(-1, self.blocks, -1)  # [B, G, 3U]
        x = torch.cat([deter.unflatten(-1, (self.blocks, -1)).to(x.dtype), x], -1).flatten(1)
        return ops.block_gru_gates(self.gates(self.hidden(x)), deter, self.blocks)


class RSSM(nn.Module):
    """`h_t = f(h_{t-1}, z_{t-1}, a_{t-1})`, posterior `z_t ~ q(h_t, tokens_t)`, prior `z_t ~ p(h_t)`.

    `stoch` categoricals of `classes` classes, each mixed with `unimix` of the uniform. Time-major throughout.
    """

    def __init__(
        self, tokens: int, action: int, deter: int, hidden: int, stoch: int, classes: int, blocks: int = 8,
        unimix: float = 0.01, prior_layers: int = 2, post_layers: int = 1,
    ):  # fmt: skip
        super().__init__()
        self.deter, self.stoch, self.classes, self.unimix = deter, stoch, classes, unimix
        self.post_layers = post_layers
        self.core = BlockGRU(deter, stoch * classes, action, hidden, blocks)
        self.post = nn.Sequential(MLP(deter + tokens, hidden, post_layers), Linear(hidden, stoch * classes))
        self.prior = nn.Sequential(MLP(deter, hidden, prior_layers), Linear(hidden, stoch * classes))

    @property
    def feat_dim(self) -> int:
        return self.deter + self.stoch * self.classes

    def initial(self, batch: int) -> State:
        """Zeros [batch, ...]."""
        weight = self.core.gates.weight
        return State(weight.new_zeros(batch, self.deter), weight.new_zeros(batch, self.stoch, self.classes))

    def dist(self, logits: Tensor) -> Categorical:
        """The mixed categorical of logits [..., S, C]."""
        return Categorical(logits, self.unimix)

    def prior_logits(self, deter: Tensor) -> Tensor:
        """Logits [..., S, C] before mixing."""
        return ops.mlp(deter, self.prior_weights(), eps=RMSNorm.eps).unflatten(-1, (self.stoch, self.classes))

    def observe_step(
        self, state: State, action: Tensor, tokens: Tensor, is_first: Tensor, uniform: Tensor | None = None
    ) -> tuple[State, Tensor]:
        """One filtering step; `action` [B, A] led to `tokens` [B, E]. Where `is_first` [B], all of the past is zero."""
        keep = ~is_first[:, None]
        deter = self.core(state.deter * keep, state.stoch.flatten(1) * keep, action * keep)
        logits = self.post(torch.cat([deter, tokens], -1)).unflatten(-1, (self.stoch, self.classes))
        return State(deter, self.dist(logits).onehot(uniform)), logits

    def observe(
        self, state: State, action: Tensor, tokens: Tensor, is_first: Tensor, uniform: Tensor | None = None
    ) -> tuple[State, Tensor]:
        """Filter a sequence.

        `action` [T, B, A] is the previous action of every step, `tokens` [T, B, E], `is_first` [T, B] bool,
        `uniform` [T, B, S] the noise. Returns the posterior states [T, B, ...] and their logits [T, B, S, C].
        The start state is data and gets no gradient.
        """
        if uniform is None:
            uniform = torch.rand(*is_first.shape, self.stoch, device=tokens.device)
        if self.post_layers == 1:
            deter, stoch, _, all_logits = ops.rssm_observe(
                tokens, action, is_first, *state, uniform, self.observe_weights(), self.unimix, RMSNorm.eps
            )
            return State(deter, stoch), all_logits
        states, logits = [], []
        state = state.detach()
        for t in range(len(tokens)):
            state, logit = self.observe_step(state, action[t], tokens[t], is_first[t], uniform[t])
            states.append(state)
            logits.append(logit)
        deter, stoch = (torch.stack(part) for part in zip(*states))
        return State(deter, stoch), torch.stack(logits)

    def observe_weights(self) -> ops.RSSMWeights:
        """The parameters as `fastwm.ops.rssm_observe` takes them; the posterior must have one layer."""
        core = self.core
        layers, logits = self.post
        assert isinstance(layers, MLP) and isinstance(logits, Linear)
        return ops.RSSMWeights(
            core.embed_deter.params, core.embed_stoch.params, core.embed_action.params, core.hidden.params,
            core.gates.params, layers.params[0], logits.params,
        )  # fmt: skip

    def prior_weights(self) -> ops.MLPWeights:
        """The prior's parameters as `fastwm.ops.rssm_imagine` takes them."""
        layers, out = self.prior
        assert isinstance(layers, MLP) and isinstance(out, Linear)
        return ops.MLPWeights(layers.params, out.params)

    def imagine_step(self, state: State, action: Tensor, uniform: Tensor | None = None) -> tuple[State, Tensor]:
        """One step of the prior from `state` [B, ...] with `action` [B, A]."""
        deter = self.core(state.deter, state.stoch.flatten(1), action)
        logits = self.prior_logits(deter)
        return State(deter, self.dist(logits).onehot(uniform)), logits

    def imagine(
        self,
        state: State,
        policy: Callable[[State, int], tuple[Action, Tensor]],
        horizon: int,
        uniform: Tensor | None = None,
    ) -> tuple[State, dict[str, Tensor], Tensor]:
        """Dream `horizon` steps ahead.

        `policy(state, step)` returns the action at a state and its encoding [B, A]; `uniform` [H, B, S] is the noise.
        Returns the imagined states 1..H [H, B, ...], the actions 0..H-1 [H, B, ...] and the prior logits.
        """
        states, actions, logits = [], [], []
        for step in range(horizon):
            action, encoded = policy(state, step)
            state, logit = self.imagine_step(state, encoded, None if uniform is None else uniform[step])
            states.append(state)
            actions.append(action)
            logits.append(logit)
        deter, stoch = (torch.stack(part) for part in zip(*states))
        return State(deter, stoch), {k: torch.stack([a[k] for a in actions]) for k in actions[0]}, torch.stack(logits)

    def kl(self, post_logits: Tensor, prior_logits: Tensor, free_nats: float) -> tuple[Tensor, Tensor]:
        """(dyn, rep): `max(free, KL(sg(post) || prior))` and `max(free, KL(post || sg(prior)))`, summed over S."""
        return ops.categorical_kl(post_logits.float(), prior_logits.float(), self.unimix, free_nats)


def stoch_onehot(stoch: Tensor, classes: int) -> Tensor:
    """A stored latent [..., S] of class indices as one-hot [..., S, C]; floats are passed through."""
    return stoch if stoch.is_floating_point() else F.one_hot(stoch.long(), classes).float()
