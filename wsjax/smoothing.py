"""Smoothed classifiers: a noise law kept together with the theorem about it.

`certify` follows the published protocol: `n0` votes select a class, `n` fresh votes
bound its probability, and the theorem that belongs to the noise turns the bound into
a radius. Selection and estimation never share a draw, and no label is looked at.
"""

import dataclasses
import itertools
import math
import numbers
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from wsjax import certificates, confidence, gaussian, noise, spectrum, votes

ABSTAIN = -1


# Noise that a config can name, and the theorems about it: (law, tight, published).
_IID = {
    "flow_laplace": (
        noise.FlowLaplace,
        certificates.flow_laplace,
        certificates.flow_laplace_published,
    ),
    "flow_uniform": (noise.FlowUniform, certificates.flow_uniform, None),
    "pixel_laplace": (
        noise.PixelLaplace,
        certificates.pixel_laplace,
        certificates.pixel_laplace_published,
    ),
}
_GAUSSIAN = ("flow_gaussian", "laplacian_gaussian", "power_law")
NOISES = (*_IID, *_GAUSSIAN)
CERTIFICATES = ("tight", "published")
RUNNER_UP = ("never", "always", "auto")


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """A noise law and the theorem that turns probabilities under it into radii.

    Build it with `make_smoothing` or `gaussian_smoothing`, so that what is drawn and
    what is claimed agree.

    Attributes:
      noise: the law; `noise.perturb(key, image)` makes one noisy copy.
      theorem: `(p_lower, spread, ground_metric, runner_up) -> radius`, a function of
        `certificates`.
      spread: what the theorem needs to know of the noise: `sigma`, or `kappa` for
        Gaussian laws.
      ground_metric: "l1" or "l2".
      image_shape: the only shape of images the theorem holds for, or None for any.
    """

    noise: noise.NoiseLaw
    theorem: Callable
    spread: float
    ground_metric: str
    image_shape: tuple[int, ...] | None = None

    def perturb(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """One noisy copy of an image.

        Args:
          key: used up by this call.
          image: `[H, W, C]` float, in pixel units.

        Returns:
          `[H, W, C]` in the unit and dtype of `image`; not clipped.

        Raises:
          ValueError: the theorem does not hold for images of this shape.
        """
        self._check_shape(image.shape)
        return self.noise.perturb(key, image)

    def picture(self, image: jax.Array) -> jax.Array:
        """`NoiseLaw.picture`, after the same check."""
        self._check_shape(image.shape)
        return self.noise.picture(image)

    def strength(self, image: jax.Array) -> jax.Array:
        """`NoiseLaw.strength`."""
        return self.noise.strength(image)

    def added(self, key: jax.Array, image_shape: tuple[int, ...], dtype) -> jax.Array:
        """`NoiseLaw.added`."""
        return self.noise.added(key, image_shape, dtype)

    def _check_shape(self, shape):
        if self.image_shape is not None and shape != self.image_shape:
            raise ValueError(
                f"This smoothing certifies images of shape {self.image_shape}, not "
                f"{shape}; build another with image_shape={shape}."
            )

    def radius(self, p_lower, runner_up=None):
        """Certified radius in `ground_metric`; see the functions of `certificates`.

        Args:
          p_lower: lower confidence bound on the top class's probability, or array.
          runner_up: upper confidence bound on every other class's; default
            `1 - p_lower`.

        Returns:
          float64 in pixels x fraction of mass, 0 where nothing is certified.
        """
        return self.theorem(p_lower, self.spread, self.ground_metric, runner_up)

    def probability_for(self, radius: float) -> float:
        """The inverse of `radius`: which probability of a class certifies a radius.

        Every class with a probability above the result (it need not be known how far
        above) is certified at `radius`, by the theorem about one class alone.

        Args:
          radius: in `ground_metric`, pixels x fraction of mass; positive.

        Returns:
          float64 in (1/2, 1): the least at which `self.radius` reaches `radius`, so
          rounded up.

        Raises:
          ValueError: `radius` is not positive, or no probability below 1 certifies it.
        """
        if not (isinstance(radius, numbers.Real) and 0 < radius < math.inf):
            raise ValueError(f"radius={radius!r} is not a positive finite number.")
        # The theorem grows with p, and at 1/2 there is nothing. What rounding does to
        # its order is harmless: `high` itself always reaches the radius.
        low, high = 0.5, math.nextafter(1.0, 0.0)
        largest = float(self.radius(high))
        if largest < radius:
            raise ValueError(
                f"radius={radius!r} is out of reach of this noise: no probability below "
                f"1 certifies more than {largest:.6g}. Ask for less, or smooth with more "
                f"noise."
            )
        while low < (middle := 0.5 * (low + high)) < high:
            if self.radius(middle) >= radius:
                high = middle
            else:
                low = middle
        return high


def make_smoothing(
    noise: str,
    sigma: float,
    ground_metric: str,
    certificate: str = "tight",
    wrap: bool = False,
    *,
    gamma: float = 2.0,
    image_shape: tuple[int, ...] | None = None,
) -> Smoothing:
    """Builds a `Smoothing` from plain values, as a config holds them.

    Args:
      noise: "flow_laplace" (the paper), "pixel_laplace" (the paper's baseline),
        "flow_uniform"; or Gaussian: "flow_gaussian", "laplacian_gaussian" (a stencil,
        spectrum `sigma**2 lap**2`), "power_law" (spectrum `sigma**2 lap**gamma`).
      sigma: standard deviation per edge or pixel, as a fraction of image mass.
      ground_metric: "l1" (Manhattan) or "l2" (Euclidean); published tables use l2.
      certificate: "tight", the strongest theorem here for the noise, or
        "published", the bound of the paper (Laplace noise only).
      wrap: whether flow noise also crosses opposite borders of the image.
      gamma: exponent of "power_law".
      image_shape: `(H, W, C)`; Gaussian laws need it, their certificate depends on
        it, and refuse images of another shape.

    Returns:
      The `Smoothing`.

    Raises:
      ValueError: an unknown name, a bad `sigma`, or a combination without meaning.
    """
    if noise not in NOISES:
        raise ValueError(f"noise={noise!r} is not one of {NOISES}.")
    theorem = theorem_about(noise, certificate)
    if ground_metric not in certificates.GROUND_METRICS:
        raise ValueError(
            f"ground_metric={ground_metric!r} is not one of "
            f"{certificates.GROUND_METRICS}."
        )
    if wrap and not noise.startswith("flow_"):
        raise ValueError(f"wrap=True needs flow noise; noise={noise!r} has no edges.")
    if noise in _IID:
        law = _IID[noise][0](sigma, **({"wrap": wrap} if wrap else {}))
        return Smoothing(law, theorem, sigma, ground_metric)
    if image_shape is None:
        raise ValueError(
            f"noise={noise!r} needs image_shape=(H, W, C): how much Gaussian noise "
            f"certifies depends on the size of the image."
        )
    return gaussian_smoothing(
        _gaussian_law(noise, sigma, wrap, gamma, image_shape),
        image_shape,
        ground_metric,
    )


def theorem_about(noise: str, certificate: str) -> Callable:
    """The function of `certificates` for a noise by name.

    Args:
      noise: of `NOISES`; any other name stands for Gaussian noise with a law of its
        own.
      certificate: "tight" or "published".

    Returns:
      `(p_lower, spread, ground_metric, runner_up) -> radius`.

    Raises:
      ValueError: an unknown certificate, or none of that name for this noise.
    """
    if certificate not in CERTIFICATES:
        raise ValueError(f"certificate={certificate!r} is not one of {CERTIFICATES}.")
    _, tight, published = _IID.get(noise, (None, certificates.gaussian, None))
    if certificate == "tight":
        return tight
    if published is None:
        raise ValueError(
            f'certificate="published" exists for Laplace noise only, not for '
            f'noise={noise!r}; use certificate="tight".'
        )
    return published


def spread_is_sigma(noise: str) -> bool:
    """Whether the theorem about a noise of this name asks for `sigma`, not `kappa`."""
    return noise in _IID


def _gaussian_law(name, sigma, wrap, gamma, image_shape):
    if name == "flow_gaussian":
        return noise.FlowGaussian(sigma, wrap=wrap)
    if name == "laplacian_gaussian":
        return gaussian.StencilGaussian(sigma)
    power = spectrum.power_law(image_shape, sigma, gamma)
    return gaussian.ColouredGaussian(spectrum.square_root(power))


def gaussian_smoothing(
    law: noise.NoiseLaw, image_shape: tuple[int, ...], ground_metric: str
) -> Smoothing:
    """A Gaussian law with its theorem; `kappa` is computed here, from the law.

    Args:
      law: `noise.FlowGaussian` or a law of `gaussian`.
      image_shape: `(H, W, C)` of the images to certify.
      ground_metric: "l1" or "l2".

    Returns:
      The `Smoothing`.

    Raises:
      ValueError: the law is for other images or is not Gaussian, or an unknown
        metric.
    """
    shape = tuple(int(size) for size in image_shape)
    constant = gaussian.kappa(law, shape, ground_metric)
    return Smoothing(law, certificates.gaussian, constant, ground_metric, shape)


class Certificate(NamedTuple):
    """What `certify` found out about one image.

    Attributes:
      label: the certified class, or `ABSTAIN`.
      radius: certified radius in the smoothing's ground metric, in pixels x
        fraction of mass; 0.0 with `ABSTAIN`.
      selected: the class that won the selection, whether or not it was certified.
      p_lower: lower confidence bound on its probability under the noise.
      runner_up: upper confidence bound on every other class's probability, or None
        when `1 - p_lower` stood in for it.
      selection_votes: `[K]` int, sums to `n0`.
      votes: `[K]` int, sums to `n`; fresh draws.
    """

    label: int
    radius: float
    selected: int
    p_lower: float
    runner_up: float | None
    selection_votes: np.ndarray
    votes: np.ndarray


class Prediction(NamedTuple):
    """What `predict` found out about one image.

    Attributes:
      label: the class the smoothed classifier returns, or `ABSTAIN`.
      p_value: of "the two leading classes are equally likely".
      votes: `[K]` int, sums to `n`.
    """

    label: int
    p_value: float
    votes: np.ndarray


def check_image(image) -> None:
    """Refuses images about which no certificate can say anything.

    Args:
      image: array-like `[H, W, C]`; inspected on the host.

    Raises:
      ValueError: wrong number of axes, not float32 or float64, NaN or infinite or negative
        pixels, or no mass at all.
    """
    pixels = np.asarray(image)
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise ValueError(
            f"An image has shape [H, W, C], got {pixels.shape}. A grayscale image "
            f"needs a last axis of size 1; of a batch, pass one image at a time."
        )
    if pixels.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"Image pixels are {pixels.dtype}, not float32 or float64; convert first, "
            f"e.g. image.astype(np.float32) / 255."
        )
    if not np.isfinite(pixels).all():
        bad = int(np.size(pixels) - np.isfinite(pixels).sum())
        raise ValueError(f"{bad} of the image's {pixels.size} pixels are NaN or inf.")
    if pixels.min() < 0:
        raise ValueError(
            f"Pixels are mass and cannot be negative, but the smallest is "
            f"{pixels.min()}. Undo any standardisation (it belongs to the model, "
            f"after the noise) and pass pixels in [0, 1]."
        )
    if not pixels.sum() > 0:
        raise ValueError(
            "The image is all black: it has no mass to move, so its Wasserstein "
            "distance to other images is undefined. Leave it out."
        )


def check_protocol(
    *, n0: int, n: int, alpha: float, use_runner_up: bool | str = "never"
) -> None:
    """Refuses numbers of votes and levels with which nothing can be certified.

    Args:
      n0: votes that select the class.
      n: votes that bound its probability.
      alpha: probability that a certificate is wrong.
      use_runner_up: as in `certify`.

    Raises:
      ValueError: `n0` or `n` is not a positive whole number, `alpha` is outside
        (0, 1/2), or an unknown choice.
    """
    confidence.check_alpha(alpha)
    _runner_up_choice(use_runner_up)
    for name, value in (("n0", n0), ("n", n)):
        if int(value) != value or value < 1:
            raise ValueError(
                f"{name}={value!r} is not a positive whole number of votes; the paper "
                f"uses n0=1000 to select a class and n=10000 to bound it."
            )


def predict(
    key: jax.Array,
    image: jax.Array,
    classify: Callable[[jax.Array], jax.Array],
    smoothing: Smoothing,
    *,
    n: int,
    alpha: float,
    **counting,
) -> Prediction:
    """The smoothed classifier's answer, or `ABSTAIN` when the votes are too close.

    Args:
      key: used up by this call.
      image: `[H, W, C]` float, nonnegative, not all zero.
      classify: base classifier `[B, H, W, C] -> [B, K]` logits.
      smoothing: noise law and theorem.
      n: number of votes.
      alpha: probability of returning a class that is not the most likely one.
      **counting: `block_size`, `devices`, `backend` of `votes.count_votes`.

    Returns:
      A `Prediction`.

    Raises:
      ValueError: a bad argument, a bad image (`check_image`), or a classifier that
        returns NaN.

    Source: Cohen, Rosenfeld & Kolter 2019, PREDICT; as in the paper's code.
    """
    confidence.check_alpha(alpha)
    check_image(image)
    counts = fetch(
        votes.count_votes(key, image, classify, smoothing.perturb, n=n, **counting), n
    )
    return prediction_from_votes(counts, alpha)


def prediction_from_votes(counts: np.ndarray, alpha: float) -> Prediction:
    """`predict` on votes that were counted already; `counts` is `[K]` int."""
    confidence.check_alpha(alpha)
    p_value = confidence.top_two_p_value(counts)
    label = int(np.argmax(counts)) if p_value <= alpha else ABSTAIN
    return Prediction(label, p_value, counts)


def certify(
    key: jax.Array,
    image: jax.Array,
    classify: Callable[[jax.Array], jax.Array],
    smoothing: Smoothing,
    *,
    n0: int,
    n: int,
    alpha: float,
    use_runner_up: bool | str = "never",
    **counting,
) -> Certificate:
    """Certifies one image: no image closer than `radius` gets another answer.

    With probability at least 1 - alpha over the draws, the smoothed classifier (the
    most likely class of `classify` under the noise) returns `label` at every image
    with the same mass in every channel whose Wasserstein distance is less than
    `radius`. This assumes that `classify` is one fixed function of each image.

    Args:
      key: used up by this call.
      image: `[H, W, C]` float, nonnegative, not all zero.
      classify: base classifier `[B, H, W, C] -> [B, K]` logits.
      smoothing: noise law and theorem.
      n0: votes that select the class.
      n: fresh votes that bound its probability.
      alpha: probability that this one certificate is wrong.
      use_runner_up: "always" also bounds the other classes, at half of `alpha` each
        side; this pays when no class has nearly all votes. "auto" does so where the
        selection votes promise a larger radius that way (they are independent of
        those that bound, so choosing by them costs nothing). "never" does not.
      **counting: `block_size`, `devices`, `backend` of `votes.count_votes`.

    Returns:
      A `Certificate`.

    Raises:
      ValueError: a bad argument, a bad image (`check_image`), or a classifier that
        returns NaN.

    Source: Levine & Feizi, arXiv:1910.10783, Section 5; Cohen, Rosenfeld & Kolter
    2019, CERTIFY.
    """
    results = certify_each(
        [(key, image)],
        classify,
        smoothing,
        n0=n0,
        n=n,
        alpha=alpha,
        use_runner_up=use_runner_up,
        **counting,
    )
    return next(results)


def certify_each(
    keys_and_images: Iterable[tuple[jax.Array, jax.Array]],
    classify: Callable[[jax.Array], jax.Array],
    smoothing: Smoothing,
    *,
    n0: int,
    n: int,
    alpha: float,
    use_runner_up: bool | str = "never",
    groups: int | None = None,
    share_draws: int = 1,
    **counting,
) -> Iterator[Certificate]:
    """Certifies images one after another, keeping the devices busy in between.

    The votes of the next images are queued before those of the present ones are read,
    so the host's share of the work costs no device time. Every result equals that
    of `certify` with the same key.

    Args:
      keys_and_images: pairs `(key, image)`; read one batch ahead, which is one image,
        or `share_draws` of them for each group.
      classify: as in `certify`, and so the others.
      smoothing: see there.
      n0: see there.
      n: see there.
      alpha: see there.
      use_runner_up: see there.
      groups: how many images to count at a time, each on its own group of devices, as
        in `votes.count_votes_each`. With several processes all of them take part, with
        the same pairs. Default one image at a time on this process's own devices.
      share_draws: how many images get the same noise, drawn once; all keys must then be
        equal. Each certificate holds with probability 1 - alpha as before. What they no
        longer are is independent: more of them can be wrong at once, and less often.
      **counting: see there.

    Yields:
      One `Certificate` per pair, in order.

    Raises:
      ValueError: as `certify`, `groups` does not divide the number of devices,
        `share_draws` is no positive whole number, or keys differ that should not.
    """
    check_protocol(n0=n0, n=n, alpha=alpha, use_runner_up=use_runner_up)
    if int(share_draws) != share_draws or share_draws < 1:
        raise ValueError(
            f"share_draws={share_draws!r} is not a positive whole number of images; 1 "
            f"gives each its own noise."
        )
    classify = votes.as_argument(classify)
    perturb = votes.Addition(smoothing)
    if groups is not None:
        devices = counting.get("devices") or votes.all_devices()
        votes.check_groups(groups, len(devices))
        classify = votes.replicate(classify, devices)

    def launch(keys, images):
        if share_draws > 1:
            keys, images = _stacks(keys, images, share_draws)
        splits = [jax.random.split(key) for key in keys]
        return tuple(
            count([split[phase] for split in splits], images, trials)
            for phase, trials in enumerate((n0, n))
        )

    def count(keys, images, trials):
        common = {"n": trials, **counting}
        if groups is None:
            return votes.count_votes(keys[0], images[0], classify, perturb, **common)
        return votes.count_votes_each(
            keys, images, classify, perturb, groups=groups, **common
        )

    def conclude(images, selection, estimation):
        # One row for each image, or the counts of one image alone.
        rows = [
            np.reshape(counts, (-1, np.shape(counts)[-1]))[:images]
            for counts in (selection, estimation)
        ]
        for first, second in zip(*rows):
            yield certificate_from_votes(
                fetch(first, n0),
                fetch(second, n),
                smoothing,
                alpha=alpha,
                use_runner_up=use_runner_up,
            )

    pairs = iter(keys_and_images)
    pending = None
    while True:
        keys, images, failure, launched = [], [], None, None
        try:
            for key, image in itertools.islice(pairs, (groups or 1) * share_draws):
                check_image(image)
                keys.append(key)
                images.append(image)
        except ValueError as error:
            # A bad image does not cost the results of those before it.
            failure = error
        try:
            launched = (len(keys), *launch(keys, images)) if keys else None
        except ValueError as error:
            failure = failure or error
        if pending is not None:
            yield from conclude(*pending)
        if failure is not None:
            if launched is not None:
                yield from conclude(*launched)
            raise failure
        if launched is None:
            return
        pending = launched


def _stacks(keys, images, size):
    """Keys and images as stacks of one size; the last image fills up the last one."""
    if len({np.asarray(jax.random.key_data(key)).tobytes() for key in keys}) > 1:
        raise ValueError(
            "Images that share their noise need one key: pass the same one in every "
            "pair, or share_draws=1."
        )
    images = [*images, *images[-1:] * (-len(images) % size)]
    stacks = [np.stack(images[i : i + size]) for i in range(0, len(images), size)]
    return keys[:1] * len(stacks), stacks


def certificate_from_votes(
    selection_votes: np.ndarray,
    estimation_votes: np.ndarray,
    smoothing: Smoothing,
    *,
    alpha: float,
    use_runner_up: bool | str = "never",
) -> Certificate:
    """The statistical half of `certify`, on votes that were counted already.

    Args:
      selection_votes: `[K]` int counts that pick the class.
      estimation_votes: `[K]` int counts of draws independent of the former.
      smoothing: noise law and theorem.
      alpha: probability that this certificate is wrong.
      use_runner_up: as in `certify`.

    Returns:
      A `Certificate`.

    Raises:
      ValueError: `alpha` or the counts are outside their range.
    """
    if np.ndim(estimation_votes) != 1 or len(estimation_votes) < 2:
        raise ValueError(
            f"Votes of at least two classes are needed, got {estimation_votes!r}."
        )
    selected = int(np.argmax(selection_votes))
    n = int(estimation_votes.sum())
    runner_up = None
    if _bounds_others(use_runner_up, selection_votes, n, smoothing, alpha):
        p_lower = float(
            confidence.lower_bound(estimation_votes[selected], n, alpha / 2)
        )
        # A union bound over the other classes: all their bounds hold jointly.
        others = np.delete(estimation_votes, selected)
        each = alpha / (2 * len(others))
        runner_up = float(np.max(confidence.upper_bound(others, n, each)))
        runner_up = min(runner_up, 1.0 - p_lower)
    else:
        p_lower = float(confidence.lower_bound(estimation_votes[selected], n, alpha))
    certified = p_lower > (0.5 if runner_up is None else runner_up)
    return Certificate(
        label=selected if certified else ABSTAIN,
        radius=float(smoothing.radius(p_lower, runner_up)) if certified else 0.0,
        selected=selected,
        p_lower=p_lower,
        runner_up=runner_up,
        selection_votes=selection_votes,
        votes=estimation_votes,
    )


def _runner_up_choice(use_runner_up):
    choice = {True: "always", False: "never"}.get(use_runner_up, use_runner_up)
    if choice not in RUNNER_UP:
        raise ValueError(f"use_runner_up={use_runner_up!r} is not one of {RUNNER_UP}.")
    return choice


def _bounds_others(use_runner_up, selection_votes, n, smoothing, alpha):
    """Whether the other classes are bounded too; looks at selection votes alone."""
    choice = _runner_up_choice(use_runner_up)
    if choice != "auto":
        return choice == "always"
    # What the certificate would be if estimation voted like selection.
    share = np.asarray(selection_votes) / max(int(np.sum(selection_votes)), 1)
    expected = np.floor(share * n).astype(np.int64)
    expected[np.argmax(share)] += n - expected.sum()
    with_others, without = (
        certificate_from_votes(
            selection_votes, expected, smoothing, alpha=alpha, use_runner_up=way
        ).radius
        for way in ("always", "never")
    )
    return with_others > without


def fetch(counts: jax.Array, n: int) -> np.ndarray:
    """Waits for counts and checks that every draw voted.

    Args:
      counts: `[K]` int of `votes.count_votes`.
      n: number of draws.

    Returns:
      `[K]` int, on the host.

    Raises:
      ValueError: the counts do not sum to `n`: some logits were NaN or infinite.
    """
    votes_of = np.asarray(counts)
    if votes_of.sum() != n:
        raise ValueError(
            f"The classifier returned NaN or infinite logits for {n - votes_of.sum()} "
            f"of {n} noisy copies. Check its weights, and that it accepts pixels "
            f"below 0 and above 1."
        )
    return votes_of
