"""World Models (Ha and Schmidhuber, 2018): V sees, M remembers and predicts, C acts."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from fastwm.agents.agent import Agent, WriteBack
from fastwm.agents.world_models.baselines import baselines
from fastwm.agents.world_models.config import WorldModelsConfig
from fastwm.agents.world_models.controller import Controller
from fastwm.agents.world_models.task import Policy, Record, Task, task_of
from fastwm.errors import FastwmError
from fastwm.nn.conv_vae import ConvVAE, Latent
from fastwm.nn.mdn_rnn import MDNRNN
from fastwm.nn.spaces import row_spaces


class WorldModels(Agent):
    """V, M and C, trained one after the other by the stages of this folder.

    `obs_space` holds one image, `act_space` is CarRacing's or TakeCover's; the task follows from it.
    """

    state_keys = ("h", "c")

    def __init__(
        self,
        obs_space: "spaces.Space | Mapping[str, spaces.Space]",
        act_space: spaces.Space,
        config: WorldModelsConfig | None = None,
    ):
        super().__init__()
        self.config = config or WorldModelsConfig()
        self.obs_space, self.act_space = row_spaces(obs_space, act_space, alone="image")
        self.task = task_of(act_space)
        if "image" not in self.obs_space:
            raise FastwmError(f"world_models needs an observation 'image', there is: {', '.join(self.obs_space)}")
        m, c = self.config.m, self.config.c
        heads = tuple(name for name in ("done", "reward") if getattr(m, name))
        self.vae = ConvVAE(self.config.latents)
        self.rnn = MDNRNN(
            self.config.latents, self.task.actions, m.hidden, m.components, self.task.restart, heads, m.joint
        )
        self.controller = Controller(
            self.config.latents, m.hidden, self.task.actions, self.task.squash, c.features, c.bias, c.hidden
        )

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Latent:
        """V's latents of frames `[..., 64, 64, 3]`."""
        with self.autocast():
            return self.vae.encode(frames)

    def latent(self, latent: Latent, epsilon: Tensor | None = None) -> Tensor:
        """The latent that M and C see: a sample, or the mean if so configured."""
        return latent.sample(epsilon) if self.config.sample else latent.mu.float()

    def initial(self, batch: int) -> dict[str, Tensor]:
        """M's state before the first observation."""
        return dict(zip("hc", self.rnn.initial(batch)))

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], state: dict[str, Tensor] | None = None, mode: str = "train"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions for `obs["image"]` [B, H, W, 3] uint8 and `obs["is_first"]` [B]; `mode` makes no difference.

        C sees z of now and M's state from before it; then M takes in both z and the action.
        """
        action, state = self.choose(self.receive(obs, state, mode), state)
        return self.task.env_action(action), state

    @torch.no_grad()
    def choose(
        self,
        obs: Mapping[str, Any],
        state: dict[str, Tensor] | None = None,
        vectors: Tensor | None = None,
        epsilon: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `act`, with the action as M sees it.

        `vectors` [B, size] gives each row a controller of its own, `epsilon` [B, Z] fixes the noise of z.
        """
        frames = self.task.frames(torch.as_tensor(obs["image"], device=self.device))
        is_first = torch.as_tensor(obs["is_first"], device=self.device).bool()
        state = self.initial(len(is_first)) if state is None else state
        h, c = (state[key].masked_fill(is_first[:, None], 0) for key in "hc")
        z = self.latent(self.encode(frames), epsilon)
        action = self.controller(z, h, c) if vectors is None else self.controller.act_many(vectors, z, h, c)
        h, c = self.rnn.advance(z, action, (h, c), is_first)
        return action, {"h": h, "c": c}

    def baselines(self, num_envs: int, seed: int) -> Mapping[str, Callable[[Record], Tensor]]:
        """The blind policies of `baselines.py`."""
        policies = baselines(self.task, num_envs, seed)
        return {name: partial(_act, self.task, policy) for name, policy in policies.items()}

    def update(self, batch: Mapping[str, Tensor], *, write_back: WriteBack | None = None) -> dict[str, Tensor]:
        raise FastwmError("world_models learns in stages (fastwm train world_models), not by single updates")

    @torch.no_grad()
    def dream(self, z: Tensor, action: Tensor, is_first: Tensor, context: int, temperature: float = 1.0) -> Tensor:
        """Latents `[T, B, Z]`: the given ones for `context` rows, then M's own from the actions `[T, B, A]` alone."""
        state, path = self.rnn.initial(z.shape[1]), [z[0]]
        for t in range(len(z) - 1):
            prediction, state = self.rnn.step(path[-1], action[t], state, is_first[t])
            path.append(z[t + 1] if t + 1 < context else prediction.mixture.sample(temperature))
        return torch.stack(path)

    @torch.no_grad()
    def open_loop(self, batch: Mapping[str, Tensor], context: int, temperature: float = 1.0) -> dict[str, Tensor]:
        """Frames `[T, B, 64, 64, 3]` in [0, 1]: reconstructed for `context` rows, then dreamt.

        `batch` holds V's frames `image` [T, B, 64, 64, 3], `action` [T, B, A] as M sees it, and `is_first`.
        """
        z = self.latent(self.encode(batch["image"]))
        path = self.dream(z, batch["action"].float(), batch["is_first"].bool(), context, temperature)
        return {"image": self.vae.decode(path)}

    @torch.no_grad()
    def imagine_video(self, batch: Mapping[str, Tensor], context: int = 5) -> dict[str, Tensor]:
        """Frames, V's reconstruction and M's open-loop dream side by side: uint8 [T, B, 64, 192, 3]."""
        recon = self.vae.decode(self.encode(batch["image"]).mu)
        panels = [batch["image"].float() / 255, recon, self.open_loop(batch, context)["image"]]
        return {"image": (torch.cat(panels, -2).clamp(0, 1) * 255).round().to(torch.uint8)}


def _act(task: Task, policy: Policy, record: Record) -> Tensor:
    return task.env_action(policy(record))
