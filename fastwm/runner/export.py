"""A run's agent for other runtimes: its acting step and its imagine step as ONNX or as AOTInductor packages."""

import contextlib
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastwm
from fastwm.agents.steps import Named, Step, acting_step, imagine_step
from fastwm.errors import FastwmError
from fastwm.extras import needs
from fastwm.nn.functional import symexp_bins
from fastwm.runner.evaluate import open_run, own_folder
from fastwm.writing import replacing, write_text

FORMATS = ("onnx", "pt2")
BATCH = 2  # rows of the parity check
TOLERANCE = 1e-4  # relative to 1 + |value|
LARGEST = 1024  # rows
Runner = Callable[[Named], Named]


class Flat(nn.Module):
    """A step with its inputs in a row, as exported programs take them."""

    def __init__(self, step: Step):
        super().__init__()
        self.step, self.names = step, list(step.inputs)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.step(dict(zip(self.names, values))).values())


def export(logdir: str | Path, form: str, trust: bool = False, steps: int = 100) -> list[Path]:
    """Write a run's acting step and imagine step to its folder `export/`, with a manifest; returns the paths.

    Each file is run in its runtime beside the agent for `steps` steps of random observations and noise, the agent's
    state fed to both. Products are computed in float32.

    Args:
        logdir: folder of the run.
        form: "onnx", run by ONNX Runtime, or "pt2", a package of AOTInductor, which needs a C++ compiler.
        trust: as in `fastwm.load`.
        steps: length of the check.

    Raises:
        FastwmError: where the results differ by more than 1e-4 of 1 + |value|; no file is left then.
    """
    if form not in FORMATS:
        raise FastwmError(f"unknown format {form!r}; there is: {', '.join(FORMATS)}")
    logdir = Path(logdir).expanduser()
    saved = open_run(own_folder(logdir), trust)
    agent = saved.agent(torch.device("cpu"))
    modules = {"imagine_step": imagine_step(agent)}
    with contextlib.suppress(FastwmError):  # PlaNet acts by a search
        modules = {"acting_step": acting_step(agent)} | modules
    manifest: dict[str, Any] = {
        "agent": saved.name, "env": saved.config.env, "step": saved.meta["step"], "format": form,
        "fastwm": fastwm.__version__, "torch": torch.__version__, "files": {},
    }  # fmt: skip
    paths = []
    for name, step in modules.items():
        path = logdir / "export" / f"{name}.{form}"
        with replacing(path) as temporary:
            program = traced(step)
            runner, runtime = (write_onnx if form == "onnx" else write_pt2)(temporary, step, program)
            parity = compare(step, runner, steps)
        manifest["files"][path.name] = describe(path, step) | {"parity": parity | {"runtime": runtime}}
        paths.append(path)
    manifest_path = logdir / "export" / f"{form}.json"
    write_text(manifest_path, json.dumps(manifest, indent=1))
    return [*paths, manifest_path]


def describe(path: Path, step: Step) -> dict[str, Any]:
    """Inputs and outputs of a file, for one who only has it. Every tensor has the batch first."""
    outputs = run_step(step, example(step, 1))
    inputs = {
        name: {"shape": ["batch", *each.shape], "dtype": dtype_name(each.dtype), "kind": each.kind}
        for name, each in step.inputs.items()
    }
    shapes = {
        output_name(step, name): {
            "shape": ["batch", *value.shape[1:]],
            "dtype": dtype_name(value.dtype),
        }
        for name, value in outputs.items()
    }
    state = {name: f"next/{name}" for name in step.state}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"sha256": digest, "inputs": inputs, "outputs": shapes, "state": state}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def output_name(step: Step, name: str) -> str:
    """Inputs and outputs share no name: what is passed on to the next step is `next/<name>`."""
    return f"next/{name}" if name in step.inputs else name


def example(step: Step, batch: int, generator: torch.Generator | None = None) -> Named:
    return {name: each.draw(batch, generator) for name, each in step.inputs.items()}


@torch.no_grad()
def run_step(step: Step, given: Named) -> Named:
    outputs: Named = step(given)
    return outputs


@torch.no_grad()
def traced(step: Step) -> Any:
    """The step as a program of plain PyTorch operators, for any number of rows."""
    batch = torch.export.Dim("batch", min=1, max=LARGEST)
    values = tuple(example(step, BATCH + 1).values())
    with fastwm.backend("ref"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = (tuple({0: batch} for _ in values),)
        return torch.export.export(Flat(step), values, dynamic_shapes=shapes, strict=False)


def write_onnx(path: Path, step: Step, program: Any) -> tuple[Runner, str]:
    """An ONNX file, and what runs it."""
    with needs("export", "fastwm export --format onnx"):
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401

    names = [output_name(step, name) for name in run_step(step, example(step, 1))]
    with quiet("torch.onnx", "onnxscript"):
        torch.onnx.export(
            program, f=str(path), dynamo=True, input_names=list(step.inputs), output_names=names, external_data=False,
            verbose=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(given: Named) -> Named:
        outputs = session.run(names, {name: given[name].numpy() for name in step.inputs})
        return dict(zip(names, map(torch.as_tensor, outputs)))

    return run, f"onnxruntime {onnxruntime.__version__}"


def write_pt2(path: Path, step: Step, program: Any) -> tuple[Runner, str]:
    """A package of AOTInductor, and what runs it."""
    names = [output_name(step, name) for name in run_step(step, example(step, 1))]
    try:
        with quiet("torch._inductor"), torch.no_grad():
            packed = path.with_name(f"{path.name}.pt2")  # AOTInductor insists on the ending
            options = {
                "aot_inductor.compile_wrapper_opt_level": "O0"
            }  # it calls the kernels, and takes most of the time
            torch._inductor.aoti_compile_and_package(program, package_path=str(packed), inductor_configs=options)
            packed.rename(path)
        model: Any = torch._inductor.aoti_load_package(str(path))
    except RuntimeError as error:
        raise FastwmError(f"AOTInductor cannot compile: {str(error).splitlines()[0]}") from error

    def run(given: Named) -> Named:
        return dict(zip(names, model(*(given[name] for name in step.inputs))))

    return run, f"AOTInductor of torch {torch.__version__}"


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """The exporters' progress and warnings are not for the user."""
    levels = [(logger, logger.level) for logger in map(logging.getLogger, loggers)]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def compare(step: Step, runner: Runner, steps: int) -> dict[str, Any]:
    """Run the step and what was made of it side by side; the largest difference, relative to `magnitude`.

    A draw that falls between two nearly equal probabilities may come out otherwise: such rows are counted, one in a
    hundred is allowed, and their other outputs are not compared.
    """
    generator = torch.Generator().manual_seed(0)
    state, largest, otherwise = step.initial(BATCH), 0.0, 0
    for number in range(steps):
        given = example(step, BATCH, generator) | state
        if "is_first" in given:
            given["is_first"][:] = number == 0
        ours = run_step(step, given)
        theirs = runner(given)
        same = torch.ones(BATCH, dtype=torch.bool)
        for name, value in drawn(ours):
            same &= (theirs[output_name(step, name)].view_as(value) == value).reshape(BATCH, -1).all(1)
        otherwise += int((~same).sum())
        for name, value in ours.items():
            error = (theirs[output_name(step, name)].double() - value.double()).abs() / magnitude(ours, name)
            largest = max(largest, float(error[same].max()) if same.any() and error.numel() else 0.0)
        state = {key: ours[key] for key in step.state}
    if not largest <= TOLERANCE or otherwise > steps * BATCH / 100:
        raise FastwmError(f"the exported step differs from the agent by {largest:.1e} over {steps} steps, and in "
                          f"{otherwise} draws: nothing was written")  # fmt: skip
    return {"steps": steps, "rows": BATCH, "largest_error": largest, "drawn_otherwise": otherwise}


def magnitude(outputs: Named, name: str) -> Tensor:
    """1 + |value|; for a two-hot mean, a sum over huge bins that cancel, 1 + the sum of their absolute terms."""
    value = outputs[name].double().abs()
    if (logits := outputs.get(f"logits/{name}")) is not None:
        value = (logits.double().softmax(-1) * symexp_bins(logits.shape[-1]).abs()).sum(-1)
    return 1 + value


def drawn(outputs: Named) -> Sequence[tuple[str, Tensor]]:
    """Outputs that are choices: integers and one-hots."""
    return [(name, x) for name, x in outputs.items()
            if not x.dtype.is_floating_point or (name == "stoch" and x.ndim == 3)]  # fmt: skip
