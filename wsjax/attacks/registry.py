"""Every attack by name, behind one interface."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from wsjax.attacks.capacity import CapacityAttack, capacity_attack
from wsjax.attacks.dual import DualAttack, dual_attack
from wsjax.attacks.flow import FlowAttack, flow_attack
from wsjax.attacks.growing import AttackResult
from wsjax.attacks.pgd import SinkhornAttack, sinkhorn_attack


class Method(NamedTuple):
    """An attack and its settings.

    Attributes:
      run: `(images, labels, victim, *, key, settings) -> AttackResult`.
      settings: frozen dataclass of its settings.
      title: what it is, in a line.
      smoothed: whether its gradients are averaged over the noise of its victim.
    """

    run: Callable[..., AttackResult]
    settings: Any
    title: str
    smoothed: bool

    def defaults(self) -> dict[str, Any]:
        """Name and default of each setting."""
        return dataclasses.asdict(self.settings())


METHODS = {
    "flow": Method(flow_attack, FlowAttack, "exact projection in flows", True),
    "sinkhorn": Method(sinkhorn_attack, SinkhornAttack, "Wong et al. 2019", True),
    "capacity": Method(capacity_attack, CapacityAttack, "Hu et al. 2020", False),
    "dual": Method(dual_attack, DualAttack, "Wu et al. 2020", False),
}


def get_method(name: str) -> Method:
    """The attack of that name.

    Raises:
      ValueError: there is none.
    """
    if name not in METHODS:
        raise ValueError(f"attack.method={name!r} is not one of {tuple(METHODS)}.")
    return METHODS[name]
