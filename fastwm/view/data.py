"""A run's folder as the page shows it, in JSON. A stranger's folder runs no code and is not believed."""

import base64
import io
import math
import re
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastwm.agents import agent_spec
from fastwm.envs import make_env
from fastwm.errors import FastwmError
from fastwm.files import SMALL, check_folder, read_text, regular
from fastwm.nn.distributions import Categorical
from fastwm.nn.spaces import is_image
from fastwm.runner import checkpoint, plots, staged_plots, video
from fastwm.runner.config import env_options, env_source
from fastwm.runner.evaluate import Saved, open_run
from fastwm.runner.folder import LOCK
from fastwm.runner.log import metric_meanings, read_lines
from fastwm.runner.shard import saved_replay
from fastwm.runner.trust import check_env
from fastwm.view.play import HOTTEST, Game, Rows, game_of, judgement

SESSIONS = 16  # dreams kept; the oldest goes
POINTS = 400  # of a curve
EPISODE = 1000  # steps of an episode shown
THUMBNAILS = 24
SIDE = 256  # pixels of a rendered frame

Json = dict[str, Any]


def pixels(frame: Tensor | np.ndarray) -> Json:
    """An image [H, W, C], uint8 or in [0, 1], as width, height and RGB bytes in base 64."""
    array = frame.detach().cpu().numpy() if isinstance(frame, Tensor) else np.asarray(frame)
    if array.dtype != np.uint8:
        array = (np.nan_to_num(array).clip(0, 1) * 255).round().astype(np.uint8)
    if array.shape[-1] not in (1, 3):
        array = array[..., :1]
    array = np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))
    return {"width": array.shape[1], "height": array.shape[0], "rgb": base64.b64encode(array.tobytes()).decode()}


def jpeg(frame: np.ndarray) -> str:
    """A frame uint8 [H, W, 3 or 1], at most `SIDE` wide, as base 64."""
    from PIL import Image

    picture = Image.fromarray(np.broadcast_to(frame, (*frame.shape[:2], 3)).copy())
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def number(value: Any) -> float | None:
    """A finite number, or null."""
    value = float(value)
    return value if math.isfinite(value) else None


def numbers(values: Tensor) -> list[float | None]:
    return [number(x) for x in values.detach().double().flatten()[:64]]


@dataclass
class Dream:
    """A game under way."""

    game: Game
    state: dict[str, Tensor]
    steps: int = 0


class Run:
    """The folder of a run: everything is read when it is asked for, one request at a time."""

    def __init__(self, logdir: Path, trust: bool = False):
        self.logdir, self.trust = logdir, trust
        self.lock = threading.RLock()
        self.dreams: OrderedDict[int, Dream] = OrderedDict()
        self.made = 0
        self._agent: tuple[Path, Any] | None = None
        self._rows: dict[tuple[Path, int], Rows] = {}
        if not logdir.is_dir():
            raise FastwmError(f"{logdir} is no folder: give the folder of a run")
        check_folder(logdir, trust)

    # What there is

    def saved(self) -> Saved:
        return open_run(self.logdir, self.trust)

    def agent(self) -> tuple[Saved, Any]:
        """The newest checkpoint's agent, loaded once."""
        saved = self.saved()
        if self._agent is None or self._agent[0] != saved.path:
            self._agent, self._rows = (saved.path, saved.agent(torch.device("cpu"))), {}
        return saved, self._agent[1]

    def summary(self) -> Json:
        """Names, the newest checkpoint, and why something cannot be shown."""
        summary: Json = {"logdir": self.logdir.name, "training": self.is_training()}
        with self.lock:
            try:
                saved, agent = self.agent()
                game = game_of(agent)
            except FastwmError as error:
                return summary | {"problem": str(error)}
            return summary | {
                "agent": saved.name, "env": saved.config.env, "step": saved.meta["step"],
                "controls": [asdict(control) for control in game.controls],
                "images": [key for key, space in agent.obs_space.items() if is_image(space)],
                "vectors": [key for key, space in agent.obs_space.items() if not is_image(space)],
            }  # fmt: skip

    def is_training(self) -> bool:
        """Whether the process that the lock names is there. The lock itself is left to those who train."""
        path = self.logdir / LOCK
        try:
            held = re.match(r"process (\d+) on (\S+) ", read_text(path, 1000)) if path.exists() else None
        except FastwmError:
            return False
        return held is not None and held[2] == socket.gethostname() and Path(f"/proc/{held[1]}").exists()

    # Curves

    def metrics(self) -> Json:
        """Every curve, thinned out to `POINTS` means, and the meaning of its metric."""
        meanings = metric_meanings()
        every = {name: each for agent in meanings.values() for name, each in agent.items() if isinstance(each, str)}
        own = meanings.get(self._name(), {})
        stage = {name: place for place, name in enumerate(own)}
        folders = [path for path in self.logdir.iterdir() if path.is_dir()]
        folders.sort(key=lambda path: (stage.get(path.name, len(stage)), path.name))
        groups = []
        for folder in [self.logdir, *folders]:
            path = folder / "metrics.jsonl"
            if not path.exists():
                continue
            if regular(path).stat().st_size > SMALL:
                raise FastwmError(f"{path.name} has more than {SMALL:,} bytes, which the page does not read")
            known = own.get(folder.name, {}) if folder != self.logdir else every | own
            name = "" if folder == self.logdir else folder.name
            groups.append({"name": name, "curves": curves(read_lines(path), known if isinstance(known, dict) else {})})
        return {"groups": groups}

    def _name(self) -> str:
        try:
            return self.saved().name
        except FastwmError:
            return ""

    # Real rows

    def rows(self, seed: int) -> Rows:
        """Rows [T, 1, ...] that happened: a replayed window, or an episode that World Models plays now."""
        saved, agent = self.agent()
        if (saved.path, seed) not in self._rows:
            torch.manual_seed(seed)
            if len(self._rows) >= SESSIONS:
                self._rows.pop(next(iter(self._rows)))
            self._rows[saved.path, seed] = self._real(saved, agent, seed)
        return self._rows[saved.path, seed]

    def _real(self, saved: Saved, agent: Any, seed: int) -> Rows:
        if agent_spec(saved.name).stages:
            check_env(self.logdir / "config.yaml", saved.config)
            return staged_plots.episode(self.logdir, agent, saved.config, seed)
        replay = saved_replay(saved.path, self.logdir, saved.config, agent)
        if replay is None or not len(replay):
            return self._played(saved, agent, seed)
        replay.reseed(seed)
        return plots.replayed_window(agent, replay)

    def _played(self, saved: Saved, agent: Any, seed: int) -> Rows:
        """An episode of the agent in its environment, in the form of a replayed window."""
        check_env(self.logdir / "config.yaml", saved.config)
        env = make_env(env_source(saved.config), 1, seed, **env_options(saved.config))
        try:
            checkpoint.check_spaces(saved.meta, env.obs_space, env.act_space, saved.config.env)
            record, state, rows = env.reset(), None, list[dict[str, Tensor]]()
            while len(rows) < 65:
                action, state = agent.act(record, state, "eval")
                named = action if isinstance(action, dict) else {"action": action}
                row = {key: torch.as_tensor(value) for key, value in record.items()} | named | agent.latents(state)
                rows.append(row)
                if record["is_last"][0]:
                    break
                record = env.step(action)
        finally:
            env.close()
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    # The four tabs

    def starts(self, seed: int) -> Json:
        """Rows that a dream can start from, with their pictures."""
        with self.lock:
            rows = self.rows(seed)
            _, agent = self.agent()
            length = len(rows["is_first"])
            at = sorted({round(i) for i in np.linspace(0, length - 2, min(THUMBNAILS, length - 1))})
            images = [key for key in agent.obs_space if is_image(agent.obs_space[key])]
            return {"seed": seed, "rows": [{"at": t, **({"frame": pixels(rows[images[0]][t, 0])} if images else {})}
                                           for t in at]}  # fmt: skip

    def start_dream(self, seed: int, at: int) -> Json:
        with self.lock:
            _, agent = self.agent()
            rows = self.rows(seed)
            if not 0 <= at < len(rows["is_first"]):
                raise FastwmError(f"there is no row {at}")
            game = game_of(agent)
            state, seen = game.start(rows, at)
            self.made += 1
            self.dreams[self.made] = Dream(game, state)
            while len(self.dreams) > SESSIONS:
                self.dreams.popitem(last=False)
            real = {key: shown(rows[key][at], is_image(space)) for key, space in agent.obs_space.items()}
            return {"dream": self.made, "real": real} | self._told(game, seen)

    def step_dream(self, number: int, action: list[float] | None, temperature: float) -> Json:
        """One imagined step; without an action the agent chooses."""
        if not 0 < temperature <= HOTTEST:
            raise FastwmError(f"the temperature must be above 0 and at most {HOTTEST:g}")
        with self.lock:
            if number not in self.dreams:
                raise FastwmError("this dream was forgotten: start another")
            dream = self.dreams[number]
            self.dreams.move_to_end(number)
            taken = dream.game.choose(dream.state) if action is None else dream.game.encoded(action)
            dream.state, seen = dream.game.advance(dream.state, taken, temperature)
            dream.steps += 1
            return {"step": dream.steps, "action": dream.game.values(taken)} | self._told(dream.game, seen)

    def _told(self, game: Game, seen: Mapping[str, Tensor]) -> Json:
        obs = {key.removeprefix("obs/"): value for key, value in seen.items() if key.startswith("obs/")}
        told: Json = {"obs": {key: shown(x, is_image(game.agent.obs_space[key])) for key, x in obs.items()}}
        return told | {key: number(seen[key][0]) for key in ("reward", "value", "end") if key in seen}

    def episode(self, seed: int) -> Json:
        """An episode that the agent plays in its environment: frames, policy, value and reward of every step."""
        with self.lock:
            saved, agent = self.agent()
            check_env(self.logdir / "config.yaml", saved.config)
            torch.manual_seed(seed)
            env, picture = filmed(saved, seed)
            try:
                checkpoint.check_spaces(saved.meta, env.obs_space, env.act_space, saved.config.env)
                record, state, steps, total = env.reset(), None, list[Json](), 0.0
                while True:
                    total += float(record["reward"][0])
                    step: Json = {"reward": number(record["reward"][0]), "return": number(total)}
                    step |= {"frame": frame} if (frame := picture(record)) else {}
                    step["obs"] = {key: numbers(torch.as_tensor(record[key][0])) for key, space in env.obs_space.items()
                                   if not is_image(space)}  # fmt: skip
                    action, state = agent.act(record, state, "eval")
                    steps.append(step | judged(agent, state, action))
                    if record["is_last"][0] or len(steps) >= EPISODE:
                        return {"steps": steps, "cut": not bool(record["is_last"][0])}
                    record = env.step(action)
            finally:
                env.close()

    def window(self, seed: int) -> Json:
        """A window: truth, reconstruction, open-loop dream and error."""
        with self.lock:
            saved, agent = self.agent()
            rows = self.rows(seed)
            staged = bool(agent_spec(saved.name).stages)
            context = staged_plots.CONTEXT if staged else plots.CONTEXT
            context = max(1, min(context, len(rows["is_first"]) - 3))
            torch.manual_seed(seed)
            if staged:
                truth = {"image": rows["image"][:, 0]}
                recon = {"image": agent.vae.decode(agent.encode(rows["image"]).mu)[:, 0]}
                dreamt = {"image": agent.open_loop(rows, context)["image"][:, 0]}
            else:
                truth = {key: rows[key][1:, 0] for key in agent.obs_space}
                recon = {key: x[:, 0] for key, x in agent.open_loop(rows, len(rows["is_first"]) - 2).items()}
                dreamt = {key: x[:, 0] for key, x in agent.open_loop(rows, context).items()}
            shown_rows = len(next(iter(recon.values()))) - (0 if staged else 1)
            keys: Json = {}
            for key in truth:
                image = is_image(agent.obs_space[key])
                keys[key] = [compared(truth[key][t], recon[key][t], dreamt[key][t], image) for t in range(shown_rows)]
            first = rows["is_first"][0 if staged else 1 :, 0].bool().tolist()[:shown_rows]
            return {"context": context, "keys": keys, "first": first}


def compared(truth: Tensor, recon: Tensor, dreamt: Tensor, image: bool) -> Json:
    real = truth.float() / 255 if image else truth.float()
    error = (dreamt - real + 1) / 2 if image else dreamt.float() - real
    parts = {"truth": real, "reconstruction": recon, "dream": dreamt, "error": error}
    return {name: pixels(x) if image else numbers(x) for name, x in parts.items()}


def shown(value: Tensor, image: bool) -> Any:
    """The one row of an observation [1, ...]."""
    return pixels(value[0]) if image else numbers(torch.as_tensor(value[0]))


def judged(agent: Any, state: Mapping[str, Tensor], action: Any) -> Json:
    """Action, policy and value at a filtered state."""
    named = action if isinstance(action, dict) else {"action": action}
    told: Json = {"action": {key: numbers(torch.as_tensor(value)) for key, value in named.items()}}
    if (seen := judgement(agent, state)) is not None:
        policy, value = seen
        told["value"] = number(value[0])
        told["policy"] = {
            key: {"probs": numbers(dist.probs.reshape(-1, dist.probs.shape[-1])[0])}
            if isinstance(dist, Categorical)
            else {"mean": numbers(dist.mean), "std": numbers(dist.std)}
            for key, dist in policy.dists.items()
        }
    return told


def filmed(saved: Saved, seed: int) -> tuple[Any, Callable[[Any], str | None]]:
    """One environment of the run, and the picture of a record: rendered, or the image that the agent sees, or none."""
    config = saved.config
    try:
        env, rendered = video.filming(config, seed)
    except FastwmError:
        env, rendered = make_env(env_source(config), 1, seed, **env_options(config)), False
    images = [key for key, space in env.obs_space.items() if is_image(space)]

    def picture(record: Any) -> str | None:
        if rendered:
            return jpeg(env.render()[0].astype(np.uint8))
        return jpeg(np.asarray(record[images[0]][0])) if images else None

    return env, picture


def curves(lines: list[dict[str, Any]], meanings: Mapping[str, str]) -> list[Json]:
    """Steps and values of each metric, means of neighbours where there are more than `POINTS`."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key != "step" and math.isfinite(value) and math.isfinite(line["step"]):
                found.setdefault(key, []).append((line["step"], value))
    made = []
    for key, points in found.items():
        blocks = np.array_split(np.array(points, float), min(POINTS, len(points)))
        means = np.array([block.mean(0) for block in blocks])
        meaning = meanings.get(key) or meanings.get(f"{key.rpartition('rec/')[0]}rec/<key>" if "rec/" in key else key)
        made.append({"name": key, "meaning": meaning or "", "steps": means[:, 0].tolist(),
                     "values": means[:, 1].tolist()})  # fmt: skip
    return made
