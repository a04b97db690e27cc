"""Tests of wsjax.attacks.polytope: what a bounded flow can reach, and the way there."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
from absl.testing import absltest, parameterized
from scipy import optimize

from wsjax.attacks import polytope
from wsjax.transport import exact_distance

EACH_STENCIL = parameterized.parameters(4, 8, 16)


def random_edges(seed, neighbours, shape):
    """A flow `[K, H, W, C, B]` that stays within the image."""
    rng = np.random.default_rng(seed)
    steps = polytope.STENCILS[neighbours]
    edges = rng.normal(size=(len(steps), *shape)).astype(np.float32)
    for k, (a, b) in enumerate(steps):
        for i, j in np.ndindex(shape[:2]):
            if not (i + a < shape[0] and 0 <= j + b < shape[1]):
                edges[k, i, j] = 0
    return edges


def best_direction(image, slope, radius, metric):
    """Least `<slope, z>` over the ball around an image `[H, W, C]`, radius in mass."""
    pixels = list(np.ndindex(image.shape))
    pairs = [(p, q) for p in pixels for q in pixels if p[2] == q[2]]
    number = {pixel: row for row, pixel in enumerate(pixels)}
    leaves, arrives = np.zeros((2, len(pixels), len(pairs)))
    for column, (p, q) in enumerate(pairs):
        leaves[number[p], column] = arrives[number[q], column] = 1
    cost = [oracles.pixel_distance(p[:2], q[:2], metric) for p, q in pairs]
    answer = optimize.linprog(
        np.ravel(slope) @ arrives,
        A_eq=leaves,
        b_eq=np.ravel(image),
        A_ub=np.vstack([arrives, cost]),
        b_ub=np.append(np.ones(len(pixels)), radius),
    )
    return answer.fun


class StencilTest(parameterized.TestCase):
    @EACH_STENCIL
    def test_carry_equals_moving_each_parcel(self, neighbours):
        shape = (4, 3, 2, 2)
        edges = random_edges(0, neighbours, shape)
        expected = np.zeros(shape)
        for k, (a, b) in enumerate(polytope.STENCILS[neighbours]):
            for i, j, c, n in np.ndindex(shape):
                mass = edges[k, i, j, c, n]
                if mass:
                    expected[i, j, c, n] -= mass
                    expected[i + a, j + b, c, n] += mass

        actual = oracles.on_host(
            functools.partial(polytope.carry, neighbours=neighbours)
        )(edges)

        chex.assert_trees_all_close(actual, expected, atol=1e-5)
        chex.assert_trees_all_close(actual.sum((0, 1)), np.zeros((2, 2)), atol=1e-5)

    @parameterized.parameters((4, 1.4142), (8, 1.0824), (16, 1.0275))
    def test_factor_is_the_worst_ratio_of_path_to_distance(self, neighbours, factor):
        steps = np.array(polytope.STENCILS[neighbours], float)
        both = np.concatenate([steps, -steps]).T
        lengths = np.tile(polytope.lengths(neighbours, "l2"), 2)
        angles = np.linspace(0, np.pi, 721)
        cheapest = np.full(721, np.inf)
        # The cheapest path goes along two directions: a vertex of a linear program.
        for pair in itertools.combinations(range(2 * len(steps)), 2):
            if abs(np.linalg.det(both[:, pair])) > 1e-9:
                goals = np.stack([np.sin(angles), np.cos(angles)])
                shares = np.linalg.solve(both[:, pair], goals)
                cost = np.where(
                    (shares > -1e-9).all(0), lengths[[*pair]] @ shares, np.inf
                )
                cheapest = np.minimum(cheapest, cost)
        self.assertAlmostEqual(cheapest.max(), factor, delta=2e-4)

    def test_lengths_are_those_of_the_metric(self):
        for metric in ("l1", "l2"):
            expected = [
                oracles.pixel_distance((0, 0), step, metric)
                for step in polytope.STENCILS[16]
            ]
            actual = polytope.lengths(16, metric)
            np.testing.assert_allclose(actual, expected)

    def test_unknown_names_are_refused(self):
        with self.assertRaisesRegex(ValueError, r"neighbours=5 .*\(4, 8, 16\)"):
            polytope.lengths(5, "l1")
        with self.assertRaisesRegex(ValueError, "ground_metric='linf'"):
            polytope.lengths(4, "linf")


class ProjectTest(parameterized.TestCase):
    @parameterized.parameters(("gray", (4, 3, 1)), ("colour", (3, 3, 2)))
    def test_converges_to_the_nearest_point_of_the_ball(self, _, shape):
        rng = np.random.default_rng(3)
        # Many pixels at the ends of the range: the constraint that matters.
        images = rng.choice([0.0, 1.0, 0.3, 0.8], size=(*shape, 4)).astype(np.float32)
        points = images + 0.7 * rng.normal(size=images.shape).astype(np.float32)
        radius = np.array([0.05, 0.3, 1.0, 50.0], np.float32)
        project = oracles.on_host(
            functools.partial(
                polytope.project, neighbours=4, weights=(1.0, 1.0), iterations=4000
            )
        )

        flow = project(images, points, radius, polytope.start(jnp.asarray(images), 4))

        spent = np.asarray(polytope.cost(flow.edges, [1.0, 1.0]))
        self.assertTrue((spent <= radius * (1 + 1e-4)).all(), spent)
        self.assertLess(spent[3], 25)  # An ample budget is not used up.
        found = images + np.asarray(polytope.carry(flow.edges, 4))
        self.assertLess(max(found.max() - 1, -found.min()), 1e-3)
        for place, room in enumerate(radius):
            x, z, v = (a[..., place] for a in (images, found.clip(0, 1), points))
            mass = x.sum((0, 1)) / z.sum((0, 1))
            far = exact_distance(x, z * mass, "l1") * x.sum()
            self.assertLess(far, room * 1.01 + 1e-3)
            # No feasible direction leads closer (first-order optimality).
            gap = ((z - v) * z).sum() - best_direction(x, z - v, room, "l1")
            self.assertLess(gap, 2e-2 * max(1, ((z - v) ** 2).sum()))

    def test_warm_start_is_where_the_last_call_ended(self):
        rng = np.random.default_rng(0)
        images = rng.uniform(size=(4, 5, 1, 2)).astype(np.float32)
        points = images + 0.5 * rng.normal(size=images.shape).astype(np.float32)
        radius = np.array([0.3, 0.6], np.float32)

        @functools.partial(jax.jit, static_argnames="iterations")
        def project(flow, iterations):
            return polytope.project(
                images,
                points,
                radius,
                flow,
                neighbours=8,
                weights=tuple(polytope.lengths(8, "l2")),
                iterations=iterations,
            )

        flow = polytope.start(jnp.asarray(images), 8)
        for _ in range(60):
            flow = project(flow, 10)
        at_once = project(polytope.start(jnp.asarray(images), 8), 600)
        carried = [polytope.carry(f.edges, 8) for f in (flow, at_once)]
        chex.assert_trees_all_close(*carried, atol=5e-3)


if __name__ == "__main__":
    absltest.main()
