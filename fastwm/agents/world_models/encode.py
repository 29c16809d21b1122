"""Stage 3: every frame as V's mean and log-variance, in float16; the frames themselves are not needed after."""

import time
import zlib
from pathlib import Path

import numpy as np
import torch

from fastwm.agents.world_models.arrays import AGAIN, read_npz
from fastwm.agents.world_models.collect import open_chunks, open_frames, read_done, read_rows
from fastwm.agents.world_models.stage import Stage, Stopped, fingerprint
from fastwm.errors import FastwmError
from fastwm.writing import remove_temporaries, replacing

BATCH = 500
LATENTS = {
    "mu": ("float16", (-1, -1)), "logvar": ("float16", (-1, -1)), "action": ("float16", (-1, -1)),
    "reward": ("float32", (-1,)), "is_first": ("bool", (-1,)), "done": ("bool", (-1,)),
}  # fmt: skip


class Encode(Stage):
    """One file a chunk. Later iterations add their chunks, or encode all again where V was refined."""

    name = "encode"

    @property
    def sources(self) -> list[Path]:
        folders = self.folders if self.config.v.refine_steps else self.folders[-1:]
        return [folder / "collect" for folder in folders]

    def restore(self) -> bool:
        self.mark = fingerprint(self.agent.vae)
        counts = [read_done(folder) for folder in self.sources]
        if any(count is None for count in counts):
            return False
        names = [self.file(s, i) for s, count in zip(self.sources, counts) for i in range(count["chunks"])]  # type: ignore[index]
        return bool(names) and all(self.fresh(path) for path in names)

    def file(self, source: Path, index: int) -> Path:
        return self.run.folder / f"{self.sources.index(source)}-{index:05d}.npz"

    def fresh(self, path: Path) -> bool:
        """Whether this file was made by V as it is now."""
        try:
            return int(read_npz(path, {"v": ("int64", ())})["v"]) == self.mark
        except FastwmError:
            return False

    def work(self) -> None:
        remove_temporaries(self.run.folder)
        jobs = [(self.file(source, i), path) for source in self.sources for i, path in enumerate(open_chunks([source]))]
        start, frames = time.monotonic(), 0
        self.run.say(f"encoding {len(jobs)} chunks of frames")
        for number, (target, chunk) in enumerate(jobs):
            if not self.fresh(target):
                frames += self.encode(target, chunk)
            rate = frames / max(time.monotonic() - start, 1e-9)
            self.run.show(f"encode: chunk {number + 1}/{len(jobs)}  {rate:,.0f} frames/s")
            if self.run.stopping() and number + 1 < len(jobs):
                raise Stopped
        self.run.log(len(jobs), {"frames": frames, "frames_per_second": rate})

    def encode(self, target: Path, chunk: Path) -> int:
        image = open_frames(chunk)
        rows, expected = read_rows(chunk, self.task.actions, len(image))
        parts, crc = [], 0
        for at in range(0, len(image), BATCH):
            frames = image[at : at + BATCH].copy()
            crc = zlib.crc32(frames.data, crc)
            parts.append(self.agent.encode(torch.from_numpy(frames).to(self.device)))
        if expected is not None and crc != expected:
            raise FastwmError(f"{chunk}: the frames are damaged: remove it; the same command gathers it again")
        rows["mu"], rows["logvar"] = (torch.cat(x).cpu().numpy().astype(np.float16) for x in zip(*parts))
        rows["action"] = rows["action"].astype(np.float16)
        with replacing(target) as temporary:
            np.savez(temporary, v=np.int64(self.mark), **rows)  # type: ignore[arg-type]
        return len(image)


def read_latents(folders: list[Path]) -> dict[str, np.ndarray]:
    """All rows of encoded chunks, end to end: mu, logvar, action, reward, is_first, done."""
    paths = [path for folder in folders for path in sorted(folder.glob("[0-9]*.npz"))]
    if not paths:
        raise FastwmError(f"{folders[-1]}: nothing is encoded yet; run --stage encode first")
    parts: dict[str, list[np.ndarray]] = {}
    for path in paths:
        for key, value in read_npz(path, LATENTS).items():
            parts.setdefault(key, []).append(value)
        one_length = len({len(values[-1]) for values in parts.values()}) == 1
        if not one_length or any(values[0].shape[1:] != values[-1].shape[1:] for values in parts.values()):
            raise FastwmError(f"{path} is damaged, its arrays do not fit each other: {AGAIN}")
    return {key: np.concatenate(values) for key, values in parts.items()}


def encoded_folders(stage: Stage) -> list[Path]:
    """Where the rows of all iterations are: a refined V has encoded them all anew."""
    folders = stage.folders[-1:] if stage.config.v.refine_steps else stage.folders
    return [folder / Encode.name for folder in folders]
