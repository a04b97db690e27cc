"""How steep a network is near an image: radii beyond half the lead.

The constants of a `network.LipschitzNetwork` hold everywhere: each dense layer is charged
as if all that it adds up were steepest at one place. Near an image few numbers can change
their order, and what is added up is steep in different places.

**Theorem.** Let `f = g_y - g_j`, and let `B(s)` bound `|G(a) - G(b)| / d(a, b)` for all
pixels a, b of one channel and all gradients G that f has at images within W <= s of mu.
Then, for `W(mu, mu') = r`,

    f(mu')  >=  f(mu) - integral of B(s) ds from 0 to r.

*Proof.* `mu_t = mu + t (mu' - mu)` is within `t r` of mu: a plan from mu to mu', of which
the part t is carried out, leads there. f is made of finitely many linear pieces, so along
this way it changes by the integral of `<G_t, mu' - mu>` over t, and with the masses m(a, b)
of a best plan that is `sum m(a, b) (G_t(b) - G_t(a)) >= -B(t r) sum m d = -B(t r) r`. QED

**The bound.** What potentials measure, and all that layers make of it, moves by no more
than s. So within s of mu the k-th smallest number of a group is one of those that lie
within 2 s of the k-th smallest at mu, and its rate along a step from pixel to pixel is
between the least and the largest of their rates. A dense layer adds such intervals up.
Rates of potentials are known (`potentials.near_rises`), so each step takes one pass of
intervals through the network. As B never falls, a step whose bound further out is below
what another step has nearer by is not looked at again.

Rates are at most one in size, so a layer of n inputs is off by at most `2 gamma(n + 3)` in
float32, and hands on what its inputs are off by (`network`, "Rounding"). All of it is
added to B.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from wsjax import potentials
from wsjax.network import LipschitzNetwork

_BLOCK = 1024  # Steps that are looked at together.
_UNIT = 2.0**-24


class LocalSlopes:
    """Bounds on the slopes of one network near images.

    Runs on the CPU where an accelerator would round products of matrices further than
    float32.

    Args:
      network: the weights.
    """

    def __init__(self, network: LipschitzNetwork):
        self._network = network
        rises = potentials.near_rises(
            network.potentials, network.exponent, network.ground_metric
        )
        self._device = None
        if jax.default_backend() not in ("cpu", "gpu"):
            self._device = jax.devices("cpu")[0]
        self._rises = jax.device_put(rises, self._device)
        self._hidden = self._put(*(rows.weights for rows in network.hidden))
        last = network.last.weights
        self._last = last.reshape(-1, network.pieces, last.shape[1])
        inputs = network.potentials.shape[-1], *(len(x.units) for x in network.hidden)
        # Rows of the last layer are differences of two, of norm two at most.
        self._off = 2.0 * (sum(2.0 * _gamma(n + 3) for n in inputs) + _UNIT)
        self._stretch = potentials.STRETCH[network.ground_metric]

    def radius(
        self, image: np.ndarray, selected: int, leads: np.ndarray
    ) -> tuple[float, int]:
        """A radius within which the answer keeps its lead.

        Args:
          image: `[H, W, C]` float.
          selected: the answer.
          leads: `[K]` float64 lower bounds on its leads; that over itself is not read.

        Returns:
          The radius in pixels x fraction of mass, 0.0 without a lead, and the class that
          limits it.
        """
        others = np.delete(np.arange(len(leads)), selected)
        constants = np.maximum(self._network.constants[selected, others], 2.0**-30)
        left = np.maximum(np.asarray(leads, np.float64)[others], 0.0)
        first = (left / constants).min()
        if not first > 0:
            return 0.0, int(others[left.argmin()])
        rows = self._differences(selected, others)
        numbers = self._network.numbers(np.asarray(image)[None])
        # No image is further.
        diameter = float(sum(image.shape[:2]))
        bounds, looked, before = np.empty((0, 0)), 0.0, 0.0
        for shell, outer in _shells():
            within = first * shell
            if outer > looked:
                looked = outer
                bounds = self._everywhere(self._allowed(numbers, first * outer), rows)
            if shell == outer:
                found = bounds.max(0)
            else:
                allowed = self._allowed(numbers, within)
                found = self._largest(bounds, left, allowed, rows)
            slopes = np.minimum(found, constants)
            reached = before + left / slopes
            if reached.min() <= within or within > diameter:
                break
            left, before = left - slopes * (within - before), within
        return float(reached.min()), int(others[reached.argmin()])

    def bounds(self, image: np.ndarray, selected: int, within: float) -> np.ndarray:
        """What the theorem calls B.

        Args:
          image: `[H, W, C]` float.
          selected: the class y.
          within: s, in pixels x fraction of mass.

        Returns:
          `[K]` float64 bounds for each class j; zero for y itself.
        """
        allowed = self._allowed(self._network.numbers(np.asarray(image)[None]), within)
        rows = self._differences(selected, np.arange(len(self._last)))
        found = self._everywhere(allowed, rows).max(0)
        return np.minimum(found, self._network.constants[selected])

    def _differences(self, selected, others):
        """Rows `[P pieces pieces, D]` of the leads over other classes."""
        rows = self._last[selected, :, None] - self._last[others][:, None]
        return self._put(rows.reshape(-1, rows.shape[-1]))[0]

    def _everywhere(self, allowed, rows):
        """Bounds `[E, P]` at every step."""
        every = np.arange(len(self._rises))
        blocks = np.split(every, every[_BLOCK::_BLOCK])
        return np.concatenate([self._bounds(block, allowed, rows) for block in blocks])

    def _largest(self, bounds, left, allowed, rows):
        """Bounds `[P]` over all steps, given those `[E, P]` from further out.

        Looks at the steps that were steepest there, until those that limit the radius
        are among them.
        """
        order = (bounds / left).max(1).argsort()[::-1]
        found = np.zeros(bounds.shape[1])
        for start in range(0, len(order), _BLOCK):
            block = order[start : start + _BLOCK]
            found = np.maximum(found, self._bounds(block, allowed, rows).max(0))
            rest = bounds[order[start + _BLOCK :]].max(0, initial=0.0)
            limiting = (left / np.maximum(found, rest)).argmin()
            if found[limiting] >= rest[limiting]:
                break
        return np.maximum(found, rest)

    def _bounds(self, steps, allowed, rows):
        """Bounds `[B, P]` on how fast the leads change along steps, per distance."""
        padded = np.pad(steps, (0, _BLOCK - len(steps)), mode="edge")
        found = _steepest(self._rises, padded, self._hidden, allowed, rows)
        found = np.asarray(found, np.float64)[: len(steps)]
        pieces = self._network.pieces**2
        found = found.reshape(len(found), -1, pieces).max(-1)
        return (found + self._off) * self._stretch

    def _allowed(self, numbers, within):
        """For each sorting `[size, size, groups]`: who may come out at which place."""
        # What numbers are off by, each of two.
        apart = 2.0 * (within + self._network.precision)
        found = []
        for values, size in zip(numbers, self._network.groups, strict=True):
            values = values.reshape(size, -1)
            found.append(np.abs(np.sort(values, 0)[:, None] - values) <= apart)
        return jax.device_put(tuple(found), self._device)

    def _put(self, *arrays):
        arrays = tuple(np.asarray(x, np.float32) for x in arrays)
        return jax.device_put(arrays, self._device)


@jax.jit
def _steepest(rises, steps, hidden, allowed, rows):
    """Bounds `[B, P]` on the sizes of rates of `rows` along steps `[B]`."""
    low = high = rises[steps]
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    for weights, may in zip((*hidden, rows), allowed, strict=True):
        low = _at_places(low, may, jnp.minimum, jnp.inf)
        high = _at_places(high, may, jnp.maximum, -jnp.inf)
        middle = product((low + high) / 2, weights.T)
        half = product((high - low) / 2, jnp.abs(weights).T)
        low, high = middle - half, middle + half
    return jnp.maximum(high, -low)


def _at_places(rates, may, extreme, none):
    """The least or largest rate that can come out at each place of each group."""
    lanes = rates.reshape(len(rates), len(may), -1)
    # Written out: XLA compiles a reduction over an axis in the middle to 50 times the time.
    places = [
        functools.reduce(
            extreme, [jnp.where(m, lanes[:, q], none) for q, m in enumerate(place)]
        )
        for place in may
    ]
    return jnp.concatenate(places, 1)


def _shells():
    """Radii up to which slopes are bounded, in units of the one that constants certify.

    Each with the one from which bounds at all steps are known.
    """
    for outer, shells in (
        (1.75, (0.5, 1.0, 1.25, 1.5, 1.75)),
        (2.5, (2.0, 2.5)),
        (4.0, (3.0, 4.0)),
    ):
        for shell in shells:
            yield shell, outer
    while True:
        outer *= 1.5
        yield outer, outer


def _gamma(terms):
    return terms * _UNIT / (1.0 - terms * _UNIT)
