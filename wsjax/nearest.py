"""Nearest neighbours in exact Wasserstein distance, and scores that certify themselves.

Theorem. Given labelled images x_i, let d_i = W(mu, x_i), and for a class k let

    s_k(mu) = F(the m smallest d_i of class k),
    F(d_1, .., d_m) = -tau log mean exp(-d / tau),

the smallest of the m for tau = 0 and their mean for tau = inf. Then |s_k(mu) - s_k(mu')|
<= W(mu, mu'). Hence the class of least s_k does not change within half the lead,
(s_second - s_first) / 2: one score rises, and another falls, by at most the distance.

Proof. W is a metric on images of equal mass, so |W(mu, x_i) - W(mu', x_i)| <=
W(mu, mu') for every i. Sorting does not increase the largest difference of two lists:
the j-th smallest rises by no more than all do. F is nondecreasing in every d_i, and
F(d + t) = F(d) + t; so if no d_i rises by more than t, F does not either.

Colour. Mass stays in its channel: W is the sum over channels of share_c W_c, where share_c
is the fraction of the mass of mu that is in channel c, and W_c the distance of the
channels as images of mass one. Each channel of x_i is taken as rescaled to the mass that mu
has in it. An adversary cannot change these masses, so the x_i are the same everywhere in
the ball, and the theorem is about them. An x_i that is black in a channel in which mu has
mass is no candidate: its distance is infinite, all over the ball. Channels in which mu is
black do not matter.

Few distances are solved for. Lower bounds discard the others: projections to four lines,
then potentials from a few rounds of Sinkhorn's iteration, each proved, whatever the
rounding of how it was found. The search is by the best bound first, so what it returns is
what solving for all would. Distances are in pixels x fraction of the mass, as radii are.
NumPy and SciPy only, on one core: set OMP_NUM_THREADS=1 where other work wants the others.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist

from wsjax import metrics, transport
from wsjax.images import LEAST_MASS, MOST_MASS, has_usable_mass
from wsjax.lipschitz import soft_minimum

# Orthogonal directions, in whole pixels so that projections fall on a grid.
_AXES, _DIAGONALS = ((1, 0), (0, 1)), ((1, 1), (1, -1))

# Bounds get closer level by level: pairs of Sinkhorn's smoothing, in pixels, and rounds
# at it. Distances are solved for on the level after the last.
_SCHEDULES = (((0.8, 4), (0.4, 4)), ((0.4, 8), (0.2, 12), (0.1, 16)))
_SOLVED = len(_SCHEDULES) + 1
_BATCH = 64  # Candidates per matrix product.
_DUAL_ROUNDING = 2.0**-20


class Scores(NamedTuple):
    """Scores of one image: soft minima of its distances to the images of each class.

    Attributes:
      lower: `[K]` float64, not above the scores; infinite for a class without enough
        candidates.
      upper: `[K]` float64, not below them. For the two smallest scores the two agree,
        to `Index.precision`; no other score is below `lower` of the second. Infinite
        where no distance was needed.
      nearest: `[2]` int, the nearest image of the class of least score, and that of
        the second; -1 where that is infinite.
      distances: `[2]` float64, to these.
      num_exact: how many distances were solved for.
    """

    lower: np.ndarray
    upper: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray
    num_exact: int


class Index:
    """Labelled images, prepared for questions which of them are nearest.

    Attributes:
      image_shape: `(H, W, C)`.
      images: `[N, H, W, C]`, as given.
      labels: `[N]` int.
      ground_metric: "l1" or "l2".
      precision: by how much `upper` may exceed `lower` of one of the best two classes,
        in pixels x fraction of mass; proved with POT, and not with SciPy alone.
    """

    def __init__(self, images: ArrayLike, labels: ArrayLike, ground_metric: str):
        """Prepares the search.

        Args:
          images: `[N, H, W, C]`, integers or floats, nonnegative, none black, each in
            any unit. They are kept as they are, and not copied; projections take some
            24 (H + W) C bytes for each besides.
          labels: `[N]` integers from 0.
          ground_metric: "l1" or "l2".

        Raises:
          ValueError: a shape, label or metric is not as above; a pixel is NaN, infinite
            or negative; an image is black.
        """
        metrics.check_ground_metric(ground_metric)
        images, labels = np.asarray(images), np.asarray(labels)
        if images.ndim != 4 or not images.size:
            raise ValueError(
                f"images has shape {images.shape}; expected [N, H, W, C], none of them "
                f"zero. Gray images have C = 1: images[..., None]."
            )
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels has shape {labels.shape} and type {labels.dtype}; expected "
                f"{len(images)} integers, one for each image."
            )
        if labels.min() < 0:
            raise ValueError(
                f"Label {labels.min()} of image {labels.argmin()} is negative; classes "
                f"are numbered from 0."
            )
        self.image_shape, self.images, self.labels = images.shape[1:], images, labels
        self.ground_metric = ground_metric
        height, width, channels = self.image_shape
        self._images = images.reshape(len(images), height * width, channels)
        self._totals = np.empty((len(images), channels))
        pixels = np.argwhere(np.ones((height, width)))
        distance = metrics.pixel_distances(height, width, ground_metric)
        self._distance = distance.astype(np.float32)
        self._below, self._margins = {}, {}
        for direction in _AXES + _DIAGONALS:
            position = pixels @ direction
            steps = np.arange(position.min(), position.max())
            self._below[direction] = np.float64(position[:, None] <= steps)
            self._margins[direction] = np.empty((channels, len(images), len(steps)))
        # In batches: the images take eight times their memory in float64.
        for start in range(0, len(images), 4096):
            part = slice(start, start + 4096)
            self._totals[part] = _checked(self._images[part], start)
            for c in range(channels):
                masses = self._masses(part, c)
                for direction, below in self._below.items():
                    self._margins[direction][c, part] = masses @ below
        # What `transport.distance_bounds` leaves unsaid: moved mass of less than 1e-12
        # in each channel, and rounding in float64, of distances up to H + W.
        self._rounding = 1e-12 * (channels + 1) * (height + width)
        self.precision = 2 * self._rounding + transport.OPTIMAL * (height + width)

    def scores(
        self,
        image: ArrayLike,
        neighbours: int = 1,
        softness: float = 0.0,
        num_classes: int | None = None,
    ) -> Scores:
        """Scores of all classes, exact for the best two.

        Args:
          image: `[H, W, C]`, nonnegative, in any unit.
          neighbours: m, how many images of a class its score depends on.
          softness: tau in pixels x fraction of the mass; 0 for the nearest alone,
            `math.inf` for the mean of all `neighbours`.
          num_classes: K; by default one more than the largest label.

        Returns:
          `Scores`. The radius of the theorem is at least half the difference between
          the second smallest of `lower` and `upper` of the class of least `lower`.

        Raises:
          ValueError: the image has another shape; a pixel is NaN, infinite or negative;
            the image is black; a class has images, but fewer than `neighbours`; or an
            argument is out of its range.
        """
        self.check(neighbours, softness, num_classes)
        num_classes = num_classes or int(self.labels.max()) + 1
        groups = [np.flatnonzero(self.labels == k) for k in range(num_classes)]
        search = _Search(self, image, groups, neighbours, softness)
        first, second = search.best(2) if num_classes > 1 else (*search.best(1), None)
        nearest = [search.nearest(first)]
        nearest.append((-1, np.inf) if second is None else search.nearest(second))
        indices, distances = map(np.array, zip(*nearest))
        return Scores(search.low, search.high, indices, distances, search.num_exact)

    def check(
        self, neighbours: int, softness: float, num_classes: int | None = None
    ) -> None:
        """Raises ValueError for settings that `scores` would refuse."""
        if num_classes is not None and num_classes <= self.labels.max():
            raise ValueError(
                f"num_classes={num_classes}, but there is a label {self.labels.max()}; "
                f"it has to be larger than all labels."
            )
        if not softness >= 0:
            raise ValueError(
                f"softness={softness} is not a number of at least 0: 0 is the nearest "
                f"image alone, math.inf the mean of all neighbours."
            )
        sizes = np.bincount(self.labels)
        if not 1 <= neighbours <= sizes[sizes > 0].min():
            raise ValueError(
                f"neighbours={neighbours} is not from 1 to {sizes[sizes > 0].min()}, the "
                f"number of images of the smallest class, "
                f"{np.where(sizes > 0, sizes, len(self.labels) + 1).argmin()}."
            )

    def nearest_other(self, image: ArrayLike, label: int) -> tuple[int, float]:
        """The nearest image with another label.

        Args:
          image: as in `scores`.
          label: the label to leave out.

        Returns:
          Its index and its distance; -1 and infinity if there is none.

        Raises:
          ValueError: as `scores`, about the image.
        """
        search = _Search(self, image, [np.flatnonzero(self.labels != label)], 1, 0.0)
        return search.nearest(*search.best(1))

    def _masses(self, chosen, channel):
        """A channel of some images, as fractions of its mass, `[n, H W]` float64."""
        totals = self._totals[chosen, channel]
        return (
            self._images[chosen, :, channel] / np.where(totals > 0, totals, 1)[:, None]
        )

    def _margin_bounds(self, mass, channel):
        """Lower bounds `[N]` on the distances in a channel from projections to lines.

        Say mass moves by d, on average over a best plan. |d_0| and |d_1| along the
        axes average at least the distances of the two margins; on a line that is the
        L1 distance of the distribution functions. The mean norm of d is at least the
        norm of the means of (|d_0|, |d_1|). Under "l2" this holds for the diagonals
        too, as unit vectors; under "l1" each of d_0 + d_1 and d_0 - d_1 is at most
        the norm of d.

        `mass` is `[H W]`, of sum one.
        """
        along = {
            direction: cdist(
                (mass @ self._below[direction])[None], margins[channel], "cityblock"
            )[0]
            for direction, margins in self._margins.items()
        }
        straight, oblique = ([along[d] for d in pair] for pair in (_AXES, _DIAGONALS))
        if self.ground_metric == "l1":
            return np.maximum(np.sum(straight, 0), np.max(oblique, 0))
        return np.maximum(np.hypot(*straight), np.hypot(*oblique) / np.sqrt(2))

    def _dual_bounds(self, mass, chosen, channel, schedule):
        """Lower bounds `[n]` on distances in a channel, each from a potential.

        Sinkhorn's iteration finds prices of the pixels that take mass. Whatever the
        prices, `_dual_value` is a bound; so it depends neither on convergence nor on
        rounding in the iteration. The smaller the smoothing, the closer.
        """
        excess = (mass - self._masses(chosen, channel)).T
        used = np.flatnonzero(excess.any(1))
        if not len(used):
            return np.zeros(len(chosen))
        excess, distance = excess[used], self._distance[np.ix_(used, used)]
        prices = _sinkhorn_prices(excess, distance, schedule)
        each = zip(excess.T, prices.T)
        values = np.array([_dual_value(distance, *pair) for pair in each])
        return values - _DUAL_ROUNDING * self._distance.max()


class _Search:
    """Bounds on all distances from one image, as close as they had to be so far.

    Candidates come in groups, whose scores are soft minima of their distances.

    Attributes:
      low: `[G]` lower bounds on the scores.
      high: `[G]` upper bounds.
      num_exact: how many distances were solved for.
    """

    def __init__(self, index, image, groups, neighbours, softness):
        image = np.asarray(image)
        if image.shape != index.image_shape:
            raise ValueError(
                f"The image has shape {image.shape}, those of the index "
                f"{index.image_shape}; they have to agree."
            )
        self.index, self.groups = index, groups
        self.neighbours, self.softness = neighbours, softness
        flat = np.float64(image).reshape(-1, image.shape[2])
        totals = _checked(flat[None], None)[0]
        self.channels = np.flatnonzero(totals)
        self.shares = totals / totals.sum()
        self.masses = flat / np.where(totals > 0, totals, 1)
        self.lower = sum(
            self.shares[c] * index._margin_bounds(self.masses[:, c], c)
            for c in self.channels
        )
        self.upper = np.full(len(index.labels), np.inf)
        self.level = np.zeros(len(index.labels), np.int8)
        unreachable = (index._totals[:, self.channels] == 0).any(1)
        self.lower[unreachable], self.level[unreachable] = np.inf, _SOLVED
        self.lower = np.maximum(self.lower - index._rounding, 0)
        self.num_exact = 0
        self.low, self.high = np.full((2, len(groups)), np.inf)
        # Of each group, the candidates whose bounds make its `low`.
        self.leading = [members[:0] for members in groups]
        for group in range(len(groups)):
            self._update(group)

    def best(self, number):
        """Finds that many groups of least scores; these are then exact."""
        while True:
            ranked = self.low.argsort(kind="stable")[:number]
            for group in ranked:
                leading = self.leading[group]
                todo = leading[self.level[leading] < _SOLVED]
                if len(todo):
                    self._refine(group, todo, number)
                    break
            else:
                return ranked

    def nearest(self, group):
        """Index and distance of the nearest candidate of one of the best groups."""
        leading = self.leading[group]
        if np.isinf(self.low[group]):
            return -1, np.inf
        nearest = leading[self.upper[leading].argmin()]
        return int(nearest), float(self.upper[nearest] - self.index._rounding)

    def _refine(self, group, todo, number):
        """Raises the bounds of `todo`, and of others of the group that are in the way."""
        index, members = self.index, self.groups[group]
        level = self.level[todo].min()
        # Beyond, a candidate affects neither the score of the group nor which is best.
        limit = min(
            _smallest(self.upper[members], self.neighbours)[-1],
            np.partition(self.high, number - 1)[number - 1],
        )
        if level == len(_SCHEDULES) or (level and np.isinf(limit)):
            first = todo[self.lower[todo].argmin()]
            self.lower[first], self.upper[first] = self._exact(first)
            self.level[first] = _SOLVED
        else:
            limit = max(limit, self.lower[todo].max())
            rough = (self.level[members] == level) & (self.lower[members] <= limit)
            chosen = members[rough]
            if len(chosen) > _BATCH:
                chosen = chosen[self.lower[chosen].argpartition(_BATCH)[:_BATCH]]
            bounds = sum(
                self.shares[c]
                * index._dual_bounds(self.masses[:, c], chosen, c, _SCHEDULES[level])
                for c in self.channels
            )
            self.lower[chosen] = np.maximum(
                self.lower[chosen], bounds - index._rounding
            )
            self.level[chosen] += 1
        self._update(group)

    def _update(self, group):
        members = self.groups[group]
        if not len(members):
            return
        lower = self.lower[members]
        first = lower.argpartition(self.neighbours - 1)[: self.neighbours]
        self.leading[group] = members[first]
        self.low[group] = soft_minimum(lower[first], self.softness)
        upper = _smallest(self.upper[members], self.neighbours)
        self.high[group] = soft_minimum(upper, self.softness)

    def _exact(self, candidate):
        """Bounds on a distance that differ by rounding."""
        self.num_exact += 1
        index = self.index
        channels = range(len(self.shares))
        masses = np.stack([index._masses([candidate], c)[0] for c in channels], -1)
        image, other = (
            (self.shares * each).reshape(index.image_shape)
            for each in (self.masses, masses)
        )
        lower, upper = transport.distance_bounds(image, other, index.ground_metric)
        return max(lower - index._rounding, 0.0), upper + index._rounding


def _smallest(values, number):
    return np.partition(values, number - 1)[:number]


def _checked(images, start):
    """Mass per channel `[n, C]` of images `[n, P, C]`, the first of which is `start`."""
    totals = images.sum(1, dtype=np.float64)
    lowest = images.min((1, 2)) if images.dtype.kind != "u" else np.zeros(len(images))
    for wrong, what, remedy in (
        (~np.isfinite(totals).all(1), "has NaN or infinite pixels", "Replace them"),
        (lowest < 0, "has negative pixels", "Mass is nonnegative: clip them at zero"),
        (~totals.any(1), "is all black", "It has no mass to move: leave it out"),
        (
            ~has_usable_mass(totals.sum(1)),
            f"has a mass outside [{LEAST_MASS:g}, {MOST_MASS:g}]",
            "Rescale it",
        ),
    ):
        if wrong.any():
            number = wrong.argmax()
            where = "The image" if start is None else f"Image {start + number}"
            raise ValueError(
                f"{where} {what}: the lowest is {images[number].min()}, the sum of all "
                f"{totals[number].sum()}. {remedy}."
            )
    return totals


def _sinkhorn_prices(excess, distance, schedule):
    """Near-optimal prices `[P, n]` of pixels that take mass, for `n` transports.

    In single precision while that has the range: kernels are bounded, lest far pairs
    underflow to zero.
    """
    longest = distance.max()
    prices = np.zeros_like(excess)
    for smoothing, rounds in schedule:
        single = smoothing >= 0.2
        dtype = np.float32 if single else np.float64
        give, take = excess.clip(min=0).astype(dtype), -excess.clip(max=0).astype(dtype)
        kernel = np.exp(-np.minimum(distance / dtype(smoothing), 80 if single else 600))
        with np.errstate(all="ignore"):  # Whatever fails is replaced below.
            scaling = np.where(take > 0, np.exp(prices / smoothing), 0).astype(dtype)
            for _ in range(rounds):
                scaling = take / (kernel @ (give / (kernel @ scaling)))
            prices = smoothing * np.log(scaling)
        prices = np.where(np.isfinite(prices), prices, -longest)
    return prices.clip(-2 * longest, 2 * longest).astype(np.float32)


def _dual_value(distance, excess, prices):
    """What prices `[P]` of pixels that take mass prove, for one transport `[P]`.

    The least `distance(., j) - prices[j]` is 1-Lipschitz, whatever the prices. So is
    the least potential with these values where mass is given, which is lower where mass
    is taken. By Kantorovich duality, means change by no more than the distance.

    In single precision, u = 2**-24: with prices of at most twice the longest way M, the
    former values are off by at most 4 u M, the latter by 9 u M; so the mean is off
    by less than `_DUAL_ROUNDING * M`.
    """
    gives, takes = np.flatnonzero(excess > 0), np.flatnonzero(excess < 0)
    if not len(gives) or not len(takes):
        return 0.0
    distance = distance[gives][:, takes]
    high = (distance - prices[takes]).min(1)
    low = (high[:, None] - distance).max(0)
    return high @ excess[gives] + low @ excess[takes]
