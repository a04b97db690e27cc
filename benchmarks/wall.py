"""How far could any certificate reach? Half the distance to another class.

  python benchmarks/wall.py --data=FOLDER --set=mnist --stride=10

finds, for every tenth test image, the training image of another class that is nearest
in exact Wasserstein distance W, and reports W / 2, the wall.

Why a wall: on the way from the test image to the training image, (1 - t) x + t x',
the first is t W away and the second (1 - t) W. A classifier that gives each its label
and is certified within r of x and r' of x' therefore has r + r' <= W, or some mixture
would have two labels. So no certificate exceeds W / 2 on both. It may on one of them,
at the expense of the other; and nothing is said about a classifier that is wrong on
the training image. Distances are in pixels x fraction of the mass, as radii are.

Most training images are discarded by lower bounds on W, each proved, hence the
result is that of solving for all of them. Rows go to OUT/SET-METRIC.tsv, and a stopped
run goes on from there. On one x86-64 core an image of MNIST takes some 0.17 seconds,
one of Fashion-MNIST 0.6. Set OMP_NUM_THREADS=1 where other work wants the cores: the
matrices are too small for more.
"""

import argparse
import pathlib
import sys

import numpy as np
from rich.table import Table
from scipy.spatial.distance import cdist

from wsjax import data, transport
from wsjax.console.progress import progress
from wsjax.console.signals import StopFlag, Stopped
from wsjax.runs import report, rows

COLUMNS = ("idx", "label", "nearest", "nearest_label", "distance")
RADII = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30)

# Orthogonal directions, in whole pixels so that projections fall on a grid.
AXES, DIAGONALS = ((1, 0), (0, 1)), ((1, 1), (1, -1))

# Sinkhorn's smoothing in pixels, and rounds at it.
COARSE = ((0.4, 8), (0.2, 16))
FINE = ((0.4, 8), (0.2, 20), (0.1, 20), (0.07, 30))
BATCH = 64  # Candidates per matrix product.
GUESSES = 32  # Candidates among which to look for a small distance to start with.


class Search:
    """Nearest images of another class among a set of images.

    Attributes:
      images: `[N, H W]`, nonnegative, in any unit.
      labels: `[N]` int.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, ground_metric: str):
        """Takes `[N, H, W, 1]` images, none black, and "l1" or "l2"."""
        self.shape = images.shape[1:]
        assert self.shape[2] == 1, "mass would have to stay in its channel"
        self.images, self.labels = images.reshape(len(images), -1), labels
        self.ground_metric = ground_metric
        self._totals = self.images.sum(1, dtype=np.float64)
        self._pixels = np.argwhere(np.ones(self.shape[:2]))
        metric = {"l1": "cityblock", "l2": "euclidean"}[ground_metric]
        self._distance = cdist(self._pixels, self._pixels, metric)
        self._below, self._margins = {}, {}
        for direction in AXES + DIAGONALS:
            position = self._pixels @ direction
            steps = np.arange(position.min(), position.max())
            below = (position[:, None] <= steps).astype(np.float64)
            # In batches: the images take eight times their memory in float64.
            parts = np.array_split(np.arange(len(images)), len(images) // 4096 + 1)
            self._below[direction] = below
            self._margins[direction] = np.concatenate(
                [self.masses(part) @ below for part in parts]
            )
        self.num_exact = 0

    def masses(self, chosen: np.ndarray) -> np.ndarray:
        """Images as fractions of their mass, `[len(chosen), H W]` float64."""
        return self.images[chosen] / self._totals[chosen, None]

    def nearest(self, image: np.ndarray, label: int) -> tuple[int, float]:
        """Index and exact distance of the nearest image with another label.

        Args:
          image: `[H, W, 1]`, nonnegative, in any unit.
          label: its label.
        """
        mass = image.ravel() / image.sum(dtype=np.float64)
        other = np.flatnonzero(self.labels != label)
        bounds = np.full(len(self.labels), np.inf)
        bounds[other] = self.margin_bounds(mass)[other]
        # Any distance will do to start with; a small one discards more.
        guesses = other[bounds[other].argsort()[:GUESSES]]
        bounds[guesses] = self.dual_bounds(mass, guesses, COARSE)
        nearest = guesses[bounds[guesses].argmin()]
        best = self.exact(mass, nearest)
        bounds[nearest] = np.inf  # Done.

        for schedule in (COARSE, FINE):
            rest = np.flatnonzero(bounds < best)
            bounds[rest] = np.maximum(
                bounds[rest], self.dual_bounds(mass, rest, schedule)
            )
        rest = np.flatnonzero(bounds < best)
        for candidate in rest[bounds[rest].argsort()]:
            if bounds[candidate] >= best:
                break
            distance = self.exact(mass, candidate)
            if distance < best:
                best, nearest = distance, candidate
        return int(nearest), best

    def exact(self, mass: np.ndarray, candidate: int) -> float:
        """The distance from `mass` `[H W]` to one image."""
        self.num_exact += 1
        pair = (m.reshape(self.shape) for m in (mass, self.masses([candidate])))
        return transport.exact_distance(*pair, self.ground_metric)

    def margin_bounds(self, mass: np.ndarray) -> np.ndarray:
        """Lower bounds on the distances to all images from projections to lines.

        Say mass moves by d, on average over a best plan. |d_0| and |d_1| along the
        axes average at least the distances of the two margins; on a line that is the
        L1 distance of the distribution functions. The mean norm of d is at least the
        norm of the means of (|d_0|, |d_1|). Under "l2" this holds for the diagonals
        too, as unit vectors; under "l1" each of d_0 + d_1 and d_0 - d_1 is at most
        the norm of d.

        Args:
          mass: `[H W]`, of sum one.

        Returns:
          `[N]` float64.
        """
        along = {
            direction: cdist(
                (mass @ self._below[direction])[None], margins, "cityblock"
            )[0]
            for direction, margins in self._margins.items()
        }
        straight, oblique = ([along[d] for d in pair] for pair in (AXES, DIAGONALS))
        if self.ground_metric == "l1":
            return np.maximum(np.sum(straight, 0), np.max(oblique, 0))
        return np.maximum(np.hypot(*straight), np.hypot(*oblique) / np.sqrt(2))

    def dual_bounds(
        self, mass: np.ndarray, chosen: np.ndarray, schedule: tuple
    ) -> np.ndarray:
        """Lower bounds from a 1-Lipschitz potential for each of the chosen images.

        Sinkhorn's iteration finds prices g of the pixels that take mass. Whatever
        the prices, min_j D(., j) - g_j is 1-Lipschitz, and by Kantorovich duality
        its mean changes by no more than the distance. So the bounds do not depend
        on convergence, nor on rounding in the iteration.

        Args:
          mass: `[H W]`, of sum one.
          chosen: `[n]` indices of images.
          schedule: pairs of smoothing and number of rounds.

        Returns:
          `[n]` float64. The smaller the smoothing, the closer to the distances.
        """
        bounds = [np.zeros(0)]
        for start in range(0, len(chosen), BATCH):
            excess = (mass - self.masses(chosen[start : start + BATCH])).T
            used = np.flatnonzero(excess.any(1))
            excess, distance = excess[used], self._distance[np.ix_(used, used)]
            prices = _sinkhorn_prices(excess, distance, schedule)
            each = zip(excess.T, prices.T)
            bounds.append(np.array([_dual_value(distance, *pair) for pair in each]))
        return np.concatenate(bounds)


def _sinkhorn_prices(excess, distance, schedule):
    """Near-optimal prices `[P, n]` of pixels that take mass, for `n` transports."""
    give, take = excess.clip(min=0), -excess.clip(max=0)
    prices = np.zeros_like(excess)
    for smoothing, rounds in schedule:
        # Bounded, lest far pairs underflow to zero.
        kernel = np.exp(-np.minimum(distance / smoothing, 600))
        with np.errstate(all="ignore"):  # Whatever fails is replaced below.
            scaling = np.where(take > 0, np.exp(prices / smoothing), 0)
            for _ in range(rounds):
                scaling = take / (kernel @ (give / (kernel @ scaling)))
            prices = smoothing * np.log(scaling)
        prices = np.where(np.isfinite(prices), prices, -distance.max())
    return prices


def _dual_value(distance, excess, prices):
    """What the potential with these prices proves, for one transport `[P]`."""
    some, takes = excess != 0, excess < 0
    if not takes.any():
        return 0.0
    potential = (distance[np.ix_(some, takes)] - prices[takes]).min(1)
    return potential @ excess[some]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the idx files")
    parser.add_argument("--set", choices=("mnist", "fashion_mnist"), default="mnist")
    parser.add_argument("--metric", choices=("l1", "l2"), default="l2")
    parser.add_argument("--stride", type=int, default=10, help="every which test image")
    parser.add_argument("--limit", type=int, help="stop after so many images")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/wall"))
    arguments = parser.parse_args()
    train, test = (
        data.load(arguments.set, split, dir=arguments.data)
        for split in ("train", "test")
    )
    chosen = range(0, len(test.images), arguments.stride)[: arguments.limit]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{arguments.set}-{arguments.metric}.tsv"
    try:
        with rows.RowWriter(path, COLUMNS) as writer, StopFlag() as stop:
            todo = [index for index in chosen if index not in writer.done]
            search = Search(train.images, train.labels, arguments.metric)
            for index in progress(todo, desc=f"wall {arguments.set}", unit="image"):
                label = test.labels[index]
                nearest, distance = search.nearest(test.images[index], label)
                writer.write(
                    idx=index,
                    label=label,
                    nearest=nearest,
                    nearest_label=train.labels[nearest],
                    distance=distance,
                )
                stop.check()
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from {path}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    written = rows.read_rows(path)
    distances = written.floats("distance")[np.isin(written.ints("idx"), chosen)]
    report.show(wall_table(distances, arguments.set, arguments.metric))
    print(f"Rows: {path}")


def wall_table(distances: np.ndarray, name: str, ground_metric: str) -> Table:
    """Summary of the walls, half the `distances` `[n]`."""
    walls = distances / 2
    table = Table(
        title="Half the distance to the nearest training image of any other class"
    )
    table.add_column("test set")
    shares = (f">= {radius:.2f} %" for radius in RADII)
    for head in ("metric", "images", "smallest", "median", "mean", *shares):
        table.add_column(head, justify="right")
    table.add_row(
        name,
        ground_metric,
        str(len(walls)),
        f"{walls.min():.4f}",
        f"{np.median(walls):.4f}",
        f"{walls.mean():.4f}",
        *(f"{100 * (walls >= radius).mean():.1f}" for radius in RADII),
    )
    return table


if __name__ == "__main__":
    main()
