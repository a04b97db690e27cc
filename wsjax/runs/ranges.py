"""What each setting of a config may be: one table, which `config.resolve` goes by.

Bounds keep out what means nothing, and what a machine would not finish or not hold. They
are wide: whether a setting fits the images, the model or another setting is for those to
say who have both (`runs.experiment`), also before anything is recorded.
"""

import itertools
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from wsjax import metrics, models, smoothing, votes
from wsjax.attacks import dual, losses, polytope, registry
from wsjax.certifiers import registry as certifiers
from wsjax.certifiers.votes import RUNNER_UP
from wsjax.data import DATA_SETS
from wsjax.data.augment import AUGMENTATIONS
from wsjax.training import learned_noise, objectives, optimizers


class Range(NamedTuple):
    """The values that a setting may have.

    Attributes:
      words: what they are, to go on from "is not"; its text counts.
      holds: whether a value is one of them.
      kind: what they are used as.
      hint: a sentence on the likely slip, or "".
    """

    words: Any
    holds: Callable[[Any], bool]
    kind: Callable[[Any], Any] = lambda value: value
    hint: str = ""

    def read(self, name: str, value: Any) -> Any:
        """The value as it is used; ValueError with key, value and range if it is none."""
        if not self.holds(value):
            raise ValueError(self.refusal(name, repr(value)))
        return self.kind(value)

    def refusal(self, name: str, shown: str) -> str:
        """What to say to a value outside the range, given as text."""
        shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
        return " ".join([f"{name}={shown} is not {self.words}.", self.hint]).strip()


def _is_whole(value):
    return isinstance(value, int) and not isinstance(value, bool)


def whole(low: int, high: int, hint: str = "") -> Range:
    """Whole numbers; a float is none, even if it has no fraction."""
    return Range(
        f"a whole number from {low:,} to {high:,}",
        lambda value: _is_whole(value) and low <= value <= high,
        hint=hint,
    )


def number(
    low: float, high: float, *, above: bool = False, below: bool = False, hint: str = ""
) -> Range:
    """Numbers of an interval, open where they have to be `above` or `below` its ends."""
    words = (
        f"a number in {'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
    )

    def holds(value):
        return (
            (isinstance(value, float) or _is_whole(value))
            and (value > low if above else value >= low)
            and (value < high if below else value <= high)
        )

    return Range(words, holds, float, hint)


def one_of(*lists: Collection[Any]) -> Range:
    """Names of lists or registries, which may grow, or other plain values."""
    # Equal is not enough: True is 1.
    return Range(
        _Names(lists),
        lambda value: any(
            type(value) is type(x) and value == x for names in lists for x in names
        ),
    )


class _Names:
    """ "one of (...)", of what is there when it is said."""

    def __init__(self, lists):
        self._lists = lists

    def __str__(self):
        return f"one of {tuple(itertools.chain(*self._lists))}"


def many(each: Range, least: int = 1, hint: str = "") -> Range:
    """Lists and tuples of at least so many values."""
    few = f"{least} or more " if least else ""
    return Range(
        f"a list of {few}values, each {each.words}",
        lambda value: (
            isinstance(value, (list, tuple))
            and least <= len(value) <= 1_000
            and all(each.holds(x) for x in value)
        ),
        hint=hint,
    )


TRUTH = Range("True or False", lambda value: type(value) is bool)
# A path with a NUL cannot be opened, and what is said of it helps nobody.
TEXT = Range("text", lambda value: isinstance(value, str) and "\0" not in value)

_METRIC = one_of(metrics.GROUND_METRICS)
_VOTES = whole(1, 10**8, "It is a number of votes: 1,000 select and 10,000 bound.")
_LENGTH = number(0, 1_000, hint="It is in pixels x fraction of mass.")
_SOME_LENGTH = number(0, 1_000, above=True, hint="It is in pixels x fraction of mass.")
_STEPS = whole(1, 10**6)
_IMAGES = whole(1, 2**16)
_ALPHA = number(
    0,
    0.5,
    above=True,
    below=True,
    hint="It is the probability that a statement is wrong: 95% confidence is "
    "alpha=0.05, not 0.95.",
)
_RATE = number(0, 1_000)
_WIDTH = whole(1, 2**14)

# By dotted key; those of attacks and models have a `*` where the name of one may stand.
RANGES: dict[str, Range] = {
    "seed": whole(
        0,
        2**32 - 1,
        "Keys have 32 bits of a seed: others are one of these under another name.",
    ),
    "data.name": one_of(DATA_SETS),
    "data.source": one_of(("files", "tfds")),
    "data.dir": TEXT,
    "data.stride": whole(1, 10**9),
    "data.start": whole(0, 10**9),
    "data.limit": whole(0, 10**9, "0 is for all images."),
    "data.train_limit": whole(0, 10**9, "0 is for all images."),
    "data.image_size": whole(1, 4096),
    "data.resize": whole(1, 4096),
    "model.name": one_of(models.NAMES),
    "model.checkpoint": TEXT,
    "model.unit": one_of(("pixels", "mass")),
    "model.num_classes": Range(
        "a whole number from 2 to 100,000, or None for those of the data",
        lambda value: value is None or (_is_whole(value) and 2 <= value <= 100_000),
    ),
    "model.*.widths": many(_WIDTH),
    "model.potentials.widths": many(_WIDTH, least=0),
    "model.*.hidden": _WIDTH,
    "model.*.potentials": _WIDTH,
    "model.*.groups": many(_WIDTH),
    "model.*.head": one_of(("scores", "pairs")),
    "model.*.ground_metric": _METRIC,
    "model.*.start": one_of(("pairs", "waves")),
    "model.*.spread": _WIDTH,
    "model.*.stages": many(whole(1, 100)),
    "model.*.bottleneck": TRUTH,
    "model.*.stem": one_of(("cifar", "strided", "imagenet")),
    "model.*.width": whole(1, 4096),
    "model.*.mean": many(number(-1_000, 1_000)),
    "model.*.std": many(number(0, 1_000, above=True)),
    "model.*.dtype": one_of((None, "float32", "bfloat16", "float16")),
    "smoothing.noise": one_of(smoothing.LAWS, learned_noise.LEARNED),
    "smoothing.ground_metric": _METRIC,
    "smoothing.sigma": number(
        0,
        100,
        hint="It is a standard deviation as a fraction of the image's mass; 0.005 to "
        "0.05 is usual for MNIST, 0.00005 to 0.001 for CIFAR-10.",
    ),
    "smoothing.certificate_scale": _LENGTH,
    "smoothing.theorem": one_of(smoothing.THEOREMS),
    "smoothing.wrap": TRUTH,
    "smoothing.gamma": number(-10, 10),
    "smoothing.waves": whole(1, 1_000),
    "smoothing.bins": Range(
        "0 or a whole number from 2 to 1,000",
        lambda value: _is_whole(value) and 0 <= value <= 1_000 and value != 1,
        hint="It is the number of knots of a spectrum, 0 for every frequency.",
    ),
    "smoothing.couple_channels": TRUTH,
    "smoothing.wiener": TRUTH,
    "smoothing.exact": TRUTH,
    "train.noisy": TRUTH,
    "train.share_noise": TRUTH,
    "train.objective": one_of(objectives.NAMES),
    "train.copies": whole(1, 1_000),
    "train.consistency": number(0, 1_000),
    "train.mixing": number(0, 1_000),
    "train.label_smoothing": number(0, 1, below=True),
    "train.attack_radius": number(0, 1_000),
    "train.ball_radius": _LENGTH,
    "train.ball_steps": whole(1, 1_000),
    "train.ball_inner_steps": whole(1, 1_000),
    "train.ball_warmup": number(0, 1, hint="It is a fraction of the run."),
    "train.radius": _LENGTH,
    "train.temperature": _LENGTH,
    "train.noise_learning_rate": _RATE,
    "train.potential_learning_rate": _RATE,
    "train.bias_learning_rate": _RATE,
    "train.adam_learning_rate": _RATE,
    "train.augment": one_of(AUGMENTATIONS),
    "train.optimizer": one_of(optimizers.OPTIMIZERS),
    "train.learning_rate": number(0, 1_000, above=True),
    "train.momentum": number(0, 1, below=True),
    "train.weight_decay": number(0, 100),
    "train.schedule": one_of(optimizers.SCHEDULES),
    "train.batch_size": whole(1, 2**20),
    "train.num_epochs": _STEPS,
    "train.checkpoint_every": whole(1, 10**9),
    "train.evaluate_every": whole(1, 10**9),
    "certify.method": one_of(("",), certifiers.KINDS),
    "certify.n0": _VOTES,
    "certify.n": _VOTES,
    "certify.alpha": _ALPHA,
    "certify.use_runner_up": one_of(RUNNER_UP),
    "certify.share_draws": whole(1, 10_000),
    "certify.block_size": whole(0, 2**16, "0 is for what suits the device."),
    "certify.backend": one_of(votes.BACKENDS),
    "certify.groups": whole(0, 2**16, "0 is for as many as suit the images."),
    "certify.beta": number(0, 0.5, below=True, hint="0 stands for alpha."),
    "certify.first_look": _VOTES,
    "certify.at_radii": many(
        _SOME_LENGTH, least=0, hint="Such as (0.05, 0.1), in pixels x fraction of mass."
    ),
    "certify.max_radius_loss": number(
        0, 1, below=True, hint="It is the share of the radius to give away, e.g. 0.05."
    ),
    "certify.local": TRUTH,
    "certify.neighbours": whole(1, 10**6),
    "certify.softness": number(0, math.inf),
    "certify.ground_metric": _METRIC,
    "attack.method": one_of(registry.METHODS),
    "attack.target": one_of(("base", "smoothed", "both")),
    "attack.pictures": whole(0, 100),
    "attack.n": _VOTES,
    "attack.alpha": _ALPHA,
    "attack.*.ground_metric": one_of(("",), metrics.GROUND_METRICS),
    "attack.*.max_steps": _STEPS,
    "attack.*.batch_size": _IMAGES,
    "attack.*.num_samples": _IMAGES,
    "attack.*.step_size": number(0, 1_000, above=True),
    "attack.*.kernel_size": Range(
        "an odd number from 3 to 99",
        lambda value: _is_whole(value) and 3 <= value <= 99 and value % 2 == 1,
        hint="The window is centred on a pixel: 5 reaches two pixels each way.",
    ),
    "attack.*.epsilon": _SOME_LENGTH,
    "attack.*.epsilon_every": _STEPS,
    "attack.*.regularization": number(0, 1e6, above=True),
    "attack.*.projection_iterations": _STEPS,
    "attack.*.tolerance": number(0, 1, above=True),
    "attack.flow.radius": _LENGTH,
    "attack.flow.inner_steps": _STEPS,
    "attack.flow.neighbours": one_of((0,), polytope.STENCILS),
    "attack.flow.loss": one_of(losses.LOSSES),
    "attack.flow.targeted": TRUTH,
    "attack.flow.start_radius": _SOME_LENGTH,
    "attack.flow.restarts": whole(1, 1_000),
    "attack.flow.levels": whole(0, 65_535, "255 is for 8-bit images, 0 for floats."),
    "attack.flow.num_votes": _VOTES,
    "attack.sinkhorn.step": one_of(("sign", "l2")),
    "attack.sinkhorn.epsilon_factor": number(
        1, 1_000, hint="The ball grows by it; 1 attacks at one radius."
    ),
    "attack.sinkhorn.power": number(0, 100, above=True),
    "attack.sinkhorn.clamp": TRUTH,
    "attack.sinkhorn.abstention_counts": TRUTH,
    "attack.capacity.epsilon_growth": _LENGTH,
    "attack.capacity.slack": number(0, 1_000),
    "attack.capacity.mass_tolerance": number(0, 1, above=True),
    "attack.dual.method": one_of(dual.METHODS),
    "attack.dual.epsilons": many(_SOME_LENGTH, hint="One radius is (0.5,)."),
    "attack.dual.gamma": number(0, 1_000, above=True),
    "attack.dual.dual_iterations": _STEPS,
    "attack.dual.clamp_loss": TRUTH,
    "attack.dual.early_stop": TRUTH,
}

# Of settings of kinds and attacks of one's own, by the type of their defaults.
_BY_TYPE: dict[type, Range] = {
    bool: TRUTH,
    int: whole(-(2**31), 2**31 - 1),
    float: number(-math.inf, math.inf),
    str: TEXT,
    tuple: Range("a list", lambda value: isinstance(value, (list, tuple))),
}


def range_of(key: str, default: Any = None) -> Range | None:
    """The range of a setting.

    Args:
      key: dotted, such as "train.momentum"; a field of a model has the name of the model
        in between, "model.mlp.widths".
      default: of a setting that the table does not have.

    Returns:
      Its `Range`, or None where nothing is known.
    """
    block, _, rest = key.partition(".")
    anyone = f"{block}.*.{rest.partition('.')[2]}"
    for name in (key, anyone):
        if name in RANGES:
            return RANGES[name]
    return _BY_TYPE.get(type(default))
