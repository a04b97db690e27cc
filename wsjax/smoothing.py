"""Smoothed classifiers: a noise law kept together with the scores it gives.

What is drawn and what is claimed are one object, built here from plain values or from a
Gaussian law. `certifiers` draws the votes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from wsjax import certificates, gaussian, noise, spectrum, text, votes
from wsjax.certificates import ProbabilityScores
from wsjax.metrics import check_ground_metric

THEOREMS = ("tight", "published")


class Law(NamedTuple):
    """A noise law that a config can name, and the theorems about it.

    Attributes:
      make: `(sigma=..., ...) -> NoiseLaw`, with the settings of `takes`.
      tight: `(law, image_shape, ground_metric) -> ProbabilityScores`, the strongest
        theorem here.
      published: the bound of the paper, likewise, where there is one.
      takes: which of `wrap`, `gamma` and `image_shape` the law has, beside `sigma`.
        Where it has `image_shape`, the theorem holds for images of this shape alone.
    """

    make: Callable[..., noise.NoiseLaw]
    tight: Callable[..., ProbabilityScores]
    published: Callable[..., ProbabilityScores] | None = None
    takes: tuple[str, ...] = ()


def _of_sigma(theorem):
    """A theorem that holds for images of any shape and asks for `sigma` alone."""
    return lambda law, image_shape, ground_metric: theorem(law.sigma, ground_metric)


def gaussian_scores(
    law: noise.NoiseLaw, image_shape: tuple[int, ...], ground_metric: str
) -> ProbabilityScores:
    """Scores of a Gaussian law; arguments and errors as in `gaussian_smoothing`.

    Runs are known by their scale, and may go on on another machine, which has other last
    digits of `kappa`: it is rounded up to 32 bits, for 5e-10 of a radius at most.
    """
    found = gaussian.kappa(law, image_shape, ground_metric)
    fraction, exponent = math.frexp(found)
    kappa = math.ldexp(math.ceil(math.ldexp(fraction, 32)), exponent - 32)
    return certificates.gaussian(kappa, ground_metric)


def _flow_gaussian(sigma, wrap, image_shape):
    return noise.FlowGaussian(sigma, wrap=wrap)


def _laplacian_gaussian(sigma, image_shape):
    return gaussian.StencilGaussian(sigma)


def _power_law(sigma, gamma, image_shape):
    power = spectrum.power_law(image_shape, sigma, gamma)
    return gaussian.ColouredGaussian(spectrum.square_root(power))


# A law of your own: its class and its theorem in a file, and a line here.
LAWS = {
    "flow_laplace": Law(
        noise.FlowLaplace,
        _of_sigma(certificates.flow_laplace),
        _of_sigma(certificates.flow_laplace_published),
        ("wrap",),
    ),
    "flow_uniform": Law(
        noise.FlowUniform, _of_sigma(certificates.flow_uniform), None, ("wrap",)
    ),
    "pixel_laplace": Law(
        noise.PixelLaplace,
        _of_sigma(certificates.pixel_laplace),
        _of_sigma(certificates.pixel_laplace_published),
    ),
    "flow_gaussian": Law(
        _flow_gaussian, gaussian_scores, None, ("wrap", "image_shape")
    ),
    "laplacian_gaussian": Law(
        _laplacian_gaussian, gaussian_scores, None, ("image_shape",)
    ),
    "power_law": Law(_power_law, gaussian_scores, None, ("gamma", "image_shape")),
}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["noise"],
    meta_fields=["scores", "image_shape"],
)
@dataclasses.dataclass(frozen=True)
class Smoothing(text.Short):
    """A noise law and the scores that class probabilities under it give.

    Build it with `make_smoothing` or `gaussian_smoothing`, so that what is drawn and
    what is claimed agree.

    Attributes:
      noise: the law; `noise.perturb(key, image)` makes one noisy copy.
      scores: what a probability under it is worth, a theorem of `certificates`.
      image_shape: the only shape of images the theorem holds for, or None for any.
    """

    noise: noise.NoiseLaw
    scores: ProbabilityScores
    image_shape: tuple[int, ...] | None = None

    @property
    def ground_metric(self) -> str:
        """The metric of the radii, "l1" or "l2"."""
        return self.scores.ground_metric

    def perturb(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """One noisy copy of an image.

        Args:
          key: used up by this call.
          image: `[H, W, C]` float, in pixel units.

        Returns:
          `[H, W, C]` in the unit and dtype of `image`; not clipped.

        Raises:
          ValueError: the theorem does not hold for images of this shape, or `key` is none.
        """
        votes.check_key(key)
        self.check_shape(image.shape)
        return self.noise.perturb(key, image)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError if the theorem does not hold for images of this shape."""
        if self.image_shape is not None and shape != self.image_shape:
            raise ValueError(
                f"This smoothing certifies images of shape {self.image_shape}, not "
                f"{shape}; build another with image_shape={shape}."
            )


def make_smoothing(
    noise: str,
    sigma: float,
    ground_metric: str,
    theorem: str = "tight",
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
      theorem: "tight", the strongest theorem here for the noise, or
        "published", the bound of the paper (Laplace noise only).
      wrap: whether flow noise also crosses opposite borders of the image.
      gamma: exponent of "power_law"; the others have none.
      image_shape: `(H, W, C)`; Gaussian laws need it, their certificate depends on
        it, and refuse images of another shape.

    Returns:
      The `Smoothing`.

    Raises:
      ValueError: an unknown name, a bad `sigma`, or a combination without meaning.
    """
    if noise not in LAWS:
        raise ValueError(f"noise={noise!r} is not one of {tuple(LAWS)}.")
    named = LAWS[noise]
    scores_of = theorem_about(noise, theorem)
    check_ground_metric(ground_metric)
    if wrap and "wrap" not in named.takes:
        raise ValueError(f"wrap=True needs flow noise; noise={noise!r} has no edges.")
    if "image_shape" not in named.takes:
        image_shape = None
    elif image_shape is None:
        raise ValueError(
            f"noise={noise!r} needs image_shape=(H, W, C): how much Gaussian noise "
            f"certifies depends on the size of the image."
        )
    else:
        image_shape = tuple(int(size) for size in image_shape)
    given: dict[str, Any] = {"wrap": wrap, "gamma": gamma, "image_shape": image_shape}
    law = named.make(sigma=sigma, **{name: given[name] for name in named.takes})
    return Smoothing(law, scores_of(law, image_shape, ground_metric), image_shape)


def theorem_about(
    noise: str, theorem: str = "tight"
) -> Callable[..., ProbabilityScores]:
    """The theorem about a noise by name.

    Args:
      noise: of `LAWS`.
      theorem: "tight" or "published".

    Returns:
      `(law, image_shape, ground_metric) -> ProbabilityScores`.

    Raises:
      ValueError: an unknown theorem, or none of that name for this noise.
    """
    if theorem not in THEOREMS:
        raise ValueError(f"theorem={theorem!r} is not one of {THEOREMS}.")
    if theorem == "tight":
        return LAWS[noise].tight if noise in LAWS else gaussian_scores
    published = LAWS[noise].published if noise in LAWS else None
    if published is None:
        raise ValueError(
            f'theorem="published" exists for Laplace noise only, not for '
            f'noise={noise!r}; use theorem="tight".'
        )
    return published


def gaussian_smoothing(
    law: noise.NoiseLaw, image_shape: tuple[int, ...], ground_metric: str
) -> Smoothing:
    """A Gaussian law with its scores; `kappa` is computed here, from the law.

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
    return Smoothing(law, gaussian_scores(law, shape, ground_metric), shape)
