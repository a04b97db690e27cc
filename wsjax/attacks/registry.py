"""Every attack by name, behind one interface."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from wsjax.attacks.capacity import CapacityAttack, capacity_attack
from wsjax.attacks.dual import DualAttack, dual_attack
from wsjax.attacks.flow import FlowAttack, flow_attack
from wsjax.attacks.pgd import AttackResult, SinkhornAttack, sinkhorn_attack


class Method(NamedTuple):
    """An attack and its settings.

    Attributes:
      run: `(images, labels, classify, *, key, settings, ...) -> AttackResult`.
      settings: frozen dataclass of its settings.
      title: what it is, in a line.
      smoothed: whether it takes `smoothing=`, the noise of a smoothed classifier.
    """

    run: Callable[..., AttackResult]
    settings: Any
    title: str
    smoothed: bool

    def defaults(self) -> dict[str, Any]:
        """Name and default of each setting, but for `n` and `alpha` of answers."""
        return {
            field.name: field.default
            for field in dataclasses.fields(self.settings)
            if field.name not in ("n", "alpha")
        }

    def make_settings(self, n: int, alpha: float, **given: Any) -> Any:
        """Settings from a config; `n` and `alpha` go where there are answers by vote.

        Raises:
          ValueError: one of them is outside its range.
        """
        names = [field.name for field in dataclasses.fields(self.settings)]
        votes = {"n": n, "alpha": alpha}
        return self.settings(
            **given, **{name: votes[name] for name in votes if name in names}
        )


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
