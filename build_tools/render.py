"""Renders figures, settings and metrics into Markdown, so that none is typed.

A page asks for a piece by `<!-- render: NAME arguments -->`. Pages of the docs site get it when the site is built
(`on_page_markdown`, a hook of mkdocs). The README keeps it in its own text, between the request and `<!-- end -->`:

    python build_tools/render.py            # rewrite README.md
    python build_tools/render.py --check    # fail if it is stale
"""

import ast
import dataclasses
import inspect
import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
REQUEST = re.compile(r"<!-- render: (.*?) -->")
RENDERED = re.compile(r"(<!-- render: (.*?) -->)(.*?)(<!-- end -->)", re.S)

PIECES: dict[str, Callable[..., str]] = {}


def piece(function: Callable[..., str]) -> Callable[..., str]:
    """Register a function that returns Markdown under its name."""
    PIECES[function.__name__] = function
    return function


def render(request: str) -> str:
    name, *args = request.split()
    if name not in PIECES:
        raise ValueError(f"nothing renders {name!r}; there is: {', '.join(PIECES)}")
    return PIECES[name](*args)


CODE = re.compile(r"^(?:```|~~~).*?^(?:```|~~~)[ ]*$|`[^`\n]+`", re.M | re.S)


def outside_code(page: str, change: Callable[[str], str]) -> str:
    """A page with all but its code changed."""
    code = CODE.findall(page)
    texts = map(change, CODE.split(page))
    return "".join(text + block for text, block in zip(texts, [*code, ""]))


def expand(page: str) -> str:
    """A page with every request replaced by what it asks for."""
    return outside_code(page, lambda text: REQUEST.sub(lambda match: render(match[1]), text))


def refresh(text: str) -> str:
    """A text that holds what it asked for, made anew. Tables have lines of their own."""

    def anew(match: re.Match[str]) -> str:
        body = render(match[2])
        return match[1] + (f"\n{body}\n" if "\n" in body else body) + match[4]

    return RENDERED.sub(anew, text)


def load(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def table(head: Iterable[str], rows: Iterable[Iterable[str]], left: int = 1) -> str:
    """A Markdown table whose first `left` columns are text and the others numbers."""
    head = list(head)
    lines = [head, ["---"] * left + ["--:"] * (len(head) - left), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def milliseconds(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def times(*ratios: float) -> str:
    """Speed-ups: `2.4x, 3.4x`."""
    return ", ".join(f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x" for ratio in ratios)


# ------------------------------------------------------------------------------------------------- a whole update

TASKS = {"size1m, vectors": ("size1m", "vector"), "size12m, vectors": ("size12m", "vector"),
         "size1m, 64x64 image": ("size1m", "image")}  # fmt: skip
OURS = ("fastwm fp32", "fastwm bf16")


def plain_name(who: str) -> str:
    return who.replace(" dreamer_v3_5", "")


def latest(size: str, obs: str) -> dict[str, float]:
    """Who -> median ms, of the last run of `update_cpu.json` with that task."""
    runs = [run for run in load("update_cpu.json")["runs"] if (run["size"], run["obs"]) == (size, obs)]
    last = max(run["run"] for run in runs)
    return {plain_name(run["who"]): run["median_ms"] for run in runs if run["run"] == last}


def fastest_peer(medians: dict[str, float]) -> str:
    return min((who for who in medians if who not in OURS), key=lambda who: medians[who])


@piece
def update_headline() -> str:
    """The one number against the fastest peer."""
    medians = latest("size1m", "vector")
    peer = fastest_peer(medians)
    fp32, bf16 = (medians[who] for who in OURS)
    name, _, how = peer.partition(", ")
    return (
        f"**{times(medians[peer] / fp32)} as fast as the fastest peer in float32, {times(medians[peer] / bf16)} in "
        f"bfloat16**: {fp32:.0f} and {bf16:.0f} ms an update, where {name} takes {medians[peer]:.0f} ms under `{how}`"
    )


@piece
def update_peers() -> str:
    """Three tasks against the fastest peer of the same run."""
    rows = []
    for task, key in TASKS.items():
        medians = latest(*key)
        peer = fastest_peer(medians)
        fp32, bf16 = (medians[who] for who in OURS)
        rows.append([task, milliseconds(fp32), milliseconds(bf16), f"{milliseconds(medians[peer])} ({peer})",
                     times(medians[peer] / fp32, medians[peer] / bf16)])  # fmt: skip
    head = ["one DreamerV3 update", "fastwm, float32", "fastwm, bfloat16", "fastest peer, float32", "speed-up"]
    return table(head, rows)


@piece
def update_runs(file: str = "update_cpu.json") -> str:
    """Every run: one column a library, medians."""
    facts = load(file)
    runs: dict[tuple[Any, ...], dict[str, float]] = {}
    names: list[str] = []
    for run in facts["runs"]:
        key = (run.get("run", 0), run["size"], run["obs"], run["fastwm_commit"])
        who = plain_name(run["who"])
        runs.setdefault(key, {})[who] = run["median_ms"]
        names += [who] if who not in names else []
    rows = [[f"{size}, {obs}", f"`{commit}`", *(milliseconds(medians.get(who)) for who in names)]
            for (_, size, obs, commit), medians in runs.items()]  # fmt: skip
    return table(["task", "commit", *names], rows, left=2) + "\n\n" + conditions(file)


@piece
def conditions(file: str) -> str:
    """The machine and method of a file of results, and the file's name."""
    facts = load(file)
    parts = [facts.get("cpu"), f"{facts['threads']} threads" if "threads" in facts else None]
    shape = {"B": "batch", "T": "length", "H": "horizon"}
    parts.append(", ".join(f"{letter} = {facts[key]}" for letter, key in shape.items() if key in facts) or None)
    parts += [facts.get(key) for key in ("pass", "interleaved", "shape", "note")]
    parts.append(f"eager: {facts['eager']}" if "eager" in facts else None)
    parts.append(f"peers in {facts['peers_precision']}" if "peers_precision" in facts else None)
    if "versions" in facts:
        parts.append(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    source = f"`bench/results/{file}`" + (f" ({facts['source']})" if "source" in facts else "")
    sentences = [part[0].upper() + part[1:].rstrip(".") for part in parts if part]
    return ". ".join([f"Source: {source}", *sentences]) + "."


# -------------------------------------------------------------------------------------------------- CPU operators


@piece
def sequences() -> str:
    """Whole sequences on the CPU against eager PyTorch."""
    rows = []
    for row in load("sequences_cpu.json")["rows"]:
        eager, fp32, bf16 = row["eager_ms"], row["fp32_ms"], row["bf16_ms"]
        layer = " (oneDNN)" if row["eager"] == "oneDNN" else ""
        rows.append([f"`{row['operator']}`", row["size"], milliseconds(eager) + layer,
                     milliseconds(fp32), times(eager / fp32), f"{row['fp32_limit']} %",
                     milliseconds(bf16), times(eager / bf16), f"{row['bf16_limit']} %"])  # fmt: skip
    head = ["operator", "size", "eager", "float32", "", "of the limit", "bfloat16", "", "of the limit"]
    limits = load("sequences_cpu.json")["limit_gflops"]
    note = f"The limit: {limits['fp32']} GFLOP/s in float32 and {limits['bf16']} in bfloat16, both cores."
    return table(head, rows, left=2) + f"\n\n{conditions('sequences_cpu.json')} {note}"


@piece
def sequence_peers() -> str:
    rows = [[f"`{row['operator']}` {row['size']}", milliseconds(row["fp32_ms"]), milliseconds(row["bf16_ms"]),
             f"{milliseconds(row['peer_ms'])} ({row['peer']})",
             times(row["peer_ms"] / row["fp32_ms"], row["peer_ms"] / row["bf16_ms"])]
            for row in load("sequences_peers_cpu.json")["rows"]]  # fmt: skip
    head = ["forward + backward", "fastwm, float32", "fastwm, bfloat16", "peer, float32", "speed-up"]
    return table(head, rows) + "\n\n" + conditions("sequences_peers_cpu.json")


@piece
def operators() -> str:
    rows = [[f"`{row['operator']}`" if " " not in row["operator"] else row["operator"], row["shape"],
             milliseconds(row["fastwm_ms"]), milliseconds(row["eager_ms"]),
             times(row["eager_ms"] / row["fastwm_ms"]), row["note"]]
            for row in load("operators_cpu.json")["rows"]]  # fmt: skip
    head = ["operator", "shape", "fastwm", "eager", "speed-up", ""]
    return table(head, rows, left=2) + "\n\n" + conditions("operators_cpu.json")


@piece
def planner() -> str:
    """PlaNet's search for one action."""
    rows = [[f"{row['search']}: {row['iterations']} x {row['candidates']} candidates, {row['steps']} steps",
             milliseconds(row["eager_ms"]), milliseconds(row["fp32_ms"]), milliseconds(row["bf16_ms"]),
             times(row["eager_ms"] / row["fp32_ms"], row["eager_ms"] / row["bf16_ms"])]
            for row in load("planner_cpu.json")["rows"]]  # fmt: skip
    head = ["one decision", "eager", "float32", "bfloat16", "speed-up"]
    return table(head, rows) + "\n\n" + conditions("planner_cpu.json")


@piece
def busy_neighbour() -> str:
    """An update beside one busy process."""
    names = {"against": "before", "torch first": "torch imported first", "fastwm first": "fastwm imported first"}
    rows = []
    for name, meaning in names.items():
        cells = [meaning]
        for size in ("size1m", "size12m"):
            ms = load(f"busy_neighbour_{size}.json")["ms"][name]
            quiet, busy = statistics.median(ms["quiet"]), statistics.median(ms["busy"])
            cells += [milliseconds(quiet), milliseconds(busy), times(busy / quiet)]
        rows.append(cells)
    head = ["", "size1m, quiet", "busy", "", "size12m, quiet", "busy", ""]
    return table(head, rows) + (
        "\n\nSource: `bench/results/busy_neighbour_size1m.json`, `busy_neighbour_size12m.json`. Two virtual cores "
        "of an Intel Xeon with AMX, bfloat16, medians of updates made in turns."
    )


# ------------------------------------------------------------------------------------------------------------- GPU


def gpu_runs() -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = load("gpu.json")["runs"]
    return runs


@piece
def gpu_update() -> str:
    """Every measured state of DreamerV3's update on a GPU."""
    rows = []
    for run in gpu_runs():
        for key, what in (("update_plain_pytorch", "plain PyTorch and Triton"), ("update", "fastwm")):
            for update in run.get(key, ()):
                how = "CUDA graph" if update["graph"] else "launched"
                size, gpu = f"{update['size']}, {update['precision']}", run["gpu"].removeprefix("NVIDIA ")
                rows.append([f"{what}, {how}", size, gpu, f"`{run['commit']}`", milliseconds(update["median_ms"])])
    return table(["update", "size", "GPU", "commit", "median"], rows, left=4) + "\n\n" + conditions("gpu.json")


@piece
def gpu_observe() -> str:
    """`rssm_observe` in one launch, against the module under torch.compile, each in a CUDA graph."""
    run = gpu_runs()[-1]
    ours, eager, compiled = (run[f"rssm_observe{part}"] for part in ("", "_eager_module", "_torch_compile"))
    rows = []
    for case in sorted(ours, key=lambda case: (int(re.findall(r"\d+", case)[0]), case)):
        cells = [case.replace("fwd+bwd", "forward + backward").replace("fwd", "forward")]
        cells += [milliseconds(kind[case]["graph_ms"]) for kind in (eager, compiled, ours)]
        cells += [times(compiled[case]["graph_ms"] / ours[case]["graph_ms"])]
        cells += [f"{kind[case]['peak_MB']:.0f} MB" for kind in (eager, compiled, ours)]
        rows.append(cells)
    head = ["", "eager module", "`torch.compile`", "one launch", "speed-up", "peak: eager", "compiled", "one launch"]
    return table(head, rows) + f"\n\n{run['gpu']}, commit `{run['commit']}`. {conditions('gpu.json')}"


@piece
def gpu_scans() -> str:
    """Scans in one launch against cuDNN."""
    run = next(run for run in reversed(gpu_runs()) if "scans" in run)
    rows: dict[str, list[str]] = {}
    for case, result in run["scans"].items():
        name, _ = case.replace(" B16", "").rsplit(" ", 1)
        if name.endswith("bf16"):
            rows.setdefault(name.removesuffix(" bf16"), []).extend(
                milliseconds(result.get(key)) for key in ("graph_ms", "cudnn_graph_ms")
            )
    head = ["", "forward", "cuDNN", "forward + backward", "cuDNN"]
    return table(head, ([name, *cells] for name, cells in rows.items())) + (
        f"\n\n{run['gpu']}, commit `{run['commit']}`, CUDA graph, resets in ours and none in cuDNN's. "
        + conditions("gpu.json")
    )


@piece
def gpu_dreams() -> str:
    run = next(run for run in reversed(gpu_runs()) if "mdn_rnn_rollout" in run)
    dreams = run["mdn_rnn_rollout"]
    rows = [[task, *(f"{dreams[f'{task}, {who}']['dream_steps_per_s'] / 1e6:.2f} M/s" for who in ("fastwm", "eager"))]
            for task in ("car", "doom")]  # fmt: skip
    return table(["dream steps a second", "fastwm", "batched loop over PyTorch"], rows) + (
        f"\n\n{run['gpu']}, commit `{run['commit']}`, 1,024 dreams, float32. Source: `bench/results/gpu.json`."
    )


# ---------------------------------------------------------------------------------------------------------- scores


def learning(task: str) -> dict[str, list[dict[str, Any]]]:
    """Agent -> its evaluated runs on a task, by seed."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in load(f"learning/{task}.json")["runs"]:
        runs.setdefault(run["agent"], []).append(run)
    return runs


def mean_and_deviation(score: dict[str, float]) -> str:
    return f"{score['mean']:.0f} +- {score['std']:.0f}"


def means(runs: list[dict[str, Any]]) -> str:
    return ", ".join(f"{run['evaluation']['mean']:.0f}" for run in runs)


def world_models_score(env: str, policy: str = "agent") -> str:
    scores = [row for row in load("learning/world_models.json")["evaluation"]
              if (row["env"], row["policy"]) == (env, policy)]  # fmt: skip
    return ", ".join(f"{score['mean']:.0f}" for score in scores)


NAMES = {"world_models": "World Models", "planet": "PlaNet", "dreamer_v1": "Dreamer V1", "dreamer_v2": "DreamerV2",
         "dreamer_v3": "DreamerV3"}  # fmt: skip


@piece
def agent_scores() -> str:
    """One line an agent: what it is and what it scored."""
    what = {"world_models": "V, M, C; learns in its dream or outside", "planet": "Gaussian RSSM, planning by CEM",
            "dreamer_v1": "actor and critic learnt in dreams", "dreamer_v2": "categorical latents, KL balancing",
            "dreamer_v3": "one set of numbers for all tasks"}  # fmt: skip
    swingup, cartpole = learning("cartpole_swingup"), learning("cartpole")
    rows = []
    for agent, name in NAMES.items():
        if agent == "world_models":
            tasks = {"CarRacing": "carracing", "TakeCover": "takecover"}
            score = ", ".join(f"{task} {world_models_score(env)} (random {world_models_score(env, 'random')})"
                              for task, env in tasks.items())  # fmt: skip
        else:
            score = f"`cartpole_swingup` {means(swingup[agent])}"
            score += f"; CartPole-v1 {means(cartpole[agent])}" if agent in cartpole else ""
        rows.append([f"[{name}](docs/agents/{agent}.md)", what[agent], score])
    return table(["agent", "", "mean return, one number a seed"], rows, left=3)


@piece
def scores(task: str, agent: str = "") -> str:
    """Evaluations on a task, one column a seed."""
    found = {name: runs for name, runs in learning(task).items() if agent in ("", name)}
    seeds = [run["seed"] for run in next(iter(found.values()))]
    rows = [[NAMES[name], *(mean_and_deviation(run["evaluation"]) for run in runs), f"{runs[0]['environment_steps']:,}"]
            for name, runs in found.items()]  # fmt: skip
    episodes = next(iter(found.values()))[0]["evaluation"]["episodes"]
    head = [
        f"`{task}`, mean +- deviation of {episodes} episodes",
        *(f"seed {seed}" for seed in seeds),
        "environment steps",
    ]
    return table(head, rows) + "\n\n" + conditions(f"learning/{task}.json")


def evaluated(score: dict[str, float] | None) -> str:
    if score is None:
        return ""
    return f"{mean_and_deviation(score)} over {score['episodes']} episodes at {score['environment_steps']:,} steps"


@piece
def reproduced() -> str:
    """Scores on published benchmarks, a row a task and agent, from the files that `fastwm reproduce` writes."""
    rows = []
    for path in sorted((RESULTS / "reproduce").glob("*.json")):
        result = load(f"reproduce/{path.name}")
        for row in result["rows"]:
            passed = {True: "pass", False: "**fail**", None: "none"}[row["passed"]]
            rows.append([
                f"`{row['task']}`", NAMES[row["agent"]], passed, ", ".join(f"{score:.0f}" for score in row["scores"]),
                *("" if row[key] is None else f"{row[key]:.0f}" for key in ("published", "wanted")),
                f"{row['environment_steps']:,}" if row["environment_steps"] else "", evaluated(row.get("evaluation")),
                f"{row['seconds'] / 60:.0f}",
                f"{result['machine']['device']}, commit `{result['machine']['commit']}`{result.get('conditions', '')}",
            ])  # fmt: skip
    head = ["task", "agent", "gate", "score of each seed", "published", "at least", "environment steps", "evaluated",
            "minutes", "machine"]  # fmt: skip
    return table(head, rows, left=3) + "\n\nSource: `bench/results/reproduce`."


@piece
def world_models_scores(env: str) -> str:
    """Evaluations of World Models beside its baselines, one column a seed."""
    rows: dict[str, list[str]] = {}
    for row in load("learning/world_models.json")["evaluation"]:
        if row["env"] == env:
            rows.setdefault(row["policy"], []).append(f"{row['mean']:g} +- {row['stderr']:g}")
            episodes = row["episodes"]
    seeds = len(rows["agent"])
    head = [f"`{env}`, mean +- standard error of {episodes} episodes", *(f"seed {seed}" for seed in range(seeds))]
    return (
        table(head, ([policy, *cells] for policy, cells in rows.items()))
        + "\n\n"
        + conditions("learning/world_models.json")
    )


@piece
def world_models_time(env: str) -> str:
    run = next(run for run in load("learning/world_models.json")["minutes"] if run["env"] == env)
    stages = ", ".join(f"{stage} {run[f'{stage}_s']:,} s" for stage in ("collect", "v", "encode", "m", "c"))
    cores = "one core" if run["cores"] == 1 else f"{run['cores']} cores"
    source = "`bench/results/learning/world_models.json`"
    return f"{run['total']:.0f} minutes on {cores} (seed {run['seed']}: {stages}; {source})"


@piece
def temperature() -> str:
    rows = []
    for row in load("learning/world_models.json")["temperature"]:
        actual = "" if row["actual"] is None else f"{row['actual']} +- {row['actual_stderr']}"
        rows.append([f"{row['temperature']:.2f}", f"{row['virtual']} +- {row['virtual_stderr']}", actual,
                     str(row["article_virtual"]), str(row["article_actual"])])  # fmt: skip
    head = ["temperature", "in the dream", "outside", "article, in the dream", "article, outside"]
    return table(head, rows) + "\n\n" + conditions("learning/world_models.json")


@piece
def dream_speed() -> str:
    speed = load("learning/world_models.json")["dream_speed"]
    bf16, fp32 = (speed[f"{precision}_steps_per_second"] for precision in ("bf16", "fp32"))
    return (
        f"{bf16:,} dream steps a second in bfloat16 and {fp32:,} in float32 ({speed['candidates']} candidates x "
        f"{speed['rollouts']} dreams, {speed['hidden']} units; {speed['cpu']}; "
        "`bench/results/learning/world_models.json`)"
    )


# -------------------------------------------------------------------------------------------- settings and metrics


def meanings(kind: type) -> dict[str, str]:
    """Field -> the string below it, base classes first."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(body, ast.ClassDef)
            for line, following in zip(body.body, body.body[1:]):
                if isinstance(line, ast.AnnAssign) and isinstance(following, ast.Expr):
                    assert isinstance(line.target, ast.Name)
                    assert isinstance(following.value, ast.Constant)
                    found[line.target.id] = " ".join(str(following.value.value).split())
    return found


def in_range(limits: Any) -> str:
    """A `fastwm.settings.Range` in few words: `1 to 100`, `above 0`, `0 or more`."""
    low, high = (f"{limit:,.15g}" for limit in (limits.low, limits.high))
    if limits.high == float("inf"):
        return f"above {low}" if limits.above else f"{low} or more"
    return f"{f'above {low}' if limits.above else low} {'to below' if limits.below else 'to'} {high}"


def allowed(hint: Any) -> str:
    """The values that a type hint of a setting takes, in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = args[1:] if args[0] in (int, float) else ()
        return ", ".join([allowed(args[0]), *map(in_range, limits)])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin is tuple:
        return f"list of: {allowed(args[0])}"
    if origin is dict:
        return "names and values"
    if origin is not None:  # a union
        return "; or ".join(map(allowed, args))
    return {int: "integer", float: "number", bool: "true, false", str: "text", type(None): "none"}.get(hint, str(hint))


def settings_rows(kind: type, default: Any, prefix: str) -> list[list[str]]:
    from fastwm.settings import hints

    texts, rows = meanings(kind), []
    for each in dataclasses.fields(kind):
        value = getattr(default, each.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            rows += settings_rows(type(value), value, f"{prefix}{each.name}.")
        elif each.name in texts:
            shown = " ".join(map(str, value)) if isinstance(value, (tuple, list)) else f"{value}"
            name = f"{prefix}{each.name}".replace("_", "-")
            rows.append(
                [f"`--{name}`", f"`{shown}`" if shown else "", allowed(hints(kind)[each.name]), texts[each.name]]
            )
    return rows


@piece
def settings(agent: str) -> str:
    """Every setting of an agent, from its dataclass."""
    from fastwm.agents import agent_spec

    kind = agent_spec(agent).config
    return table(["setting", "default", "values", "meaning"], settings_rows(kind, kind(), "agent."), left=4)


@piece
def run_settings() -> str:
    """The settings that all runs share."""
    from fastwm.agents import agent_spec
    from fastwm.runner.config import TrainConfig

    run = TrainConfig(agent_spec("planet").config())
    rows = [row for row in settings_rows(TrainConfig, run, "") if not row[0].startswith("`--agent.")]
    return table(["setting", "default", "values", "meaning"], rows, left=4)


@piece
def stage_settings() -> str:
    """Settings of a run in stages, without those of every run."""
    from fastwm.agents import agent_spec
    from fastwm.runner.config import RunConfig, StagedConfig

    common = {each.name for each in dataclasses.fields(RunConfig)}
    rows = settings_rows(StagedConfig, StagedConfig(agent_spec("world_models").config()), "")
    own = [f"`--{each.name}`" for each in dataclasses.fields(StagedConfig) if each.name not in common]
    return table(["setting", "default", "values", "meaning"], [row for row in rows if row[0] in own], left=4)


@piece
def presets(agent: str) -> str:
    """The named blocks of settings as they are written."""
    return f"```yaml\n{(ROOT / f'fastwm/configs/{agent}.yaml').read_text().strip()}\n```"


@piece
def healthy(agent: str) -> str:
    """Metrics of a run that learns, as means over stretches of it."""
    run = load(f"learning/healthy_{agent}.json")
    head = ["metric", *(f"{start:,} to {end:,}" for start, end in run["stretches"])]
    rows = [[f"`{name}`", *("" if value is None else f"{value:.3g}" for value in values)]
            for name, values in run["metrics"].items()]  # fmt: skip
    what = f"`{run['env']}` (preset `{run['preset']}`, seed {run['seed']})"
    source = f"Source: `bench/results/learning/healthy_{agent}.json`."
    return f"Means over stretches of steps of a run that learnt {what}:\n\n{table(head, rows)}\n\n{source}"


@piece
def metrics(agent: str, stage: str = "") -> str:
    """Every metric of an agent, or of one of its stages, and its meaning."""
    meanings: dict[str, Any] = yaml.safe_load((ROOT / "fastwm/configs/metrics.yaml").read_text())[agent]
    meanings = meanings[stage] if stage else meanings
    if any(isinstance(each, dict) for each in meanings.values()):
        return "\n\n".join(f"### {each}\n\n{metrics(agent, each)}" for each in meanings)
    return table(["metric", "meaning"], [[f"`{name}`", meaning] for name, meaning in meanings.items()], left=2)


@piece
def examples() -> str:
    """The programs in examples/: their heads and their code."""
    parts = []
    for path in sorted((ROOT / "examples").glob("*.py")):
        source = path.read_text()
        head = ast.get_docstring(ast.parse(source)) or ""
        title, _, text = head.partition("\n\n")
        code = source.split('"""\n', 2)[-1].strip()
        parts.append(f"## {path.name}\n\n{' '.join(title.split())}\n\n{text}\n\n```python\n{code}\n```")
    return "\n\n".join(parts)


@piece
def file(path: str) -> str:
    """A Markdown file of the repository."""
    return (ROOT / path).read_text()


@piece
def suites() -> str:
    """The suites of `fastwm reproduce`."""
    from fastwm.runner.reproduce import suites

    rows = []
    for name, suite in suites().items():
        gate = ", ".join(f"{least:g}" for least in suite.gate.values())
        gate = gate or f"published mean minus {suite.deviations:g} deviations"
        length = f"{suite.steps:,} steps" if suite.steps else f"{suite.episodes} episodes after training"
        rows.append([f"`{name}`", str(len(suite.environments())), ", ".join(suite.presets), length, gate, suite.note])
    return table(["suite", "tasks", "agents", "length", "gate", ""], rows, left=6)


# ------------------------------------------------------------------------------------------------------------- API

OPERATORS = {
    "Returns": "lambda_return",
    "Categoricals": "straight_through_categorical CategoricalSample categorical_kl balanced_categorical_kl "
    "categorical_entropy",
    "Scalars": "two_hot_loss two_hot_mean symlog symexp",
    "Norm and activation": "rms_norm_silu layer_norm_silu layer_norm_elu rms_norm",
    "Recurrent steps": "gru_step planet_gru_step layernorm_gru_step block_gru_step lstm_step reset_carry gru_gates "
    "planet_gru_reset planet_gru_update layernorm_gru_gates block_gru_gates lstm_gates",
    "Recurrent sequences": "gru_scan planet_gru_scan layernorm_gru_scan lstm_scan block_gru_scan BlockGRUWeights",
    "DreamerV3's RSSM": "rssm_observe rssm_imagine rssm_open_loop RSSMWeights ActionHead",
    "The RSSM of PlaNet, V1 and V2": "gru_rssm_observe gru_rssm_imagine gru_rssm_open_loop GRURSSMWeights GRURSSMKind "
    "PolicyHead",
    "MLPs": "mlp MLPWeights LayerWeights DenseWeights LinearWeights",
    "Mixtures and World Models": "mdn_sample mdn_nll mdn_rnn_imagine MDNRNNWeights Rollouts",
    "Random numbers": "philox_bits philox_uniform philox_normal",
    "Optimiser": "laprop_step_",
    "Backend": "backend",
}  # fmt: skip
"""Heading -> names of `fastwm.ops`."""

MODULES = {
    "RSSM": "RSSM BlockRSSM State GRURSSM GRUState",
    "Recurrent layers": "GRU LSTM LayerNormGRU BlockGRU GRUCell LSTMCell LayerNormGRUCell PlanetGRUCell BlockGRUCell",
    "World Models": "ConvVAE Latent MDNRNN MDNHead Mixture",
}
"""Heading -> names of `fastwm.nn`; the others follow by the module that defines them."""


def api(package: ModuleType, groups: dict[str, list[str]]) -> str:
    """Headings with the documentation of their names, for mkdocstrings. A name is documented where it is defined."""
    lines = []
    for heading, names in groups.items():
        lines += [f"## {heading}", ""]
        for name in names:
            value = getattr(package, name)
            path = f"{value.__module__}.{name}" if hasattr(value, "__module__") else f"{package.__name__}.{name}"
            lines += [f"::: {path}", ""]
    return "\n".join(lines)


@piece
def operator_api() -> str:
    """All of `fastwm.ops`."""
    from fastwm import ops

    groups = {heading: names.split() for heading, names in OPERATORS.items()}
    known = {name for names in groups.values() for name in names}
    groups = {heading: [name for name in names if name in ops.__all__] for heading, names in groups.items()}
    if others := sorted(set(ops.__all__) - known):
        groups["Others"] = others
    return api(ops, groups)


@piece
def module_api() -> str:
    """All of `fastwm.nn`, grouped; what no group names comes under the file that defines it."""
    from fastwm import nn

    groups = {heading: [name for name in names.split() if name in nn.__all__] for heading, names in MODULES.items()}
    known = {name for names in groups.values() for name in names}
    for name in nn.__all__:
        if name not in known:
            heading = getattr(nn, name).__module__.rpartition(".")[2].replace("_", " ").capitalize()
            groups.setdefault(heading, []).append(name)
    return api(nn, groups)


KERNELS = {"cell_steps": "cells", "gru_rssm_open_loop": "gru_rssm_imagine"}  # family -> that of its kernels
OF_PARTS = ("rssm_imagine", "mlp")  # on a GPU


@piece
def backends() -> str:
    """Operators against backends, by the kernels that there are."""
    from fastwm import ops

    families: dict[str, list[str]] = {}
    for name in ops.__all__:
        value = getattr(ops, name)
        if inspect.isfunction(value) and name != "reset_carry":
            families.setdefault(value.__module__.rpartition(".")[2], []).append(f"`{name}`")
    rows = []
    for family, names in families.items():
        stem = KERNELS.get(family, family)
        cpu = "C++" if any((ROOT / "csrc").rglob(f"{stem}*.cpp")) else "plain PyTorch"
        cuda = "parts" if stem in OF_PARTS else "plain PyTorch"
        cuda = "CUDA" if any((ROOT / "csrc").rglob(f"{stem}.cu")) else cuda
        triton = "Triton" if (ROOT / f"fastwm/triton/{stem}.py").is_file() else ""
        rows.append([", ".join(names), cpu, cuda, triton])
    return table(["operators", "CPU", "GPU", ""], rows, left=4)


# ----------------------------------------------------------------------------------------------------------- mkdocs

DISPLAY = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.M | re.S)
INLINE = re.compile(r"(?<![\\$`\w])\$(?!\s)([^$\n`]+?)(?<!\s)\$(?![\w$])")


def mathematics(text: str) -> str:
    """`$x$` and `$$` blocks as MathML, which browsers show without a script."""
    from latex2mathml.converter import convert

    text = DISPLAY.sub(lambda m: f'<div class="equation">{convert(m[1], display="block")}</div>', text)
    return INLINE.sub(lambda m: f"<span>{convert(m[1])}</span>", text)  # <math> alone would begin a block


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Hook of mkdocs."""
    return outside_code(expand(markdown), mathematics)


def main() -> int:
    readme = ROOT / "README.md"
    before = readme.read_text()
    after = refresh(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            print("README.md is stale: python build_tools/render.py", file=sys.stderr)
        return int(before != after)
    readme.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
