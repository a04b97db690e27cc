"""The attack of the paper's experiments: projected gradient steps, growing budget.

Levine & Feizi attack with the method of Wong, Schmidt & Kolter: step along the
gradient of the cross-entropy, project onto a Wasserstein ball around the original
(`sinkhorn`), clip to [0, 1], and enlarge the ball every few steps until the answer is
wrong. Against a smoothed classifier the gradient is that of the mean softmax over
noisy copies, and the answer is a vote.

What the published code reports is kept: `epsilon`, the radius of the ball when the
answer first turned wrong. It is nominal. The entropy keeps the image well inside the
ball, and clipping takes mass away; `measure` tells the distance. Beyond it,
`AttackResult.verified` repeats each vote with fresh draws, since an attack that stops
at the first wrong vote of many also stops at a lucky one.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsjax import smoothing as smoothed
from wsjax.attacks.answers import check_images, fold_in, is_wrong, make_ask
from wsjax.attacks.checks import check_positive, check_whole
from wsjax.attacks.sinkhorn import sinkhorn_projection, window_cost
from wsjax.confidence import check_alpha
from wsjax.votes import as_argument

# Settings that are compiled into a step; the others can change without compiling anew.
_COMPILED = (
    "step",
    "step_size",
    "ground_metric",
    "power",
    "kernel_size",
    "regularization",
    "projection_iterations",
    "tolerance",
    "clamp",
    "num_samples",
)


@dataclasses.dataclass(frozen=True)
class SinkhornAttack:
    """Settings of the attack; the defaults are those of the paper's MNIST scripts.

    Attributes:
      step: "sign" (of the gradient) or "l2" (the gradient, scaled to norm one).
      step_size: length of a step, in pixel units.
      epsilon: first radius of the ball, in pixels x fraction of mass.
      epsilon_factor: what the radius is multiplied by,
      epsilon_every: after this many steps.
      max_steps: steps per image before giving up.
      ground_metric: "l2" for the cost `(di^2 + dj^2)^(power / 2)`, "l1" for
        `(|di| + |dj|)^power`.
      power: one for a metric.
      kernel_size: mass travels at most `kernel_size // 2` pixels along each axis.
      regularization: lambda of the projection.
      projection_iterations: at most, per projection.
      tolerance: relative change of the dual at which a projection stops; see
        `sinkhorn` for why not the 1e-4 of the published code.
      clamp: whether to clip to [0, 1] after projecting, which loses mass.
      num_samples: noisy copies per gradient (smoothed).
      n: votes per answer (smoothed).
      alpha: probability that an answer is not the most likely class (smoothed).
      abstention_counts: whether an abstention is a success, as in the published
        code. Default False: the classifier must return a wrong class.
      batch_size: images that `classify` gets at a time. A smoothed image takes up
        `num_samples` of it. Too few images are padded, so nothing compiles twice.
    """

    step: str = "sign"
    step_size: float = 0.1
    epsilon: float = 0.3
    epsilon_factor: float = 1.1
    epsilon_every: int = 10
    max_steps: int = 200
    ground_metric: str = "l2"
    power: float = 1.0
    kernel_size: int = 5
    regularization: float = 1000.0
    projection_iterations: int = 400
    tolerance: float = 1e-5
    clamp: bool = True
    num_samples: int = 128
    n: int = 10_000
    alpha: float = 0.05
    abstention_counts: bool = False
    batch_size: int = 32

    def __post_init__(self):
        if self.step not in ("sign", "l2"):
            raise ValueError(f"step={self.step!r} is neither 'sign' nor 'l2'.")
        if not self.epsilon_factor >= 1:
            raise ValueError(
                f"epsilon_factor={self.epsilon_factor} is below 1; the ball grows. "
                f"Use 1.0 for an attack at one fixed radius."
            )
        for name in ("step_size", "epsilon", "regularization", "tolerance"):
            check_positive(**{name: getattr(self, name)})
        for name in (
            "epsilon_every",
            "max_steps",
            "projection_iterations",
            "num_samples",
            "n",
            "batch_size",
        ):
            check_whole(**{name: getattr(self, name)})
        check_alpha(self.alpha)
        window_cost(self.kernel_size, self.ground_metric, self.power)


class AttackResult(NamedTuple):
    """What an attack made of N images; NumPy arrays.

    Attributes:
      adversarial: `[N, H, W, C]`: where the answer first turned wrong, the last
        point tried for failures, the image itself if its answer was wrong before.
      success: `[N]` bool, whether an answer was wrong.
      epsilon: `[N]`, nominal radius at the first success; 0 for images that were
        wrong before, inf for failures. See `measure` for distances.
      steps: `[N]` int, steps taken.
      verified: `[N]` bool, whether the answer at `adversarial` was wrong again, by
        votes drawn afresh; False for failures.
    """

    adversarial: np.ndarray
    success: np.ndarray
    epsilon: np.ndarray
    steps: np.ndarray
    verified: np.ndarray


def sinkhorn_attack(
    images: jax.Array,
    labels: jax.Array,
    classify: Callable[[jax.Array], jax.Array],
    *,
    key: jax.Array | None = None,
    smoothing: smoothed.Smoothing | None = None,
    decide: Callable[[jax.Array, jax.Array], np.ndarray] | None = None,
    settings: SinkhornAttack = SinkhornAttack(),
) -> AttackResult:
    """Attacks images until their answer is wrong, each with a ball of its own size.

    An image leaves at its first success and its place goes to the next one. Results
    for an image depend on `key` and its position only, not on the other images (up
    to rounding, if the arithmetic of `classify` depends on its batch).

    Args:
      images: `[N, H, W, C]` float, in [0, 1], none all black.
      labels: `[N]` int, the right answers.
      classify: images `[B, H, W, C]` to logits `[B, K]`, differentiable. Pass weights
        as `jax.tree_util.Partial(apply, variables)` and they stay arguments of the
        compiled program.
      key: required with `smoothing` or `decide`; used up by this call.
      smoothing: attack the classifier smoothed by this noise; default `classify`
        itself.
      decide: `(keys [B], images [B, H, W, C]) -> labels [B]` in place of the default
        answer: `argmax` of the logits, or `smoothing.predict` by `settings.n` votes.
        Batches have one size throughout, filled up by repeating rows.
      settings: see `SinkhornAttack`.

    Returns:
      `AttackResult`.

    Raises:
      ValueError: images are outside [0, 1], not finite or all black; shapes do not
        agree; `key` is missing; `classify` returns NaN.

    Source: Levine & Feizi, arXiv:1910.10783, Section 6 and published code; Wong,
    Schmidt & Kolter, arXiv:1902.07906, for the attack on a plain classifier.
    """
    originals, right = check_images(images, labels)
    if key is None and (smoothing is not None or decide is not None):
        raise ValueError("An attack with smoothing or decide is random: pass key=.")
    ask = make_ask(classify, smoothing, decide, settings.n, settings.alpha)
    classify = as_argument(classify)
    perturb = None if smoothing is None else as_argument(smoothing.perturb)
    draws = 1 if smoothing is None else settings.num_samples
    batch = max(1, settings.batch_size // draws)
    # Undefended attacks draw nothing; a key keeps one program for both.
    keys = jax.random.split(jax.random.key(0) if key is None else key, 3)
    key_gradient, key_answer, key_verify = keys

    in_logs = _is_dark(originals, settings)
    any_in_logs = bool(in_logs.any())
    compiled = SinkhornAttack(**{name: getattr(settings, name) for name in _COMPILED})
    points, steps = originals.copy(), np.zeros(len(originals), np.int32)

    def wrong(key, rows):
        """Whether the answers at `points[rows]` are wrong."""
        blocks = []
        for block in np.split(rows, range(batch, len(rows), batch)):
            padded = np.resize(block, batch)
            if smoothing is not None and decide is None:
                padded = block  # Votes are costly, and one image at a time anyway.
            row_keys = fold_in(key, padded, steps[padded])
            blocks.append(ask(row_keys, points[padded])[: len(block)])
        return is_wrong(
            np.concatenate(blocks),
            right[rows],
            abstention_counts=settings.abstention_counts,
        )

    success = wrong(key_answer, np.arange(len(originals)))
    epsilon = np.where(success, 0.0, np.inf)
    waiting = np.flatnonzero(~success)
    while waiting.size:
        rows = waiting[:batch]
        padded = np.resize(rows, batch)
        growths = steps[padded] // settings.epsilon_every
        ball = settings.epsilon * settings.epsilon_factor**growths
        moved = _step(
            fold_in(key_gradient, padded, steps[padded]),
            originals[padded],
            points[padded],
            right[padded],
            ball.astype(points.dtype),
            np.where(np.arange(batch) < len(rows), 1 + in_logs[padded], 0),
            classify,
            perturb,
            settings=compiled,
            any_in_logs=any_in_logs,
        )
        points[rows] = np.asarray(moved)[: len(rows)]
        steps[rows] += 1
        success[rows] = fooled = wrong(key_answer, rows)
        epsilon[rows[fooled]] = ball[: len(rows)][fooled]
        done = fooled | (steps[rows] >= settings.max_steps)
        waiting = np.concatenate([rows[~done], waiting[batch:]])

    verified = success.copy()
    if success.any():
        verified[success] = wrong(key_verify, np.flatnonzero(success))
    return AttackResult(points, success, epsilon, steps, verified)


@functools.partial(jax.jit, static_argnames=("settings", "any_in_logs"))
def _step(
    keys,
    centers,
    points,
    labels,
    epsilon,
    how,
    classify,
    perturb,
    *,
    settings,
    any_in_logs,
):
    """One step and projection for a batch; for `how`, see `_project`."""

    def loss(points):
        copies = points[:, None]
        if perturb is not None:
            split = functools.partial(jax.random.split, num=settings.num_samples)
            copies = jax.vmap(jax.vmap(perturb, (0, None)))(
                jax.vmap(split)(keys), points
            )
        logits = classify(copies.reshape(-1, *points.shape[1:]))
        scores = jax.nn.log_softmax(logits).reshape(*copies.shape[:2], -1)
        own = jnp.take_along_axis(scores, labels[:, None, None], axis=-1)
        # Minus log of the mean softmax over copies, up to a constant.
        return -jax.nn.logsumexp(own, axis=1).sum()

    uphill = jax.grad(loss)(points)
    if settings.step == "sign":
        uphill = jnp.sign(uphill)
    else:
        norms = jnp.sqrt((uphill**2).sum((1, 2, 3), keepdims=True))
        uphill = uphill / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny)
    stepped = points + settings.step_size * uphill
    moved = _project(centers, stepped, epsilon, how, settings, any_in_logs)
    return jnp.clip(moved, 0, 1) if settings.clamp else moved


def _project(centers, points, epsilon, how, settings, any_in_logs):
    """Projects each row: not if `how` is 0, 1 directly, 2 in the log domain."""

    def project(center, point, epsilon, log_domain):
        return sinkhorn_projection(
            center,
            point,
            epsilon,
            regularization=settings.regularization,
            kernel_size=settings.kernel_size,
            ground_metric=settings.ground_metric,
            power=settings.power,
            max_iterations=settings.projection_iterations,
            tolerance=settings.tolerance,
            log_domain=log_domain,
        ).image

    ways: list[Callable[..., jax.Array]] = [
        lambda center, point, epsilon: point,
        functools.partial(project, log_domain=False),
        functools.partial(project, log_domain=True),
    ]
    if not any_in_logs:
        ways.pop()  # Spares compiling it.

    def one(row):
        return jax.lax.switch(row[0], ways, *row[1:])

    # On a CPU one by one: every image stops at its own last round and its arrays stay
    # in cache, several times faster than a mapped loop (measured).
    return jax.lax.platform_dependent(
        how,
        centers,
        points,
        epsilon,
        cpu=lambda *rows: jax.lax.map(one, rows),
        default=lambda *rows: jax.vmap(lambda *row: one(row))(*rows),
    )


def _is_dark(images, settings):
    """Which images a step moves too far, against their mass, for `log_domain=False`."""
    # About twice the range of `lambda (z - y)`, in units of mass one.
    span = 4 * settings.regularization * settings.step_size / images.sum((1, 2, 3))
    return span > 80
