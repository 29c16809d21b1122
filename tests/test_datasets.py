"""Stored rows: what is imported is what was recorded, row by row, and runs learn from it alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastwm import chunks
from fastwm.cli import main
from fastwm.errors import FastwmError
from fastwm.runner import datasets
from fastwm.runner.offline import Stored
from tests.test_runner import FAST, run

LENGTHS = (12, 7, 30)


def write_episodes(folder: Path, discrete: bool, **more: np.ndarray) -> None:
    """Three episodes as DreamerV2 writes them, the second of which a time limit cuts."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i, length in enumerate(LENGTHS):
        action = np.eye(3)[rng.integers(0, 3, length)] if discrete else rng.uniform(-1, 1, (length, 2))
        action[0] = 0
        np.savez_compressed(
            folder / f"2020010{i}T000000-{i}-{length}.npz",
            image=rng.integers(0, 255, (length, 8, 8, 3), np.uint8), position=rng.normal(size=(length, 2)),
            action=action.astype(np.float32), reward=np.arange(length, dtype=np.float32) + 100 * i,
            discount=np.r_[np.ones(length - 1), float(i == 1)].astype(np.float32), logprob=np.zeros(length), **more,
        )  # fmt: skip


def rows_of(folder: Path) -> dict[str, Tensor]:
    rows = list(Stored(folder).rows())
    return {key: torch.stack([row[key][0] for row in rows]) for key in rows[0]}


@pytest.mark.parametrize("discrete", [True, False])
def test_episode_files_become_rows(tmp_path: Path, discrete: bool) -> None:
    """The action that led to a row becomes the one chosen at the row before; ends and time limits are told apart."""
    write_episodes(tmp_path / "npz", discrete)
    assert main(["import", f"npz:{tmp_path / 'npz'}", str(tmp_path / "rows")]) == 0
    rows = rows_of(tmp_path / "rows")
    assert rows.keys() == {"image", "position", "action", "reward", *chunks.FLAGS}
    starts = np.cumsum((0, *LENGTHS))
    assert rows["is_first"].nonzero().flatten().tolist() == starts[:-1].tolist()
    assert rows["is_last"].nonzero().flatten().tolist() == (starts[1:] - 1).tolist()
    assert rows["is_terminal"].nonzero().flatten().tolist() == [starts[1] - 1, starts[3] - 1]
    for path, start in zip(sorted((tmp_path / "npz").iterdir()), starts):
        data = np.load(path)
        own = {key: value[start : start + len(data["reward"])].numpy() for key, value in rows.items()}
        assert np.array_equal(own["image"], data["image"]) and np.allclose(own["position"], data["position"])
        assert np.array_equal(own["reward"], np.r_[0, data["reward"][1:]])
        led_to = data["action"].argmax(1) if discrete else data["action"]
        assert np.array_equal(own["action"][:-1], led_to[1:])


def test_bad_datasets_are_refused(tmp_path: Path) -> None:
    write_episodes(tmp_path / "npz", False)
    for source, folder, message in (
        ("zip:x", "a", "give npz:FOLDER or minari:ID"),
        (f"npz:{tmp_path / 'none'}", "a", "holds no .npz files"),
        (f"npz:{tmp_path / 'npz'}", "npz", "is not empty"),
    ):
        with pytest.raises(FastwmError, match=message):
            datasets.import_rows(source, tmp_path / folder)
    path = next((tmp_path / "npz").iterdir())
    for change, message in (
        ({"discount": None}, "does not say how it ends"),
        ({"action": np.full((LENGTHS[0], 2), 3.0)}, "must be scaled to"),
        ({"position": np.zeros((5, 2))}, "the first file's rows are"),
    ):
        kept = path.read_bytes()
        with np.load(path) as file:
            np.savez(path, **{key: value for key, value in ({**file} | change).items() if value is not None})
        with pytest.raises(FastwmError, match=message):
            datasets.import_rows(f"npz:{tmp_path / 'npz'}", tmp_path / f"to {message}")
        path.write_bytes(kept)
    path.write_bytes(b"no zip")
    with pytest.raises(FastwmError, match="is no episode file"):
        datasets.import_rows(f"npz:{tmp_path / 'npz'}", tmp_path / "b")


@pytest.fixture
def minari_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def test_a_run_goes_to_minari_and_back_row_by_row(tmp_path: Path, minari_folder: None) -> None:
    assert run("--logdir", str(tmp_path / "run"), "--steps", "400", "--num-envs", "2") == 0
    assert main(["export-replay", str(tmp_path / "run"), "minari:cartpole/test-v0"]) == 0
    assert main(["import", "minari:cartpole/test-v0", str(tmp_path / "rows")]) == 0
    back = rows_of(tmp_path / "rows")
    streams = [
        {key: value[i] for key, value in row.items()} for i in range(2) for row in Stored(tmp_path / "run").rows()
    ]
    ends = back["is_last"].nonzero().flatten().tolist()
    seen, at = 0, 0
    for end in ends:  # episodes come in the order of their ends: find each by its first observation
        episode = {key: value[at : end + 1] for key, value in back.items()}
        begin = next(n for n, row in enumerate(streams) if torch.equal(row["obs"], episode["obs"][0]))
        for n in range(end + 1 - at):
            for key in ("obs", "reward", "is_first", "is_last", "is_terminal", *(["action"] if at + n < end else [])):
                assert torch.equal(streams[begin + n][key], episode[key][n]), key
        seen, at = seen + end + 1 - at, end + 1
    assert seen == len(back["reward"]) > 200


def test_a_run_learns_from_stored_rows_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--logdir", str(tmp_path / "run"), "--steps", "320") == 0
    offline = ["train", "dreamer_v3", "--offline", str(tmp_path / "run"), "--logdir", str(tmp_path / "off"),
               "--preset", "cartpole", *FAST]  # fmt: skip
    assert main([*offline, "--steps", "160"]) == 0
    assert main(["train", "dreamer_v3", "--logdir", str(tmp_path / "off"), "--steps", "320"]) == 0
    told = capsys.readouterr().out
    assert "320 stored rows of" in told and "continuing at step 160" in told
    assert main([*offline[:2], "--offline", str(tmp_path / "none"), "--logdir", str(tmp_path / "x")]) == 2
    assert "there is no folder" in capsys.readouterr().err
