"""The RSSM world model as verbs: encode, observe, imagine, decode, loss (method of GenRL and DreamerV3).

A state is a dict ``{"deter": [..., D], "stoch": [..., S*C]}``; its feature is their concatenation.  With the default
``posterior: frame`` the posterior of a whole batch is one call, and only the GRU runs in a scan.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from bitagent_jax.agent.dynamics import Dynamics, flatten_latent
from bitagent_jax.nn.distributions import categorical_kl, mode_onehot, sample_onehot
from bitagent_jax.nn.layers import MLP
from bitagent_jax.nn.vision import DECODERS, ENCODERS

State = dict[str, jax.Array]


def feature(state: State) -> jax.Array:
    """Concatenate a state's parts: ``[..., D + S*C]``."""
    return jnp.concatenate([state["deter"], state["stoch"]], -1)


def as_observed(batch: dict, key: jax.Array) -> dict[str, jax.Array]:
    """Return stored latents of a batch (``training.latents``) as if ``WorldModel.observe`` had just filtered them.

    ``z`` is drawn anew from the stored posterior: a policy that met the same draws in every epoch would learn them
    by heart.
    """
    post = batch["post"].astype(jnp.float32)
    stoch = flatten_latent(sample_onehot(key, post))
    return {"deter": batch["deter"].astype(jnp.float32), "stoch": stoch, "post": post}


class WorldModel(nnx.Module):
    """Recurrent state-space model of pixels and actions."""

    def __init__(self, config, actions: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.latent = config.stoch * config.classes
        self.feature_dim = config.deter + self.latent
        self.encoder = ENCODERS[config.vision](config.depth, dtype=dtype, rngs=rngs)
        context = config.deter if config.posterior == "history" else 0
        self.posterior_head = MLP(
            self.encoder.outputs + context, config.hidden, 1, self.latent,
            output_scale=config.logit_scale, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.dynamics = Dynamics(actions, config, dtype=dtype, rngs=rngs)
        width = config.hidden
        self.from_stoch = nnx.Linear(self.latent, width, dtype=dtype, rngs=rngs)
        if config.decoder == "feat":
            self.from_deter = nnx.Linear(config.deter, width, use_bias=False, dtype=dtype, rngs=rngs)
        self.decoder = DECODERS[config.vision](width, config.depth, dtype=dtype, rngs=rngs)

    def initial(self, *batch: int) -> State:
        """Return the zero state of the given batch shape."""
        return {
            "deter": jnp.zeros((*batch, self.config.deter)),
            "stoch": jnp.zeros((*batch, self.latent)),
        }

    def encode(self, image: jax.Array) -> jax.Array:
        """Encode ``uint8 [..., 64, 64, 3]`` to visual features ``[..., E]``."""
        x = image.reshape(-1, *image.shape[-3:]).astype(jnp.float32) / 255.0 - 0.5
        return self.encoder(x).reshape(*image.shape[:-3], -1)

    def posterior(self, embed: jax.Array, deter: jax.Array | None = None) -> jax.Array:
        """Return posterior log-probabilities ``[..., S, C]`` from visual features (and ``h`` with ``history``)."""
        if self.config.posterior == "history":
            embed = jnp.concatenate([embed, deter.astype(embed.dtype)], -1)
        return self.dynamics.log_probs(self.posterior_head(embed))

    def observe(self, image, action, is_first, key) -> dict[str, jax.Array]:
        """Filter a batch of sequences from the zero state.

        Args:
            image: uint8 ``[B, T, 64, 64, 3]``.
            action: ``[B, T, A]``; ``action[t]`` led to ``image[t]``.
            is_first: bool ``[B, T]``; such rows forget the past and their action.
            key: random key for the latent samples.

        Returns:
            ``deter [B, T, D]``, ``stoch [B, T, S*C]``, ``post`` and ``prior`` log-probabilities ``[B, T, S, C]``.
        """
        embed = self.encode(image)
        action = jnp.where(is_first[..., None], 0.0, action)
        if self.config.posterior == "history":
            deter, post, stoch = self._observe_history(embed, action, is_first, key)
        else:
            post = self.posterior(embed)
            stoch = flatten_latent(sample_onehot(key, post))
            deter = self._observe_frames(stoch, action, is_first)
        return {"deter": deter, "stoch": stoch, "post": post, "prior": self.dynamics.prior(deter)}

    def _observe_frames(self, stoch, action, is_first):
        before = jnp.pad(stoch, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        gates = self.dynamics.gates(jnp.where(is_first[..., None], 0.0, before), action)
        return self.dynamics.gru.unroll(gates, self.initial(stoch.shape[0])["deter"], is_first)

    def _observe_history(self, embed, action, is_first, key):
        def step(state, inputs):
            state, post = self.filter(state, *inputs)
            return state, (state["deter"], post, state["stoch"])

        keys = jax.random.split(key, embed.shape[1])
        inputs = (embed.swapaxes(0, 1), action.swapaxes(0, 1), is_first.swapaxes(0, 1), keys)
        _, out = jax.lax.scan(step, self.initial(embed.shape[0]), inputs)
        return jax.tree.map(lambda x: x.swapaxes(0, 1), out)

    def filter(self, state: State, embed, action, is_first, key: jax.Array | None) -> tuple[State, jax.Array]:
        """Take in one frame: state ``[B, ...]``, features ``[B, E]``, action ``[B, A]``, is_first ``[B]``.

        With a key ``z`` is drawn from the posterior, with None it is its mode.

        Returns:
            the new state and the posterior log-probabilities ``[B, S, C]``.
        """
        state = jax.tree.map(lambda x: jnp.where(is_first[:, None], 0.0, x), state)
        action = jnp.where(is_first[:, None], 0.0, action)
        deter = self.dynamics.step(state["deter"], state["stoch"], action)
        post = self.posterior(embed, deter)
        stoch = mode_onehot(post) if key is None else sample_onehot(key, post)
        return {"deter": deter, "stoch": flatten_latent(stoch)}, post

    def imagine(self, state: State, action: jax.Array, key: jax.Array) -> tuple[State, jax.Array]:
        """Predict the next state from ``action [B, A]`` without a frame; also its prior ``[B, S, C]``."""
        deter = self.dynamics.step(state["deter"], state["stoch"], action)
        prior = self.dynamics.prior(deter)
        return {"deter": deter, "stoch": flatten_latent(sample_onehot(key, prior))}, prior

    def latent_features(self, stoch: jax.Array) -> jax.Array:
        """Return the decoder's first linear layer of ``z``, without its bias: ``[..., S*C] -> [..., W]``.

        The bias, the same for all ``z``, would only pull every cosine toward one.
        """
        return stoch @ self.from_stoch.kernel[...]

    def decode(self, state: State) -> jax.Array:
        """Decode states to images ``[..., 64, 64, 3]``, floats around zero (pixel / 255 - 0.5)."""
        x = self.from_stoch(state["stoch"])
        if self.config.decoder == "feat":
            x = x + self.from_deter(state["deter"])
        image = self.decoder(x.reshape(-1, x.shape[-1]))
        return image.reshape(*x.shape[:-1], *image.shape[1:]).astype(jnp.float32)

    def loss(self, observed: dict[str, jax.Array], image: jax.Array) -> dict[str, jax.Array]:
        """Return ``reconstruction`` and ``kl``, each ``[B, T]``.

        Reconstruction is the squared error summed over pixels; the KL is balanced between the prior's and the
        posterior's side (``kl_balance``) above the free nats: ``b KL(sg q || p) + (1-b) KL(q || sg p)``.
        """
        target = image.astype(jnp.float32) / 255.0 - 0.5
        error = jnp.sum(jnp.square(self.decode(observed) - target), axis=(-3, -2, -1))
        return {"reconstruction": error, "kl": balanced_kl(observed["post"], observed["prior"], self.config)}


def balanced_kl(post: jax.Array, prior: jax.Array, config) -> jax.Array:
    """Return the scaled, balanced KL with free nats: log-probabilities ``[..., S, C] -> [...]`` nats."""
    stop = jax.lax.stop_gradient
    toward_post = jnp.maximum(categorical_kl(stop(post), prior), config.free_nats)
    toward_prior = jnp.maximum(categorical_kl(post, stop(prior)), config.free_nats)
    return config.kl_scale * (config.kl_balance * toward_post + (1 - config.kl_balance) * toward_prior)
