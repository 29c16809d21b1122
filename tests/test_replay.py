"""Replay against a naive list model; resume to the bit; DreamerV3's online queue."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastwm import replay as replay_module
from fastwm.errors import FastwmError
from fastwm.replay import Replay, cost, row_bytes


@pytest.fixture(autouse=True, scope="module")
def _no_fsync():
    """Waiting for the disk would be most of these tests' time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda file: None)
        yield


def make_row(n, num_envs, episode=5):
    """A row whose every value tells its number and environment."""
    ids = n * num_envs + np.arange(num_envs)
    return {
        "image": np.stack([np.full((2, 2, 1), i % 256, np.uint8) for i in ids]),
        "reward": ids.astype(np.float32),
        "deter": torch.full((num_envs, 3), float(n), dtype=torch.bfloat16),
        "is_first": np.full(num_envs, n % episode == 0),
        "is_last": np.full(num_envs, n % episode == episode - 1),
    }


def filled(rows, capacity=64, num_envs=2, length=4, **kwargs):
    replay = Replay(capacity, num_envs, length, **kwargs)
    for n in range(rows):
        replay.add(make_row(n, num_envs))
    return replay


def batches_equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_matches_a_list_of_rows(data):
    num_envs = data.draw(st.integers(1, 3))
    length = data.draw(st.integers(1, 6))
    ring = data.draw(st.integers(length, length + 7))
    capacity = ring * num_envs + data.draw(st.integers(0, num_envs - 1))
    online = data.draw(st.booleans())
    replay = Replay(capacity, num_envs, length, online=online)
    kept, queue = [], []
    for n in range(data.draw(st.integers(0, 3 * ring))):
        replay.add(make_row(n, num_envs))
        kept = [*kept, n][-ring:]
        if online and n % length == 0 and n >= length - 1:
            queue += [(n - length + 1, env) for env in range(num_envs)]
        starts = [m for m in kept if m + length - 1 <= n]
        assert len(replay) == len(starts) * num_envs
        if data.draw(st.booleans()) and starts:
            batch = data.draw(st.integers(1, 3))
            sample = replay.sample(batch)
            queue = [item for item in queue if item[0] >= kept[0]]
            check_sample(sample, starts, num_envs, length, queue[:batch])
            queue = queue[batch:]


def check_sample(sample, starts, num_envs, length, expected_online):
    index = sample["index"]
    numbers, envs = index // num_envs, index % num_envs
    for b in range(index.shape[1]):
        start, env = int(numbers[0, b]), int(envs[0, b])
        assert start in starts
        assert numbers[:, b].tolist() == list(range(start, start + length))
        assert set(envs[:, b].tolist()) == {env}
        if b < len(expected_online):
            assert (start, env) == expected_online[b]
        for t in range(length):
            row = make_row(start + t, num_envs)
            assert sample["reward"][t, b] == row["reward"][env]
            assert torch.equal(sample["image"][t, b], torch.from_numpy(row["image"][env]))
            is_next_first = t + 1 < length and make_row(start + t + 1, num_envs)["is_first"][env]
            assert sample["is_first"][t, b] == (t == 0 or row["is_first"][env])
            assert sample["is_last"][t, b] == (row["is_last"][env] or is_next_first)


def test_online_windows_are_disjoint_served_once_and_first():
    """Online queue: DreamerV3's rule: row number n (from 0) queues n-64..n for n = 65, 130, so 131 rows queue two."""
    replay = filled(131, capacity=200, num_envs=1, length=65)
    starts = replay.sample(2)["index"][0].tolist()
    assert starts == [1, 66]
    before = replay._generator.get_state()
    replay.sample(1)
    assert not torch.equal(before, replay._generator.get_state()), "the third window must be a uniform one"
    assert filled(65, capacity=200, num_envs=1, length=65)._queue == type(replay._queue)()


def test_overwritten_online_windows_are_dropped():
    replay = filled(100, capacity=20, num_envs=2, length=4)
    index = replay.sample(8)["index"]
    assert index[0, :2].tolist() == [186, 187], "row 93 of both, queued at row 96; row 89's window is gone"
    assert (index[0] // 2 >= 90).all()
    assert not replay._queue


def test_windows_cross_episodes_and_abandoned_episodes_end():
    """Windows across episodes: two short episodes in one window; the first was cut (a restart) without is_last."""
    replay = Replay(16, 1, 6, online=False)
    for n in range(6):
        row = make_row(n, 1, episode=100)
        row["is_first"][:] = n in (0, 3)
        replay.add(row)
    sample = replay.sample(1)
    assert sample["is_first"][:, 0].tolist() == [True, False, False, True, False, False]
    assert sample["is_last"][:, 0].tolist() == [False, False, True, False, False, False]
    assert not replay._data["is_last"][:6].any(), "the store itself must keep what it was given"


def test_forced_is_first_is_not_stored():
    replay = filled(12, num_envs=1, length=3, online=False)
    for _ in range(20):
        replay.sample(4)
    assert replay._data["is_first"][:12, 0].tolist() == [n % 5 == 0 for n in range(12)]


def test_sampling_is_uniform_over_all_starts_of_all_envs():
    replay = filled(30, capacity=20, num_envs=2, length=4, online=False)
    counts = Counter(i for _ in range(70) for i in replay.sample(100)["index"][0].tolist())
    assert set(counts) == set(range(40, 54))  # rows 20 to 26 of both
    assert min(counts.values()) > 400
    assert max(counts.values()) < 600


def test_keeps_dtypes_and_is_contiguous():
    sample = filled(10).sample(3)
    assert sample["image"].dtype == torch.uint8
    assert sample["deter"].dtype == torch.bfloat16
    assert sample["image"].shape == (4, 3, 2, 2, 1)
    assert sample["image"].is_contiguous()
    assert sample["index"].dtype == torch.int64


def test_stored_rows_do_not_alias_the_environment():
    replay = Replay(8, 1, 1, online=False)
    row = make_row(7, 1)
    replay.add(row)
    row["reward"][:] = -1
    assert replay.sample(1)["reward"].item() == 7


def test_write_back_hits_exactly_the_given_rows():
    """Stored latents."""
    replay = filled(12, num_envs=2, length=4, online=False)
    index = torch.tensor([[4, 7], [6, 9], [8, 11]])  # env 0 rows 2-4, env 1 rows 3-5
    replay.write_back(index, {"deter": torch.arange(6.0).view(3, 2, 1).expand(3, 2, 3) + 100})
    expected = torch.arange(12.0)[:, None].repeat(1, 2)
    expected[[2, 3, 4], 0] = torch.tensor([100.0, 102, 104])
    expected[[3, 4, 5], 1] = torch.tensor([101.0, 103, 105])
    assert torch.equal(replay._data["deter"][:12, :, 0].float(), expected)


def test_write_back_drops_overwritten_rows():
    replay = filled(10, capacity=10, num_envs=1, length=4, online=False)
    index = torch.arange(4)[:, None]
    for n in range(10, 12):
        replay.add(make_row(n, 1))
    replay.write_back(index, {"deter": torch.full((4, 1, 3), -1.0)})
    assert replay._data["deter"][:, 0, 0].tolist() == [10, 11, -1, -1, 4, 5, 6, 7, 8, 9]


def test_write_back_of_repeated_rows_keeps_the_last_window():
    replay = filled(8, num_envs=1, length=3, online=False)
    index = torch.tensor([[2, 3, 1], [3, 4, 2], [4, 5, 3]])
    replay.write_back(index, {"deter": torch.tensor([1.0, 2, 3]).view(1, 3, 1).expand(3, 3, 3)})
    assert replay._data["deter"][:6, 0, 0].tolist() == [0, 3, 3, 3, 2, 2]


@pytest.mark.parametrize(
    ("index", "values", "message"),
    [
        (torch.zeros(1, 1, dtype=torch.int64), {"reward": torch.zeros(1, 1)}, "'reward' is no stored latent"),
        (
            torch.zeros(1, 1, dtype=torch.int64),
            {"deter": torch.zeros(1, 1, 2)},
            r"'deter' has shape \(1, 1, 2\)",
        ),
    ],
)
def test_write_back_refuses(index, values, message):
    with pytest.raises(ValueError, match=message):
        filled(8).write_back(index, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": np.array([0, np.nan], np.float32)}, "'reward' holds NaN"),
        ({"reward": np.zeros(2)}, "'reward' is torch.float64"),
        ({"reward": np.zeros((2, 1), np.float32)}, r"'reward' is torch.float32 \(2, 1\)"),
        ({"reward": np.zeros(3, np.float32)}, r"'reward' has shape \(3,\)"),
        ({"extra": np.zeros(2)}, "extra"),
    ],
)
def test_add_names_the_key_that_does_not_fit_and_changes_nothing(change, message):
    replay = filled(5)
    before = {key: value.clone() for key, value in replay._data.items()}
    with pytest.raises(ValueError, match=message):
        replay.add(make_row(5, 2) | change)
    assert replay.added == 5
    assert all(torch.equal(replay._data[key][:5], before[key][:5]) for key in before)


def test_needs_flags_and_room_for_a_window():
    with pytest.raises(ValueError, match="'is_first' as bool"):
        Replay(8, 1, 2).add({"reward": np.zeros(1)})
    with pytest.raises(ValueError, match="no window of length 5"):
        Replay(8, 2, 5)
    with pytest.raises(RuntimeError, match="no window of 4 rows"):
        filled(3).sample(1)


def test_cost_names_bytes_and_the_option_to_lower(monkeypatch):
    monkeypatch.setattr(replay_module, "_available_memory", lambda: 2**30)
    fields = {"image": np.zeros((64, 64, 3), np.uint8), "reward": np.zeros((), np.float32)}
    assert row_bytes(fields) == 12292
    assert cost(fields, 1_000_000) == "replay: 1,000,000 rows x 12.0 KB = 11.4 GB (have 1.0 GB)"
    with pytest.raises(FastwmError, match=r"rows x 25 B|lower the replay's capacity"):
        Replay(10**9, 2, 4).add(make_row(0, 2))
    assert filled(1).describe().startswith("replay: 64 rows x 0.0 KB")
    assert Replay(8, 1, 2).describe() == "replay: empty"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 70), st.integers(0, 40), st.integers(4, 24), st.sampled_from([1, 4, 7, 100]))
def test_resume_is_bitwise_the_same(tmp_path_factory, first, second, ring, chunk_rows):
    """Saved twice (chunks shared), loaded from the second: samples, write-backs and later saves agree."""
    base = tmp_path_factory.mktemp("replay")
    kwargs = {"capacity": 2 * ring, "num_envs": 2, "length": 4, "chunk_rows": chunk_rows, "seed": 3}
    replay = filled(first, **kwargs)
    replay.save(base / "a", base / "chunks")
    for n in range(first, first + second):
        replay.add(make_row(n, 2))
        if len(replay):
            sample = replay.sample(2)
            replay.write_back(sample["index"], {"deter": sample["deter"] + 1})
    state = replay.save(base / "b", base / "chunks")
    again = Replay(**(kwargs | {"seed": 99}))
    again.load(base / "b", base / "chunks", state)
    for n in range(first + second, first + second + 12):
        assert len(replay) == len(again)
        for one in (replay, again):
            one.add(make_row(n, 2))
        if len(replay):
            one, two = replay.sample(3), again.sample(3)
            assert batches_equal(one, two)
            for target in (replay, again):
                target.write_back(one["index"], {"deter": one["deter"] * 2})
    one, two = (target.save(base / name, base / "chunks") for target, name in ((replay, "c"), (again, "d")))
    assert torch.equal(one.pop("generator"), two.pop("generator"))
    assert one == two, "checksums of all files included"


def saved(base: Path):
    replay = filled(20, capacity=60, chunk_rows=4)
    state = replay.save(base / "a", base / "chunks")
    return replay, state


def test_chunks_are_written_once(tmp_path):
    replay, _ = saved(tmp_path)
    files = sorted((tmp_path / "chunks").iterdir())
    assert [f.name for f in files] == [f"chunk-{k:08d}.safetensors" for k in range(5)]
    stamps = [f.stat().st_ino for f in files]
    for n in range(20, 25):
        replay.add(make_row(n, 2))
    state = replay.save(tmp_path / "b", tmp_path / "chunks")
    assert [f.stat().st_ino for f in files] == stamps
    assert sorted(state["chunks"]) == [0, 1, 2, 3, 4, 5]
    assert not list(tmp_path.rglob("tmp-*"))


def test_prune_deletes_only_what_no_checkpoint_needs(tmp_path):
    replay, state = saved(tmp_path)
    for n in range(20, 39):
        replay.add(make_row(n, 2))
    later = replay.save(tmp_path / "b", tmp_path / "chunks")
    assert later["oldest"] == 9
    (tmp_path / "chunks" / "tmp-chunk-00000009.safetensors").touch()
    replay.prune(tmp_path / "chunks", min(state["oldest"], later["oldest"]))
    assert len(list((tmp_path / "chunks").iterdir())) == 9
    replay.prune(tmp_path / "chunks", later["oldest"])
    assert sorted(f.name for f in (tmp_path / "chunks").iterdir())[0] == "chunk-00000002.safetensors"
    again = Replay(60, 2, 4, chunk_rows=4)
    again.load(tmp_path / "b", tmp_path / "chunks", later)
    assert batches_equal(replay.sample(16), again.sample(16))


def test_resuming_an_older_checkpoint_does_not_mix_in_its_abandoned_future(tmp_path):
    """sheeprl #273: after a step back, chunks of the other future lie on disk under the same names."""
    replay, state = saved(tmp_path)
    for n in range(20, 28):
        replay.add(make_row(n, 2))
    abandoned = replay.save(tmp_path / "b", tmp_path / "chunks")
    again = Replay(60, 2, 4)
    again.load(tmp_path / "a", tmp_path / "chunks", state)
    for n in range(20, 28):
        again.add(make_row(n + 1000, 2))
    resumed = again.save(tmp_path / "c", tmp_path / "chunks")
    third = Replay(60, 2, 4)
    third.load(tmp_path / "c", tmp_path / "chunks", resumed)
    assert third._data["reward"][20:28, 0].tolist() == [2 * (n + 1000) for n in range(20, 28)]
    with pytest.raises(FastwmError, match=r"chunk-00000005\.safetensors is damaged, or was written by another run"):
        third.load(tmp_path / "b", tmp_path / "chunks", abandoned)


def test_missing_and_damaged_files_are_named(tmp_path):
    _, state = saved(tmp_path)
    chunk = tmp_path / "chunks" / "chunk-00000002.safetensors"
    good = chunk.read_bytes()
    chunk.write_bytes(good[:-1] + b"x")
    with pytest.raises(FastwmError, match=r"chunk-00000002\.safetensors is damaged"):
        Replay(60, 2, 4).load(tmp_path / "a", tmp_path / "chunks", state)
    chunk.unlink()
    with pytest.raises(FastwmError, match=r"lacks .*chunk-00000002\.safetensors"):
        Replay(60, 2, 4).load(tmp_path / "a", tmp_path / "chunks", state)
    with pytest.raises(FastwmError, match="has num_envs 2, this run 1"):
        Replay(60, 1, 4).load(tmp_path / "a", tmp_path / "chunks", state)


@pytest.mark.parametrize("ring", [12, 50])
def test_the_capacity_may_change_on_resume(tmp_path, ring):
    replay = filled(40, capacity=60, chunk_rows=4, online=False)
    state = replay.save(tmp_path / "a", tmp_path / "chunks")
    again = Replay(ring * 2, 2, 4, online=False)
    again.load(tmp_path / "a", tmp_path / "chunks", state)
    assert again.oldest == max(10, 40 - ring)
    sample = again.sample(64)
    assert torch.equal(sample["reward"].long(), sample["index"])
    assert torch.equal(sample["deter"][..., 0].long(), sample["index"] // 2)


def test_windows_that_end_with_their_episode() -> None:
    """DreamerV2's `prioritize_ends`: no window crosses an end, and ends come as often as all starts that would."""
    replay = Replay(1400, 2, 4, online=False, prioritize_ends=True)
    for t in range(740):  # episodes of 7 and of 10 rows; the ring has turned
        first, last = np.array([t % 7 == 0, t % 10 == 0]), np.array([t % 7 == 6, t % 10 == 9])
        replay.add({"is_first": first, "is_last": last, "row": np.full(2, t)})
    batch = replay.sample(4000)
    rows, end = batch["row"], batch["is_last"]
    crossing = end[:-1].any(0)
    assert (rows[0, crossing] == replay.oldest).all()  # they had nowhere to go
    assert crossing.float().mean() < 0.01 and rows.max() == 739
    assert (rows[1:] == rows[:-1] + 1).all()
    share = end[-1].float().mean().item()  # of the starts 0..6 of an episode, 3..6 are moved to 3; or 6..9 to 6
    assert share == pytest.approx((4 / 7 + 4 / 10) / 2, abs=0.02)


def test_windows_longer_than_an_episode_still_come() -> None:
    replay = Replay(60, 1, 8, online=False, prioritize_ends=True)
    for t in range(30):
        replay.add({"is_first": np.array([t % 5 == 0]), "is_last": np.array([t % 5 == 4]), "row": np.full(1, t)})
    rows = replay.sample(500)["row"]
    assert rows.min() >= 0 and (rows[1:] == rows[:-1] + 1).all() and (rows[-1] % 5 == 4).float().mean() > 0.5
