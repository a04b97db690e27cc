"""Slow and obviously right answers to compare with. Nothing here uses wsjax.

Flow plans are pairs of arrays `(vertical, horizontal)` in either layout, bordered or
wrapped; laws of noise are frozen distributions of scipy.stats.
"""

import contextlib
import fractions
import itertools
import math

import jax
import numpy as np
from scipy import optimize, special, stats


def edges(shape, wrap):
    """Ends `(from, to)` of every edge of a plan, in the order of its raveled arrays."""
    height, width, channels = shape
    pairs = []
    for i, j, c in np.ndindex(height if wrap else height - 1, width, channels):
        pairs.append(((i, j, c), ((i + 1) % height, j, c)))
    for i, j, c in np.ndindex(height, width if wrap else width - 1, channels):
        pairs.append(((i, j, c), (i, (j + 1) % width, c)))
    return pairs


def carry_each_parcel(image, plan, wrap):
    """Delta(image, plan), one edge after the other."""
    moved = np.array(image)
    amounts = np.concatenate([np.ravel(plan[0]), np.ravel(plan[1])])
    ends = edges(moved.shape, wrap)
    assert len(ends) == len(amounts), "The plan has another layout."
    for (start, end), mass in zip(ends, amounts):
        moved[start] -= mass
        moved[end] += mass
    return moved


def incidence(shape, wrap):
    """Matrix `[pixels, edges]`: Delta(x, plan) = x + incidence @ plan."""
    matrix = np.zeros((np.prod(shape), len(edges(shape, wrap))))
    for column, (start, end) in enumerate(edges(shape, wrap)):
        matrix[np.ravel_multi_index(start, shape), column] -= 1
        matrix[np.ravel_multi_index(end, shape), column] += 1
    return matrix


def laplacian_power(shape, gamma, wrap):
    """Dense power of the Laplacian of the pixel graph, zero where that is zero."""
    matrix = incidence(shape, wrap)
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    moving = values > 1e-9
    powers = np.zeros_like(values)
    powers[moving] = values[moving] ** gamma
    return (vectors * powers) @ vectors.T


def circulant(matrices):
    """Dense matrix of a filter on the torus, one wave after the other.

    `matrices` is `[H, W, C, C]`, even in the frequency. Of a spectrum this is the
    covariance of the noise.
    """
    height, width, channels, _ = matrices.shape
    pixels = list(np.ndindex(height, width))
    dense = np.zeros((len(pixels), channels, len(pixels), channels))
    for v, u in pixels:
        phase = [2 * np.pi * (v * y / height + u * x / width) for y, x in pixels]
        wave = np.cos(np.subtract.outer(phase, phase)) / len(pixels)
        dense += wave[:, None, :, None] * matrices[v, u][None, :, None, :]
    return dense.reshape(len(pixels) * channels, -1)


def sum_of_waves(waves, amplitude, shape):
    """Noise image `[H, W, C]`, one wave after the other; see `gaussian.colour`."""
    height, width, channels = shape
    y, x = np.mgrid[:height, :width]
    field = np.zeros(shape)
    for u, v in np.ndindex(amplitude.shape[:2]):
        angle = 2 * np.pi * (u * y / height + v * x / width)
        both = 2 if 0 < v < width / 2 else 1
        for j in range(channels):
            cosine, sine = waves[v, j, :, u]
            wave = cosine * np.cos(angle) - sine * np.sin(angle)
            wave = wave * np.sqrt(both / (height * width))
            field += wave[:, :, None] * amplitude[u, v, :, j]
    return field


def random_spectrum(seed, shape, decades=2.0):
    """Positive definite matrices, even in the frequency, powers apart by decades."""
    height, width, channels = shape
    rng = np.random.default_rng(seed)
    matrices = np.zeros((height, width, channels, channels))
    for v, u in np.ndindex(height, width):
        root = rng.normal(size=(channels, channels))
        matrix = root @ root.T + 0.3 * np.eye(channels)
        matrices[v, u] = 10 ** rng.uniform(-decades / 2, decades / 2) * matrix
    even = np.zeros_like(matrices)
    for v, u in np.ndindex(height, width):
        both = matrices[v, u] + matrices[-v % height, -u % width]
        even[v, u] = (both + both.T) / 4
    even[0, 0] = 0
    return even


def tilted_spectrum(seed, shape):
    """Next to no noise along one diagonal wave: in "l2" the worst pair is no edge."""
    spectrum = random_spectrum(seed, shape, decades=0.5)
    spectrum[1, 1] *= 1e-3
    spectrum[-1, -1] *= 1e-3
    return spectrum


def hardest_move(precision, shape, metric):
    """Largest `sqrt((e_a - e_b)^T precision (e_a - e_b)) / d(a, b)`, pair by pair.

    Also `e_a - e_b` for that pair, as an image, and its distance.
    """
    pixels = list(np.ndindex(shape[:2]))
    blocks = precision.reshape(len(pixels), shape[2], len(pixels), shape[2])
    best = (-1.0,)
    for c in range(shape[2]):
        block = blocks[:, c, :, c].tolist()
        for (i, a), (j, b) in itertools.combinations(enumerate(pixels), 2):
            square = block[i][i] + block[j][j] - 2 * block[i][j]
            distance = pixel_distance(a, b, metric)
            best = max(best, (square / distance**2, (*a, c), (*b, c), distance))
    square, a, b, distance = best
    move = np.zeros(shape)
    move[a], move[b] = 1, -1
    return square**0.5, move, distance


def exact_kappa(spectrum, metric):
    """Of noise on the torus, correct to 1e-15: fractions, then sums without loss.

    `(e_a - e_b)^T Sigma^+ (e_a - e_b)` is the sum over waves of
    `|1 - exp(i w (a - b))|**2 [S(w)^-1]_cc / (H W)`, all terms positive.
    """
    height, width, channels, _ = spectrum.shape
    precision = {
        (v, u): _diagonal_of_inverse(spectrum[v, u])
        for v, u in np.ndindex(height, width)
        if (v, u) != (0, 0)
    }
    worst, size = 0.0, height * width
    offsets = [o for o in np.ndindex(height, width) if o != (0, 0)]
    for (y, x), c in itertools.product(offsets, range(channels)):
        turns = [(v * y * width + u * x * height) % size for v, u in precision]
        terms = [
            4 * math.sin(math.pi * turn / size) ** 2 * entries[c]
            for turn, entries in zip(turns, precision.values())
        ]
        distance = pixel_distance((0, 0), (y, x), metric, (height, width))
        square = math.fsum(terms) / size
        worst = max(worst, math.sqrt(square) / distance)
    return worst


def _diagonal_of_inverse(matrix):
    """By cofactors, in exact arithmetic; rounded once."""
    exact = [[fractions.Fraction(float(entry)) for entry in row] for row in matrix]
    whole = _determinant(exact)
    minors = [
        _determinant([row[:c] + row[c + 1 :] for row in exact[:c] + exact[c + 1 :]])
        for c in range(len(exact))
    ]
    return [float(minor / whole) for minor in minors]


def _determinant(rows):
    if not rows:
        return fractions.Fraction(1)
    return sum(
        (-1) ** c * entry * _determinant([row[:c] + row[c + 1 :] for row in rows[1:]])
        for c, entry in enumerate(rows[0])
    )


def pixel_distance(a, b, metric, torus=None):
    """Distance of two pixels `(row, column)`; `torus` is a grid's size if it wraps."""
    steps = [abs(a[0] - b[0]), abs(a[1] - b[1])]
    if torus:
        steps = [min(step, size - step) for step, size in zip(steps, torus)]
    return sum(steps) if metric == "l1" else float(np.hypot(*steps))


def wasserstein(mu, nu, metric, wrap=False):
    """Exact W1: what the cheapest transport pays."""
    torus = mu.shape[:2] if wrap else None
    parcels = cheapest_transport(mu, nu, metric, wrap)
    return sum(m * pixel_distance(a, b, metric, torus) for a, b, _, m in zip(*parcels))


def cheapest_transport(mu, nu, metric, wrap=False):
    """A linear program over all pairs of pixels, channel by channel.

    Sources and targets `[P, 2]`, channels and masses `[P]` of its parcels, also of
    those that stay where they are.
    """
    height, width, channels = mu.shape
    pixels = np.array(list(np.ndindex(height, width)))
    torus = (height, width) if wrap else None
    cost = [pixel_distance(a, b, metric, torus) for a in pixels for b in pixels]
    size = len(pixels)
    leaves = np.kron(np.eye(size), np.ones(size))
    arrives = np.kron(np.ones(size), np.eye(size))
    parcels = []
    for c in range(channels):
        result = optimize.linprog(
            cost,
            A_eq=np.concatenate([leaves, arrives]),
            b_eq=np.concatenate([mu[..., c].ravel(), nu[..., c].ravel()]),
        )
        assert result.success, result.message
        used = np.flatnonzero(result.x > 0)
        ends = pixels[used // size], pixels[used % size]
        parcels.append((*ends, np.full(len(used), c), result.x[used]))
    return tuple(map(np.concatenate, zip(*parcels)))


def cheapest_plan(mu, nu, wrap=False):
    """Plan of least L1 norm that turns `mu` into `nu`, raveled, and that norm."""
    matrix = incidence(mu.shape, wrap)
    result = optimize.linprog(
        np.ones(2 * matrix.shape[1]),
        A_eq=np.concatenate([matrix, -matrix], axis=1),
        b_eq=(nu - mu).ravel(),
    )
    assert result.success, result.message
    forth, back = np.split(result.x, 2)
    return forth - back, result.fun


def steepest_pair(weights, metric):
    """Slope, and the two pixels, of the best move of mass for `sum(weights * mu)`."""
    height, width, channels = weights.shape
    best = (-np.inf, None, None)
    pixels = list(np.ndindex(height, width))
    for (a, b), c in itertools.product(
        itertools.permutations(pixels, 2), range(channels)
    ):
        slope = (weights[*b, c] - weights[*a, c]) / pixel_distance(a, b, metric)
        best = max(best, (float(slope), (*a, c), (*b, c)))
    return best


def linear_probability(law, coefficients, margins, points=40_000):
    """P(margin + sum_i coefficients[i] * X_i > 0) for each margin, X_i ~ `law`.

    `law` is symmetric. By inversion of the characteristic function (Gil-Pelaez),
    which has to be negligible at the end of the grid: there are enough coefficients.
    """
    coefficients = np.abs(np.ravel(coefficients))
    coefficients = coefficients[coefficients > 0]
    if len(coefficients) == 1:
        return law.cdf(np.asarray(margins) / coefficients[0])
    spread = law.std() * np.linalg.norm(coefficients)
    step = 200.0 / spread / points
    grid = step * (np.arange(points) + 0.5)  # Midpoints: smooth, and never 0.
    phi = np.ones(points)
    for a in coefficients:
        phi *= _CHARACTERISTIC[law.dist.name](a * law.std() * grid)
    assert abs(phi[-1]) < 1e-7, "Too few coefficients for this inversion."
    integrals = [np.sum(np.sin(grid * margin) / grid * phi) for margin in margins]
    return 0.5 + np.array(integrals) * step / np.pi


# Of laws with standard deviation one.
_CHARACTERISTIC = {
    "laplace": lambda s: 1.0 / (1.0 + 0.5 * s**2),
    "norm": lambda s: np.exp(-0.5 * s**2),
    "uniform": lambda s: np.sinc(np.sqrt(3.0) * s / np.pi),
}


def flow_law(name, sigma):
    """The law of one edge or pixel with standard deviation `sigma`."""
    if name.endswith("laplace"):
        return stats.laplace(scale=sigma / np.sqrt(2))
    if name.endswith("uniform"):
        return stats.uniform(loc=-np.sqrt(3) * sigma, scale=2 * np.sqrt(3) * sigma)
    return stats.norm(scale=sigma)


def radius_of_version_0_2(theorem, p, spread, metric, runner_up=None):
    """The formulas that version 0.2 had in place of scores, with their rounding.

    `theorem` is the name of a function of `certificates`, `spread` sigma or kappa.
    """
    q = 1 - p if runner_up is None else np.minimum(runner_up, 1 - p)
    scale = spread / math.sqrt(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        published = 0.5 * scale * (np.log(p) - np.log(q))
        above_half = -0.5 * scale * np.log(4 * q * (1 - p))
        radius = {
            "laplace_published": published,
            "laplace": np.where(p >= 0.5, above_half, published),
            "uniform": spread * math.sqrt(3) * (p - q),
            "gaussian": 0.5 * (special.ndtri(p) - special.ndtri(q)) / spread,
        }[theorem.removeprefix("flow_").removeprefix("pixel_")]
    radius = np.where(p > q, radius, 0)
    if theorem.startswith("flow") and metric == "l2":
        radius = radius / math.sqrt(2)
    radius = np.maximum(radius * (1 - 2.0**-45), 0)
    return radius / 2 if theorem.startswith("pixel") else radius


def least_probability_after(law, p, shifts, cells):
    """Neyman-Pearson: least probability, after a shift, of an event of probability p.

    One axis per entry of `shifts`, each cut into `cells` intervals of which an event
    takes as much as it likes. Cells in which the shift makes the outcome rarest,
    relative to before, are taken first. The cut can only make the answer too large.
    """
    before, after = np.ones(()), np.ones(())
    reach = max(law.ppf(1 - 1e-9), 1e-300)
    for shift in shifts:
        grid = np.linspace(-reach, reach + shift, cells)
        grid = np.concatenate([[-np.inf], grid, [np.inf]])
        before = np.multiply.outer(before, np.diff(law.cdf(grid)))
        after = np.multiply.outer(after, np.diff(law.cdf(grid - shift)))
    before, after = before.ravel(), after.ravel()
    with np.errstate(divide="ignore", invalid="ignore"):
        order = np.argsort(np.where(before > 0, after / before, np.inf))
    before, after = before[order], after[order]
    used = np.clip(p - (np.cumsum(before) - before), 0.0, before)
    share = np.divide(used, before, out=np.zeros_like(used), where=before > 0)
    return float(np.sum(share * after))


def votes_one_by_one(logits_of_draw, draws, num_classes):
    """Votes of the given draws, each classified by itself."""
    votes = np.zeros(num_classes, int)
    for draw in draws:
        logits = np.asarray(logits_of_draw(draw))
        if np.isfinite(logits).all():
            votes[np.argmax(logits)] += 1
    return votes


def failures_allowed(runs, alpha):
    """More than so many failures in `runs` happen once in 100,000 test suites."""
    return stats.binom.ppf(1 - 1e-5, runs, alpha)


def on_host(function, **options):
    """`jax.jit(function)` that returns NumPy arrays: what follows compiles nothing."""
    compiled = jax.jit(function, **options)
    return lambda *arguments: jax.device_get(compiled(*arguments))


@contextlib.contextmanager
def compilations():
    """Yields a list that grows by one entry per program JAX compiles meanwhile."""
    seen = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def nearest_below(image, weights, metric, limit=0.0):
    """Least transport to an image in [0, 1] whose weighted sum is at most `limit`.

    In pixels x fraction of mass; infinite where there is no such image. A linear
    program over plans between all pairs of pixels of a channel.
    """
    pixels = list(np.ndindex(image.shape))
    pairs = [(p, q) for p in pixels for q in pixels if p[2] == q[2]]
    cost = [pixel_distance(p[:2], q[:2], metric) for p, q in pairs]
    number = {pixel: row for row, pixel in enumerate(pixels)}
    leaves, arrives = np.zeros((2, len(pixels), len(pairs)))
    for column, (p, q) in enumerate(pairs):
        leaves[number[p], column] = arrives[number[q], column] = 1
    answer = optimize.linprog(
        cost,
        A_eq=leaves,
        b_eq=np.ravel(image),
        A_ub=np.vstack([arrives, np.ravel(weights) @ arrives]),
        b_ub=np.append(np.ones(len(pixels)), limit),
        method="highs",
    )
    return answer.fun / image.sum() if answer.status == 0 else np.inf
