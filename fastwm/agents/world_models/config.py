"""Every number of World Models, stage by stage. The defaults are those of the paper's CarRacing; see the presets."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class CollectConfig:
    """Episodes of a random policy, on disk."""

    episodes: int = 10_000
    policy: Literal["original", "brownian", "uniform"] = "original"
    """`original`: the public code's; `brownian`: a clipped random walk; `uniform`: each step anew."""
    num_envs: int = 8
    chunk_episodes: int = 50
    """Episodes written at once; what an interruption may lose."""
    min_frames: int = 0
    """Shorter episodes are dropped: Doom 101."""
    max_frames: int = 0
    """A round ends with the chunk that brings it to so many frames, as a good controller lives long; 0: no limit."""


@dataclass
class VConfig:
    """The autoencoder."""

    epochs: float = 1
    """Passes over all frames: 1 in the paper, 10 in the code."""
    steps: int = 0
    """Updates; 0 takes `epochs`."""
    refine_steps: int = 0
    """Updates in every later iteration; 0 keeps V as it is."""
    batch: int = 100
    lr: float = 1e-4
    kl_tolerance: float = 0.5
    """Nats a latent below which a sample's KL costs nothing."""


@dataclass
class MConfig:
    """The mixture density RNN."""

    hidden: int = 256
    components: int = 5
    joint: bool = False
    """One mixture over all latents (ctallec) instead of one for each."""
    done: bool = False
    """Predict the end of an episode."""
    reward: bool = False
    """Predict rewards, which neither paper nor code does: needed to learn CarRacing in the dream."""
    epochs: float = 20
    steps: int = 0
    """Updates; 0 takes `epochs`."""
    batch: int = 100
    """Parallel streams."""
    length: int = 500
    """Rows of a stream an update sees."""
    stateful: bool = True
    """Carry the state from one chunk of a stream to the next; else every chunk starts from zeros."""
    overlap: bool = True
    """Train the transition between chunks too, which the code leaves out."""
    lr: float = 1e-3
    lr_min: float = 1e-5
    lr_decay: float = 1.0
    """At step t: (lr - lr_min) * lr_decay^t + lr_min."""
    clip: float = 1.0
    """Bound of every element of the gradient."""
    done_weight: float = 10.0
    reward_weight: float = 1.0
    reward_clip: float = 0.0
    """Bound of the rewards M learns; 0 is none. Leaving CarRacing's field costs 100, a tile gives 3."""


@dataclass
class CConfig:
    """The controller and its evolution."""

    features: Literal["z", "zh", "zch"] = "zh"
    bias: bool = True
    hidden: int = 0
    """Units of a tanh layer; 0 is none. With one, fitness must be real."""
    fitness: Literal["dream", "real"] = "real"
    temperature: float = 1.0
    """Of the dream."""
    max_steps: int = 1000
    population: int = 64
    rollouts: int = 16
    sigma: float = 0.1
    generations: int = 200
    minutes: float = 0.0
    """Time after which evolution ends, however few the generations; 0 is no limit."""
    diagonal: bool = False
    """A diagonal covariance: linear in the number of parameters, for those with little time."""
    weight_decay: float = 0.01
    """Fitness loses this times the mean squared parameter."""
    seeds: Literal["antithetic", "common", "own"] = "antithetic"
    """Candidates have seeds of their `own`, or the second half those of the first, or all the same ones."""
    evaluate_every: int = 25
    evaluate_rollouts: int = 1024
    """Episodes of the distribution's mean; the best mean is kept."""
    num_envs: int = 64
    """Environments at once, where fitness is real."""
    patience: int = 0
    """A real episode of evolution also ends after so many steps without a reward above 0; 0 is never."""


@dataclass
class WorldModelsConfig:
    """All stages."""

    latents: int = 32
    sample: bool = True
    """C and M see latents sampled from V; without, their means."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Of V's and M's products, where the hardware has bfloat16."""
    iterations: int = 1
    """Rounds of collecting (with the controller, from the second on), training and evolving."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    v: VConfig = field(default_factory=VConfig)
    m: MConfig = field(default_factory=MConfig)
    c: CConfig = field(default_factory=CConfig)
