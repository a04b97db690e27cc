"""Attacks: the published one, and what it really did to an image."""

from wsjax.attacks.measurement import Measurement, measure, restore_mass
from wsjax.attacks.pgd import AttackResult, SinkhornAttack, sinkhorn_attack
from wsjax.attacks.sinkhorn import Projection, sinkhorn_projection, window_cost

__all__ = [
    "AttackResult",
    "Measurement",
    "Projection",
    "SinkhornAttack",
    "measure",
    "restore_mass",
    "sinkhorn_attack",
    "sinkhorn_projection",
    "window_cost",
]
