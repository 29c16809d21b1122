"""Environments: rows at episode ends, action alignment, spaces, seeds, names; EnvPool and Gymnasium alike."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastwm.envs import VecEnv, describe, make_env, register, registry
from fastwm.envs.envpool import env_seeds
from fastwm.envs.observations import ObsAdapter
from fastwm.envs.spaces import ActAdapter
from fastwm.errors import FastwmError

ENGINES = ["envpool", "gym"]


def rollout(env: VecEnv, steps: int, action=None, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of reset and `steps` steps, [steps + 1, B, ...], closing the environment."""
    rng = np.random.default_rng(seed)
    rows = [env.reset()]
    for _ in range(steps):
        rows.append(env.step(env.sample_action(rng) if action is None else action))
    env.close()
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


class Echo(gymnasium.Env):
    """Observes [previous action, step]; reward is 10 per step; ends at `stop`."""

    observation_space = gs.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gs.Discrete(5)

    def __init__(self, stop: int = 4, truncate: bool = False, both: bool = False):
        self._stop, self._flags = stop, (not truncate or both, truncate or both)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.start = self.np_random.integers(1 << 30)
        self._time = 0
        return np.array([-1.0, 0.0]), {}

    def step(self, action):
        self._time += 1
        done = self._time >= self._stop
        terminated, truncated = (done and flag for flag in self._flags)
        return np.array([float(action), float(self._time)]), 10.0, terminated, truncated, {}


class Spaces(gymnasium.Env):
    """Any observation and action space; remembers the last action."""

    def __init__(self, observation_space=None, action_space=None):
        self.observation_space = observation_space or gs.Discrete(3)
        self.action_space = action_space or gs.Discrete(2)
        self.last = None

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        self.last = action
        return self.observation_space.sample(), 0.0, False, False, {}


# ---- rows


def test_observation_equals_the_action_given_just_before():
    """Action alignment."""
    env = make_env(Echo, 2, stop=1000)
    env.reset()
    for action in ([1, 2], [4, 0], [3, 3]):
        assert env.step(np.array(action))["obs"][:, 0].tolist() == action


def test_an_episode_of_n_decisions_gives_n_plus_1_rows():
    """Length of an episode."""
    rows = rollout(make_env(Echo, 1, stop=4), 10)
    assert rows["obs"][:, 0, 1].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0]
    assert rows["is_first"][:, 0].nonzero()[0].tolist() == [0, 5, 10]
    assert rows["is_last"][:, 0].nonzero()[0].tolist() == [4, 9]
    assert rows["reward"][:, 0].tolist() == [0, 10, 10, 10, 10, 0, 10, 10, 10, 10, 0]


@pytest.mark.parametrize(("options", "terminal"), [({}, True), ({"truncate": True}, False), ({"both": True}, True)])
def test_time_limit_is_last_only_and_terminal_wins_over_it(options, terminal):
    rows = rollout(make_env(Echo, 1, stop=2, **options), 2)
    assert rows["is_last"][2, 0]
    assert rows["is_terminal"][2, 0] == terminal


@pytest.mark.parametrize("engine", ENGINES)
def test_cartpole_rows_at_the_end(engine):
    rows = rollout(make_env(f"{engine}:CartPole-v1", 3), 100, np.ones(3, np.int64))
    last, first = rows["is_last"], rows["is_first"]
    assert last.sum() > 6
    assert np.array_equal(first[1:], last[:-1]), "the row after an end is the reset row"
    assert np.array_equal(rows["is_terminal"], last), "a fallen pole is no time limit"
    assert (rows["reward"] == ~first).all(), "reward 1 on arriving, 0 on reset rows"
    assert (np.abs(rows["obs"][first]) <= 0.05).all()
    assert (np.abs(rows["obs"][last][:, 2]) > 0.2).all(), "the last row holds the true last observation"


@pytest.mark.parametrize("engine", ENGINES)
def test_pendulum_ends_by_time_only(engine):
    rows = rollout(make_env(f"{engine}:Pendulum-v1", 2), 202)
    assert rows["is_last"].nonzero()[0].tolist() == [200, 200]
    assert not rows["is_terminal"].any()
    assert rows["is_first"].nonzero()[0].tolist() == [0, 0, 201, 201]
    assert (rows["reward"][201] == 0).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_reset_in_mid_episode_starts_anew_with_other_states(engine):
    env = make_env(f"{engine}:CartPole-v1", 2)
    first = env.reset()
    env.step(np.ones(2, np.int64))
    again = env.reset()
    assert again["is_first"].all()
    assert not np.array_equal(first["obs"], again["obs"])
    assert not env.step(np.ones(2, np.int64))["is_first"].any()


def test_step_before_reset_is_refused():
    with pytest.raises(RuntimeError, match="reset"):
        make_env("cartpole").step(np.zeros(1, np.int64))


# ---- repeat


@pytest.mark.parametrize("async_", [False, True])
def test_repeat_sums_rewards_and_stops_at_the_end(async_):
    rows = rollout(make_env(Echo, 2, stop=5, repeat=3, async_=async_), 4)
    assert rows["obs"][:, 0, 1].tolist() == [0, 3, 5, 0, 3]
    assert rows["reward"][:, 0].tolist() == [0, 30, 20, 0, 30]
    assert rows["is_last"][:, 0].tolist() == [False, False, True, False, False]


def test_envpool_repeat_equals_single_steps_summed():
    """Each environment falls at its own time, so only live ones may be stepped on."""
    single = rollout(make_env("cartpole", 4, seed=5), 80, np.ones(4, np.int64))
    triple = rollout(make_env("cartpole", 4, seed=5, repeat=3), 25, np.ones(4, np.int64))
    for env in range(4):
        t = 0
        for row in range(26):
            assert triple["is_first"][row, env] == single["is_first"][t, env]
            np.testing.assert_array_equal(triple["obs"][row, env], single["obs"][t, env])
            if triple["is_first"][row, env]:
                assert triple["reward"][row, env] == 0
            assert triple["is_last"][row, env] == single["is_last"][t, env]
            ended, total, last_t = triple["is_last"][row, env], 0.0, t
            while t - last_t < (1 if ended else 3):
                t += 1
                total += single["reward"][t, env]
                if single["is_last"][t, env]:
                    break
            if row < 25:
                assert triple["reward"][row + 1, env] == total


def test_dmc_repeat_is_exact_and_episodes_have_500_decisions():
    """EnvPool's frame_skip would halve the reward instead."""
    action = np.full((2, 6), 0.3, np.float32)
    single = rollout(make_env("dmc:walker_walk", 2, seed=1), 1000, action)
    double = rollout(make_env("dmc:walker_walk", 2, seed=1, repeat=2), 501, action)
    np.testing.assert_array_equal(double["height"][:501], single["height"][::2])
    np.testing.assert_allclose(double["reward"][:501].sum(0), single["reward"].sum(0), rtol=1e-5)
    assert double["is_last"].nonzero()[0].tolist() == [500, 500]
    assert double["is_first"].nonzero()[0].tolist() == [0, 0, 501, 501]
    assert not double["is_terminal"].any()


# ---- observations


def test_dmc_float64_and_scalar_keys_become_float32():
    env = make_env("dmc:walker_walk", 3)
    row = env.reset()
    assert {key: space.shape for key, space in env.obs_space.items()} == {
        "orientations": (14,),
        "height": (),
        "velocity": (9,),
    }
    assert row["height"].shape == (3,)
    assert all(row[key].dtype == np.float32 for key in env.obs_space)
    assert all(env.obs_space[key].contains(row[key][0]) for key in ("orientations", "velocity"))
    assert np.isneginf(env.obs_space["velocity"].low).all(), "EnvPool's own bounds are wrong"


@pytest.mark.parametrize(
    ("options", "shape", "actions"),
    [
        ({"size": 96}, (96, 96, 1), 18),
        ({"size": 64, "gray": False, "sticky": False, "full_action_space": False}, (64, 64, 3), 6),
    ],
)
def test_atari_presets(options, shape, actions):
    """Atari presets."""
    env = make_env("atari:Pong", 2, **options)
    row = env.reset()
    assert env.obs_space["image"].shape == shape
    assert row["image"].shape == (2, *shape)
    assert row["image"].dtype == np.uint8
    assert env.act_space == gs.Discrete(actions)
    config = env._backend._pool.config
    assert config["repeat_action_probability"] == pytest.approx(0.25 if options.get("sticky", True) else 0)
    assert not config["use_fire_reset"]
    assert (config["frame_skip"], config["stack_num"], config["noop_max"]) == (4, 1, 30)


@pytest.mark.parametrize("name", ["atari:Pong", "envpool:Pong-v5"])
def test_noop_max_0_is_refused_where_envpool_would_crash(name):
    with pytest.raises(FastwmError, match="noop_max"):
        make_env(name, noop_max=0)


def test_channels_first_images_are_transposed_not_reshaped():
    env = make_env("envpool:Pong-v5", size=84, gray_scale=False)
    image = env.reset()["image"][0]
    raw = env._backend._pool.reset()[0][0]
    assert raw.shape == (3, 84, 84)
    env.close()
    convert = ObsAdapter(gs.Box(0, 255, (3, 84, 84), np.uint8), None)
    np.testing.assert_array_equal(convert(raw[None], 1)["image"][0, 5, 7], raw[:, 5, 7])
    assert image.shape == (84, 84, 3)


@pytest.mark.parametrize(
    ("space", "key", "shape", "dtype"),
    [
        (gs.Box(0, 255, (20, 30), np.uint8), "image", (20, 30, 1), np.uint8),
        (gs.Box(0, 255, (20, 30, 3), np.uint8), "image", (20, 30, 3), np.uint8),
        (gs.Box(0, 255, (12, 20, 30), np.uint8), "image", (20, 30, 12), np.uint8),
        (gs.Box(0, 255, (7, 7, 3), np.uint8), "obs", (7, 7, 3), np.float32),
        (gs.Box(0, 4, (10, 10, 2), np.uint8), "obs", (10, 10, 2), np.float32),
        (gs.Box(0, 255, (128,), np.uint8), "obs", (128,), np.float32),
        (gs.Box(-1, 1, (), np.float64), "obs", (), np.float32),
        (gs.MultiBinary(4), "obs", (4,), np.float32),
        (gs.Discrete(3, start=5), "obs", (), np.int64),
        (gs.MultiDiscrete([3, 4], start=[1, 2]), "obs", (2,), np.int64),
    ],
)
def test_observation_forms(space, key, shape, dtype):
    env = make_env(lambda: Spaces(space), 3, size=None)
    row = env.reset()
    assert list(env.obs_space) == [key]
    assert env.obs_space[key].shape == shape
    assert row[key].shape == (3, *shape)
    assert row[key].dtype == env.obs_space[key].dtype == dtype
    if dtype == np.int64:
        sizes = space.n if isinstance(space, gs.Discrete) else space.nvec
        assert ((row[key] >= 0) & (row[key] < sizes)).all(), "counted from 0"


def test_nested_observations_are_flattened():
    space = gs.Dict({"a": gs.Dict({"x": gs.Box(0, 1, (2,))}), "b": gs.Tuple([gs.Discrete(2), gs.Box(0, 1, ())])})
    env = make_env(lambda: Spaces(space), 2)
    assert list(env.obs_space) == ["a/x", "b/0", "b/1"]
    assert env.reset()["b/1"].shape == (2,)


def test_images_are_resized_by_area():
    adapt = ObsAdapter(gs.Box(0, 255, (128, 128, 1), np.uint8), 64)
    image = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 1), np.uint8)
    means = image.reshape(2, 64, 2, 64, 2, 1).mean((2, 4))
    np.testing.assert_allclose(adapt(image, 2)["image"], means, atol=0.5)
    assert make_env("carracing").reset()["image"].shape == (1, 64, 64, 3)
    assert make_env("carracing", size=None).reset()["image"].shape == (1, 96, 96, 3)


@pytest.mark.parametrize("key", ["reward", "is_first", "action"])
def test_reserved_observation_keys_are_refused(key):
    with pytest.raises(FastwmError, match=key):
        make_env(lambda: Spaces(gs.Dict({key: gs.Discrete(2)})))


def test_unsupported_spaces_are_named():
    with pytest.raises(FastwmError, match="Text"):
        make_env(lambda: Spaces(gs.Dict({"text": gs.Text(5)})))


# ---- actions


@pytest.mark.parametrize("engine", ENGINES)
def test_pendulum_actions_are_rescaled_to_its_bounds(engine):
    """Torque a = 2u; from Pendulum's equations the change of speed tells which torque arrived."""
    env = make_env(f"{engine}:Pendulum-v1", 3)
    before = env.reset()["obs"]
    after = env.step(np.array([[1.0], [-0.5], [9.0]], np.float32))["obs"]
    gravity = 15 * before[:, 1]  # 3g / (2l) * sin(theta)
    torque = ((after[:, 2] - before[:, 2]) / 0.05 - gravity) / 3
    np.testing.assert_allclose(torque, [2, -1, 2], atol=1e-3)


@pytest.mark.parametrize(
    ("low", "high", "given", "arrives"),
    [
        (-2.0, 2.0, 0.5, 1.0),
        (0.0, 10.0, -1.0, 0.0),
        (-np.inf, np.inf, 0.5, 0.5),
        (-np.inf, np.inf, 3.0, 1.0),
        (0.0, np.inf, -1.0, 0.0),
        (2.2250738585072014e-308, 1.7976931348623157e308, -0.5, -0.5),
    ],
)
def test_action_rescaling(low, high, given, arrives):
    adapt = ActAdapter(gs.Box(low, high, (1,), np.float64), 1)
    assert adapt.space == gs.Box(-1, 1, (1,), np.float32)
    assert adapt(np.array([[given]], np.float32)).item() == pytest.approx(arrives)


def test_discrete_kinds_count_from_0_and_arrive_in_the_environments_numbers():
    inner = Spaces(action_space=gs.Discrete(3, start=-1))
    env = make_env(inner)
    env.reset()
    env.step(np.array([0]))
    assert inner.last == -1
    assert ActAdapter(gs.Box(2, 4, (2,), np.int32), 1)(np.array([[0, 2]])).tolist() == [[2, 4]]
    assert ActAdapter(gs.MultiBinary(2), 1).space == gs.MultiDiscrete([2, 2])


def test_dict_actions():
    space = gs.Dict({"move": gs.Box(-2, 2, (1,), np.float32), "tool": gs.Dict({"kind": gs.Discrete(3)})})
    inner = Spaces(action_space=space)
    env = make_env(inner)
    assert list(env.act_space) == ["move", "tool/kind"]
    env.reset()
    env.step({"move": np.array([[0.5]], np.float32), "tool/kind": torch.tensor([2])})
    assert inner.last["move"] == 1
    assert inner.last["tool"]["kind"] == 2
    with pytest.raises(ValueError, match="tool/kind"):
        env.step({"move": np.zeros((1, 1), np.float32)})
    with pytest.raises(ValueError, match="ndarray"):
        env.step(np.zeros(1))


@pytest.mark.parametrize("name", ["cartpole", "gym:CartPole-v1"])
@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.array([0, 2]), "out of range"),
        (np.array([0, -1]), "out of range"),
        (np.array([0.0, 1.0]), "dtype float64"),
        (np.array([0, 1, 1]), r"shape \(3,\), expected \(2,\)"),
    ],
)
def test_bad_discrete_actions_are_refused(name, action, message):
    """EnvPool itself takes them silently."""
    env = make_env(name, 2)
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(action)


@pytest.mark.parametrize(
    ("action", "message"),
    [(np.array([[np.nan]]), "NaN"), (np.array([0.0]), "shape"), (np.array([[1]]), "dtype int64")],
)
def test_bad_continuous_actions_are_refused(action, message):
    env = make_env("pendulum")
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(action)


@pytest.mark.parametrize("engine", ENGINES)
def test_torch_actions_are_accepted(engine):
    env = make_env(f"{engine}:Pendulum-v1", 2)
    env.reset()
    assert env.step(torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True))["reward"].dtype == np.float32


# ---- seeds


def test_seeds_of_neighbouring_runs_share_nothing():
    """EnvPool's own seed + i would give runs 0 and 1 almost the same environments."""
    seeds = [seed for run in range(4) for seed in env_seeds(run, 64)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert env_seeds(3, 4) == env_seeds(3, 8)[:4]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_seed_repeats_and_environments_differ(engine):
    name = f"{engine}:CartPole-v1"
    one, two, other = (rollout(make_env(name, 3, seed), 60)["obs"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    starts = np.concatenate([one[0], other[0]])
    assert len(np.unique(starts[:, 0])) == 6


# ---- names


def test_unknown_names_get_close_matches_and_the_forms():
    for name, match in (
        ("cartpol", "cartpole"),
        ("dmc:walker_wlk", "dmc:walker_walk"),
        ("atari:pongg", "pong"),
    ):
        with pytest.raises(FastwmError, match=rf"did you mean.*{match}.*names are"):
            make_env(name)


@pytest.mark.parametrize("name", ["nope:thing", "gym:Nope-v0", "envpool:Nope-v0", ""])
def test_unknown_names_in_every_form(name):
    with pytest.raises(FastwmError, match="there is no environment"):
        make_env(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cartpole", {"nonsense": 1}, "nonsense"),
        ("gym:CartPole-v1", {"nonsense": 1}, "nonsense"),
        ("atari:Pong", {"repeat": 4}, "frame_skip"),
        ("cartpole", {"repeat": 0}, "repeat"),
        ("cartpole", {"num_envs": 0}, "num_envs"),
        ("cartpole", {"seed": -1}, "seed"),
        ("envpool:Go9x9-v1", {}, "one player"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(FastwmError, match=message):
        make_env(name, **options).reset()


def test_every_alias_runs():
    for name in registry.ALIASES:
        if name != "takecover":
            assert rollout(make_env(name, 2), 1)["is_first"][0].all()


def test_aliases_fall_back_to_gymnasium_and_the_rest_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    assert rollout(make_env("cartpole", 2), 3)["obs"].shape == (4, 2, 4)
    with pytest.raises(FastwmError, match=r"pip install 'fastwm\[agents\]'"):
        make_env("dmc:walker_walk")


def test_import_path_and_plug_ins(monkeypatch):
    assert make_env(f"{__name__}:Echo", 2, stop=3).num_envs == 2
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    register("echo", lambda name, **common: make_env(Echo, stop=int(name), **common))
    assert rollout(make_env("echo:2", 2), 2)["is_last"][2].all()
    with pytest.raises(ValueError, match="taken"):
        register("gym", make_env)
    entry = EntryPoint("plug", f"{__name__}:plugged", "fastwm.envs")
    monkeypatch.setattr(registry, "entry_points", lambda group, name: [entry] if name == "plug" else [])
    assert make_env("plug:3", 2).num_envs == 2


def plugged(name, *, num_envs, seed, size, repeat):
    return SyncVectorEnv([lambda: Echo(int(name))] * num_envs)


def test_made_environments():
    assert make_env(Echo()).num_envs == 1
    assert make_env(SyncVectorEnv([Echo] * 3)).num_envs == 3
    assert make_env(lambda num_envs: SyncVectorEnv([Echo] * num_envs), 2).num_envs == 2
    with pytest.raises(FastwmError, match="makes 3 environments, but num_envs is 2"):
        make_env(lambda: SyncVectorEnv([Echo] * 3), 2)
    with pytest.raises(FastwmError, match="expected a gymnasium Env"):
        make_env(lambda: 3)
    with pytest.raises(FastwmError, match="num_envs=1"):
        make_env(Echo(), 2)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED, None])
def test_other_autoreset_modes_are_refused(mode):
    env = SyncVectorEnv([Echo] * 2)
    env.metadata = {"autoreset_mode": mode}
    with pytest.raises(FastwmError, match="NEXT_STEP"):
        make_env(env)


def test_describe():
    assert describe(make_env("cartpole", 8)) == "8 x {obs: vector 4} -> Discrete(2)"
    assert describe(make_env("pendulum", 1)) == "1 x {obs: vector 3} -> Box(-1, 1, (1,))"


# ---- EnvPool's traps


def test_an_atari_game_lost_on_the_last_allowed_step_is_terminal():
    """EnvPool then says truncated only; `info["terminated"]` knows that the game is over."""
    env = make_env("atari:Breakout", max_episode_steps=3)
    backend = env._backend
    env.reset()

    class Pool:
        def send(self, action, env_id):
            pass

        def recv(self):
            info = {"env_id": np.zeros(1, np.int32), "terminated": np.ones(1, np.int32)}
            image = np.zeros((1, 1, 64, 64), np.uint8)
            return image, np.zeros(1, np.float32), np.zeros(1, bool), np.ones(1, bool), info

    backend._pool = Pool()
    assert env.step(np.zeros(1, np.int64))["is_terminal"].all()


def test_take_cover_pays_for_survival_with_a_single_frame(tmp_path, monkeypatch):
    """EnvPool's own reward is health shaping; VizDoom writes `_vizdoom` to the working folder."""
    monkeypatch.chdir(tmp_path)
    rows = rollout(make_env("takecover", 2), 120)
    assert rows["image"].shape[2:] == (64, 64, 3)
    assert rows["is_last"].any()
    assert (rows["reward"] == ~rows["is_first"]).all()


def test_dmc_pixels():
    try:
        env = make_env("dmc:walker_walk", 2, pixels=True)
    except FastwmError as error:
        pytest.skip(str(error))
    rows = rollout(env, 2)
    assert rows["image"].shape == (3, 2, 64, 64, 3)
    assert rows["image"].std() > 10, "camera 0 sees the walker, not a blank"


def test_triton_can_be_imported_after_mesa_has_rendered():
    """Both bring LLVM, and torch imports Triton late: the process that trains must survive it."""
    pytest.importorskip("triton")
    try:
        make_env("dmc:walker_walk", 1, pixels=True).close()
    except FastwmError as error:
        pytest.skip(str(error))
    code = (
        "from fastwm.envs import make_env; make_env('dmc:walker_walk', 1, pixels=True).reset(); "
        "import torch._dynamo, triton; print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-500:]


@pytest.mark.parametrize("name", ["envpool:CartPole-v1", "gym:Echo"])
def test_render_needs_the_mode(name):
    env = make_env(name, 2) if name.startswith("envpool") else make_env(Echo, 2)
    env.reset()
    with pytest.raises(FastwmError, match="render_mode"):
        env.render()
    drawn = make_env("envpool:CartPole-v1", 2, render_mode="rgb_array")
    drawn.reset()
    assert drawn.render().shape == (2, 400, 600, 3)


def test_crafter_dies_or_runs_out_of_time() -> None:
    pytest.importorskip("crafter")
    env = make_env("crafter:reward", num_envs=2, seed=1, size=32)
    record = env.reset()
    assert record["image"].shape == (2, 32, 32, 3)
    assert record["image"].dtype == np.uint8
    again = make_env("crafter:reward", num_envs=2, seed=1, size=32).reset()
    np.testing.assert_array_equal(record["image"], again["image"])
    assert (record["image"][0] != record["image"][1]).any()
    assert env.step(np.array([0, 16]))["reward"].shape == (2,)
    with pytest.raises(FastwmError, match="there is no environment 'crafter:hard'"):
        make_env("crafter:hard")


def test_some_environments_can_be_left_standing():
    """The rows that are stepped see what they would see anyway; here with repeated actions too."""
    whole, part = (make_env("cartpole", 4, 3, repeat=2) for _ in range(2))
    records = [env.reset() for env in (whole, part)]
    rows = np.array([1, 3])
    for step in range(60):
        action = np.full(4, step % 2)
        records = [whole.step(action), part.step(action, rows)]
        live = ~records[0]["is_first"][rows]
        for key in ("obs", "reward", "is_last", "is_first"):
            assert np.array_equal(records[0][key][rows], records[1][key][rows]), key
        if not live.any():
            break
