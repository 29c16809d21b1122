"""Environments with one thing in them that is unusual or wrong: it works, or one line says what is wrong."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces as gs

from fastwm.agents import DreamerV3
from fastwm.envs import describe, make_env
from fastwm.envs.observations import warn_once
from fastwm.errors import FastwmError
from tests.agents_under_test import names, tiny
from tests.odd_envs import Odd, vector


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What was warned of so far."""
    warn_once.cache_clear()
    caplog.set_level(logging.WARNING, "fastwm")
    return lambda: caplog.text


def play(name: Any, num_envs: int = 2, steps: int = 12, **options: Any) -> list[dict[str, np.ndarray]]:
    """Records of a reset and some random steps."""
    name = f"tests.odd_envs:{name}" if isinstance(name, str) and ":" not in name else name
    env, rng = make_env(name, num_envs, **options), np.random.default_rng(0)
    try:
        return [env.reset(), *(env.step(env.sample_action(rng)) for _ in range(steps))]
    finally:
        env.close()


def seen(obs: gs.Space, value: Any = None, **options: Any) -> tuple[Any, np.ndarray]:
    """How an observation comes out: its canonical space, and `value` as one environment shows it."""
    env = make_env(lambda: Odd(obs, see=None if value is None else lambda _: value), **options)
    ((key, space),) = env.obs_space.items()
    return space, env.reset()[key][0]


# Names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("action_reward", "action 'reward' has the name of"),
        ("action_is_observation", "action 'pos' has the name of"),
        ("observation_index", "observation key 'index' is reserved"),
        ("joined", "two observations are called 'a/b'"),
        ("joined_actions", "two actions are called 'a/b'"),
    ],
)
def test_names_that_collide_are_refused(name: str, message: str) -> None:
    with pytest.raises(FastwmError, match=message):
        make_env(f"tests.odd_envs:{name}")


def test_a_latents_name_is_refused_and_can_be_left_out() -> None:
    for obs, act in (({"deter": vector(16)}, vector()), ({"x": vector()}, {"deter": vector(16)})):
        with pytest.raises(FastwmError, match=r"'deter' has a name of the agent's latents"):
            tiny("dreamer_v3", obs, act)
    env = make_env("tests.odd_envs:observation_deter", keys={"deter": "out"})
    assert list(env.obs_space) == ["x"]
    assert "left out: deter" in describe(env)
    DreamerV3(env.obs_space, env.act_space, tiny("dreamer_v3").config)


@pytest.mark.parametrize("agent", names())
@pytest.mark.parametrize("key", ["reward", "is_first", "index", "pos"])
def test_agents_refuse_names_of_a_row(agent: str, key: str) -> None:
    """By hand too, and with a ValueError, as library calls have it."""
    with pytest.raises(ValueError, match=f"action '{key}' has a name"):
        tiny(agent, act={key: vector(), "other": vector()})


# What arrives


@pytest.mark.parametrize("async_", [False, True])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong_shape", r"uint8 \(3, 64, 64\), but its space declares uint8 \(64, 64, 3\)"),
        ("wrong_dtype", r"float64 \(64, 64, 3\), but its space declares uint8 \(64, 64, 3\)"),
        ("wrong_key", "observation 'y' is declared, but did not arrive"),
    ],
)
def test_an_environment_that_shows_what_it_does_not_declare(name: str, message: str, async_: bool) -> None:
    with pytest.raises(FastwmError, match=message):
        play(name, async_=async_)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chw_for_hwc", r"uint8 \(2, 3, 64, 64\), but its space declares uint8 \(2, 64, 64, 3\)"),
        ("float_for_uint8", r"float32 \(2, 64, 64, 3\), but its space declares uint8"),
    ],
)
def test_a_vector_environment_that_shows_what_it_does_not_declare(name: str, message: str) -> None:
    with pytest.raises(FastwmError, match=message):
        play(name)


def test_symbols_out_of_range_are_named() -> None:
    with pytest.raises(FastwmError, match=r"'obs' of environment 0 is 4, out of range: Discrete\(4\) has 4 classes"):
        play("out_of_range")


def test_an_observation_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODD_NAN", "1")
    with pytest.raises(FastwmError, match=r"'obs' of environment 0 is not finite \(NaN or infinite\) at its step 4"):
        play("nan_when_told")


def test_rewards_of_one_element_are_numbers() -> None:
    for name in ("reward_array", "column_of_rewards"):
        assert [record["reward"].tolist() for record in play(name, steps=2)] == [[0, 0], [1, 1], [1, 1]]
    for name, message in (
        ("two_rewards", r"reward is float64 \(2,\), expected one"),
        ("no_reward", "reward is object"),
    ):
        with pytest.raises(FastwmError, match=message):
            play(name)


# What a key is


@pytest.mark.parametrize(
    ("declared", "kind", "shape", "guessed"),
    [
        (gs.Box(0, 255, (64, 64, 3), np.uint8), "image", (64, 64, 3), False),
        (gs.Box(0, 255, (4, 84, 84), np.uint8), "image", (84, 84, 4), False),
        (gs.Box(0, 255, (84, 84), np.uint8), "image", (84, 84, 1), False),
        (gs.Box(0, 255, (16, 16, 27), np.uint8), "image", (16, 16, 27), True),
        (gs.Box(0, 255, (12, 20, 20), np.uint8), "image", (20, 20, 12), True),
        (gs.Box(0, 1, (64, 64, 3), np.float32), "image", (64, 64, 3), True),
        (gs.Box(-1, 1, (3, 64, 64), np.float64), "image", (64, 64, 3), True),
        (gs.Box(0, 255, (64, 64, 3), np.int64), "image", (64, 64, 3), True),
        (gs.Box(0, 1, (16, 16, 27), np.float32), "vector", (16, 16, 27), True),
        (gs.Box(0, 255, (7, 7, 3), np.uint8), "vector", (7, 7, 3), True),
        (gs.Box(-9, 9, (5, 3), np.float32), "vector", (5, 3), False),
        (gs.Discrete(5), "symbols", (), False),
    ],
)
def test_what_a_key_is_taken_for_is_said_and_guesses_are_warned_of(
    declared: gs.Space, kind: str, shape: tuple[int, ...], guessed: bool, warnings: Callable[[], str]
) -> None:
    env = make_env(lambda: Odd(declared), size=None)
    ((key, space),) = env.obs_space.items()
    assert space.shape == shape
    assert f"{key}: {kind} " in describe(env)
    assert ("which is a guess; say what it is by --keys" in warnings()) == ("(guessed)" in describe(env)) == guessed


def test_the_setting_wins_over_the_guess() -> None:
    grid = gs.Box(0, 255, (16, 16, 27), np.uint8)
    value = np.random.default_rng(0).integers(0, 9, grid.shape, np.uint8)
    space, vector_ = seen(grid, value, keys={"obs": "vector"})
    assert space.dtype == np.float32
    assert np.array_equal(vector_, value)
    space, image = seen(grid, value, size=None, keys={"image": "image:chw"})
    assert space.shape == (16, 27, 16)
    assert np.array_equal(image, value.transpose(1, 2, 0))
    space, symbols = seen(grid, value, keys={"obs": "symbols:9"})
    assert space == gs.MultiDiscrete(np.full(grid.shape, 9))
    assert np.array_equal(symbols, value)
    with pytest.raises(FastwmError, match="out of range"):
        seen(grid, value, keys={"obs": "symbols:5"})
    space, number = seen(gs.Discrete(7), 4, keys={"obs": "vector"})
    assert (space.dtype, number) == (np.float32, 4)


@pytest.mark.parametrize(
    ("low", "high", "dtype"), [(0, 1, np.float32), (-1, 1, np.float64), (0, 255, np.int64), (0, 255, np.float32)]
)
def test_pictures_of_any_dtype_become_uint8(low: int, high: int, dtype: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    declared = gs.Box(low, high, pixels.shape, dtype)
    value = (low + (high - low) * pixels / 255).astype(dtype)
    space, image = seen(declared, value)
    assert space == gs.Box(0, 255, (64, 64, 3), np.uint8)
    assert np.array_equal(image, pixels)
    with pytest.raises(FastwmError, match="but its space declares"):
        seen(declared, value + np.asarray(high, dtype))


def test_a_picture_that_holds_nan_is_refused() -> None:
    with pytest.raises(FastwmError, match="holds nan to nan"):
        seen(gs.Box(0, 1, (64, 64, 3), np.float32), np.full((64, 64, 3), np.nan, np.float32))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"camera": "image"}, "keys names camera, but the observations are 'obs'"),
        ({"obs": "picture"}, "none of image, image:hwc, image:chw, vector, symbols"),
        ({"obs": "image"}, "is float32 3 in -1..1, which is no image"),
        ({"obs": "symbols"}, "but symbols are integers"),
        ({"obs": "out"}, "no observation is left"),
    ],
)
def test_settings_of_keys_that_do_not_fit(keys: dict[str, str], message: str) -> None:
    with pytest.raises(FastwmError, match=message):
        make_env("tests.odd_envs:plain", keys=keys)


def test_images_need_bounds_and_symbols_a_number_of_classes() -> None:
    for declared, kind, message in (
        (gs.Box(-np.inf, np.inf, (64, 64, 3), np.float32), "image", "an image needs bounds"),
        (gs.Box(0, 2**40, (2,), np.int64), "symbols", "--keys obs symbols:N"),
    ):
        with pytest.raises(FastwmError, match=message):
            make_env(lambda declared=declared: Odd(declared), keys={"obs": kind})


@pytest.mark.parametrize("name", ["clock", "float_clock"])
def test_numbers_beyond_float32_are_warned_of_once(name: str, warnings: Callable[[], str]) -> None:
    play(name)
    play(name)
    assert warnings().count("loses differences of numbers beyond 16,777,216") == 1
    play("plain")
    assert warnings().count("loses") == 1


@pytest.mark.parametrize("name", ["dreamer_v3", "planet"])
def test_images_of_two_sizes_are_resized_or_refused(name: str) -> None:
    env = make_env("tests.odd_envs:two_images")
    tiny(name, env.obs_space)
    with pytest.raises(FastwmError, match="size 64"):
        tiny(name, make_env("tests.odd_envs:two_images", size=None).obs_space)


@pytest.mark.parametrize("name", ["tests.odd_envs:two_images", "gym:CartPole-v1", "cartpole"])
@pytest.mark.parametrize("options", [{"size": "big"}, {"size": -3}, {"repeat": "x"}, {"repeat": 0}])
def test_size_and_repeat_are_numbers(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(FastwmError, match=f"{next(iter(options))} must be an integer"):
        make_env(name, **options)


# Old forms and errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("old_reset", r"old_reset: reset raised TypeError.*'seed'.*Gymnasium's form is reset\(self, \*, seed=None"),
        ("old_reset_form", r"reset returned a ndarray; Gymnasium's form is"),
        ("old_step", r"old_step: step returned 4 values, as Gym did before 0.26; Gymnasium's form is step"),
        ("gym:OddOldStep-v0", r"step raised ValueError.*unpack.*Gymnasium's form is step"),
        ("disk_error", r"disk_error: step raised OSError: .*Input/output error \(.*odd_envs.py:\d+, in step\)"),
        ("gym:tests.odd_envs:OddLicence-v0", "gym:tests.odd_envs:OddLicence-v0: making it raised Error: licence file"),
        ("Licence", "Licence: making it raised Error: licence file expired on the 3rd"),
        ("needs", "needs needs an argument 'size': give it by --env-args size VALUE"),
        ("plaim", "module tests.odd_envs has no 'plaim'; did you mean plain.*it has: vector, image, Odd"),
    ],
)
def test_errors_are_one_line_that_says_where(name: str, message: str) -> None:
    with pytest.raises(FastwmError, match=message) as error:
        play(name)
    assert "\n" not in str(error.value)


def test_a_process_that_dies_is_named_and_does_not_hang() -> None:
    with pytest.raises(FastwmError, match="dies: step found an environment's process dead"):
        play("dies", async_=True)


def test_a_module_that_cannot_be_imported(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "odd_syntax.py").write_text("def make(:\n")
    (tmp_path / "odd_import.py").write_text("import no_such_package\n")
    for name, message in (("odd_syntax", "importing it raised SyntaxError"), ("odd_import", "not installed.*no_such")):
        with pytest.raises(FastwmError, match=f"module {name}.*{message}"):
            make_env(f"{name}:make")


def test_reset_without_options_is_accepted() -> None:
    assert play("no_options")[0]["is_first"].all()


# What works


def test_gymnasiums_vector_environments_take_one_seed() -> None:
    def make(num_envs: int) -> Any:
        import gymnasium

        return gymnasium.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="vector_entry_point")

    first, again, other = (play(make, steps=30, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a["obs"], b["obs"]) for a, b in zip(first, again))
    assert not np.array_equal(first[0]["obs"], other[0]["obs"])
    assert not np.array_equal(first[0]["obs"][0], first[0]["obs"][1])


def test_size_and_repeat_are_the_factorys_where_it_takes_them() -> None:
    assert make_env("tests.odd_envs:needs", size=5).obs_space["obs"].shape == (5,)
    assert make_env("gym:OddNeeds-v0", size=5).obs_space["obs"].shape == (5,)
    assert make_env("gym:OddNeeds-v0").obs_space["obs"].shape == (3,)
    assert play("repeats", repeat=4, steps=1)[1]["reward"].tolist() == [4, 4]
    assert play("plain", repeat=4, steps=1)[1]["reward"].tolist() == [4, 4]
    assert make_env("tests.odd_envs:image_of", size=96).obs_space["image"].shape == (96, 96, 3)
    assert make_env("tests.odd_envs:image_of").obs_space["image"].shape == (64, 64, 3)
