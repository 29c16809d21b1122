"""The world model of PlaNet, Dreamer V1 and DreamerV2: it filters and predicts, and the agents act from its state.

The agents say what the divergence between posterior and prior costs, how an action is chosen, and what else is learnt.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal

import torch
from gymnasium import spaces
from torch import Tensor, nn

from fastwm import ops
from fastwm.agents.agent import Agent
from fastwm.agents.results import Noise, Streams, World
from fastwm.nn.codec import StridedDecoder, StridedEncoder
from fastwm.nn.gru_rssm import GRURSSM, GRUState
from fastwm.nn.heads import Action, BernoulliHead, NormalHead
from fastwm.nn.layers import Style
from fastwm.nn.spaces import SpaceDict, classes, encode, is_image, random_values, row_spaces, shape, total_width
from fastwm.optim import KerasAdam
from fastwm.settings import Fraction, Layers, Range, Settings, Weight, Width

CLIP_REWARDS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda reward: reward, "sign": torch.sign, "tanh": torch.tanh
}  # fmt: skip


@dataclass(kw_only=True)
class WorldConfig(Settings):
    """Sizes and scales of the world model, with the numbers of Dreamer V1."""

    deter: Width = 200
    """Units of the recurrent state."""
    hidden: Width = 200
    """Units of the RSSM's hidden layers."""
    stoch: Width = 30
    """Latent variables."""
    units: Width = 400
    """Units of a hidden layer in the vector encoder, the vector decoder and all heads, where no widths are given."""
    depth: Width = 32
    """Channels of the image networks' finest layer."""
    norm: bool = False
    """LayerNorm before every activation."""
    bits: Annotated[int, Range(1, 8)] = 8
    """Bits of an image's channel; with fewer than 8, images are quantised and noise is added."""
    encoder_layers: Layers = 3
    """Hidden layers of the vector encoder: their number, or the width of each."""
    decoder_layers: Layers = 3
    """Hidden layers of the vector decoder: their number, or the width of each."""
    reward_layers: Layers = 2
    """Hidden layers of the reward head: their number, or the width of each."""
    cont_layers: Layers = 3
    """Hidden layers of the continuation head: their number, or the width of each."""
    obs_order: tuple[str, ...] = ()
    """Names of the observations in the order in which vectors, and images, are concatenated; empty: sorted by name."""
    predict_cont: bool = False
    """Learn where episodes end; otherwise the discount is the same in every state."""
    clip_rewards: Literal["identity", "sign", "tanh"] = "identity"
    """The reward that is learnt: as it is, its sign, or its tanh."""
    free_nats: Weight = 3.0
    """KL in nats below which the KL loss gives no gradient."""
    kl_scale: Weight = 1.0
    """Weight of the KL loss between posterior and prior."""
    rec_scale: Weight = 1.0
    """Weight of the reconstruction losses."""
    reward_scale: Weight = 1.0
    """Weight of the reward loss."""
    cont_scale: Weight = 10.0
    """Weight of the continuation loss."""
    discount: Fraction = 0.99
    """Discount per step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Matrix products in float32, or in bfloat16 where the hardware has it. Everything else is float32."""
    explore: Weight = 0.3
    """Standard deviation of the noise added to continuous actions; fraction of discrete actions drawn at random."""


@dataclass
class ModelLoss:
    """`total` is the scaled sum of `terms`, scalars."""

    total: Tensor
    terms: dict[str, Tensor]
    world: World[GRUState]


class WorldModel(nn.Module):
    """Encoder, RSSM, decoder, reward head, and a head of the continuation where asked for."""

    def __init__(
        self, obs_space: SpaceDict, action_dim: int, kind: ops.GRURSSMKind, style: Style, conv: Style, c: WorldConfig
    ):
        super().__init__()
        self.obs_space, self.config = obs_space, c
        codec = (c.depth, style, conv, c.obs_order)
        self.encoder = StridedEncoder(obs_space, c.units, c.encoder_layers, *codec)
        self.rssm = GRURSSM(kind, self.encoder.out_dim, action_dim, c.deter, c.hidden, c.stoch, c.norm)
        feat = self.rssm.feat_dim
        self.decoder = StridedDecoder(obs_space, feat, c.units, c.decoder_layers, *codec)
        self.reward = NormalHead(feat, c.units, c.reward_layers, style)
        self.cont = BernoulliHead(feat, c.units, c.cont_layers, style) if c.predict_cont else None

    def prepare(self, obs: Mapping[str, Tensor], noise: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Observations as the networks see and predict them: images in [-0.5, 0.5], the rest as it is.

        `noise`, uniform, is that of images with fewer than 8 bits.
        """
        values = {}
        for key, space in self.obs_space.items():
            value = obs[key]
            if is_image(space):
                bits, given = self.config.bits, noise[key] if noise else None
                value = quantise(value, bits, given) if bits < 8 else value.float() / 255 - 0.5
            values[key] = value if classes(space) else value.float()
        return values

    def forward(
        self,
        rows: Mapping[str, Tensor],
        prev_action: Tensor,
        start: GRUState | None = None,
        noise: Noise | None = None,
    ) -> World[GRUState]:
        """Filter rows [T, B, ...] and predict all of them; `prev_action` [T, B, A] led to each. No start is zeros."""
        noise = noise or Noise()
        obs = self.prepare(rows, noise.image)
        tokens = self.encoder(obs)
        start = self.rssm.initial(tokens.shape[1]) if start is None else start
        state, post_stats = self.rssm.observe(start, prev_action, tokens, rows["is_first"].bool(), noise.post)
        recon, reward = self.decoder(*state.parts), self.reward(*state.parts)
        losses = {f"rec/{key}": over_time(dist.loss(obs[key])) for key, dist in recon.items()}
        losses["reward"] = reward.loss(CLIP_REWARDS[self.config.clip_rewards](rows["reward"]))
        cont = self.cont(*state.parts) if self.cont is not None else None
        if cont is not None:
            losses["cont"] = cont.loss(self.discount_after(rows["is_terminal"]))
        prior_stats = self.rssm.prior_stats_of(state.deter)
        return World(tokens, state, post_stats, prior_stats, recon, reward, cont, losses)

    def discount_after(self, is_terminal: Tensor) -> Tensor:
        """The discount after a state: 0 after a terminal one."""
        return self.config.discount * (1 - is_terminal.float())

    def discount_at(self, state: GRUState) -> Tensor:
        """The same of imagined states [...]: the head's probability, which holds the discount, or a constant."""
        if self.cont is None:
            return torch.full_like(state.deter[..., 0], self.config.discount)
        return self.cont(*state.parts).prob

    def step(self, state: GRUState, prev_action: Tensor, obs: Mapping[str, Tensor], is_first: Tensor) -> GRUState:
        """Filter one observation [B, ...]."""
        return self.rssm.observe_step(state, prev_action, self.encoder(self.prepare(obs)), is_first)[0]

    def open_loop(self, rows: Mapping[str, Tensor], prev_action: Tensor, context: int) -> dict[str, Tensor]:
        """Predicted observations [T, B, ...] in their own units."""
        tokens = self.encoder(self.prepare({key: rows[key][:context] for key in self.obs_space}))
        start, is_first = self.rssm.initial(tokens.shape[1]), rows["is_first"][:context].bool()
        seen, _ = self.rssm.observe(start, prev_action[:context], tokens, is_first)
        dreamt, _ = self.rssm.open_loop(GRUState(seen.deter[-1], seen.stoch[-1]), prev_action[context:])
        state = GRUState(torch.cat([seen.deter, dreamt.deter]), torch.cat([seen.stoch, dreamt.stoch]))
        recon = self.decoder(*state.parts)
        return {key: dist.prediction + 0.5 * is_image(self.obs_space[key]) for key, dist in recon.items()}


def over_time(loss: Tensor) -> Tensor:
    """Sum all but [T, B]."""
    return loss.flatten(2).sum(-1) if loss.ndim > 2 else loss


def quantise(image: Tensor, bits: int, noise: Tensor | None = None) -> Tensor:
    """Images in 0..255 with `bits` bits, centred, with noise of one step's width."""
    levels = 2**bits
    coarse = torch.floor(image.float() / 2 ** (8 - bits))
    noise = torch.rand(coarse.shape, device=coarse.device) if noise is None else noise
    return (coarse + noise) / levels - 0.5


class WorldAgent(Agent):
    """An agent of that model: it acts from filtered states and learns from windows that start with no memory."""

    online = False
    capturable = True

    def __init__(
        self, obs_space: "spaces.Space | Mapping[str, spaces.Space]",
        act_space: "spaces.Space | Mapping[str, spaces.Space]", config: WorldConfig, kind: ops.GRURSSMKind,
        style: Style, conv: Style,
    ):  # fmt: skip
        super().__init__()
        self.config = config
        self.obs_space, self.act_space = row_spaces(obs_space, act_space, self.latent_keys)
        self.single_action = not isinstance(act_space, (Mapping, spaces.Dict))
        self.world = WorldModel(self.obs_space, total_width(self.act_space), kind, style, conv, config)

    @abstractmethod
    def divergence(self, world: World[GRUState]) -> Tensor:
        """The loss of the distance between posterior and prior, a scalar."""

    @abstractmethod
    def choose(self, state: GRUState, mode: str) -> Action:
        """Actions [B, ...] at filtered states, without the noise of exploration."""

    def model_loss(
        self,
        rows: Mapping[str, Tensor],
        prev_action: Tensor,
        start: GRUState | None = None,
        noise: Noise | None = None,
    ) -> ModelLoss:
        """Negative log-likelihood of all that is seen, and the divergence."""
        with self.autocast():
            world = self.world(rows, prev_action, start, noise)
        terms = {"kl": self.divergence(world)} | {key: loss.mean() for key, loss in world.losses.items()}
        return ModelLoss(torch.stack([self.scale(key) * term for key, term in terms.items()]).sum(), terms, world)

    def draw(self, steps: int, batch: int, streams: Streams) -> Noise:
        c = self.config
        image = None
        if c.bits < 8:
            shapes = {key: shape(space) for key, space in self.obs_space.items() if is_image(space)}
            image = {key: streams.uniform(steps, batch, prod(size)).unflatten(-1, size) for key, size in shapes.items()}
        return Noise(self.latent_draw(streams)(steps, batch, c.stoch), image=image)

    def latent_draw(self, streams: Streams) -> Callable[..., Tensor]:
        """The kind of noise that a latent's sample takes."""
        return streams.uniform if self.world.rssm.kind.classes else streams.normal

    def gradient(
        self, optimizer: KerasAdam, loss: Tensor, losses: dict[str, Tensor], names: Iterable[str] | None = None
    ) -> Tensor:
        """Set the gradient of `loss` for an optimiser's parameters, the mean over all processes; returns its norm.

        The same reduction makes `losses`, or those with `names`, means over all processes.
        """
        chosen = list(losses if names is None else names)

        def average(grads: list[Tensor]) -> None:
            losses.update({name: losses[name].detach().clone() for name in chosen})
            self.group.mean_([*grads, *(losses[name] for name in chosen)])

        return optimizer.backward(loss, average if self.group.world > 1 else None)

    def metrics(
        self, model: ModelLoss, losses: dict[str, Tensor], norms: dict[str, Tensor], dreamt: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Scalars worth a plot."""
        values = {f"loss/{key}": loss for key, loss in (model.terms | losses).items()}
        values |= {f"grad_norm/{key}": norm for key, norm in norms.items()} | dreamt
        return {key: value.detach().mean() for key, value in values.items()}

    def initial(self, batch: int) -> dict[str, Tensor]:
        """The acting state before the first observation."""
        deter, stoch = self.world.rssm.initial(batch)
        return {"deter": deter, "stoch": stoch, "action": deter.new_zeros(batch, total_width(self.act_space))}

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], state: dict[str, Tensor] | None = None, mode: str = "train"
    ) -> tuple[Any, dict[str, Tensor]]:
        """Choose actions for observations `[B, ...]`; "train" explores, "eval" does not.

        What the environment gets is also what the model remembers.
        """
        obs = self.receive(obs, state, mode)
        is_first = obs["is_first"].bool()
        state = self.initial(len(is_first)) if state is None else state
        with self.autocast():
            post = self.world.step(GRUState(state["deter"], state["stoch"]), state["action"], obs, is_first)
            action = self.random_action(len(is_first)) if mode == "random" else self.choose(post, mode)
        if mode == "train":
            action = self.explore(action)
        state = {"deter": post.deter, "stoch": post.stoch, "action": encode(self.act_space, action)}
        return (action["action"] if self.single_action else action), state

    def explore(self, action: Action) -> Action:
        """Noise on real actions, clipped to [-1, 1]; a share of discrete ones drawn at random."""
        amount, noisy = self.config.explore, {}
        for key, value in action.items() if amount else ():
            if classes(self.act_space[key]):
                other = random_values(self.act_space[key], len(value), self.device)
                switch = torch.rand(value.shape, device=self.device) < amount
                noisy[key] = torch.where(switch, other, value)
            else:
                noisy[key] = (value + amount * torch.randn_like(value)).clamp(-1, 1)
        return action | noisy

    @torch.no_grad()
    def open_loop(self, batch: Mapping[str, Tensor], context: int) -> dict[str, Tensor]:
        """Predict the rows of a batch [1+T, B, ...] after the first `context` ones from the actions alone."""
        with self.autocast():
            return self.world.open_loop(*self.led_to(batch), context)
