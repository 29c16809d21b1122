"""The recurrent state-space models by name, and DreamerV3's: a block-diagonal GRU with categorical latents."""

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastwm import ops
from fastwm.nn.arguments import check_precision, check_time_major
from fastwm.nn.cells import BlockGRUCell
from fastwm.nn.distributions import Categorical
from fastwm.nn.fused import plain
from fastwm.nn.gru_rssm import GRURSSM
from fastwm.nn.layers import MLP, Linear, RMSNorm
from fastwm.renamed import warn_renamed


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


class BlockRSSM(nn.Module):
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
        self.core = BlockGRUCell((stoch * classes, action), deter, hidden, blocks)
        self.post = nn.Sequential(MLP(deter + tokens, hidden, post_layers), Linear(hidden, stoch * classes))
        self.prior = nn.Sequential(MLP(deter, hidden, prior_layers), Linear(hidden, stoch * classes))

    @property
    def feat_dim(self) -> int:
        return self.deter + self.stoch * self.classes

    def initial(self, batch: int) -> State:
        """Zeros [batch, ...]."""
        weight = next(self.parameters())
        return State(weight.new_zeros(batch, self.deter), weight.new_zeros(batch, self.stoch, self.classes))

    def dist(self, logits: Tensor) -> Categorical:
        """The mixed categorical of logits [..., S, C]."""
        return Categorical(logits, self.unimix)

    def prior_logits(self, deter: Tensor) -> Tensor:
        """Logits [..., S, C] before mixing."""
        return ops.mlp(deter, self.prior_weights(), eps=RMSNorm.eps).unflatten(-1, (self.stoch, self.classes))

    def next_deter(self, state: State, action: Tensor) -> Tensor:
        """`h' = core(h, z, a / max(1, |a|))` [B, D]; `action` [B, A]."""
        check_precision(self)
        action = action / action.detach().abs().clamp(min=1)
        return self.core((state.stoch.flatten(1), action), state.deter)

    def observe_step(
        self, state: State, action: Tensor, tokens: Tensor, is_first: Tensor, uniform: Tensor | None = None
    ) -> tuple[State, Tensor]:
        """One filtering step; `action` [B, A] led to `tokens` [B, E]. Where `is_first` [B], all of the past is zero."""
        keep = ~is_first[:, None]
        deter = self.next_deter(State(state.deter * keep, state.stoch * keep[..., None]), action * keep)
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
        check_precision(self)
        check_time_major(state.deter.shape[0], tokens=tokens, action=action, is_first=is_first)
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
        core = plain(self.core, BlockGRUCell, "core of the RSSM").params
        (stoch, action), (hidden,) = core.embed_inputs, core.hidden
        (post,), logits = _layers("post", self.post)
        return ops.RSSMWeights(core.embed_carry, stoch, action, hidden, core.gates, post, logits)

    def prior_weights(self) -> ops.MLPWeights:
        """The prior's parameters as `fastwm.ops.rssm_imagine` takes them."""
        return ops.MLPWeights(*_layers("prior", self.prior))

    def open_loop_step(self, state: State, action: Tensor, uniform: Tensor | None = None) -> tuple[State, Tensor]:
        """One step of the prior from `state` [B, ...] with `action` [B, A]."""
        deter = self.next_deter(state, action)
        logits = self.prior_logits(deter)
        return State(deter, self.dist(logits).onehot(uniform)), logits

    def open_loop(self, state: State, action: Tensor, uniform: Tensor | None = None) -> tuple[State, Tensor]:
        """The prior's states [H, N, ...] and logits after given actions [H, N, A]; see `fastwm.ops.rssm_open_loop`."""
        check_precision(self)
        check_time_major(state.deter.shape[0], action=action)
        uniform = torch.rand(*action.shape[:2], self.stoch, device=action.device) if uniform is None else uniform
        weights = self.observe_weights(), self.prior_weights()
        deter, stoch, logits = ops.rssm_open_loop(*state, uniform, action, *weights, self.unimix, RMSNorm.eps)
        return State(deter, stoch), logits

    def imagine(self, state: State, action: Tensor, uniform: Tensor | None = None) -> tuple[State, Tensor]:
        """The old name of `open_loop`."""
        warn_renamed("RSSM.imagine", "RSSM.open_loop")
        return self.open_loop(state, action, uniform)

    def imagine_step(self, state: State, action: Tensor, uniform: Tensor | None = None) -> tuple[State, Tensor]:
        """The old name of `open_loop_step`."""
        warn_renamed("RSSM.imagine_step", "RSSM.open_loop_step")
        return self.open_loop_step(state, action, uniform)

    def kl(self, post_logits: Tensor, prior_logits: Tensor, free_nats: float) -> tuple[Tensor, Tensor]:
        """(dyn, rep): `max(free, KL(sg(post) || prior))` and `max(free, KL(post || sg(prior)))`, summed over S."""
        return ops.categorical_kl(post_logits.float(), prior_logits.float(), self.unimix, free_nats)


def _layers(name: str, network: nn.Sequential) -> tuple[tuple[ops.DenseWeights, ...], ops.LinearWeights]:
    """The parameters of an MLP and of the linear layer after it."""
    if not isinstance(network, nn.Sequential) or len(network) != 2:
        raise TypeError(f"{name} of the RSSM must be nn.Sequential(MLP, Linear), got {type(network).__name__}")
    layers = plain(network[0], MLP, f"{name}[0] of the RSSM")
    return layers.params, plain(network[1], Linear, f"{name}[1] of the RSSM").params


def stoch_onehot(stoch: Tensor, classes: int) -> Tensor:
    """A stored latent [..., S] of class indices as one-hot [..., S, C]; floats are passed through."""
    return stoch if stoch.is_floating_point() else F.one_hot(stoch.long(), classes).float()


@overload
def RSSM(
    variant: Literal["dreamer_v3"], tokens: int, action: int, deter: int, hidden: int, stoch: int, **options: Any
) -> BlockRSSM: ...
@overload
def RSSM(
    variant: str | ops.GRURSSMKind, tokens: int, action: int, deter: int, hidden: int, stoch: int, **options: Any
) -> GRURSSM: ...
def RSSM(
    variant: str | ops.GRURSSMKind, tokens: int, action: int, deter: int, hidden: int, stoch: int, **options: Any
) -> BlockRSSM | GRURSSM:
    """The recurrent state-space model of a system, which owns its parameters and observes and imagines with them.

    Args:
        variant: "planet", "dreamer_v1", "dreamer_v2", "dreamer_v3_2023" or "dreamer_v3", or a `fastwm.ops.GRURSSMKind`.
        tokens, action: widths of an encoded observation and of an encoded action.
        deter, hidden: widths of the carry and of the dense layers.
        stoch: number of latents.
        options: see `GRURSSM`; of "dreamer_v3", which must be given `classes`, see `BlockRSSM`.
    """
    if variant == "dreamer_v3":
        return BlockRSSM(tokens, action, deter, hidden, stoch, **options)
    return GRURSSM(variant, tokens, action, deter, hidden, stoch, **options)
