"""Minecraft Diamond (Hafner et al. 2023), through MineRL's interface, as a Gymnasium environment.

The rules here (actions, rewards, limits) are tested against a stand-in with MineRL's interface. The game itself cannot
be installed without a network, so `make_world` has not been run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ..errors import FastwmError
from .envpool import Seed
from .gym import make_from
from .vec import UnknownEnv, VecEnv

EPISODE = 36_000  # steps, half an hour of play
STICKY_ATTACK, STICKY_JUMP = 30, 10  # steps that an attack and a jump go on
PITCH_LIMIT = 60  # degrees up and down
TURN = 15  # degrees

IDLE: dict[str, Any] = {
    "camera": (0, 0), "forward": 0, "back": 0, "left": 0, "right": 0, "attack": 0, "sprint": 0, "jump": 0, "sneak": 0,
    "craft": "none", "nearbyCraft": "none", "nearbySmelt": "none", "place": "none", "equip": "none",
}  # fmt: skip
MOVES: dict[str, dict[str, Any]] = {
    "noop": {},
    "attack": {"attack": 1},
    "turn_up": {"camera": (-TURN, 0)},
    "turn_down": {"camera": (TURN, 0)},
    "turn_left": {"camera": (0, -TURN)},
    "turn_right": {"camera": (0, TURN)},
    "forward": {"forward": 1},
    "back": {"back": 1},
    "left": {"left": 1},
    "right": {"right": 1},
    "jump": {"jump": 1, "forward": 1},
    "place_dirt": {"place": "dirt"},
}
CRAFTS: dict[str, dict[str, Any]] = {
    "craft_planks": {"craft": "planks"},
    "craft_stick": {"craft": "stick"},
    "craft_crafting_table": {"craft": "crafting_table"},
    "place_crafting_table": {"place": "crafting_table"},
    "craft_wooden_pickaxe": {"nearbyCraft": "wooden_pickaxe"},
    "craft_stone_pickaxe": {"nearbyCraft": "stone_pickaxe"},
    "craft_iron_pickaxe": {"nearbyCraft": "iron_pickaxe"},
    "equip_stone_pickaxe": {"equip": "stone_pickaxe"},
    "equip_wooden_pickaxe": {"equip": "wooden_pickaxe"},
    "equip_iron_pickaxe": {"equip": "iron_pickaxe"},
    "craft_furnace": {"nearbyCraft": "furnace"},
    "place_furnace": {"place": "furnace"},
    "smelt_iron_ingot": {"nearbySmelt": "iron_ingot"},
}
ACTIONS = MOVES | CRAFTS
MILESTONES = (
    "log", "planks", "stick", "crafting_table", "wooden_pickaxe", "cobblestone", "stone_pickaxe", "iron_ore", "furnace",
    "iron_ingot", "iron_pickaxe", "diamond",
)  # fmt: skip
HEALTH_SCALE = 0.01


class Minecraft(gymnasium.Env):
    """The flat 25 actions, the observations and the rewards of the diamond task.

    Each of the 12 milestones pays 1 the first time in an episode that the item is in the inventory; a change of health
    pays a hundredth of it. An episode ends by death, or by the time limit.

    Args:
        world: MineRL's environment: `reset() -> obs`, `step(action) -> (obs, reward, done, info)`, with `pov`,
            `inventory`, `equipped_items` and `life_stats`.
        break_speed: how many times as fast blocks break. At 1 an attack is held for 30 steps, as the game needs.
        length: steps of an episode.
    """

    def __init__(self, world: Any, break_speed: float = 100.0, length: int = EPISODE) -> None:
        self.world, self.length = world, length
        self.sticky = {"attack": STICKY_ATTACK if break_speed == 1 else 0, "jump": STICKY_JUMP}
        declared = world.observation_space
        self.items = [item for item in declared["inventory"].spaces if item != "log2"]  # both kinds of log are one
        self.equipment = list(declared["equipped_items"]["mainhand"]["type"].values)
        counts = spaces.Box(0, np.inf, (len(self.items),), np.float32)
        share = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.observation_space = spaces.Dict({
            "image": spaces.Box(0, 255, declared["pov"].shape, np.uint8), "inventory": counts, "inventory_max": counts,
            "equipped": spaces.Box(0, 1, (len(self.equipment),), np.float32),
            "health": share, "hunger": share, "breath": share,
        })  # fmt: skip
        self.action_space = spaces.Discrete(len(ACTIONS))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        if seed is not None:
            self.world.seed(seed)
        self.steps = self.pitch = 0
        self.held = dict.fromkeys(self.sticky, 0)
        obs = self.world.reset()
        inventory = self._inventory(obs)
        self.most = inventory.copy()
        self.health = float(obs["life_stats"]["life"])
        return self._observe(obs, inventory), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict]:
        obs, _, done, info = self.world.step(self._command(list(ACTIONS.values())[int(action)]))
        self.steps += 1
        inventory = self._inventory(obs)
        held = dict(zip(self.items, zip(inventory, self.most)))
        reward = float(sum(now > 0 and most == 0 for now, most in (held.get(item, (0, 0)) for item in MILESTONES)))
        health = float(obs["life_stats"]["life"]) / 20
        reward += HEALTH_SCALE * (health - self.health / 20)
        self.health = health * 20
        self.most = np.maximum(self.most, inventory)
        late = self.steps >= self.length
        return self._observe(obs, inventory), reward, bool(done), late and not done, info

    def render(self) -> Any:
        return self.world.render()

    def close(self) -> None:
        self.world.close()

    def _command(self, keys: dict[str, Any]) -> dict[str, Any]:
        """One of `ACTIONS` as MineRL takes it: attack and jump are held, the camera stops at its limits."""
        command = IDLE | keys
        for key, steps in self.sticky.items():
            if command[key]:
                self.held[key] = steps
        if self.held["attack"]:
            command |= {"attack": 1, "jump": 0}
        if self.held["jump"]:
            command |= {"jump": 1, "forward": 1}
        self.held = {key: max(steps - 1, 0) for key, steps in self.held.items()}
        up, across = command["camera"]
        if abs(self.pitch + up) > PITCH_LIMIT:
            up = 0
        self.pitch += up
        return command | {"camera": (up, across)}

    def _inventory(self, obs: Mapping[str, Any]) -> np.ndarray:
        counts = {item: float(number) for item, number in obs["inventory"].items()}
        counts["log"] = counts.get("log", 0.0) + counts.pop("log2", 0.0)
        return np.array([counts.get(item, 0.0) for item in self.items], np.float32)

    def _observe(self, obs: Mapping[str, Any], inventory: np.ndarray) -> dict[str, Any]:
        life = obs["life_stats"]
        shares = {"health": life["life"] / 20, "hunger": life["food"] / 20, "breath": life["air"] / 300}
        hand = str(obs["equipped_items"]["mainhand"]["type"])
        return {
            "image": np.asarray(obs["pov"], np.uint8), "inventory": inventory, "inventory_max": self.most.copy(),
            "equipped": np.array([float(hand == kind) for kind in self.equipment], np.float32),
            **{key: np.array([value], np.float32) for key, value in shares.items()},
        }  # fmt: skip


def make_world(size: int, break_speed: float) -> Any:
    """MineRL's environment with the observations and actions of the diamond task."""
    try:
        from minerl.herobraine.env_spec import EnvSpec
        from minerl.herobraine.hero import handler, handlers, mc
    except ImportError as error:
        raise FastwmError(
            "MineRL is not installed: pip install minerl==0.4.4 (it needs a JDK 8 and builds Minecraft)"
        ) from error

    class BreakSpeed(handler.Handler):
        def to_string(self) -> str:
            return f"break_speed({break_speed})"

        def xml_template(self) -> str:
            return f"<BreakSpeedMultiplier>{break_speed}</BreakSpeedMultiplier>"

    chosen = {"_other": "none", "_default": "none"}
    items = ["none", *mc.ALL_ITEMS]

    class Diamond(EnvSpec):
        def create_agent_start(self) -> list[Any]:
            return [BreakSpeed()]

        def create_server_world_generators(self) -> list[Any]:
            return [handlers.DefaultWorldGenerator(force_reset=True)]

        def create_server_quit_producers(self) -> list[Any]:
            return [handlers.ServerQuitWhenAnyAgentFinishes()]

        def create_server_initial_conditions(self) -> list[Any]:
            return [
                handlers.TimeInitialCondition(allow_passage_of_time=True, start_time=0),
                handlers.SpawningInitialCondition(allow_spawning=True),
            ]

        def create_observables(self) -> list[Any]:
            return [
                handlers.POVObservation((size, size)),
                handlers.FlatInventoryObservation(mc.ALL_ITEMS),
                handlers.EquippedItemObservation(mc.ALL_ITEMS, _default="air", _other="other"),
                handlers.ObservationFromLifeStats(),
            ]

        def create_actionables(self) -> list[Any]:
            pressed = [key for key, value in IDLE.items() if value == 0 and key != "sprint"]
            keys = [handlers.KeybasedCommandAction(key, mc.INVERSE_KEYMAP[key]) for key in pressed]
            kinds = (handlers.PlaceBlock, handlers.EquipAction, handlers.CraftAction, handlers.CraftNearbyAction,
                     handlers.SmeltItemNearby)  # fmt: skip
            return [*keys, handlers.CameraAction(), *(kind(items, **chosen) for kind in kinds)]

        def is_from_folder(self, folder: str) -> bool:
            return False

        def determine_success_from_rewards(self, rewards: list[float]) -> bool:
            return True

        def get_docstring(self) -> str:
            return "The diamond task of Hafner et al. (2023)."

        def create_agent_handlers(self) -> list[Any]:
            return []

        create_rewardables = create_server_decorators = create_mission_handlers = create_monitors = (
            create_agent_handlers
        )

    return Diamond(name="FastwmDiamond-v1").make()


def make_minecraft(
    name: str, *, num_envs: int, seed: Seed, size: int | None, repeat: int, break_speed: float = 100.0,
    length: int = EPISODE, world: Callable[[int, float], Any] = make_world, **options: Any,
) -> VecEnv:  # fmt: skip
    """`minecraft:diamond`. `world(size, break_speed)` makes MineRL's environment."""
    if name != "diamond":
        raise UnknownEnv(name)
    return make_from(
        lambda: Minecraft(world(size or 64, float(break_speed)), float(break_speed), int(length)),
        num_envs=num_envs, seed=seed, size=size, repeat=repeat, **options,
    )  # fmt: skip
