"""Attacks: the exact one of this project, the published ones, and what they really did."""

from wsjax.attacks.capacity import CapacityAttack, capacity_attack
from wsjax.attacks.dual import (
    WU_FRANK_WOLFE,
    WU_PROJECTION,
    DualAttack,
    coupling_projection,
    dual_attack,
    linear_oracle,
)
from wsjax.attacks.flow import FlowAttack, flow_attack
from wsjax.attacks.growing import AttackResult
from wsjax.attacks.measurement import Measurement, measure
from wsjax.attacks.pgd import SinkhornAttack, sinkhorn_attack
from wsjax.attacks.repair import nearest_valid, round_to_levels
from wsjax.attacks.sinkhorn import Projection, sinkhorn_projection
from wsjax.attacks.victims import Victim, smoothed
from wsjax.attacks.windows import window_cost

__all__ = [
    "WU_FRANK_WOLFE",
    "WU_PROJECTION",
    "AttackResult",
    "CapacityAttack",
    "DualAttack",
    "FlowAttack",
    "Measurement",
    "Projection",
    "SinkhornAttack",
    "Victim",
    "capacity_attack",
    "coupling_projection",
    "dual_attack",
    "flow_attack",
    "linear_oracle",
    "measure",
    "nearest_valid",
    "round_to_levels",
    "sinkhorn_attack",
    "sinkhorn_projection",
    "smoothed",
    "window_cost",
]
