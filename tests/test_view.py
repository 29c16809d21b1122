"""The page of `fastwm view`: the tabs' data, requests of other sites, folders of strangers; a browser where one is."""

import base64
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastwm.agents import AGENTS
from fastwm.errors import FastwmError
from fastwm.nn.spaces import is_image
from tests import damage
from tests.agents_under_test import IMAGE, TINY, VECTOR, make_batch, tiny
from tests.test_video import Pictures

pytest.importorskip("starlette")
testclient = pytest.importorskip("starlette.testclient")

from fastwm.view.app import CALLS, FILES, LARGEST, make_app  # noqa: E402
from fastwm.view.data import SESSIONS, Run, curves  # noqa: E402
from fastwm.view.play import game_of  # noqa: E402

PORT = 8000
HERE = f"http://127.0.0.1:{PORT}"
SIZES = [word for key, value in TINY["dreamer_v3"].items() for word in (f"--agent.{key.replace('_', '-')}", str(value))]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that sees images."""
    logdir = tmp_path_factory.mktemp("runs") / "pictures"
    damage.run(["train", "dreamer_v3", "--env", "tests.test_view:Pictures", "--logdir", str(logdir), "--steps", "120",
                "--num-envs", "2", "--batch-size", "2", "--batch-length", "8", "--train-ratio", "1", "--log-every", "0",
                *SIZES])  # fmt: skip
    return logdir


def client(run: Run, host: str = HERE) -> Any:
    return testclient.TestClient(make_app(run, PORT), base_url=host, client=("127.0.0.1", 50000))


def ask(run: Run, name: str, **body: Any) -> Any:
    answer = client(run).post(f"/api/{name}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def rgb(picture: dict[str, Any]) -> np.ndarray:
    pixels = np.frombuffer(base64.b64decode(picture["rgb"]), np.uint8)
    return pixels.reshape(picture["height"], picture["width"], 3)


# What the tabs show


def test_the_tabs_of_a_run(finished: Path) -> None:
    run = Run(finished, trust=True)
    summary = ask(run, "run")
    assert summary["agent"] == "dreamer_v3" and summary["images"] == ["image"] and not summary["training"]
    assert summary["controls"] == [{"name": "action", "classes": 2, "idle": None, "low": -1.0}]

    starts = ask(run, "starts", seed=3)["rows"]
    window = run.rows(3)
    assert (rgb(starts[2]["frame"]) == window["image"][starts[2]["at"], 0].numpy()).all()
    begun = ask(run, "dream", seed=3, at=2)
    assert (rgb(begun["real"]["image"]) == window["image"][2, 0].numpy()).all()
    step = ask(run, "step", dream=begun["dream"], action=[1], temperature=0.5)
    assert step["step"] == 1 and step["action"] == [1] and rgb(step["obs"]["image"]).shape == (64, 64, 3)
    assert 0 <= step["end"] <= 1 and {"reward", "value"} <= set(step)
    assert ask(run, "step", dream=begun["dream"], action=None)["step"] == 2  # the agent drives

    episode = ask(run, "episode", seed=0)
    assert len(episode["steps"]) == 10 and episode["steps"][-1]["return"] == 9 and not episode["cut"]
    assert np.isclose(sum(episode["steps"][4]["policy"]["action"]["probs"]), 1) and episode["steps"][4]["frame"]

    shown = ask(run, "window", seed=3)
    real = [rgb(row["truth"]) for row in shown["keys"]["image"]]
    assert (np.stack(real) == window["image"][1 : 1 + len(real), 0].numpy()).all() and shown["context"] == 5
    (group,) = ask(run, "metrics")["groups"]
    meanings = {curve["name"]: curve["meaning"] for curve in group["curves"]}
    assert meanings["train/loss/rec/image"].startswith("Reconstruction loss") and all(meanings.values())


def test_a_run_without_a_checkpoint_shows_its_curves(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert "no config.yaml" in ask(run, "run")["problem"] and ask(run, "metrics") == {"groups": []}
    (tmp_path / "metrics.jsonl").write_text('{"step": 8, "episode/return": 2}\n{"step": NaN, "x": 1}\nbroken\n')
    (group,) = ask(run, "metrics")["groups"]
    assert [curve["name"] for curve in group["curves"]] == ["episode/return"]
    for name in ("starts", "window", "episode"):
        answer = client(run).post(f"/api/{name}", json={"seed": 0})
        assert answer.status_code == 400 and "no config.yaml" in answer.json()["error"]
    with pytest.raises(FastwmError, match="is no folder"):
        Run(tmp_path / "missing")


def test_curves_are_thinned_out() -> None:
    (curve,) = curves([{"step": i, "x": i % 2} for i in range(10_000)], {})
    assert len(curve["steps"]) == 400 and abs(np.mean(curve["values"]) - 0.5) < 0.01


@pytest.mark.parametrize("name", [name for name in AGENTS if name != "world_models"])
def test_every_dreamer_is_a_game(name: str) -> None:
    agent = tiny(name, VECTOR | IMAGE)
    game, rows = game_of(agent), {key: value[:, :1] for key, value in make_batch(agent).items()}
    state, seen = game.start(rows, 3)
    values = [0.5] * len(game.controls)
    after, dreamt = game.advance(state, game.encoded(values), 1.0)
    assert dreamt["obs/image"].shape == (1, 64, 64, 3) and ("value" in dreamt) == (name != "planet")
    assert game.values(game.encoded(values)) == values and game.choose(after).shape == (1, 2)
    assert {f"obs/{key}" for key in agent.obs_space} <= set(seen)
    with pytest.raises(FastwmError, match="cannot be 1.5"):
        game.encoded([1.5, 0.0])


def test_world_models_are_a_game() -> None:
    from tests.test_export import world_models

    agent = world_models()
    game = game_of(agent)
    rows = {"image": torch.randint(256, (6, 1, 64, 64, 3), dtype=torch.uint8), "action": torch.zeros(6, 1, 1),
            "is_first": torch.zeros(6, 1, dtype=torch.bool)}  # fmt: skip
    state, seen = game.start(rows, 4)
    assert is_image(agent.obs_space["image"]) and seen["obs/image"].shape == (1, 64, 64, 3)
    for choice, told in ((0, 0.0), (1, 1.0), (2, -1.0)):
        action = game.encoded([choice])
        assert action.tolist() == [[told]] and game.values(action) == [choice]
    after, dreamt = game.advance(state, game.choose(state), 1.15)
    assert 0 <= float(dreamt["end"]) <= 1 and not after["is_first"]


# Who may ask, and what


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": HERE}, 200),
        ({"Host": f"localhost:{PORT}"}, 200),
        ({"Host": f"localhost:{PORT}", "Origin": f"http://localhost:{PORT}"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": f"https://127.0.0.1:{PORT}"}, 403),
        ({"Origin": "http://127.0.0.1:9"}, 403),
        ({"Host": "evil.example"}, 403),  # a name that another site lets point to this machine
        ({"Host": f"evil.example:{PORT}", "Origin": f"http://evil.example:{PORT}"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Host": ""}, 403),
    ],
)
def test_only_the_own_browser_is_answered(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    for answer in (
        client(Run(tmp_path)).get("/", headers=headers),
        client(Run(tmp_path)).post("/api/run", json={}, headers=headers),
    ):
        assert answer.status_code == status
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_nothing_but_the_page_is_served(tmp_path: Path) -> None:
    page = client(Run(tmp_path))
    assert all(page.get(path).status_code == 200 for path in FILES)
    for path in ("/config.yaml", "/../pyproject.toml", "/%2e%2e/config.yaml", "/view.py", "/static/view.js", "/api/run",
                 "//etc/passwd", "/api/../config.yaml"):  # fmt: skip
        assert page.get(path).status_code in (404, 405), path
    text = "".join(page.get(path).text for path in FILES)
    assert "http://" not in text and "https://" not in text and "innerHTML" not in text and "eval(" not in text


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"seed": "0"}', b'{"seed": -1}', b'{"seed": 1e3}', b'{"seed": true}', b"[" * 9999],
)  # fmt: skip
def test_bad_requests_are_one_line(finished: Path, content: bytes) -> None:
    run = Run(finished, trust=True)
    answer = client(run).post("/api/starts", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and "\n" not in answer.json()["error"]
    assert client(run).post("/api/run", content=b"{}").status_code == 400  # a form of another site has another type


def test_large_requests_and_odd_actions(finished: Path) -> None:
    run = Run(finished, trust=True)

    def refused(name: str, **body: Any) -> str:
        answer = client(run).post(f"/api/{name}", json=body)
        assert answer.status_code == 400
        return str(answer.json()["error"])

    assert "too large" in refused("run", junk="x" * LARGEST)
    assert "no row" in refused("dream", seed=0, at=10_000)
    dream = run.start_dream(0, 1)["dream"]
    assert "one for each control" in refused("step", dream=dream, action=[])
    assert "cannot be 7" in refused("step", dream=dream, action=[7])
    assert "must be a number" in refused("step", dream=dream, action=["1"])
    assert "temperature" in refused("step", dream=dream, action=[1], temperature=0)
    for _ in range(SESSIONS):
        run.start_dream(0, 1)
    assert "was forgotten" in refused("step", dream=dream, action=[1])
    assert set(CALLS) == {"run", "metrics", "starts", "dream", "step", "episode", "window"}


def test_a_strangers_folder_runs_nothing(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names a module: its dreams and curves are shown, and its environment is not made."""
    run = Run(finished)
    monkeypatch.setattr(Pictures, "reset", lambda self, **_: pytest.fail("the environment was made"))
    assert ask(run, "step", dream=run.start_dream(0, 1)["dream"], action=[1])["step"] == 1
    answer = client(run).post("/api/episode", json={"seed": 0})
    assert answer.status_code == 400 and "--trust" in answer.json()["error"]
    shutil.copytree(finished, tmp_path / "linked")
    (tmp_path / "linked/metrics.jsonl").unlink()
    (tmp_path / "linked/metrics.jsonl").symlink_to("/etc/passwd")
    with pytest.raises(FastwmError, match="a link out of the run's folder"):
        Run(tmp_path / "linked")


# A browser


@pytest.fixture
def served(finished: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    command = [sys.executable, "-m", "fastwm.cli", "view", str(finished), "--no-browser", "--trust"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[1]
        yield address, server
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def test_the_command_serves_until_it_is_interrupted(served: tuple[str, Any]) -> None:
    address, server = served
    request = urllib.request.Request(f"{address}api/run", b"{}", {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["agent"] == "dreamer_v3"
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 0


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser(served: tuple[str, Any]) -> None:
    """Play by keys, hand over the wheel, see every tab, in two pages; then the server goes."""
    playwright = pytest.importorskip("playwright.sync_api")
    address, server = served
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        pages, complaints = [], []
        for size in ({"width": 1200, "height": 900}, {"width": 390, "height": 844}):
            page = browser.new_context(viewport=size).new_page()
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(address)
            pages.append(page)
        for page in pages:
            wait(lambda page=page: "Press Play" in page.inner_text("#dream-state"))
            page.keyboard.down("ArrowRight")
            wait(
                lambda page=page: int(page.inner_text("#dream-step")) >= 3 or "over" in page.inner_text("#dream-state")
            )
            page.keyboard.up("ArrowRight")
            page.keyboard.press("h")
            assert page.get_attribute("#dream-wheel", "aria-pressed") == "true"
            page.keyboard.press("r")
            wait(lambda page=page: page.inner_text("#dream-step") == "0")
            page.click("button[data-tab=agent]")
            page.click("#agent-run")
            wait(lambda page=page: "scrub" in page.inner_text("#agent-told"))
            page.click("button[data-tab=training]")
            wait(lambda page=page: page.locator("#training-charts canvas").count() > 5)
            page.click("button[data-tab=replay]")
            wait(lambda page=page: page.locator("#replay-pictures canvas").count() == 4)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert not complaints
        server.send_signal(signal.SIGINT)
        server.wait(30)
        pages[0].click("#replay-others")
        wait(lambda: pages[0].is_visible("#closed"))
        browser.close()


def wait(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
