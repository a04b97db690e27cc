"""Base classifiers in Flax: modules only, no training and no certificates.

Every model maps images `[B, H, W, C]` in pixel units to logits `[B, K]`; channel
standardisation, where a model has it, is its own first layer and so comes after the
noise. `create` builds one from the `model` block of a config.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from wsjax.models.conv import ConvSmall
from wsjax.models.mlp import Mlp
from wsjax.models.potentials import PotentialNet
from wsjax.models.resnet import ResNet
from wsjax.models.whitened import WhitenedNet

_RESNETS = {
    # Blocks per stage, whether blocks have a bottleneck, and the stem.
    "resnet18_cifar": {"stages": (2, 2, 2, 2), "bottleneck": False, "stem": "cifar"},
    "resnet8_strided": {"stages": (1, 1, 1), "bottleneck": False, "stem": "strided"},
    "resnet18": {"stages": (2, 2, 2, 2), "bottleneck": False, "stem": "imagenet"},
    "resnet50": {"stages": (3, 4, 6, 3), "bottleneck": True, "stem": "imagenet"},
}

_PLAIN: dict[str, Any] = {
    "conv_small": ConvSmall,
    "mlp": Mlp,
    "potentials": PotentialNet,
    "whitened": WhitenedNet,
}

NAMES = (*_PLAIN, *_RESNETS)


def create(name: str, num_classes: int, **options: Any) -> nn.Module:
    """Builds a model by name.

    Args:
      name: "conv_small" (the paper's MNIST network), "mlp", "resnet18_cifar",
        "potentials" (1-Lipschitz in W), "whitened" (for CIFAR-10), "resnet8_strided" (for a
        CPU), "resnet18" or "resnet50" (ImageNet stem).
      num_classes: number of logits.
      **options: fields of the module: `widths` and `hidden` of `ConvSmall`;
        `widths` of `Mlp` and `WhitenedNet`; those of `PotentialNet`;
        `width`, `mean`, `std`, `stages` of `ResNet`.

    Returns:
      A Flax module, called as `module.apply(variables, images, train=False)`.

    Raises:
      ValueError: an unknown name or option.
    """
    module = module_class(name)
    settings = {**fixed_fields(name), **options}
    known = {field for field in module.__dataclass_fields__} - {"parent", "name"}
    unknown = set(options) - known
    if unknown:
        raise ValueError(
            f"model has no setting {sorted(unknown)}; {name} knows "
            f"{sorted(known - {'num_classes'})}."
        )
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return module(num_classes=num_classes, **settings)


def module_class(name: str) -> Any:
    """The Flax class of a model by name; raises ValueError for an unknown one."""
    if name not in NAMES:
        raise ValueError(f"model.name={name!r} is not one of {NAMES}.")
    return _PLAIN.get(name, ResNet)


def fixed_fields(name: str) -> dict[str, Any]:
    """Defaults of a model's fields where they are others than those of its class."""
    return dict(_RESNETS.get(name, {}))


def classifier(module: nn.Module, variables: Any) -> Callable[[jax.Array], jax.Array]:
    """Binds a module to its variables: `images [B, H, W, C] -> logits [B, K]`.

    Args:
      module: from `create`, or any module that takes `train=`.
      variables: `{"params": ..., ...}` as Flax keeps them.

    Returns:
      A `jax.tree_util.Partial`: callable, and a pytree whose leaves are the
      variables, so it passes through `jit` without baking weights into programs.
    """
    apply = _ApplyInSteps if hasattr(module, "first") else _Apply
    return jax.tree_util.Partial(apply(module), variables)


class _Apply:
    """`module.apply` for inference, equal for equal modules so programs are shared."""

    def __init__(self, module):
        self.module = module

    def __call__(self, variables, images):
        return self.module.apply(variables, images, train=False)

    def __repr__(self):
        return f"{type(self.module).__name__}.apply"

    def __eq__(self, other):
        return type(self) is type(other) and self.module == other.module

    def __hash__(self):
        return hash(self.module)


class _ApplyInSteps(_Apply):
    """For a module that has its linear first step and the rest apart.

    `votes.count_votes` uses that where images share their noise.
    """

    def first(self, variables, images):
        return self.module.apply(variables, images, method="first")

    def rest(self, variables, features):
        return self.module.apply(variables, features, method="rest")
