"""How long a step of the PyTorch original (github.com/mazpie/genrl) takes, on synthetic data, to compare with ours.

    pip install numpy torch pyyaml && git clone https://github.com/mazpie/genrl CLONE
    python -m experiments.original_step CLONE [--batch 8 16] [--length 32] [--repeats 5] [--device cpu|cuda]
        [--threads N] [--precision 32|16] [--compile]

Hardware: CPU (seconds to tens of seconds a step) or one CUDA GPU. Their code is imported from the clone, unchanged and
with its default configuration (pixels of dm_control, actions of 6 numbers); only its folders ``agent``, ``tools`` and
``conf`` and its ``train.yaml`` are needed. Expected: the facts of the run, a table and JSON lines, in the style of
``bitagent bench``. The rows, each the median of ``--repeats`` after two steps for warming up, device synchronised:

* ``stage 1: world model + connector``: ``GenRLAgent.update_wm``, one update of the world model, then one of connector
  and aligner from precomputed embeddings of video;
* ``stage 1: connector alone``: that second half, which their ``train.py`` calls once more in each step of stage 1;
* ``stage 2: observe``: the batch to posterior states, without gradients (``WorldModel.observe_data``);
* ``stage 2: behaviour``: ``GenRLAgent.update_imag_behavior`` from all of these states: 16 imagined steps, the reward by
  alignment with a text, and updates of actor and critic. Their code imagines the text's target once and keeps it, so
  this is part of warming up.

The rows are run in turn, in rounds. Batches lie on the device already; the foundation model is replaced by a random
embedding of the text. ``--precision 16`` is their default, float16 by autocast (which ``observe`` does not use), and
needs CUDA. Autotuning of cuDNN is on, as in their ``train.py``; TF32 is as PyTorch sets it by default. ``--compile``
gives the forward passes of the encoder, the decoder's layers, both recurrent cells, the aligner and all heads to
``torch.compile``; the loops over time, plain Python around distributions, stay eager; compiling takes minutes. A batch
that does not fit into memory raises PyTorch's error.
"""

import argparse
import contextlib
import gc
import importlib
import importlib.util
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from bitagent_jax.bench import report

ACTION, EMBEDDING, WARM_UP = 6, 512, 2
CONFIGS = ("train.yaml", "conf/defaults/genrl.yaml", "conf/env/dmc_pixels.yaml", "conf/train_mode/train_behavior.yaml")
GIVEN = ("cfg", "obs_space", "act_spec")
SHAPES = {"observation": (3, 64, 64), "is_first": (), "is_last": (), "is_terminal": (), "clip_video": (EMBEDDING,)}


class Settings(dict):
    """A dict whose entries are attributes too, as their code expects of a configuration."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    __setattr__ = dict.__setitem__


def settings(value: Any) -> Any:
    """Convert what PyYAML returns; it takes numbers such as ``1e-8`` for text."""
    if isinstance(value, dict):
        return Settings({name: settings(each) for name, each in value.items()})
    if isinstance(value, list):
        return [settings(each) for each in value]
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def read_settings(clone: Path, length: int, device: str, precision: int) -> tuple[Settings, Settings]:
    """Read their default configuration, merged as for training a behaviour, and what the agent adds to it."""
    read = lambda name: settings(yaml.safe_load((clone / name).read_text()))  # noqa: E731
    config, agent = Settings(), read("agent/genrl.yaml")
    for name in CONFIGS:
        config.update(read(name))
    config.update(batch_length=length, device=device, precision=precision, task="walker_walk")
    agent["imag_reward_fn"] = config["agent.imag_reward_fn"]
    return config, Settings({name: value for name, value in agent.items() if name not in ("_target_", *GIVEN)})


def import_original(clone: Path) -> types.ModuleType:
    """Import their agent; OpenCV, which only reads videos there, may be absent."""
    if importlib.util.find_spec("cv2") is None:
        sys.modules["cv2"] = types.ModuleType("cv2")
    if str(clone.resolve()) not in sys.path:
        sys.path.insert(0, str(clone.resolve()))
    return importlib.import_module("agent.genrl")


def make_agent(clone: Path, length: int, device: str, precision: int) -> torch.nn.Module:
    """Build their agent with new weights, and the actor and critic of stage 2."""
    config, own = read_settings(clone, length, device, precision)
    spaces = {name: types.SimpleNamespace(shape=shape) for name, shape in SHAPES.items()}
    actions = types.SimpleNamespace(shape=(ACTION,))
    agent = import_original(clone).GenRLAgent(cfg=config, obs_space=spaces, act_spec=actions, **own)
    text = torch.nn.functional.normalize(torch.randn(1, EMBEDDING), dim=-1)
    agent.wm.viclip_model = types.SimpleNamespace(get_txt_feat=lambda _: text)
    return agent.requires_grad_(False)


def compile_forwards(agent: torch.nn.Module) -> None:
    """Have the forward passes of their modules compiled, in place, when they first run."""
    model, behavior = agent.wm, agent._imag_behavior
    decoder = model.heads["decoder"]
    cells = [model.rssm._cell, model.connector._cell, model.connector.aligner]
    heads = [model.heads["reward"], behavior.actor, behavior.critic, behavior._target_critic]
    for module in [model.encoder, decoder._conv_in, decoder._conv_model, *cells, *heads]:
        module.compile()


def random_batch(batch: int, length: int, device: str) -> dict[str, torch.Tensor]:
    """Draw what their replay yields; each sequence begins an episode."""
    flags = {name: torch.zeros(batch, length, dtype=torch.bool) for name in ("is_first", "is_last", "is_terminal")}
    flags["is_first"][:, 0] = True
    video = torch.nn.functional.normalize(torch.randn(batch, length, EMBEDDING), dim=-1)
    rows = {
        "observation": torch.randint(256, (batch, length, *SHAPES["observation"]), dtype=torch.uint8),
        "action": torch.rand(batch, length, ACTION) * 2 - 1,
        "reward": torch.rand(batch, length, 1),
        "discount": torch.ones(batch, length, 1),
        "clip_video": video,
    }
    return {name: value.to(device) for name, value in (rows | flags).items()}


def make_steps(agent: torch.nn.Module, data: dict[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name."""
    observe = torch.no_grad()(lambda: agent.wm.observe_data(data)[0])
    outputs = observe()
    return {
        "stage 1: world model + connector": lambda: agent.update_wm(data, 0),
        "stage 1: connector alone": lambda: agent.wm.update_additional_detached_modules(data, outputs, {}),
        "stage 2: observe": observe,
        "stage 2: behaviour": lambda: agent.update_imag_behavior(outputs=outputs, metrics={}, seq_data=data),
    }


def time_steps(steps: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Run all in turn, in rounds, after those for warming up; returns the milliseconds of each run."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(WARM_UP + repeats):
        for name, step in steps.items():
            wait()
            begun = time.perf_counter()
            step()
            wait()
            if round_ >= WARM_UP:
                times[name].append((time.perf_counter() - begun) * 1e3)
    return times


def measure(args: argparse.Namespace, batch: int) -> list[dict[str, Any]]:
    """Time a new agent at one batch size; returns the rows of the table."""
    with contextlib.redirect_stdout(sys.stderr):  # their modules print what they are made of
        agent = make_agent(args.clone, args.length, args.device, args.precision)
        if args.compile:
            compile_forwards(agent)
        steps = make_steps(agent, random_batch(batch, args.length, args.device))
        times = time_steps(steps, args.repeats, args.device)
    size = f"{batch} x {args.length}"
    return [
        {"what": name, "batch x length": size, "step (ms)": statistics.median(each), "min": min(each), "max": max(each)}
        for name, each in times.items()
    ]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse and check the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="folder of the original's repository")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--length", type=int, default=32, help="of the sequences: a multiple of 8, at least 16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU; by default its own choice")
    parser.add_argument("--precision", type=int, choices=(32, 16), default=32)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args(argv)
    needed = (*CONFIGS, "agent/genrl.py", "agent/genrl.yaml")
    if missing := [name for name in needed if not (args.clone / name).exists()]:
        parser.error(f"{args.clone} is no clone of the original: it has no {', '.join(missing)}")
    if min(*args.batch, args.repeats, 1 if args.threads is None else args.threads) < 1:
        parser.error("--batch, --repeats and --threads must be at least 1")
    if args.length < 16 or args.length % 8:
        parser.error(f"--length must be a multiple of 8, at least 16, got {args.length}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device")
    if args.precision == 16 and args.device == "cpu":
        parser.error("--precision 16 needs --device cuda: the original's autocast is CUDA's")
    return args


def main(argv: list[str] | None = None) -> None:
    """Print the facts of the run, the table and JSON lines."""
    args, rows = parse(argv), []
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.cuda.amp.*")
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    for batch in args.batch:
        rows += measure(args, batch)
        gc.collect()
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    told = dict(device=device, threads=torch.get_num_threads(), precision=args.precision, compiled=args.compile)
    told = report.facts(["torch"], **told, repeats=args.repeats)
    head = ", ".join(f"{name}: {value}" for name, value in told.items())
    print("\n\n".join([head, report.table(rows), report.json_lines("original step", rows, told)]))


if __name__ == "__main__":
    main()
