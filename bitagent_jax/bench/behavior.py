"""``bitagent bench behavior``: the behaviour's train step (stage 2), whole and in parts."""

import jax
from flax import nnx

from bitagent_jax.agent import behavior
from bitagent_jax.bench import measure, program


def bench(
    config, preset: str, *, batches: tuple[int, ...] = (), repeats: int = 10, compile_only: bool = False,
    profiled: bool = False,
) -> str:  # fmt: skip
    """Compile stage 2, stage 2 from stored latents, and the imagination alone; otherwise like ``bench step``."""
    makers = []
    for batch in batches or (config.train.batch,):
        whole, fixed = measure.with_batch(config, batch), measure.with_batch(config, batch)
        whole.joint.world_model_in_stage2, fixed.joint.world_model_in_stage2 = True, False
        whole.behavior.regression = 0.0  # which training allows with a fixed world model only
        makers += [
            (whole, lambda c=whole: program.train_step(c, 2, "stage 2: behaviour and joint optimisation")),
            (fixed, lambda c=fixed: program.train_step(c, 2, "stage 2 from latents of a fixed world model")),
            (whole, lambda c=whole: imagination(c)),
        ]
    return measure.programs("behavior", makers, preset, repeats, compile_only, profiled)


def imagination(config) -> program.Program:
    """Build the program that filters a batch and imagines from it, without reward, gradient or update."""

    def make(graph, prompts):
        def imagine(state, batch):
            agent, key = nnx.merge(graph, state.params), jax.random.fold_in(state.key, state.step)
            seen = agent.world_model.observe(batch["image"], batch["action"], batch["is_first"], key)
            starts = {name: seen[name] for name in ("deter", "stoch")}
            starts |= {name: batch[name] for name in ("embedding", "has_embedding")}
            starts = behavior.start_rows(starts, config.imagination.stride)
            embedding, has = starts.pop("embedding"), starts.pop("has_embedding")
            task = jax.numpy.broadcast_to(prompts[0], embedding.shape)
            path = behavior.rollout(
                agent, starts, agent.adapt(embedding), has, task,
                config.imagination.horizon, config.imagination.semantics, key,
            )  # fmt: skip
            return state._replace(step=state.step + 1), {"std": path["std"].mean(), "fused": path["fused"].mean()}

        return imagine

    return program.build_program(config, "imagination, forward only", None, make)
