"""The behaviour zoo: small state-based actors of several competences that ship with the package.

    from bitagent_jax import zoo
    actor = zoo.load_actor("walker_walk", "expert")
    actions = actor(states)          # [N, 24] -> [N, 6]

NumPy only. ``weights/card.json`` states where each actor comes from and what it was measured to do.
"""

from bitagent_jax.zoo.actor import Actor
from bitagent_jax.zoo.library import STAGES, load_actor, load_card

__all__ = ["STAGES", "Actor", "load_actor", "load_card"]
