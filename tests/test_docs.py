"""README and docs: code and commands run, links lead somewhere, figures have a source, lists are complete."""

import doctest
import json
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import fastwm
from fastwm.cli import COMMANDS
from fastwm.runner.start import initial_settings, train
from tests.agents_under_test import TINY

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "build_tools"))
import render  # noqa: E402

PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(ROOT.glob("docs/**/*.md"))
each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.M | re.S)


def test_every_operator_example_runs() -> None:
    results = doctest.testfile(str(ROOT / "docs/operators.md"), module_relative=False)
    assert results.attempted > 20
    assert results.failed == 0


@each_page
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page in order, training with a tiny agent for some steps."""
    monkeypatch.chdir(tmp_path)
    if page.stem == "world_models":  # it reads a published file: the head's kernel and bias, the LSTM's
        shapes = ((256, 32 * 15), (32 * 15,), (256 + 32 + 3, 4 * 256), (4 * 256,))
        Path("rnn.json").write_text(json.dumps([torch.zeros(shape).tolist() for shape in shapes]))

    def briefly(name: str, *, agent: dict[str, Any] | None = None, **settings: Any) -> Any:
        small = dict(steps=440, num_envs=2, batch_size=2, batch_length=8, train_ratio=4, replay_capacity=1000)
        return train(name, **(settings | small), agent=TINY[name] | (agent or {}))

    monkeypatch.setattr(fastwm, "train", briefly, raising=False)
    monkeypatch.setattr(fastwm, "evaluate", partial(fastwm.evaluate, max_steps=50), raising=False)
    names: dict[str, object] = {"__name__": "page"}
    for block in code_blocks(page, "python"):
        exec(block, names)


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings], (
                target
            )


@each_page
def test_commands_exist(page: Path) -> None:
    """Every shell line: the agents, presets, modules, scripts and targets that it names."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for line in "\n".join(code_blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["torchrun"]:
            words = words[words.index("-m") + 1 :]
        if words[:2] == ["fastwm", "train"]:
            settings = re.sub(r"\s--(env|preset) ", r"\n\1 ", line)
            env = re.search(r"^env (\S+)", settings, re.M)
            presets = re.search(r"^preset (\S+)", settings, re.M)
            initial_settings(words[2], env[1] if env else "", "", [presets[1]] if presets else [])
        elif words[:1] == ["make"]:
            assert words[1] in targets
        elif words[:2] == ["python", "-m"]:
            assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file()
        elif words[:1] == ["python"]:
            assert (ROOT / words[1]).is_file()
        elif words[:1] == ["fastwm"]:
            assert words[1] in COMMANDS
        elif words[:1] in (["pip"], ["bench/gpu_check.sh"], [".ci/run"], []):
            continue
        else:
            raise AssertionError(f"nobody checks this command: {line}")


def test_the_readme_holds_what_is_rendered() -> None:
    text = (ROOT / "README.md").read_text()
    assert render.refresh(text) == text, "python build_tools/render.py"


MEASURED = re.compile(
    r"\d[\d,.]* ?(?:ms|us|ns|s|minutes|GFLOP/s|TB/s|GB|MB|steps/s|%|x)(?![\w-])|\+- ?\d|\d times (?:as|faster|slower)"
)
SOURCED = re.compile(r"Source:|bench/results|<!-- render:")


@each_page
def test_every_figure_has_a_source(page: Path) -> None:
    """A paragraph with a measured figure is rendered or names its source, or its page or section does at its head."""
    text = render.RENDERED.sub("", page.read_text())
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    sections = re.split(r"^(?=#+ )", text, flags=re.M)
    for section in sections:
        paragraphs = section.split("\n\n")
        heads = [*sections[:2][-1].split("\n\n")[:3], *paragraphs[:3]]
        if any(re.match(r"(?:#.*\n)?Source:", head) for head in heads):
            continue
        for i, paragraph in enumerate(paragraphs):
            following = paragraphs[i + 1] if i + 1 < len(paragraphs) else ""
            if MEASURED.search(paragraph) and not SOURCED.search(paragraph + following):
                raise AssertionError(f"no source: {MEASURED.search(paragraph)} in {paragraph[:200]}")


def test_every_environment_variable_is_listed() -> None:
    page = (ROOT / "docs/install.md").read_text()
    reads = re.compile(r"""(?:environ(?:\.get\(|\[)|getenv\()["'](\w+)["']""")
    files = [p for folder in ("fastwm", "csrc", "bench", "build_tools") for p in (ROOT / folder).rglob("*")
             if p.suffix in (".py", ".cpp", ".h", ".cu", ".cuh")]  # fmt: skip
    names = {name for path in files for name in reads.findall(path.read_text())}
    assert len(names) >= 10
    assert not {name for name in names if f"`{name}`" not in page}


def test_a_request_for_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing renders 'no_such_piece'"):
        render.expand("<!-- render: no_such_piece -->")


def test_every_picture_is_shown() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert not [path.name for path in (ROOT / "docs/images").iterdir() if path.name not in text]


def test_every_page_is_in_the_navigation() -> None:
    """mkdocs warns too, but only where the extra `docs` is installed."""
    nav = (ROOT / "mkdocs.yml").read_text()
    assert not [
        page for page in sorted((ROOT / "docs").rglob("*.md")) if str(page.relative_to(ROOT / "docs")) not in nav
    ]


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    """All but those of the examples of contributing.md; a lab note names the files of its day."""
    if "lab" in page.parts[-2:]:
        return
    folders = "fastwm|csrc|tests|bench|build_tools|examples|docs"
    for name in re.findall(rf"`((?:{folders})/[\w./*-]+)`", page.read_text()):
        if not re.search("soft_cap|mine", name):
            assert list(ROOT.glob(name.rstrip("/"))), name
