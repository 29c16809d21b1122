"""Every number of World Models, stage by stage. The defaults are those of the paper's CarRacing; see the presets."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from fastwm.settings import Count, Fraction, Parallel, Positive, Range, Settings, Weight, Whole, Width


@dataclass
class CollectConfig(Settings):
    """Episodes of a random policy, on disk."""

    episodes: Count = 10_000
    """Episodes to collect."""
    policy: Literal["original", "brownian", "uniform"] = "original"
    """`original`: that of the public code; `brownian`: a clipped random walk; `uniform`: a new draw at every step."""
    num_envs: Parallel = 8
    """Environments at once."""
    chunk_episodes: Count = 50
    """Episodes written at once; an interruption loses at most these."""
    min_frames: Whole = 0
    """Episodes with fewer frames are dropped; Doom uses 101."""
    max_frames: Whole = 0
    """Frames after which a round of collecting ends, with the chunk at hand; 0 for no limit."""


@dataclass
class VConfig(Settings):
    """The autoencoder."""

    epochs: Positive = 1
    """Passes over all frames: 1 in the paper, 10 in the code."""
    steps: Whole = 0
    """Updates; 0 follows `epochs`."""
    refine_steps: Whole = 0
    """Updates in every later iteration; 0 keeps V as it is."""
    batch: Count = 100
    """Frames per update."""
    lr: Positive = 1e-4
    """Learning rate."""
    kl_tolerance: Weight = 0.5
    """KL in nats per latent below which a frame's KL loss gives no gradient."""


@dataclass
class MConfig(Settings):
    """The mixture density RNN."""

    hidden: Width = 256
    """Units of the LSTM."""
    components: Width = 5
    """Gaussians in the mixture."""
    joint: bool = False
    """One mixture over all latents (ctallec's code) instead of one for each."""
    done: bool = False
    """Predict the end of an episode."""
    reward: bool = False
    """Predict rewards, which neither paper nor code does: needed to learn CarRacing in the dream."""
    epochs: Positive = 20
    """Passes over all episodes."""
    steps: Whole = 0
    """Updates; 0 follows `epochs`."""
    batch: Count = 100
    """Parallel streams of episodes per update."""
    length: Count = 500
    """Rows of each stream per update."""
    stateful: bool = True
    """Carry the LSTM's state from one chunk of a stream to the next; otherwise every chunk starts from zeros."""
    overlap: bool = True
    """Also train the transition between two chunks, which the public code leaves out."""
    lr: Positive = 1e-3
    """Learning rate of the first update."""
    lr_min: Weight = 1e-5
    """Learning rate that `lr` decays to."""
    lr_decay: Fraction = 1.0
    """Decay per update: update t has the learning rate (lr - lr_min) * lr_decay^t + lr_min."""
    clip: Positive = 1.0
    """Largest absolute value of a gradient's element."""
    done_weight: Weight = 10.0
    """Weight of the loss at the rows that end an episode, relative to the others."""
    reward_weight: Weight = 1.0
    """Weight of the reward loss."""
    reward_clip: Weight = 0.0
    """Largest absolute reward that M learns; 0 does not clip. In CarRacing a tile gives 3, leaving the field -100."""


@dataclass
class CConfig(Settings):
    """The controller and its evolution."""

    features: Literal["z", "zh", "zch"] = "zh"
    """Inputs of the controller: the latent z, and the LSTM's output h and cell c."""
    bias: bool = True
    """A bias in the controller's output."""
    hidden: Annotated[int, Range(0, 2**17)] = 0
    """Units of a hidden tanh layer; 0 for none. With one, `fitness` must be `real`."""
    fitness: Literal["dream", "real"] = "real"
    """Evolve in the dream of M, or in the real environment."""
    temperature: Positive = 1.0
    """Temperature of the dream; higher is less predictable."""
    max_steps: Count = 1000
    """Longest episode of evolution, in steps."""
    population: Annotated[int, Range(2, 2**16)] = 64
    """Candidates per generation; even with `antithetic` seeds."""
    rollouts: Count = 16
    """Episodes per candidate."""
    sigma: Positive = 0.1
    """Initial standard deviation of the search."""
    generations: Count = 200
    """Generations of CMA-ES."""
    minutes: Weight = 0.0
    """Minutes after which evolution ends, whatever the generation; 0 for no limit."""
    diagonal: bool = False
    """A diagonal covariance: faster per generation and with fewer numbers to learn, for short runs."""
    weight_decay: Weight = 0.01
    """Weight of the mean squared parameter, which is subtracted from the fitness."""
    seeds: Literal["antithetic", "common", "own"] = "antithetic"
    """Seeds of the candidates' episodes: each its `own`, all `common`, or the second half those of the first."""
    evaluate_every: Count = 25
    """Generations between two evaluations of the search's mean."""
    evaluate_rollouts: Count = 1024
    """Episodes of such an evaluation; the best mean is kept."""
    num_envs: Parallel = 64
    """Environments at once, where fitness is real."""
    patience: Whole = 0
    """Steps without a positive reward after which a real episode of evolution ends; 0 for no limit."""

    def __post_init__(self) -> None:
        whole = self.seeds != "antithetic" or self.population % 2 == 0
        self.require(whole, "population", "even where seeds are antithetic")
        self.require(
            not self.hidden or self.fitness == "real", "fitness", "real where the controller has a hidden layer"
        )


@dataclass
class WorldModelsConfig(Settings):
    """All stages."""

    latents: Width = 32
    """Latent variables of V."""
    sample: bool = True
    """Show C and M latents sampled from V; otherwise their means."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Matrix products of V and M in bfloat16, where the hardware has it, or float32."""
    iterations: Count = 1
    """Rounds of collecting (with the controller, from the second on), training and evolving."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    v: VConfig = field(default_factory=VConfig)
    m: MConfig = field(default_factory=MConfig)
    c: CConfig = field(default_factory=CConfig)
