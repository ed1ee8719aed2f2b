"""What the benchmarks of compiled programs share: from configs to the printed table."""

from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from bitagent_jax.bench import profile, program, report


def with_batch(config: ConfigDict, batch: int) -> ConfigDict:
    """Copy a config with another batch size; ValueError below 1."""
    if batch < 1:
        raise ValueError(f"a batch of {batch} sequences: it must be at least 1")
    copy = config.copy_and_resolve_references()
    copy.train.batch = batch
    return copy


def programs(
    bench: str, makers: Sequence[tuple[ConfigDict, Callable]], preset: str, repeats: int, compile_only: bool,
    profiled: bool = False,
) -> str:  # fmt: skip
    """Compile what the makers make, time all in turn unless ``compile_only``; returns the table and JSON lines.

    With ``profiled``, a second table says where the time of each goes.

    Raises:
        ValueError: less than one repeat, a profile without a run, or a batch that the devices do not divide.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if profiled and compile_only:
        raise ValueError("--profile runs the programs and --compile-only does not: choose one")
    told = program.facts(makers[0][0], preset)
    done = [(config, program.compiled(make())) for config, make in makers]
    rows = [program.static_row(compiled, config) for config, compiled in done]
    if not compile_only:
        peak = program.matmul_peak(makers[0][0].compute.dtype)
        told |= {"matmul peak (GFLOP/s)": peak / 1e9, "repeats": repeats}
        times = program.time_steps([compiled for _, compiled in done], repeats)
        told["peak memory (GiB)"] = program.peak_memory() / program.GIB
        rows = [
            program.measured_row(row, seconds, compiled.program.frames, peak)
            for row, seconds, (_, compiled) in zip(rows, times, done, strict=True)
        ]
    shown = show(bench, rows, told)
    if profiled and not compile_only:
        try:
            places = [row for _, compiled in done for row in profile.profile(compiled)]
            shown += "\n\n" + show(f"{bench} profile", places, told)
        except RuntimeError as error:  # what was measured before it is not lost
            shown += f"\n\nno profile: {error}"
    return shown


def show(bench: str, rows: list[dict], told: dict) -> str:
    """Return the facts, the table and the JSON lines as one text."""
    head = ", ".join(f"{name}: {value}" for name, value in told.items())
    return "\n\n".join([head, report.table(rows), report.json_lines(bench, rows, told)])
