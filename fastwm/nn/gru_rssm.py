"""The recurrent state-space model of PlaNet, Dreamer V1 and DreamerV2: one dense layer, a GRU, one latent."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastwm import ops
from fastwm.nn.arguments import check_precision, check_time_major
from fastwm.nn.cells import GRUCell, LayerNormGRUCell, PlanetGRUCell
from fastwm.nn.fused import plain
from fastwm.nn.layers import Dense, Style, glorot_, linear_weights
from fastwm.renamed import warn_renamed

VARIANTS = {
    "planet": ops.GRURSSMKind("planet_gru", "relu"),
    "dreamer_v1": ops.GRURSSMKind("gru", "elu"),
    "dreamer_v2": ops.GRURSSMKind("layernorm_gru", "elu", classes=32),
    "dreamer_v3_2023": ops.GRURSSMKind("layernorm_gru", "silu", classes=32, order="hx", unimix=0.01),
}
"""PlaNet (2019), Dreamer V1 (2020), DreamerV2 (2021) and the first DreamerV3 (2023)."""


CELLS: dict[str, type[GRUCell | PlanetGRUCell | LayerNormGRUCell]] = {
    "gru": GRUCell, "planet_gru": PlanetGRUCell, "layernorm_gru": LayerNormGRUCell,
}  # fmt: skip


class GRUState(NamedTuple):
    """`deter` [..., D] and `stoch`: one-hot [..., S, C], or [..., S] where Gaussian."""

    deter: Tensor
    stoch: Tensor

    @property
    def feat(self) -> Tensor:
        """[stoch, deter] [..., F]."""
        stoch = self.stoch if self.stoch.ndim == self.deter.ndim else self.stoch.flatten(-2)
        return torch.cat([stoch, self.deter], -1)

    @property
    def parts(self) -> tuple[Tensor, Tensor | None]:
        """The input of a head: `feat`, or for one-hots `deter` and the flat `stoch` apart: zeros cost nothing then."""
        return (self.feat, None) if self.stoch.ndim == self.deter.ndim else (self.deter, self.stoch.flatten(-2))


class GRURSSM(nn.Module):
    """`h_t = GRU(dense([z_{t-1}, a_t]), h_{t-1})`, posterior `q(z | h_t, tokens_t)`, prior `p(z | h_t)`.

    `variant` is a name of `VARIANTS` or a `fastwm.ops.GRURSSMKind`; `classes` counts those of a categorical where it
    is another number, `norm` gives the dense layers LayerNorms, and `bias` (False in "dreamer_v3_2023", which has
    norms) is theirs and that of the LayerNorm-GRU's product. Time-major throughout; actions are those that led to each
    step.
    """

    def __init__(
        self, variant: "str | ops.GRURSSMKind", tokens: int, action: int, deter: int, hidden: int, stoch: int,
        norm: bool | None = None, bias: bool | None = None, classes: int | None = None,
    ):  # fmt: skip
        super().__init__()
        if isinstance(variant, str) and variant not in VARIANTS:
            raise ValueError(f"unknown variant '{variant}'; there are {', '.join(VARIANTS)} and dreamer_v3 (BlockRSSM)")
        kind = VARIANTS[variant] if isinstance(variant, str) else variant
        self.kind = kind = kind if classes is None else kind._replace(classes=classes)
        first_v3 = variant == "dreamer_v3_2023"
        norm, bias = first_v3 if norm is None else norm, not first_v3 if bias is None else bias
        self.deter, self.stoch = deter, stoch
        flat, stats = stoch * (kind.classes or 1), stoch * (kind.classes or 2)
        style = Style("layer" if norm else "none", kind.activation, "glorot_uniform", kind.eps, stoch_first=True)
        self.input = Dense(flat + action, hidden, style=style, bias=bias)
        self.cell: GRUCell | PlanetGRUCell | LayerNormGRUCell
        if kind.cell == "gru":
            self.cell = GRUCell(hidden, deter)
            for weight, init in (
                (self.cell.weight_ih, nn.init.xavier_uniform_),
                (self.cell.weight_hh, nn.init.orthogonal_),
            ):
                init(weight)
            nn.init.zeros_(self.cell.bias_ih)
            nn.init.zeros_(self.cell.bias_hh)
        elif kind.cell == "planet_gru":
            self.cell = PlanetGRUCell(hidden, deter)
        else:
            self.cell = LayerNormGRUCell(hidden, deter, bias, kind.order, kind.eps)
            glorot_(self.cell.linear)
        self.post = Dense(deter + tokens, hidden, style=style, bias=bias)
        self.post_stats = nn.Linear(hidden, stats)
        self.prior = Dense(deter, hidden, style=style, bias=bias)
        self.prior_stats = nn.Linear(hidden, stats)
        glorot_(self.post_stats)
        glorot_(self.prior_stats)

    @property
    def feat_dim(self) -> int:
        return self.deter + self.stoch * (self.kind.classes or 1)

    @property
    def weights(self) -> ops.GRURSSMWeights:
        """The parameters as the operators take them."""
        first, post, prior = (
            plain(getattr(self, name), Dense, f"{name} of the RSSM").params for name in ("input", "post", "prior")
        )
        post_out, prior_out = (
            linear_weights(getattr(self, name), f"{name} of the RSSM") for name in ("post_stats", "prior_stats")
        )
        cell = plain(self.cell, CELLS[self.kind.cell], "cell of the RSSM")
        return ops.GRURSSMWeights(first, cell.params, post, post_out, prior, prior_out)

    def initial(self, batch: int) -> GRUState:
        """Zeros [batch, ...]."""
        new, shape = next(self.parameters()).new_zeros, (self.stoch, self.kind.classes)
        return GRUState(new(batch, self.deter), new(batch, *shape[: 2 if self.kind.classes else 1]))

    def noise(self, *shape: int) -> Tensor:
        """Noise for the latent's sample, [*shape, S]: uniform for categoricals, normal for Gaussians."""
        draw = torch.rand if self.kind.classes else torch.randn
        return draw(*shape, self.stoch, device=next(self.parameters()).device)

    def observe(
        self, state: GRUState, action: Tensor, tokens: Tensor, is_first: Tensor, noise: Tensor | None = None
    ) -> tuple[GRUState, Tensor]:
        """Filter a sequence: posterior states [T, B, ...] and statistics; see `fastwm.ops.gru_rssm_observe`."""
        check_precision(self)
        check_time_major(state.deter.shape[0], tokens=tokens, action=action, is_first=is_first)
        noise = self.noise(*is_first.shape) if noise is None else noise
        deter, stoch, stats = ops.gru_rssm_observe(tokens, action, is_first, *state, noise, self.weights, self.kind)
        return GRUState(deter, stoch), stats

    def observe_step(
        self, state: GRUState, action: Tensor, tokens: Tensor, is_first: Tensor, noise: Tensor | None = None
    ) -> tuple[GRUState, Tensor]:
        """One filtering step; `action` [B, A] led to `tokens` [B, E]. Where `is_first` [B], all of the past is zero.

        It calls the layers one by one: for a single step that is faster than `observe`, which packs all weights first.
        """
        check_precision(self)
        noise = self.noise(len(tokens)) if noise is None else noise
        deter, stoch, action = (ops.reset_carry(x, is_first) for x in (state.deter, state.stoch.flatten(1), action))
        deter = self.cell(self.input(torch.cat([stoch, action], -1)), deter).to(state.deter.dtype)
        stats = self.post_stats(self.post(torch.cat([deter, tokens], -1))).to(deter.dtype)
        if self.kind.classes:
            stats = stats.unflatten(-1, (self.stoch, self.kind.classes))
            latent = ops.straight_through_categorical(stats, noise, self.kind.unimix).sample
        else:
            mean, raw = stats.chunk(2, -1)
            latent = mean + (F.softplus(raw) + 0.1) * noise
        return GRUState(deter, latent), stats

    def open_loop(self, state: GRUState, action: Tensor, noise: Tensor | None = None) -> tuple[GRUState, Tensor]:
        """The prior with given actions [H, N, A]; see `fastwm.ops.gru_rssm_open_loop`."""
        check_precision(self)
        check_time_major(state.deter.shape[0], action=action)
        noise = self.noise(*action.shape[:2]) if noise is None else noise
        deter, stoch, stats = ops.gru_rssm_open_loop(*state, noise, action, self.weights, self.kind)
        return GRUState(deter, stoch), stats

    def imagine(self, state: GRUState, action: Tensor, noise: Tensor | None = None) -> tuple[GRUState, Tensor]:
        """The old name of `open_loop`."""
        warn_renamed("RSSM.imagine", "RSSM.open_loop")
        return self.open_loop(state, action, noise)

    def prior_stats_of(self, deter: Tensor) -> Tensor:
        """The prior's statistics at `deter` [..., D], as `observe` returns the posterior's."""
        weights = self.weights
        w = ops.MLPWeights((weights.prior,), weights.prior_stats, self.kind.activation)
        stats = ops.mlp(deter, w, eps=self.kind.eps).to(deter.dtype)
        return stats.unflatten(-1, (self.stoch, self.kind.classes)) if self.kind.classes else stats
