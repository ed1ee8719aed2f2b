"""``bitagent bench step``: the model's train step (stage 1), by batch size."""

from bitagent_jax.bench import measure, program


def bench(
    config, preset: str, *, batches: tuple[int, ...] = (), repeats: int = 10, compile_only: bool = False,
    profiled: bool = False,
) -> str:  # fmt: skip
    """Compile the step for each batch size, and time all of them in turn unless ``compile_only``.

    Returns:
        A table and its JSON lines.

    Raises:
        ValueError: an impossible setting.
    """
    configs = [measure.with_batch(config, batch) for batch in batches or (config.train.batch,)]
    name = "stage 1: world model, fusion, task imagination"
    makers = [(c, lambda c=c: program.train_step(c, 1, name)) for c in configs]
    return measure.programs("step", makers, preset, repeats, compile_only, profiled)
