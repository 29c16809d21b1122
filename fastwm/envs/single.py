"""One Gymnasium environment, wrapped before it joins others: its answers are checked where they are made."""

from __future__ import annotations

import traceback
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from ..errors import FastwmError
from .observations import check_declared, part_of
from .spaces import key_of, walk

StepAnswer = tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]

RESET_FORM = "Gymnasium's form is reset(self, *, seed=None, options=None) -> (obs, info)"
STEP_FORM = "Gymnasium's form is step(self, action) -> (obs, reward, terminated, truncated, info)"


class Checked(gymnasium.Wrapper):
    """Names what an environment does wrong: old Gym signatures, observations that its space does not declare, errors.

    Vector environments would write such observations into an array of the declared form, scrambled or cut off.
    """

    def __init__(self, env: gymnasium.Env, name: str) -> None:
        super().__init__(env)
        self._name = name
        self._leaves = [(key_of(path), path, leaf) for path, leaf in walk(env.observation_space)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        given: dict[str, Any] = {"seed": seed} if options is None else {"seed": seed, "options": options}
        try:
            answer = self.env.reset(**given)
        except Exception as error:
            raise blame(self._name, "reset", error, RESET_FORM) from error
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)):
            raise FastwmError(f"{self._name}: reset returned {_form(answer)}; {RESET_FORM}")
        self._check(answer[0])
        return answer

    def step(self, action: Any) -> StepAnswer:
        try:
            answer = self.env.step(action)
        except Exception as error:
            raise blame(self._name, "step", error, STEP_FORM) from error
        if not (isinstance(answer, tuple) and len(answer) == 5):
            raise FastwmError(f"{self._name}: step returned {_form(answer)}; {STEP_FORM}")
        obs, reward, terminated, truncated, info = answer
        self._check(obs)
        return obs, as_number(self._name, reward), bool(terminated), bool(truncated), info

    def _check(self, obs: Any) -> None:
        for key, path, leaf in self._leaves:
            if leaf.shape is not None:
                name = f"{self._name}: observation {key!r}" if key else f"{self._name}: the observation"
                check_declared(name, np.asarray(part_of(obs, path, key)), leaf.shape, leaf)


class ActionRepeat(gymnasium.Wrapper):
    """Steps every action `repeat` times, or until the episode ends, and sums the rewards."""

    def __init__(self, env: gymnasium.Env, repeat: int) -> None:
        super().__init__(env)
        self._repeat = repeat

    def step(self, action: Any) -> StepAnswer:
        total = 0.0
        for _ in range(self._repeat):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


def as_number(name: str, reward: Any) -> float:
    """A reward as one number: arrays of one element are accepted."""
    value = np.asarray(reward)
    if value.size != 1 or value.dtype.kind not in "biuf":
        raise FastwmError(f"{name}: the reward is {value.dtype} {value.shape}, expected one number")
    return float(value.reshape(()))


def blame(name: str, what: str, error: Exception, form: str = "") -> FastwmError:
    """A FastwmError that says which environment failed, at what and where; one that is clear already stays."""
    if isinstance(error, FastwmError):
        return error
    if isinstance(error, gymnasium.error.DependencyNotInstalled):
        return FastwmError(f"{name} needs more packages: {error}")
    if isinstance(error, (EOFError, ConnectionError)):
        return FastwmError(
            f"{name}: {what} found an environment's process dead; a script makes asynchronous "
            'environments under `if __name__ == "__main__":`'
        )
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({last[0].filename}:{last[0].lineno}, in {last[0].name})" if last else ""
    old = "unexpected keyword argument 'seed'" in str(error) or "values to unpack" in str(error)
    text = " ".join(str(error).split())
    hint = f"; {form}" if old and form else ""
    return FastwmError(f"{name}: {what} raised {type(error).__name__}: {text}{where}{hint}")


def _form(answer: Any) -> str:
    if isinstance(answer, tuple):
        return f"{len(answer)} values" + (", as Gym did before 0.26" if len(answer) == 4 else "")
    return f"a {type(answer).__name__}"
