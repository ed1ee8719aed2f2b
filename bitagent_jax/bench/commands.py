"""The command line of ``bitagent bench NAME``: one parser and one function for each benchmark."""

import argparse
import importlib

from bitagent_jax import errors

BENCHES = {
    "pool": "the environments, beside gymnasium's and bare MuJoCo",
    "step": "the model's train step (stage 1)",
    "behavior": "the behaviour's train step (stage 2), whole and in parts",
    "loader": "batches of an episode folder, beside the step that uses them up",
    "encoder": "a frozen encoder: episodes, clips, sentences",
    "scaling": "what crosses devices in a step, counted in programs for fake devices",
}
CONFIGURED = ("step", "behavior", "loader", "scaling")  # take --preset, --body and --config.x.y=value


def add(parser: argparse.ArgumentParser) -> None:
    """Add a parser for each benchmark."""
    names = parser.add_subparsers(dest="name", required=True)
    each = {name: names.add_parser(name, help=text, allow_abbrev=False) for name, text in BENCHES.items()}
    each["pool"].add_argument("--task", default="walker_walk")
    each["pool"].add_argument("--num-envs", type=int, default=4)
    for name in CONFIGURED:
        each[name].epilog = "Settings: --config=FILE:ARG --config.a.b=value ..., on top of the preset."
        each[name].add_argument("--preset", default="cpu", help="comma-separated presets and ablations")
        each[name].add_argument("--body", default="walker")
    for name in ("step", "behavior"):
        each[name].add_argument("--batch", type=int, nargs="+", default=[], help="sequences; several are compared")
        each[name].add_argument("--compile-only", action="store_true", help="memory and FLOPs, without running")
        each[name].add_argument("--profile", action="store_true", help="also say where the time goes")
        each[name].add_argument("--repeats", type=int, default=10, help="steps, of which the median is taken")
    each["loader"].add_argument("folder", help="of episodes, for example RUN/episodes")
    each["loader"].add_argument("--threads", type=int, nargs="+", default=[], help="that decode; several are compared")
    each["loader"].add_argument("--no-step", action="store_true", help="do not time the train step")
    each["encoder"].add_argument("--encoder", default="embedded")
    each["encoder"].add_argument("--weights", default="", help="of other encoders: a folder, or owner/name on the Hub")
    each["encoder"].add_argument("--size", type=int, default=64, help="of the pictures that it is shown")
    for name in ("pool", "loader", "encoder"):
        each[name].add_argument("--repeats", type=int, default=5, help="rounds, of which medians are taken")
    for name in ("pool", "loader"):
        each[name].add_argument("--seconds", type=float, default=2.0, help="of each measurement in each round")
    each["scaling"].add_argument("--devices", type=int, default=8, help="to fake")
    each["scaling"].add_argument("--fsdp", type=int, nargs="+", default=[1, 8], help="sizes of that axis")
    each["scaling"].add_argument("--stages", type=int, nargs="+", default=[1, 2], choices=[1, 2])


def check_name(argv: list[str]) -> None:
    """Raise the ValueError for a benchmark that there is not."""
    if argv and not argv[0].startswith("-") and argv[0] not in BENCHES:
        raise errors.unknown("benchmark", argv[0], BENCHES)


def run(args: argparse.Namespace, config) -> str:
    """Run the benchmark that was asked for; ``config`` is None for those that take none."""
    bench = importlib.import_module(f"bitagent_jax.bench.{args.name}").bench
    if args.name == "pool":
        return bench(args.task, num_envs=args.num_envs, repeats=args.repeats, seconds=args.seconds)
    if args.name == "encoder":
        return bench(args.encoder, args.weights, size=args.size, repeats=args.repeats)
    if args.name == "loader":
        settings = dict(threads=args.threads, seconds=args.seconds, repeats=args.repeats, with_step=not args.no_step)
        return bench(config, args.preset, args.folder, **settings)
    if args.name == "scaling":
        return bench(config, args.preset, devices=args.devices, fsdp=args.fsdp, stages=args.stages)
    settings = dict(batches=tuple(args.batch), repeats=args.repeats, compile_only=args.compile_only)
    return bench(config, args.preset, profiled=args.profile, **settings)
