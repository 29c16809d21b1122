"""The settings of DreamerV3."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastwm.settings import (
    Count,
    Decay,
    Fraction,
    Hidden,
    HiddenLayers,
    Positive,
    Range,
    Settings,
    Weight,
    Whole,
    Width,
)


@dataclass
class DreamerV3Config(Settings):
    """Every number of the agent. The defaults are the official ones at size200m; `fastwm.configs` holds presets."""

    deter: Width = 8192
    """Units of the recurrent state; a multiple of `blocks`."""
    hidden: Width = 1024
    """Units of the RSSM's hidden layers."""
    stoch: Width = 32
    """Categorical latent variables."""
    classes: Annotated[int, Range(1, 256)] = 64
    """Classes of each latent variable."""
    blocks: Width = 8
    """Blocks of the block-diagonal recurrent weights."""
    units: Width = 1024
    """Units of a hidden layer in the encoder, the decoder and all heads, where no widths are given."""
    depth: Width = 64
    """Channels of the image networks, before `mults`."""
    mults: tuple[Width, ...] = (2, 3, 4, 4)
    """Channels of each image layer, as multiples of `depth`; every layer halves the image's side."""
    kernel: Annotated[int, Range(1, 31)] = 5
    """Side of the convolutions' kernels, in pixels; odd."""
    unimix: Decay = 0.01
    """Fraction of the uniform distribution mixed into the latent categoricals."""
    policy_unimix: Decay = 0.0
    """The same for discrete actions; the official code configures 0.01 but does not apply it."""
    free_nats: Weight = 1.0
    """KL in nats below which the dynamics and representation losses give no gradient."""
    prior_layers: Hidden = 2
    """Hidden layers that predict the latent from the recurrent state."""
    post_layers: Hidden = 1
    """Hidden layers that infer the latent from the recurrent state and the observation."""
    encoder_layers: HiddenLayers = 3
    """Hidden layers of the vector encoder: their number, or the width of each."""
    decoder_layers: HiddenLayers = 3
    """Hidden layers of the vector decoder: their number, or the width of each."""
    reward_layers: HiddenLayers = 1
    """Hidden layers of the reward head: their number, or the width of each."""
    cont_layers: HiddenLayers = 1
    """Hidden layers of the continuation head: their number, or the width of each."""
    actor_layers: HiddenLayers = 3
    """Hidden layers of the actor: their number, or the width of each."""
    critic_layers: HiddenLayers = 3
    """Hidden layers of the critic: their number, or the width of each."""
    bins: Annotated[int, Range(3, 2**16)] = 255
    """Bins of the two-hot heads (reward and critic); odd."""
    actor_outscale: Weight = 0.01
    """Scale of the actor's initial output weights."""
    rec_scale: Weight = 1.0
    """Weight of the reconstruction losses."""
    reward_scale: Weight = 1.0
    """Weight of the reward loss."""
    cont_scale: Weight = 1.0
    """Weight of the continuation loss."""
    dyn_scale: Weight = 1.0
    """Weight of the dynamics loss: the KL that trains the prior."""
    rep_scale: Weight = 0.1
    """Weight of the representation loss: the KL that trains the posterior."""
    policy_scale: Weight = 1.0
    """Weight of the actor's loss."""
    value_scale: Weight = 1.0
    """Weight of the critic's loss on imagined states."""
    replay_value_scale: Weight = 0.3
    """Weight of the critic's loss on replayed states."""
    imag_length: Count = 15
    """Steps of every imagined trajectory."""
    horizon: Annotated[float, Range(1)] = 333.0
    """Effective length of the discount `1 - 1/horizon`, in steps."""
    lam: Fraction = 0.95
    """Lambda of the returns: 0 bootstraps after one step, 1 at the end of the trajectory."""
    actor_entropy: Weight = 3e-4
    """Weight of the policy's entropy in the actor's objective."""
    slow_reg: Weight = 1.0
    """Weight of the loss that pulls the critic to its own slow average."""
    slow_rate: Fraction = 0.02
    """Fraction by which the slow critic moves to the critic at every update."""
    return_rate: Fraction = 0.01
    """Fraction by which the return percentiles move to those of the batch at every update."""
    return_limit: Positive = 1.0
    """Smallest scale that advantages are divided by."""
    lr: Positive = 4e-5
    """Learning rate, after the warm-up."""
    warmup: Whole = 1000
    """Updates over which the learning rate rises linearly from 0."""
    agc: Weight = 0.3
    """Largest norm of a tensor's gradient relative to the norm of its weights; 0 does not clip."""
    beta1: Decay = 0.9
    """Decay of LaProp's momentum."""
    beta2: Decay = 0.999
    """Decay of LaProp's mean squared gradient."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Matrix products in bfloat16, where the hardware has it, or float32. Everything else is float32."""

    def __post_init__(self) -> None:
        self.require(self.deter % self.blocks == 0, "deter", f"a multiple of blocks ({self.blocks})")
        self.require(self.bins % 2 == 1, "bins", "odd")
        self.require(self.kernel % 2 == 1, "kernel", "odd")

    @property
    def discount(self) -> float:
        return 1 - 1 / self.horizon
