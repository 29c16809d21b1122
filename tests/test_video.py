"""Films of a run: rendered or seen frames, as GIF and mp4, and the dream of an agent that sees images."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image

from fastwm.agents import DreamerV3Config
from fastwm.cli import main
from fastwm.errors import FastwmError
from fastwm.runner import video
from fastwm.runner.config import TrainConfig
from tests.agents_under_test import TINY


class Pictures(gymnasium.Env):
    """Images 16x16 that count the steps, episodes of 9 steps; no rendering."""

    observation_space = gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, **_: Any) -> Any:
        self.steps = 0
        return np.zeros((16, 16, 3), np.uint8), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.full((16, 16, 3), 20 * self.steps, np.uint8), 1.0, self.steps == 9, False, {}


class Numbers(Pictures):
    """The same without anything to look at."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, **_: Any) -> Any:
        self.steps = 0
        return np.zeros(2, np.float32), {}


def test_files(tmp_path: Path) -> None:
    frames = np.arange(5 * 15 * 15, dtype=np.uint8).reshape(5, 15, 15, 1)
    paths = video.write_video(tmp_path / "deep" / "film", frames)
    with Image.open(paths[0]) as gif:
        assert (gif.format, gif.n_frames, gif.size) == ("GIF", 5, (195, 195))
    large = video.reduce(np.full((2, 600, 1000, 3), 7, np.uint8))
    assert large.shape == (2, 150, 250, 3) and (large == 7).all()
    imageio = pytest.importorskip("imageio.v3")
    pytest.importorskip("imageio_ffmpeg")
    assert imageio.imread(paths[1], plugin="FFMPEG").shape == (5, 194, 194, 3)


def test_the_frames_that_the_agent_sees() -> None:
    config = TrainConfig(DreamerV3Config(), env_args={"size": "16"})
    frames, total = video.episode(config, lambda record: np.zeros(1, np.int64), seed=0, env=Pictures)
    assert frames.shape == (10, 16, 16, 3) and total == 9 and frames[4].max() == 80
    with pytest.raises(FastwmError, match="nothing to film"):
        video.episode(config, lambda record: np.zeros(1, np.int64), seed=0, env=Numbers)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [
        text for key, value in TINY["dreamer_v3"].items() for text in (f"--agent.{key.replace('_', '-')}", str(value))
    ]
    run = ["train", "dreamer_v3", "--env", "tests.test_video:Pictures", "--logdir", str(tmp_path), "--steps", "120"]
    run += ["--num-envs", "2", "--batch-size", "2", "--batch-length", "8", "--train-ratio", "1", *sizes]
    assert main(run) == 0
    assert main(["eval", str(tmp_path), "--episodes", "1", "--trust", "--video"]) == 0
    assert "the film shows a return of 9.0" in capsys.readouterr().out
    assert main(["dream", str(tmp_path), "--trust", "--video"]) == 0
    for name in ("episode", "dream-image"):
        assert (tmp_path / "videos" / f"{name}.gif").stat().st_size > 1000
