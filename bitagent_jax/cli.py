"""The command line, ``bitagent <verb>``: parse, call, print."""

import argparse
import ast
import logging
import sys
from pathlib import Path

from ml_collections import ConfigDict

from bitagent_jax import errors
from bitagent_jax.bench import commands as benches
from bitagent_jax.files import import_file

# Bad input and failures that carry their own explanation.
EXPECTED = (ValueError, RuntimeError, FloatingPointError, OSError)


def main(argv: list[str] | None = None) -> None:
    """Run one verb; errors that explain themselves end with one line and exit status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        _fail("bitagent", errors.unknown("verb", argv[0], VERBS))
    if argv[:1] == ["bench"]:
        try:
            benches.check_name(argv[1:])
        except ValueError as error:
            _fail("bitagent bench", error)
    args, rest = _parser().parse_known_args(argv)
    try:
        VERBS[args.verb][0](args, rest)
    except EXPECTED as error:
        if type(error).__module__.startswith("jax"):  # a defect or an exhausted device: the traceback matters
            raise
        _fail(f"bitagent {args.verb}", error)


def _fail(who: str, error: Exception) -> None:
    print(f"{who}: {error}", file=sys.stderr)
    sys.exit(2)


def parse_config(args: list[str], run: Path | None = None, default: ConfigDict | None = None) -> ConfigDict:
    """Read ``--config=FILE:ARG`` and ``--config.a.b=value`` overrides; without a file, the default or the run's config.

    Raises:
        ValueError: for an unknown field or option (with the nearest name), a missing file, or no config at all.
    """
    from bitagent_jax import config as config_lib

    files = [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
    if files:
        config = _load_config(files[-1])
    elif default is not None:
        config = default
    elif run is not None and (run / "config.json").exists():
        config = config_lib.read(run / "config.json")
    else:
        example = "--config=experiments/configs/walker.py:cpu"
        raise ValueError(f"{run} is a new run and needs a config, for example {example}")
    for arg in args:
        if not arg.startswith("--config="):
            _override(config, arg)
    return config_lib.validate(config)


def _override(config: ConfigDict, arg: str) -> None:
    """Apply one ``--config.a.b=value``; the locked config keeps each field's type."""
    from bitagent_jax.config import flatten

    name, equals, text = arg.removeprefix("--config.").partition("=")
    if not arg.startswith("--config.") or not equals:
        raise ValueError(f"unexpected argument {arg!r}; settings are --config=FILE:ARG and --config.a.b=value")
    fields = flatten(config)
    if name not in fields:
        raise errors.unknown("setting", name, fields)
    try:
        value = text if isinstance(fields[name], str) else ast.literal_eval(text)
        config.update_from_flattened_dict({name: value})
    except (ValueError, SyntaxError, TypeError) as error:
        kind = type(fields[name]).__name__
        raise ValueError(f"config.{name} takes a value like {fields[name]!r} ({kind}), not {text!r}") from error


def _load_config(text: str) -> ConfigDict:
    """Call ``get_config(ARG)`` of the file in ``FILE[:ARG]``."""
    file, _, arg = text.partition(":")
    if not Path(file).is_file():
        raise ValueError(f"no config file {file!r}; those of this project are experiments/configs/*.py")
    if not file.endswith(".py"):
        raise ValueError(f"a config file is a Python file, not {file!r}")
    module = import_file(file)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{file} defines no get_config(arg)")
    return module.get_config(arg) if arg else module.get_config()


def _train(args, rest) -> None:
    from bitagent_jax.training import sharding
    from bitagent_jax.training.loops import train, train_seeds

    sharding.initialize_distributed()
    path = Path(args.run)
    if args.seeds:
        runs = train_seeds(path, parse_config(rest, path / f"seed-{args.seeds[0]}"), args.seeds)
    else:
        runs = [train(path, parse_config(rest, path))]
    print("\n".join(f"checkpoints: {run.checkpoints}" for run in runs))
    print(f"TensorBoard: tensorboard --logdir {path if args.seeds else runs[0].tensorboard}")


def _collect(args, rest) -> None:
    from bitagent_jax.config import make_config
    from bitagent_jax.data.behaviors import EXPLORE, Part, mixture, parts
    from bitagent_jax.envs.tasks import shared_body
    from bitagent_jax.evaluation.gather import gather

    if args.preset and (args.mix, args.episodes, args.run) != (None, None, None):
        raise ValueError("--preset decides what --mix, --episodes and --run would: give it without them")
    if args.step is not None and not args.run:
        raise ValueError(f"--step {args.step} is a checkpoint of a run: name it with --run")
    if args.run and args.mix:
        raise ValueError(f"either the run {args.run} acts or the mix {args.mix}: give one of --run and --mix")
    if args.preset:
        wanted = parts(args.preset, args.tasks)
    else:
        one_round = len(mixture("zoo", tuple(args.tasks))) if args.mix == "zoo" else 20
        wanted = (Part(args.mix or "random", one_round if args.episodes is None else args.episodes),)
    config = None
    if any(part.mix == EXPLORE for part in wanted) and not args.run:
        size = "paper" if args.preset == "full" else "cpu"
        config = parse_config(rest, default=make_config(shared_body(args.tasks).name, size))
    else:
        _no_more(rest)
    for mix, count in wanted:
        settings = {"run": args.run, "step": args.step, "mix": mix, "config": config}
        done = gather(args.folder, args.tasks, count, seed=args.seed, num_envs=args.num_envs, **settings)
        print(f"{len(done.paths)} episodes of {args.run or mix} in {args.folder}, {done.new} of them new", flush=True)


def _embed(args, rest) -> None:
    from bitagent_jax.data.embeddings import STRIDES, embed_folder
    from bitagent_jax.data.episodes import list_episodes
    from bitagent_jax.mllm.encoder import load_encoder

    _no_more(rest)
    if args.stride not in (0, *STRIDES):
        raise ValueError(f"--stride {args.stride} is none of {', '.join(map(str, STRIDES))}")
    if not list_episodes(args.folder):
        raise ValueError(f"no episodes (*.ep) in {args.folder}")
    encoder = load_encoder(args.encoder, args.weights)
    done = embed_folder(args.folder, encoder, stride=args.stride)
    stride = args.stride or encoder.stride
    print(f"embedded {done} episodes in {args.folder} (stride {stride}, key {encoder.fingerprint})")


def _convert(args, rest) -> None:
    from bitagent_jax.mllm.convert import convert

    _no_more(rest)
    print(f"{convert(args.source, args.destination)} tensors written to {args.destination}")


def _import(args, rest) -> None:
    from bitagent_jax.data.embeddings import list_embeddings
    from bitagent_jax.data.genrl import FINGERPRINT, import_genrl
    from bitagent_jax.data.minari import import_minari
    from bitagent_jax.envs.tasks import get_body, get_task

    _no_more(rest)
    readers = {"genrl": import_genrl, "minari": import_minari}
    if args.format not in readers:
        raise errors.unknown("format", args.format, readers)
    meta = {"body": get_body(args.body).name} if args.body else {}
    if args.task:
        body = get_task(args.task).body
        if meta.get("body", body) != body:
            raise ValueError(f"task {args.task} is of body {body}, not {args.body}")
        meta = {"body": body, "task": args.task}
    done = readers[args.format](args.source, args.folder, meta)
    print(
        f"{done.written} episodes imported into {args.folder}, {done.present} there before, {len(done.skipped)} skipped"
    )
    for key, width in list_embeddings(args.folder).items():
        if key == FINGERPRINT:
            print(f"with embeddings: --config.mllm.encoder=precomputed --config.mllm.weights={key}:{width}")


def _export(args, rest) -> None:
    from bitagent_jax.data.minari import export_minari

    _no_more(rest)
    print(f"{export_minari(args.folder, args.destination)} episodes exported to {args.destination}")


def _evaluate(args, rest) -> None:
    from bitagent_jax.evaluation import rollouts, scores
    from bitagent_jax.inference import load

    _no_more(rest)
    agent = load(args.run, args.step)
    tasks = args.tasks or list(agent.config.tasks)
    if not tasks:
        raise ValueError(
            f"{args.run} learnt prompts without tasks: name what scores it with --tasks, and one of them with --prompt"
        )
    rows = rollouts.evaluate(
        agent, tasks, agent.config.eval.episodes if args.episodes is None else args.episodes,
        prompt=_prompt(args.prompt), with_random=args.random, seed=args.seed,
    )  # fmt: skip
    print(scores.to_text(rows))
    print(f"scores: {rollouts.write_scores(rows, Path(args.run) / 'scores.json')}")


def _imagine(args, rest) -> None:
    from bitagent_jax.evaluation.imagine import imagine
    from bitagent_jax.inference import load

    _no_more(rest)
    agent = load(args.run, args.step)
    for prompt in map(_prompt, args.prompt):
        agent.embed_prompt(prompt)  # all of them, before the first is filmed
    for prompt in args.prompt:
        paths = imagine(agent, prompt, Path(args.run) / "videos", steps=args.steps, seed=args.seed)
        print("\n".join(f"{kind}: {path}" for kind, path in paths.items()))


def _diagnose(args, rest) -> None:
    from bitagent_jax.evaluation.diagnose import diagnose

    _no_more(rest)
    done = diagnose(
        args.source, data=args.data, encoder=args.encoder, weights=args.weights,
        windows=args.windows, step=args.step, out=args.out,
    )  # fmt: skip
    print(done.text)
    print("\n".join(str(path) for path in done.paths))


def _quickstart(args, rest) -> None:
    from bitagent_jax.evaluation.quickstart import quickstart

    _no_more(rest)
    quickstart(Path(args.run), args.body, args.preset)


def _bench(args, rest) -> None:
    from bitagent_jax.config import make_config

    config = None
    if args.name in benches.CONFIGURED:
        config = parse_config(rest, default=make_config(args.body, args.preset))
        files = [arg.partition("=")[2] for arg in rest if arg.startswith("--config=")]
        args.preset = files[-1] if files else args.preset
    else:
        _no_more(rest)
    print(benches.run(args, config))


def _prompt(text: str | None) -> str | None:
    if text is not None and not text.strip():
        raise ValueError("the prompt is empty: give a sentence, for example 'walk fast clean'")
    return text


def _no_more(rest: list[str]) -> None:
    if rest:
        raise ValueError(f"unexpected arguments: {' '.join(rest)}")


PROMPT = "a sentence, paraphrases 'run fast | sprint', a clip .mp4 .gif .npz, a picture .png .jpg, an embedding .npy"
VERBS = {
    "quickstart": (_quickstart, "train, evaluate and film a small agent on this machine, from nothing"),
    "train": (_train, "train a run, or continue it"),
    "collect": (_collect, "collect episodes of behaviours, of an explorer or of a run's policy, or continue"),
    "embed": (_embed, "embed the clips of an episode folder"),
    "import": (_import, "add episodes from GenRL's files or a Minari data set to a folder"),
    "export": (_export, "make a Minari data set of an episode folder"),
    "convert": (_convert, "make a safetensors file of pickled torch weights, for the encoders"),
    "evaluate": (_evaluate, "score a run in the simulator"),
    "imagine": (_imagine, "film what a run makes of a prompt"),
    "diagnose": (_diagnose, "hold the rewards of sentences against the true ones, on recorded episodes"),
    "bench": (_bench, "measure speed on this machine: " + ", ".join(benches.BENCHES)),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bitagent", description=__doc__, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    add = {name: verbs.add_parser(name, help=text, allow_abbrev=False) for name, (_, text) in VERBS.items()}
    add["train"].epilog = "Settings: --config=FILE:ARG --config.a.b=value ...; a known run needs none."
    for name in ("quickstart", "train", "evaluate", "imagine"):
        add[name].add_argument("run", help="run folder")
    add["train"].add_argument("--seeds", nargs="+", type=int, help="train RUN/seed-N of each N, all in one program")
    add["quickstart"].add_argument("--body", default="walker")
    add["quickstart"].add_argument("--preset", default="cpu", help="comma-separated presets and ablations")
    add["collect"].add_argument("folder")
    add["collect"].add_argument("--tasks", nargs="+", required=True)
    add["collect"].epilog = (
        "The same command continues what it began and adds nothing to what is whole; more --episodes extend it. "
        "Other settings, such as another --seed, add episodes of their own to the same folder, also at the same time."
    )
    add["collect"].add_argument(
        "--episodes", type=int, help="how many there shall be of these settings (20; of the zoo each behaviour once)"
    )
    add["collect"].add_argument("--run", help="act with this run's policy; without it, a mix acts")
    add["collect"].add_argument("--mix", help="random (default), zoo: the package's actors beside it, or plan2explore, "
                                "which takes --config=FILE:ARG and --config.a.b=value")  # fmt: skip
    add["collect"].add_argument("--preset", help="small: 200 episodes; full: 2M frames; of the zoo and plan2explore")
    add["collect"].add_argument("--num-envs", type=int, default=4)
    add["embed"].add_argument("folder")
    add["embed"].add_argument("--encoder", default="embedded")
    add["embed"].add_argument("--weights", default="", help="of other encoders: a folder, or owner/name on the Hub")
    add["embed"].add_argument("--stride", type=int, default=0, help="from one embedded row to the next: 1, 2, 4 or 8; "
                              "by default 1 where that costs little more, else 8")  # fmt: skip
    add["convert"].add_argument("source", help="file of torch.save (.pt, .pth, .bin)")
    add["convert"].add_argument("destination", help="safetensors file to write, for example FOLDER/model.safetensors")
    add["import"].add_argument("source", help="folder of GenRL's .npz files, or a Minari folder or id")
    add["import"].add_argument("folder")
    add["import"].add_argument("--format", required=True, help="genrl or minari")
    add["import"].add_argument("--body", help="noted with each episode")
    add["import"].add_argument("--task", help="whose rewards they hold: noted too, so that diagnose can judge by them")
    add["export"].add_argument("folder")
    add["export"].add_argument("destination", help="new folder named like a data set, for example sets/walker-v0")
    add["imagine"].add_argument("prompt", nargs="+", help=PROMPT)
    add["imagine"].add_argument("--steps", type=int, default=32)
    add["evaluate"].add_argument("--tasks", nargs="+")
    add["evaluate"].add_argument("--episodes", type=int)
    add["evaluate"].add_argument("--prompt", help=f"for every task instead of its own: {PROMPT}")
    add["evaluate"].add_argument("--random", action="store_true", help="also run the random policy")
    add["diagnose"].add_argument("source", help="run folder, or a folder of episodes")
    add["diagnose"].add_argument("--data", help="episodes for a run; its own by default")
    add["diagnose"].add_argument("--encoder", default="", help="for a folder of episodes; embedded by default")
    add["diagnose"].add_argument("--weights", default="", help="of other encoders: a folder, or owner/name on the Hub")
    add["diagnose"].add_argument("--windows", type=int, default=8, help="judged of each episode")
    add["diagnose"].add_argument("--out", help="folder for diagnose.json and diagnose.png; SOURCE by default")
    benches.add(add["bench"])
    for name in ("evaluate", "imagine", "collect", "diagnose"):
        add[name].add_argument("--step", type=int, help="checkpoint; the newest by default")
    for name in ("evaluate", "imagine", "collect"):
        add[name].add_argument("--seed", type=int, default=0)
    return parser
