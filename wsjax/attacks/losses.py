"""What an attack descends on, and when it counts an answer as wrong."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from wsjax.votes import logits_of

LOSSES = ("margin", "cross_entropy", "dlr")

# Between the largest and the smallest logit. Softmaxes of much less are all alike, and
# those of much more have no gradient in float32.
_LEAST_SPREAD, _MOST_SPREAD = 4.0, 80.0
_SIMPLEX = 1e-3  # How far probabilities may be from adding up to one.


def margin(logits: jax.Array, labels: jax.Array, targeted: bool = False) -> jax.Array:
    """How far each answer is from being wrong; negative once it is.

    Args:
      logits: `[B, K]`.
      labels: `[B]` int: the right answers, or the wanted ones if `targeted`.
      targeted: whether an answer must be the label to count as wrong.

    Returns:
      `[B]`: the logit of the label minus the largest other; minus that if `targeted`.

    Source: Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks",
    2017.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    others = jnp.where(_is_label(logits, labels), -jnp.inf, logits).max(axis=1)
    return others - own if targeted else own - others


def loss(
    logits: jax.Array, labels: jax.Array, name: str, targeted: bool = False
) -> jax.Array:
    """`[B]`: what an attack makes small.

    Args:
      logits: `[B, K]`.
      labels: as in `margin`, as is `targeted`.
      name: "margin"; "cross_entropy": log-odds of the label (minus that if `targeted`),
        whose gradient is that of its log-probability over `1 - p`, and does not vanish
        where `p` is one to all digits; or "dlr": the margin over the spread of the
        largest logits, which does not change with their scale.
      targeted: see `margin`.

    Raises:
      ValueError: another name.

    Source: for "dlr", Croce & Hein, "Reliable evaluation of adversarial robustness",
    2020.
    """
    if name == "margin":
        return margin(logits, labels, targeted)
    if name == "cross_entropy":
        others = jnp.where(_is_label(logits, labels), -jnp.inf, logits)
        own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        odds = own - jax.nn.logsumexp(others, axis=1)
        return -odds if targeted else odds
    if name == "dlr":
        largest = jax.lax.top_k(logits, min(3, logits.shape[1]))[0]
        spread = jax.lax.stop_gradient(largest[:, 0] - largest[:, -1])
        return margin(logits, labels, targeted) / jnp.maximum(spread, 1e-12)
    raise ValueError(f"loss={name!r} is not one of {LOSSES}.")


def in_usual_unit(outputs: jax.Array) -> jax.Array:
    """Logits that an attack can descend on, of outputs in any unit.

    Answers stay the same. Probabilities (outputs of at least 0 that add up to one) become
    their logarithms, as their own gradients vanish where one of them is nearly one.
    Logits that are less than 4 or more than 80 apart are scaled to be that far apart:
    those in between, of networks trained by cross-entropy, stay what they are.

    Args:
      outputs: `[..., K]`.

    Returns:
      `[..., K]`; no gradient passes through the choice of the scale.
    """
    tiny = jnp.finfo(outputs.dtype).tiny
    on_simplex = (outputs >= 0).all(-1, keepdims=True)
    on_simplex &= jnp.abs(outputs.sum(-1, keepdims=True) - 1) < _SIMPLEX
    logits = jnp.where(on_simplex, jnp.log(jnp.maximum(outputs, tiny)), outputs)
    fixed = jax.lax.stop_gradient(logits)
    spread = (fixed.max(-1) - fixed.min(-1))[..., None]
    if outputs.ndim == 3:  # One scale for all copies: they are averaged.
        spread = spread.mean(1, keepdims=True)
    scale = jnp.clip(spread, _LEAST_SPREAD, _MOST_SPREAD) / jnp.maximum(spread, tiny)
    return logits * jnp.where(jnp.isfinite(scale), scale, 1)


def mean_scores(
    images: jax.Array,
    keys: jax.Array | None,
    classify: Callable[[jax.Array], jax.Array],
    perturb: Callable[[jax.Array, jax.Array], jax.Array] | None,
    num_samples: int,
) -> tuple[jax.Array, jax.Array]:
    """Scores of a classifier, plain or averaged over noisy copies.

    Args:
      images: `[B, H, W, C]`.
      keys: `[B]`, used up; None without noise.
      classify: images to logits.
      perturb: noise on one image, or None for the plain classifier.
      num_samples: noisy copies of each image.

    Returns:
      `(scores, votes)`, `[B, K]` each: logits (`in_usual_unit`), or the logarithm of the
      mean softmax over copies, which has gradients where votes have none; and the shares
      of votes (one for the answer of the plain classifier).
    """
    if perturb is None:
        logits = in_usual_unit(logits_of(classify, images))
        return logits, jax.nn.one_hot(logits.argmax(-1), logits.shape[-1])
    split = jax.vmap(lambda key: jax.random.split(key, num_samples))(keys)
    copies = jax.vmap(jax.vmap(perturb, (0, None)))(split, images)
    copied = copies.reshape(-1, *images.shape[1:])
    logits = logits_of(classify, copied)
    logits = in_usual_unit(logits.reshape(*copies.shape[:2], -1))
    votes = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1]).mean(axis=1)
    scores = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=1)
    return scores - jnp.log(num_samples), votes


def uphill(
    points: jax.Array,
    labels: jax.Array,
    classify: Callable[[jax.Array], jax.Array],
    perturb: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    keys: jax.Array | None = None,
    num_samples: int = 1,
) -> jax.Array:
    """Gradient of the cross-entropy of the right answers, up to a positive factor.

    Args:
      points: `[B, H, W, C]`, where.
      labels: `[B]` int, the right answers.
      classify: images to logits.
      perturb: see `mean_scores`, as are `keys` and `num_samples`.
      keys: `[B]`, used up; None without noise.
      num_samples: noisy copies of each image.

    Returns:
      `[B, H, W, C]`.
    """

    def right(points):
        scores, _ = mean_scores(points, keys, classify, perturb, num_samples)
        return loss(scores, labels, "cross_entropy").sum()

    return -jax.grad(right)(points)


def with_largest_one(slopes: jax.Array) -> jax.Array:
    """Slopes `[B, H, W, C]` scaled to a largest entry of one per image.

    Zero where they vanish or are not numbers.
    """
    steepest = jnp.abs(slopes).max((1, 2, 3), keepdims=True)
    usable = (steepest > 0) & jnp.isfinite(steepest)
    return jnp.where(usable, slopes / jnp.where(usable, steepest, 1), 0)


def with_norm_one(slopes: jax.Array) -> jax.Array:
    """Likewise, to a Euclidean norm of one; squares of slopes may leave float32."""
    slopes = with_largest_one(slopes)
    norms = jnp.sqrt((slopes**2).sum((1, 2, 3), keepdims=True))
    return slopes / jnp.maximum(norms, 1)


def _is_label(logits, labels):
    return jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
