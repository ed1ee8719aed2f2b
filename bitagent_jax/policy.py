"""A policy told in a sentence what to do: what evaluation, collection and users' own programs call."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bitagent_jax.agent.acting import initial_carry, make_act
from bitagent_jax.agent.state import build
from bitagent_jax.envs.tasks import get_body
from bitagent_jax.mllm.encoder import Encoder
from bitagent_jax.mllm.prompts import Prompt, check_prompt, embed_prompt, prompt_key

REFRESH = 8  # steps between looks of the encoder when config.imagination.semantics is "hold"


class Agent:
    """A policy that is told in a sentence what to do."""

    def __init__(
        self, config: ConfigDict, params: Any, encoder: Encoder, known: Mapping[Prompt, np.ndarray] | None = None
    ):
        """Wrap parameters; most users call ``bitagent_jax.load``.

        Args:
            config: the run's.
            params: of the modules.
            encoder: that embeds prompts.
            known: prompts whose embeddings, float32 ``[D]``, are known already.
        """
        self.config, self.params, self.encoder = config, params, encoder
        self.action_dim = get_body(config.body).action_dim
        self.graph, _ = build(config, encoder.embed_dim, self.action_dim)
        self._act = make_act(self.graph, config)
        self._embedded: dict[Hashable, np.ndarray] = dict(known or {})

    def embed_prompt(self, prompt: Prompt) -> np.ndarray:
        """Return a prompt's embedding, float32 ``[D]``, computed once; ValueError if it is none that can be read.

        A prompt is all that ``bitagent_jax.mllm.prompts`` lists: a sentence, paraphrases, a clip, a picture, files.
        """
        key = prompt_key(prompt)
        if key not in self._embedded:
            check_prompt(prompt)
            self._embedded[key] = embed_prompt(self.encoder, prompt)
        return self._embedded[key]

    def act(
        self,
        observation: np.ndarray,
        prompt: Prompt,
        state: dict | None = None,
        *,
        is_first: np.ndarray | None = None,
        sample: bool = False,
        seed: int = 0,
    ) -> tuple[np.ndarray, dict]:
        """Choose the next action.

        Args:
            observation: uint8 ``[64, 64, 3]``, or ``[N, 64, 64, 3]`` of N environments.
            prompt: what to do, see ``embed_prompt``. Of N environments a list holds one prompt for each; of one
                environment it holds paraphrases of one prompt.
            state: what the last call returned; None at the start of an episode.
            is_first: bool ``[N]``, environments whose episode begins with this frame although others go on.
            sample: draw latents and actions; otherwise the posterior's mode and the policy's mean, the same of the
                same frames.
            seed: of the policy's randomness; used where ``state`` is None.

        Returns:
            float32 ``[A]`` or ``[N, A]`` in [-1, 1], and the state for the next call.

        Raises:
            ValueError: for pictures of another type or shape, an empty prompt, or prompts that do not match N.
        """
        image, single = self._check(observation)
        shared = single or isinstance(prompt, str) or (isinstance(prompt, np.ndarray) and prompt.ndim != 2)
        prompts = [prompt] * len(image) if shared else list(prompt)
        if len(prompts) != len(image):
            raise ValueError(f"{len(prompts)} prompts given for {len(image)} environments")
        if state is not None and len(state["carry"]["deter"]) != len(image):
            raise ValueError(f"{len(image)} pictures given, but the state is of {len(state['carry']['deter'])}")
        task = np.stack([self.embed_prompt(one) for one in prompts])
        fresh = state is None
        if fresh:
            state = {"carry": initial_carry(self.config, self.action_dim, len(image)), "steps": 0, "seed": seed}
        if is_first is None:
            is_first = np.full(len(image), fresh)
        clip = self._look(state, image, np.asarray(is_first, bool))
        key = jax.random.fold_in(jax.random.key(state["seed"]), state["steps"])
        action, carry = self._act(
            self.params, state["carry"], image, is_first, task, clip["embedding"], clip["has"], key, sample=sample
        )
        state = {"carry": carry, "steps": state["steps"] + 1, "seed": state["seed"], "clip": clip}
        action = np.asarray(action)
        return (action[0] if single else action), state

    def _check(self, observation: np.ndarray) -> tuple[np.ndarray, bool]:
        image, size = np.asarray(observation), self.config.env.size
        if image.dtype != np.uint8 or image.shape[-3:] != (size, size, 3) or image.ndim not in (3, 4):
            raise ValueError(
                f"observation must be uint8 [{size}, {size}, 3] or [N, {size}, {size}, 3], "
                f"not {image.dtype} {list(image.shape)}"
            )
        return (image[None], True) if image.ndim == 3 else (image, False)

    def _look(self, state: dict, image: np.ndarray, is_first: np.ndarray) -> dict:
        """With ``hold`` semantics, embed the latest clip every few steps; otherwise nothing is needed."""
        count, frames = len(image), self.encoder.num_frames
        empty = {"embedding": np.zeros((count, self.encoder.embed_dim), np.float32), "has": np.zeros(count, bool)}
        if self.config.imagination.semantics != "hold":
            return empty
        clip = dict(state.get("clip") or empty | {"frames": np.stack([image] * frames, 1), "age": np.zeros(count, int)})
        clip["age"] = np.where(is_first, 0, clip["age"]) + 1
        clip["frames"] = np.concatenate([clip["frames"][:, 1:], image[:, None]], 1)
        clip["has"] = clip["has"] & ~is_first
        due = (clip["age"] >= frames) & ((clip["age"] - frames) % REFRESH == 0)
        if due.any():
            latest = self.encoder.embed_video(clip["frames"])
            clip["embedding"] = np.where(due[:, None], latest, clip["embedding"])
            clip["has"] = clip["has"] | due
        return clip


class AgentPolicy:
    """An agent as the policy of a pool: maps timesteps to actions, one prompt for each environment."""

    def __init__(self, agent: Agent, prompts: Sequence[Prompt], *, sample: bool, seed: int):
        self._agent, self._prompts, self._sample, self._seed = agent, list(prompts), sample, seed
        self._state = None

    def __call__(self, timestep) -> np.ndarray:
        """Return float32 ``[N, A]`` for a timestep of N rows."""
        action, self._state = self._agent.act(
            timestep.image, self._prompts, self._state,
            is_first=timestep.is_first, sample=self._sample, seed=self._seed,
        )  # fmt: skip
        return action
