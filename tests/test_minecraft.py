"""The rules of the Minecraft adapter, on a stand-in with MineRL's interface; the game itself was not run."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from fastwm.envs import make_env
from fastwm.envs.minecraft import ACTIONS, MILESTONES, Minecraft
from fastwm.errors import FastwmError

ITEMS = ["air", "dirt", "log2", *MILESTONES]


class StandIn:
    """MineRL's interface, with a script of inventories and health; it keeps the commands that it got."""

    def __init__(self, script: list[dict[str, Any]] | None = None):
        self.script, self.commands = script or [], list[dict[str, Any]]()
        kinds = SimpleNamespace(values=np.array(["air", "wooden_pickaxe", "other"]))
        self.observation_space = {
            "pov": spaces.Box(0, 255, (64, 64, 3), np.uint8),
            "inventory": SimpleNamespace(spaces=dict.fromkeys(ITEMS)),
            "equipped_items": {"mainhand": {"type": kinds}},
        }

    def seed(self, seed: int) -> None:
        self.seeded = seed

    def reset(self) -> dict[str, Any]:
        return self._obs({})

    def step(self, command: dict[str, Any]) -> tuple[dict[str, Any], float, bool, dict]:
        self.commands.append(command)
        now = self.script[len(self.commands) - 1] if len(self.commands) <= len(self.script) else {}
        return self._obs(now), 0.0, now.get("life", 20) <= 0, {}

    def close(self) -> None: ...

    def _obs(self, now: dict[str, Any]) -> dict[str, Any]:
        return {
            "pov": np.zeros((64, 64, 3), np.uint8),
            "inventory": {item: np.array(now.get(item, 0)) for item in ITEMS},
            "equipped_items": {"mainhand": {"type": now.get("hand", "air")}},
            "life_stats": {"life": now.get("life", 20), "food": 10, "air": 150},
        }


def act(env: Minecraft, *names: str) -> list[tuple[Any, ...]]:
    return [env.step(list(ACTIONS).index(name)) for name in names]


def test_milestones_pay_once_and_health_a_hundredth() -> None:
    env = Minecraft(
        StandIn([{"log2": 1}, {}, {"log": 2, "life": 10}, {"log": 2, "planks": 4, "hand": "wooden_pickaxe"}])
    )
    first, _ = env.reset(seed=3)
    assert env.world.seeded == 3 and env.observation_space.contains(first)
    rewards = [reward for _, reward, *_ in act(env, *["noop"] * 4)]
    np.testing.assert_allclose(rewards, [1, 0, -0.005, 1 + 0.005])
    obs = env.step(0)[0]
    assert obs["inventory"].sum() == 0 and obs["inventory_max"][env.items.index("log")] == 2
    assert obs["hunger"] == 0.5 and obs["breath"] == 0.5 and len(ACTIONS) == 25


def test_attack_and_jump_are_held() -> None:
    env = Minecraft(StandIn(), break_speed=1.0)
    env.reset()
    act(env, "attack", *["noop"] * 30)
    assert [c["attack"] for c in env.world.commands] == [1] * 30 + [0]
    env.reset()
    env.world.commands.clear()
    act(env, "jump", *["noop"] * 10)
    assert [(c["jump"], c["forward"]) for c in env.world.commands] == [(1, 1)] * 10 + [(0, 0)]
    fast = Minecraft(StandIn(), break_speed=100.0)  # blocks break at once: nothing to hold
    fast.reset()
    act(fast, "attack", "noop")
    assert [c["attack"] for c in fast.world.commands] == [1, 0]


def test_the_camera_stops_at_60_degrees() -> None:
    env = Minecraft(StandIn())
    env.reset()
    act(env, *["turn_up"] * 5, "turn_down", "turn_left")
    cameras = [c["camera"] for c in env.world.commands]
    assert cameras == [(-15, 0)] * 4 + [(0, 0), (15, 0), (0, -15)]


def test_death_ends_and_time_cuts() -> None:
    env = Minecraft(StandIn([{"life": 0}]), length=2)
    env.reset()
    (_, _, terminated, truncated, _), *_ = act(env, "noop")
    assert terminated and not truncated
    env.reset()
    assert [step[2:4] for step in act(env, "noop", "noop")] == [(False, False), (False, True)]


def test_by_name() -> None:
    env = make_env("minecraft:diamond", 2, length=3, world=lambda size, speed: StandIn())
    record = env.reset()
    assert record["image"].shape == (2, 64, 64, 3) and record["equipped"].shape == (2, 3)
    env.close()
    with pytest.raises(FastwmError, match="MineRL is not installed"):
        make_env("minecraft:diamond").reset()
    with pytest.raises(FastwmError, match="minecraft:gold"):
        make_env("minecraft:gold")
