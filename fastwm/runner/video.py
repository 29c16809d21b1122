"""Videos of a run: an episode that the agent plays, and what its model imagines beside what happened."""

import logging
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fastwm.envs import VecEnv, make_env
from fastwm.errors import FastwmError
from fastwm.nn.spaces import is_image
from fastwm.runner.config import RunConfig, env_options, env_source
from fastwm.writing import replacing

log = logging.getLogger("fastwm")

FPS = 25
LONGEST = 500  # frames
SMALLEST = 192  # pixels: what is smaller is enlarged by whole factors
LARGEST_GIF = 256  # pixels: what is larger is averaged over whole blocks


def write_video(path: Path, frames: np.ndarray, fps: int = FPS) -> list[Path]:
    """`path` with the endings .gif and .mp4, of frames uint8 [T, H, W, 3 or 1]; returns what was written.

    The mp4 needs the extra `video`; without it, a warning says so.
    """
    frames = enlarge(np.broadcast_to(frames, (*frames.shape[:3], 3)))
    paths = [write_gif(path.with_suffix(".gif"), reduce(frames), fps)]
    if find_spec("imageio") is None or find_spec("imageio_ffmpeg") is None:
        log.warning("an mp4 needs the extra video: pip install 'fastwm[video]'")
        return paths
    return [*paths, write_mp4(path.with_suffix(".mp4"), frames, fps)]


def reduce(frames: np.ndarray) -> np.ndarray:
    block = -(-frames.shape[2] // LARGEST_GIF)
    height, width = (size // block for size in frames.shape[1:3])
    blocks = frames[:, : height * block, : width * block].reshape(-1, height, block, width, block, 3)
    return blocks.mean((2, 4)).astype(np.uint8)


def enlarge(frames: np.ndarray) -> np.ndarray:
    factor = max(1, -(-SMALLEST // frames.shape[2]))
    return frames.repeat(factor, 1).repeat(factor, 2)


def write_gif(path: Path, frames: np.ndarray, fps: int = FPS) -> Path:
    """Frames uint8 [T, H, W, 3]."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    with replacing(path) as temporary:
        images[0].save(temporary, format="GIF", save_all=True, append_images=images[1:], duration=1000 // fps, loop=0)
    return path


def write_mp4(path: Path, frames: np.ndarray, fps: int = FPS) -> Path:
    """Frames uint8 [T, H, W, 3] as H.264, which takes even sizes alone: an odd last row or column is cut off."""
    import imageio.v3 as imageio

    even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    with replacing(path) as temporary:
        imageio.imwrite(
            temporary, even, extension=".mp4", plugin="FFMPEG", fps=fps, codec="libx264", macro_block_size=1
        )
    return path


def episode(
    config: RunConfig[Any], act: Callable[[Mapping[str, Any]], Any], seed: int, env: Any = None
) -> tuple[np.ndarray, float]:
    """Frames uint8 [T, H, W, 3] of one episode, rendered where the environment can, and its return.

    Where it cannot, the frames are the first image that the agent sees. A long episode is cut to `LONGEST` frames.
    """
    made, rendered = filming(config, seed, env)
    try:
        record, total, frames = made.reset(), 0.0, list[np.ndarray]()
        images = [key for key, space in made.obs_space.items() if is_image(space)]
        while True:
            frames.append(made.render()[0] if rendered else record[images[0]][0])
            if record["is_last"][0] or len(frames) >= LONGEST:
                return np.stack(frames).astype(np.uint8), total
            record = made.step(act(record))
            total += float(record["reward"][0])
    finally:
        made.close()


def filming(config: RunConfig[Any], seed: int, env: Any = None) -> tuple[VecEnv, bool]:
    """One environment of the run, and whether it renders."""
    options = env_options(config)
    try:
        made = make_env(env_source(config, env), 1, seed, **(options | {"render_mode": "rgb_array"}))
        try:
            made.reset()
            made.render()
            return made, True
        except FastwmError as error:
            made.close()
            reason = error
    except FastwmError as error:  # an environment without this option
        reason = error
    made = make_env(env_source(config, env), 1, seed, **options)
    if not any(map(is_image, made.obs_space.values())):
        made.close()
        raise FastwmError(
            f"there is nothing to film: the agent sees no image, and {config.env} does not render: {reason}"
        )
    return made, False
