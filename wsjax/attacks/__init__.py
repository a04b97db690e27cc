"""Attacks: the exact one of this project, the published ones, and what they really did."""

from wsjax.attacks.capacity import (
    HU,
    HU_FIXED,
    CapacityAttack,
    capacity_attack,
    capacity_projection,
)
from wsjax.attacks.dual import (
    WU_FRANK_WOLFE,
    WU_PROJECTION,
    DualAttack,
    coupling_projection,
    dual_attack,
    linear_oracle,
)
from wsjax.attacks.flow import FlowAttack, flow_attack
from wsjax.attacks.measurement import Measurement, measure, restore_mass
from wsjax.attacks.pgd import AttackResult, SinkhornAttack, sinkhorn_attack
from wsjax.attacks.repair import nearest_valid, round_to_levels
from wsjax.attacks.sinkhorn import Projection, sinkhorn_projection, window_cost

__all__ = [
    "HU",
    "HU_FIXED",
    "WU_FRANK_WOLFE",
    "WU_PROJECTION",
    "AttackResult",
    "CapacityAttack",
    "DualAttack",
    "FlowAttack",
    "Measurement",
    "Projection",
    "SinkhornAttack",
    "capacity_attack",
    "capacity_projection",
    "coupling_projection",
    "dual_attack",
    "flow_attack",
    "linear_oracle",
    "measure",
    "nearest_valid",
    "restore_mass",
    "round_to_levels",
    "sinkhorn_attack",
    "sinkhorn_projection",
    "window_cost",
]
