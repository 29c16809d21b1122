"""The interface of every agent."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastwm.agents.arguments import check_batch, check_mode, check_observations, check_state
from fastwm.agents.finite import FiniteCheck
from fastwm.agents.results import Noise, Streams
from fastwm.distributed import ALONE, Alone
from fastwm.errors import FastwmError
from fastwm.nn.spaces import SpaceDict, encode, is_image, random_values

WriteBack = Callable[[Tensor, dict[str, Tensor]], None]


class Agent(nn.Module, ABC):
    """A plain module that acts, learns from replayed rows, and shows what it imagines.

    Its state dict holds everything a resume needs: weights, normalisers and optimisers.
    """

    obs_space: SpaceDict
    act_space: SpaceDict
    config: Any
    state_keys: tuple[str, ...] = ("deter", "stoch", "action")
    """Names in the acting state."""
    batch_keys: tuple[str, ...] = ("is_first",)
    """Keys that an update reads beside observations, actions and rewards."""
    latent_keys: tuple[str, ...] = ()
    """Names of the latents that replay keeps beside each row."""
    online: bool = True
    """Whether replay serves every new row once before it draws at random."""
    prioritize_ends: bool = False
    """Whether windows end with the episode rather than cross its end."""
    capturable: bool = False
    """Whether a CUDA graph can hold `update`: it waits for nothing on the GPU and decides nothing on the host."""
    group: Alone = ALONE
    """The processes that make each update together, each with its part of the batch."""
    streams: Streams | None = None
    """The noise of updates, shard by shard; None draws it from torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.finite = FiniteCheck()

    @abstractmethod
    def initial(self, batch: int) -> dict[str, Tensor]:
        """The acting state before the first observation."""

    @abstractmethod
    def act(
        self, obs: Mapping[str, Any], state: dict[str, Tensor] | None = None, mode: str = "train"
    ) -> tuple[Any, dict[str, Tensor]]:
        """Actions for a batch of observations `[B, ...]`, and the state to pass with the next one.

        `obs` holds the keys of `obs_space`, images as uint8, and `is_first` [B] bool; other keys are ignored. `mode` is
        "train", "eval" or "random", which acts uniformly and remembers it.

        Raises:
            ValueError: for a missing key, a shape, number of rows or dtype that is not the space's, an unknown mode.
            FastwmError: for an observation that is not finite; names its key and row. Observations that are on a GPU
                already are not read.
        """

    @abstractmethod
    def update(self, batch: Mapping[str, Tensor], *, write_back: WriteBack | None = None) -> dict[str, Tensor]:
        """One gradient step on replayed rows, time-major; returns scalar metrics.

        `write_back(index, latents)` receives fresh latents for the rows `batch["index"]`, from agents that have any.

        Raises:
            ValueError: for a missing key, or a shape or dtype that is not the space's.
            FastwmError: on a CPU, for a loss or gradient that is not finite, by its name; no weight is changed. On a
                GPU such an update changes nothing, and `check_finite` raises. Also for a trainable parameter that
                no optimiser holds: see `reset_optimizers`.
        """

    @abstractmethod
    def open_loop(self, batch: Mapping[str, Tensor], context: int) -> dict[str, Tensor]:
        """Predicted observations [T, B, ...]: filtered for `context` rows, then from the actions alone."""

    def draw(self, steps: int, batch: int, streams: Streams) -> Noise:
        """All random numbers of an update on rows [T, B]."""
        raise FastwmError(f"{type(self).__name__} cannot train in shards: it does not say what noise an update takes")

    def noise_of(self, rows: Mapping[str, Tensor]) -> Noise:
        """The noise of an update on rows [T, B, ...]."""
        if self.streams is None:
            return Noise()
        steps, batch = rows["is_first"].shape
        return self.draw(steps, batch, self.streams)

    def receive(self, obs: Mapping[str, Any], state: Mapping[str, Tensor] | None, mode: str) -> dict[str, Tensor]:
        """Check the arguments of `act`, and move the observations and `is_first` to the agent's device."""
        self.check_dtype()
        check_mode(mode)
        values = check_observations(self.obs_space, obs)
        if state is not None:
            check_state(state, self.state_keys, len(values["is_first"]))
        return {key: torch.as_tensor(value, device=self.device) for key, value in values.items()}

    def check_update(self, batch: Mapping[str, Tensor]) -> None:
        """Refuse a batch of wrong keys, shapes or dtypes, and networks that no optimiser would train."""
        self.check_dtype()
        check_batch(self.obs_space | self.act_space, self.batch_keys, batch)
        held = {id(p) for o in self.optimizers().values() for group in o.param_groups for p in group["params"]}
        modules: list[nn.Module | None] = [self]
        params: list[nn.Parameter | None] = []
        while modules:  # `parameters` takes five times as long, for its names
            if (module := modules.pop()) is not None:
                params += module._parameters.values()
                modules += module._modules.values()
        if all(p is None or not p.requires_grad or id(p) in held for p in params):
            return
        lost = [name for name, p in self.named_parameters() if p.requires_grad and id(p) not in held]
        raise FastwmError(
            f"update: no optimiser holds {lost[0]}" + (f" and {len(lost) - 1} others" if lost[1:] else "")
            + ": call reset_optimizers() after replacing a network, or freeze it with requires_grad_(False)"
        )  # fmt: skip

    def check_dtype(self) -> None:
        """Refuse parameters that `.half()`, `.bfloat16()`, `.double()` or a default dtype has made something else."""
        dtype, default = next(self.parameters()).dtype, torch.get_default_dtype()
        if dtype != torch.float32:
            raise TypeError(
                f"{type(self).__name__}: the parameters are {dtype}, but must be torch.float32: call agent.float(); "
                'precision="bf16" computes products in bfloat16, under torch.autocast'
            )
        if default != torch.float32:
            raise TypeError(f"{type(self).__name__}: torch's default dtype must be torch.float32, but is {default}")

    def check_finite(self) -> None:
        """Raise for an earlier update on a GPU whose loss or gradient was not finite. This waits for the GPU.

        Raises:
            FastwmError: with the name of the loss or of the parameter.
        """
        self.finite.read(self)

    def random_action(self, batch: int) -> dict[str, Tensor]:
        """Uniform actions [batch, ...]."""
        return {key: random_values(space, batch, self.device) for key, space in self.act_space.items()}

    def led_to(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Rows 1..T of a batch [1+T, B, ...], and the encoded action that led to each of them [T, B, A]."""
        rows = {key: value[1:] for key, value in batch.items()}
        return rows, encode(self.act_space, {key: batch[key][:-1] for key in self.act_space})

    def scale(self, term: str) -> float:
        """Weight of a loss term; the reconstructions `rec/<key>` share one."""
        return float(getattr(self.config, f"{term.split('/')[0]}_scale"))

    def latents(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of an acting state that replay stores."""
        return {}

    def baselines(self, num_envs: int, seed: int) -> Mapping[str, Callable[[Any], Any]]:
        """Simple policies worth scoring beside this agent, by name: record `[num_envs, ...]` -> action."""
        return {}

    def imagine_video(self, batch: Mapping[str, Tensor], context: int = 5) -> dict[str, Tensor]:
        """Truth, open-loop prediction and error below each other, for every image key: uint8 [T, B, 3H, W, C]."""
        keys = [key for key, space in self.obs_space.items() if is_image(space)]
        if not keys:
            raise ValueError("imagine_video: this agent has no image observation; use open_loop for vectors")
        predictions = self.open_loop(batch, context)
        videos = {}
        for key in keys:
            prediction = predictions[key]
            truth = batch[key][-len(prediction) :].float() / 255
            error = (prediction - truth + 1) / 2
            videos[key] = (torch.cat([truth, prediction, error], -3).clamp(0, 1) * 255).round().to(torch.uint8)
        return videos

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """All optimisers, by name; their state travels with the module's."""
        return {}

    def reset_optimizers(self) -> None:
        """Make the optimisers anew for the networks as they are now: call it after replacing a network."""

    def get_extra_state(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers().items()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes what `get_extra_state` gave; optimisers that an empty one lacks begin anew."""
        for name, optimizer in self.optimizers().items() if state else ():
            optimizer.load_state_dict(clone(state[name]))  # torch's optimisers would share the tensors
            for p, kept in optimizer.state.items():
                for key, x in kept.items():
                    if not isinstance(x, Tensor) or (x.shape != p.shape and key != "step"):
                        found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                        raise ValueError(f"{key} of optimiser {name} is {found}, of a parameter {list(p.shape)}")

    @property
    def reduced_precision(self) -> bool:
        return self.config.precision == "bf16" and has_bfloat16(self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.reduced_precision)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are native there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def clone(state: Any) -> Any:
    """A nested state with tensors of its own."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: clone(value) for key, value in state.items()}
    return [clone(value) for value in state] if isinstance(state, list) else state


@contextmanager
def fixed(*modules: nn.Module) -> Iterator[None]:
    """Their parameters are constants of what is computed inside: its gradient costs nothing."""
    params = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in params:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in params:
            p.requires_grad_(True)
