"""Damage run folders at random and use them: `python -m tests.damage --folders 200 --seed 0`.

Every folder is a copy of a tiny finished run of one of the five agents, damaged once: cut, flipped, swapped, removed,
replaced by nonsense or a link. It passes if loading gives what was saved, or says in one line what is wrong, or warns;
and if nothing outside of it was read out or changed, and no temporary file is left.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastwm.agents import AGENTS, agent_spec
from fastwm.agents.world_models.collect import open_chunks, open_frames, read_rows
from fastwm.agents.world_models.encode import read_latents
from fastwm.cli import main
from fastwm.envs import register
from fastwm.envs.registry import _factories
from fastwm.errors import FastwmError
from fastwm.replay import Replay
from fastwm.runner import checkpoint, plots
from fastwm.runner.evaluate import open_run
from tests import fake_tasks

SECRET = "a secret of the user's"
SECONDS = 300  # that a command may take on a busy machine

WORLD = [
    "--agent.latents", "4", "--agent.collect.episodes", "4", "--agent.collect.chunk-episodes", "2",
    "--agent.collect.min-frames", "1", "--agent.collect.num-envs", "2", "--agent.v.steps", "2", "--agent.v.batch", "4",
    "--agent.m.hidden", "8", "--agent.m.steps", "2", "--agent.m.batch", "2", "--agent.m.length", "6",
    "--agent.c.population", "4", "--agent.c.rollouts", "1", "--agent.c.generations", "2", "--agent.c.evaluate-every",
    "2", "--agent.c.evaluate-rollouts", "2", "--agent.c.max-steps", "5", "--agent.c.num-envs", "2",
]  # fmt: skip
COMMON = [
    "--num-envs", "2", "--batch-size", "2", "--batch-length", "6", "--replay-capacity", "400", "--train-ratio", "1",
    "--prefill", "0", "--pretrain", "2",
]  # fmt: skip
SIZES = ["--agent.deter", "8", "--agent.hidden", "8", "--agent.stoch", "4", "--agent.units", "8"]
MORE = {
    "planet": ["--agent.candidates", "4", "--agent.elites", "2", "--agent.iterations", "1", "--agent.horizon", "2"],
    "dreamer_v1": ["--agent.imag-length", "3"],
    "dreamer_v2": ["--agent.imag-length", "3", "--agent.classes", "4"],
    "dreamer_v3": ["--agent.imag-length", "3", "--agent.classes", "4", "--agent.depth", "2"],
}


def make_run(agent: str, logdir: Path) -> None:
    """A finished run with two checkpoints, where the agent keeps two."""
    if agent == "world_models":
        arguments = ["--env", "fake:cover", "--preset", "takecover_quick", "--agent.iterations", "1", *WORLD]
        run(["train", agent, *arguments, "--logdir", str(logdir)])
        return
    arguments = ["--env", "pendulum", *COMMON, *SIZES, *MORE[agent], "--logdir", str(logdir)]
    for steps in ("60", "80"):
        run(["train", agent, *arguments, "--steps", steps])


def run(arguments: list[str]) -> None:
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        if main(arguments) != 0:
            raise RuntimeError(f"{arguments} failed")


def fake(name: str, num_envs: int, seed: Any, size: Any, repeat: int, **options: Any) -> Any:
    from fastwm.envs.gym import make_from

    return make_from(getattr(fake_tasks, name), num_envs=num_envs, seed=seed, size=size, repeat=repeat, **options)


# What is loaded


def digest(logdir: Path) -> dict[str, Any]:
    """Checksums of all that the folder gives, part by part: "refused" where that is an error, a list if it warned."""
    result: dict[str, Any] = {}
    warned: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warned.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("fastwm").addHandler(handler)

    def part(name: str, read: Callable[[], Any]) -> Any:
        warned.clear()
        try:
            value = read()
        except FastwmError as error:
            result[name] = "several lines" if "\n" in str(error) else "refused"
            return None
        fallen_back = result.get("run") == "warned"  # to the checkpoint before
        result[name] = "warned" if warned or fallen_back else summed(value)
        return value

    saved: Any = part("run", lambda: open_run(logdir))
    if saved is None:
        return result
    agent: Any = part("agent", lambda: saved.agent(torch.device("cpu")))
    if agent_spec(saved.name).stages:
        for stage in ("v", "m", "c"):
            part(stage, lambda stage=stage: checkpoint.newest(logdir / stage, checkpoint.read_state))
        part("frames", lambda: [frames(path) for path in open_chunks([logdir / "collect"])])
        part("latents", lambda: read_latents([logdir / "encode"]))
    elif agent is not None:
        part("replay", lambda: replay(saved, agent, logdir))
    return result


def frames(chunk: Path) -> Any:
    image = open_frames(chunk)
    rows, expected = read_rows(chunk, 1, len(image))
    if expected != (crc := zlib.crc32(image.copy().data)):
        raise FastwmError(f"{chunk}: the frames are damaged")
    return crc, rows


def replay(saved: Any, agent: Any, logdir: Path) -> Any:
    config = saved.config
    state = checkpoint.read_state(saved.path)
    held = Replay(config.replay_capacity, config.num_envs, config.batch_length + 1, latent_keys=agent.latent_keys)
    held.load(saved.path, logdir / "replay", state["more"])
    rows = torch.arange(held.oldest, held.added) % held.rows
    return {key: data[rows] for key, data in held._data.items()}, held.added, list(held._queue), state


def summed(value: Any) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Path):
        return value.name
    if isinstance(value, torch.nn.Module):
        value = dict(value.state_dict())
    if isinstance(value, torch.Tensor):
        return f"{zlib.crc32(value.detach().numpy().tobytes())}"
    if isinstance(value, dict):
        return str([(key, summed(v)) for key, v in sorted(value.items(), key=str) if key not in ("trust", "logdir")])
    if isinstance(value, (list, tuple)):
        return str([summed(v) for v in value])
    return str(value.tobytes()) if hasattr(value, "tobytes") else repr(value)


# Damage

Damage = Callable[[random.Random, Path, Path], None]


class Attack:
    """A pickle that leaves a mark when it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def cut(rng: random.Random, file: Path, outside: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))] if data else b"")


def cut_lines(rng: random.Random, file: Path, outside: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[: rng.randrange(max(len(lines), 1))]))


def flip(rng: random.Random, file: Path, outside: Path) -> None:
    data = bytearray(file.read_bytes() or b"x")
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def nonsense(rng: random.Random, file: Path, outside: Path) -> None:
    file.write_bytes(
        rng.choice([b"", b"{}", b"[]", b"null", b"\xff\xfe\0", b"[" * 5000, b"1" * 5000, rng.randbytes(300)])
    )


def huge(rng: random.Random, file: Path, outside: Path) -> None:
    """A number of the text, or eight bytes of what is no text, become huge."""
    data = file.read_bytes()
    digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()] if file.suffix in TEXT else []
    at = rng.choice(digits) if digits else rng.randrange(max(len(data) - 8, 1))
    file.write_bytes(data[:at] + (b"9" * 25 if digits else b"\xff" * 7 + b"\x7f") + data[at + (1 if digits else 8) :])


def wrong_value(rng: random.Random, file: Path, outside: Path) -> None:
    """A value of JSON or YAML gets another type, or its key another name."""
    lines = file.read_text(errors="replace").splitlines()
    at = rng.choice([i for i, line in enumerate(lines) if ":" in line] or [0])
    key, colon, value = lines[at].partition(":") if lines else ("", "", "")
    comma = "," if value.endswith(",") else ""
    new = rng.choice(['"x"', "[1]", "{}", "null", "-1", "1e999", "true"])
    lines[at : at + 1] = [rng.choice([f"{key}: {new}{comma}", f"{key.replace('e', 'o', 1)}x{colon}{value}"])]
    file.write_text("\n".join(lines) + "\n")


def remove(rng: random.Random, file: Path, outside: Path) -> None:
    file.unlink()


def remove_folder(rng: random.Random, file: Path, outside: Path) -> None:
    shutil.rmtree(file.parent)


def swap(rng: random.Random, file: Path, outside: Path) -> None:
    """With another file of its kind, or any."""
    others = [p for p in run_files(file) if p != file]
    other = rng.choice([p for p in others if p.suffix == file.suffix] or others)
    a, b = file.read_bytes(), other.read_bytes()
    file.write_bytes(b)
    other.write_bytes(a)


def link_out(rng: random.Random, file: Path, outside: Path) -> None:
    file.unlink()
    file.symlink_to(rng.choice([outside, outside.parent, Path("/dev/zero"), Path("nowhere")]))


def pipe(rng: random.Random, file: Path, outside: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def pickled(rng: random.Random, file: Path, outside: Path) -> None:
    data = pickle.dumps(Attack(outside.with_name("mark")))
    if rng.random() < 0.5:
        file.write_bytes(data)
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("v.npy", b"\x93NUMPY\x01\x00" + bytes(1 << 22))


def folder_instead(rng: random.Random, file: Path, outside: Path) -> None:
    file.unlink()
    file.mkdir()


TEXT = (".json", ".jsonl", ".yaml")
DAMAGES: list[Damage] = [cut, cut_lines, flip, flip, nonsense, huge, wrong_value, remove, remove_folder, swap, link_out,
                         pipe, pickled, folder_instead]  # fmt: skip


def run_files(inside: Path) -> list[Path]:
    root = next(p for p in (inside, *inside.parents) if p.name == "run")
    return sorted(p for p in root.rglob("*") if p.is_file() and p.suffix != ".png")


# Use


def child(log: Path, work: Callable[[], int]) -> int:
    """The exit status of `work` in a process of its own, with all it says in `log`."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # pytest has replaced them
        signal.alarm(SECONDS)
        status = 1
        try:
            status = work()
        except SystemExit as stop:
            status = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def probe(logdir: Path, result: Path) -> int:
    result.write_text(json.dumps(digest(logdir)))
    return 0


def use(command: str, agent: str, logdir: Path) -> int:
    plots.write_all = lambda *_: []  # type: ignore[assignment]
    if command == "train":
        return main(["train", agent, "--logdir", str(logdir)])
    return main([command, str(logdir), *(["--episodes", "1", "--no-baselines"] if command == "eval" else [])])


def try_one(
    number: int, seed: int, runs: dict[str, Path], expected: dict[str, dict[str, Any]], base: Path
) -> tuple[str, list[str]]:
    """Damages a copy of a run and uses it; returns what was done, and what was wrong with the outcome."""
    rng = random.Random(f"{seed} {number}")
    agent = list(runs)[number % len(runs)]
    home = base / f"{number}"
    shutil.copytree(runs[agent], home / "run")
    outside, log, temporaries = home / "outside.yaml", home / "log", home / "tmp"
    outside.write_text(SECRET)
    temporaries.mkdir()
    os.environ["TMPDIR"] = str(temporaries)
    file, damage = rng.choice(run_files(home / "run")), rng.choice(DAMAGES)
    command = rng.choice(["train", "eval", "dream"])
    what = f"{number}: {agent}, {damage.__name__} of {file.relative_to(home / 'run')}, {command}"
    damage(rng, file, outside)
    wrong = []
    if (status := child(log, lambda: probe(home / "run", home / "digest"))) != 0:
        wrong.append(f"loading ended with {status}")
    else:
        got = json.loads((home / "digest").read_text())
        # Without its newest checkpoint a folder is what it was before that was written.
        earlier = damage is remove_folder and file.parent.parent.name == "checkpoints"
        wrong += [f"{key} changed silently" for key, value in got.items() if not earlier
                  and value not in (expected[agent].get(key), "refused", "warned")]  # fmt: skip
    status = child(log, lambda: use(command, agent, home / "run"))
    said = log.read_text(errors="replace")
    if status not in (0, 2) or "Traceback" in said:
        wrong.append(f"{command} ended with {status}")
    if status == 2 and said.count("fastwm: error: ") != 1:
        wrong.append("not one line of error")
    if outside.read_text() != SECRET or outside.with_name("mark").exists() or SECRET in said:
        wrong.append("a file outside was changed or read out, or code was run")
    left = (
        [str(p.relative_to(home)) for p in home.rglob("*") if p.name.startswith("tmp-")]
        if command == "train" and status == 0
        else []
    )
    if left or any(temporaries.iterdir()):
        wrong.append(f"temporary files are left: {left}")
    outcome = "refused" if status == 2 else "works"
    if wrong:
        what += f"\n{said[-3000:]}"
    else:
        shutil.rmtree(home)
    return f"{outcome}\t{what}", wrong


def try_all(folders: int, seed: int, base: Path) -> tuple[Counter[str], list[str]]:
    """How many folders were refused and how many worked, and all that went wrong."""
    if "fake" not in _factories:
        register("fake", fake)
    torch.set_num_threads(1)
    runs, expected = {}, {}
    for agent in AGENTS:
        runs[agent] = base / agent / "run"
        make_run(agent, runs[agent])
        expected[agent] = digest(runs[agent])
        assert not {"refused", "warned"} & set(map(str, expected[agent].values())), expected[agent]
    outcomes: Counter[str] = Counter()
    failures = []
    for number in range(folders):
        outcome, wrong = try_one(number, seed, runs, expected, base)
        kind, what = outcome.split("\t", 1)
        outcomes["wrong" if wrong else kind] += 1
        failures += [f"{'; '.join(wrong)}\n  {what}"] if wrong else []
        if wrong:
            print(failures[-1], flush=True)
    return outcomes, failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folders", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, failed = try_all(options.folders, options.seed, Path(folder))
    print(f"{options.folders} damaged folders, seed {options.seed}: {dict(counts)}")
    sys.exit(bool(failed))
