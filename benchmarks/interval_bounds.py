"""Two certificates from one box: Lipschitz layers against interval and CROWN bounds.

  python benchmarks/interval_bounds.py --data=FOLDER
  python benchmarks/interval_bounds.py --data=FOLDER --only radius "relu, IBP"

Potentials (`wsjax.potentials`) send the W-ball of radius r about an image into the box
of half width r about what they measure. The first route goes on in layers that are
1-Lipschitz by construction, as `PotentialNet`, and certifies by the lead. The second
goes on in layers with free weights, is trained for bounds on what they make of the box
(IBP, Gowal et al. 2018; SABR, Mueller et al. 2023), and certifies the largest r, by
bisection, at which bounds keep every other class behind: intervals, or linear bounds
backward through the layers (CROWN, Zhang et al. 2018). Bounds are on each lead of one
class over another, never on a difference of two bounds; see `ahead` for the rest.

Both routes have the same potentials to start from, batches, epochs and projections.
`RECIPES` are the variants; a row per recipe goes to OUT/rows.jsonl. Seconds are of CPU
time: of one core, if set so.

**Rounding.** Potentials are whole multiples of 2^-16 with checked slopes, as for
`network.LipschitzNetwork`. Bounds are in float64 and wider by more than the sums can be
off (`_gamma`), once for themselves and once for the program that would classify the
other image. Only the training bounds, in float32, are not.
"""

import argparse
import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table

from wsjax import data, lipschitz, potentials
from wsjax.certifiers.lipschitz import LipschitzScores
from wsjax.models.potentials import PotentialNet
from wsjax.runs import report
from wsjax.training import steps
from wsjax.training.objectives import Objective
from wsjax.training.optimizers import make_optimizer

RADII = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30)
EXPONENT = 16  # Potentials are multiples of 2^-16 pixels.
IDENTITY, RELU = 1, 0  # Groups of one are sorted already; no group has none.


class Recipe(NamedTuple):
    """How a network with free weights is trained.

    Attributes:
      name: of the row.
      widths: of hidden layers.
      groups: what acts before each layer, the last included: numbers sorted together,
        `IDENTITY` or `RELU`.
      head: "scores" or "pairs", as of `PotentialNet`.
      radius: of the box at the end of its growth.
      growth: share of the updates over which radius and `worst` grow.
      worst: weight of the worst-case cross-entropy at the end; clean has the rest.
      share: of the box that is bounded, about a point that an attack on the lead finds
        in it (SABR); 1 is the whole box (IBP).
      temperature: of the cross-entropy of leads.
      rate: peak learning rate of the layers.
      potential_rate: of potentials.
      warm: whether layers start from those of the first route, which has to come first
        and have the same shape.
      crown: whether to certify by linear bounds as well.
    """

    name: str
    widths: tuple[int, ...] = (256, 256)
    groups: tuple[int, ...] = (IDENTITY, RELU, RELU)
    head: str = "pairs"
    radius: float = 0.2
    growth: float = 0.5
    worst: float = 1.0
    share: float = 1.0
    temperature: float = 0.025
    rate: float = 2e-3
    potential_rate: float = 0.1
    warm: bool = False
    crown: bool = False


RECIPES = (
    Recipe("relu", crown=True),
    Recipe("relu, rate .0005", rate=5e-4),
    Recipe("relu, half clean", worst=0.5),
    Recipe("sorted, warm", (256,), (8, 4), rate=1e-3, growth=0.1, warm=True),
    Recipe(
        "sorted, warm, small steps",
        (256,),
        (8, 4),
        rate=1e-3,
        potential_rate=0.03,
        growth=0.1,
        warm=True,
    ),
    Recipe("relu, one layer", (256,), (IDENTITY, RELU)),
    Recipe("relu, radius .15", radius=0.15),
    Recipe("relu, half clean, radius .25", worst=0.5, radius=0.25),
    Recipe("sorted", (256,), (8, 4)),
    Recipe("relu, 512-512", (512, 512)),
    Recipe("relu, scores", head="scores"),
    Recipe("relu, temperature .1", temperature=0.1),
    Recipe("relu, slow growth", growth=0.9),
    Recipe("relu, rate .005", rate=5e-3),
    Recipe("relu, rate .005, half clean", rate=5e-3, worst=0.5),
    Recipe("relu, rate .005, SABR", rate=5e-3, share=0.4, crown=True),
    Recipe("relu, rate .005, radius .1", rate=5e-3, radius=0.1),
)


# The first route again, from where it ended, as "warm" is: radius that is aimed at.
CONTINUED = {
    "radius, continued": 0.2,
    "radius .3, continued": 0.3,
    "radius .4, continued": 0.4,
}


class BoxNet(NamedTuple):
    """A network on what potentials measure, with weights of any size.

    Arrays are of NumPy for certificates, of JAX in training.

    Attributes:
      potentials: `[H, W, C, J]` float64, multiples of 2^-16 with slopes of at most one.
      offsets: `[J]` float64.
      groups: what acts before each layer; see `Recipe`.
      hidden: `(rows [E, D], bias [E])` of each hidden layer, float64.
      rows: `[K, K, D]`, whose output (k, j) says how far class k is ahead of j; that of
        (j, k) is its negative. Scores are the least of a class, the answer is the largest.
      bias: `[K, K]`, likewise.
    """

    potentials: Any
    offsets: Any
    groups: tuple[int, ...]
    hidden: tuple[tuple[Any, Any], ...]
    rows: Any
    bias: Any


def act(values, group: int):
    """What acts before a layer: monotone, so bounds go through it as they are."""
    if group == RELU:
        return values.__array_namespace__().maximum(values, 0.0)
    return values if group == IDENTITY else lipschitz.sorted_groups(values, group)


def measured(net: BoxNet, images: np.ndarray) -> tuple[np.ndarray, float]:
    """What potentials measure `[B, J]`, and how far off that can be, here and elsewhere.

    Args:
      net: the network.
      images: `[B, H, W, C]`, whole numbers from 0 to 255, none of them black.
    """
    pixels = np.asarray(images, np.float64)
    mass = pixels.sum((1, 2, 3))[:, None]
    found = lipschitz.measure(pixels, net.potentials) / mass + net.offsets
    size = np.abs(net.potentials).max() + np.abs(net.offsets).max()
    return found, float(_gamma(pixels[0].size) * size)


def hidden_boxes(hidden, groups, low, high, safe: bool = True):
    """Boxes of the outputs of each hidden layer, from a box of its inputs.

    A linear map of the box about c with half widths d is about W c, with half widths
    |W| d.

    Args:
      hidden: `(rows, bias)` of each.
      groups: what acts before each.
      low: `[B, J]`.
      high: `[B, J]`.
      safe: whether to widen by what rounding may do.

    Returns:
      List of `(low, high)`, `[B, E]` each; that of the inputs first.
    """
    boxes = [(low, high)]
    for (rows, bias), group in zip(hidden, groups, strict=False):
        low, high = act(low, group), act(high, group)
        middle, reach = (low + high) / 2, (high - low) / 2
        size = abs(rows)
        middle_, reach_ = middle @ rows.T + bias, reach @ size.T
        if safe:
            most = (abs(middle) + reach) @ size.T + abs(bias)
            reach_ = reach_ + _gamma(rows.shape[1]) * most
        low, high = middle_ - reach_, middle_ + reach_
        boxes.append((low, high))
    return boxes


def interval_leads(net, box, classes, safe: bool = True):
    """Lower bounds `[B, K]` on how far `classes` are ahead of each class, in a box.

    Args:
      net: a `BoxNet`, of NumPy or JAX.
      box: `(low, high)` of the last hidden layer.
      classes: `[B]` int.
      safe: see `hidden_boxes`.
    """
    low, high = (act(x, net.groups[-1]) for x in box)
    rows, bias = net.rows[classes], net.bias[classes]
    middle, reach = (low + high) / 2, (high - low) / 2
    found = _times(rows, middle) + bias - _times(abs(rows), reach)
    if safe:
        most = _times(abs(rows), abs(middle) + reach) + abs(bias)
        found = found - _gamma(rows.shape[-1]) * most
    return found


def by_intervals(net: BoxNet, values, reach):
    """Lower bounds on all leads `[B, K, K]` within `reach [B]` of `values [B, J]`."""
    low, high = values - reach[:, None], values + reach[:, None]
    box = hidden_boxes(net.hidden, net.groups, low, high)[-1]
    # A layer like any other, in whose box there is each lead.
    rows, bias, shape = _all_rows(net)
    layer, group = (rows, bias), net.groups[-1]
    return hidden_boxes([layer], [group], *box)[1][0].reshape(-1, *shape)


def by_crown(net: BoxNet, values, reach, inner: bool = True):
    """The same by linear bounds, backward through the layers.

    Args:
      net: with nothing but `RELU` after the first layer, `IDENTITY` before it.
      values: `[B, J]`.
      reach: `[B]`.
      inner: whether hidden layers are bounded like this too, or by intervals
        (CROWN-IBP, Zhang et al. 2020).

    Returns:
      `[B, K, K]`.

    Raises:
      ValueError: the network sorts.
    """
    if net.groups != (IDENTITY, *(RELU for _ in net.hidden)):
        raise ValueError(f"groups={net.groups}: linear bounds are made for ReLU only.")
    low, high = values - reach[:, None], values + reach[:, None]
    boxes = hidden_boxes(net.hidden, net.groups, low, high)
    # The first layer is linear: its interval is the best bound.
    for number in range(1, len(net.hidden) if inner else 0):
        rows, bias = net.hidden[number]
        both = np.concatenate([rows, -rows]), np.concatenate([bias, -bias])
        found = _backward(net, boxes[: number + 1], *both, values, reach)
        above, below = found[:, : len(rows)], -found[:, len(rows) :]
        low, high = boxes[number + 1]
        boxes[number + 1] = np.maximum(low, above), np.minimum(high, below)
    rows, bias, shape = _all_rows(net)
    return _backward(net, boxes, rows, bias, values, reach).reshape(-1, *shape)


def _all_rows(net):
    """Rows and bias of all leads in one layer, and the shape that they have."""
    return net.rows.reshape(-1, net.rows.shape[-1]), net.bias.ravel(), net.bias.shape


def _backward(net, boxes, rows, bias, values, reach):
    """Lower bounds `[B, M]` on `rows [M, E] act(x) + bias`, x in the last of boxes.

    Each ReLU of a number that may have both signs is between two lines. Whatever the
    slope s of the upper one came out as, its height at zero is such that it is above
    the ReLU at both ends, hence in between.
    """
    rows, bias = (np.broadcast_to(x, (len(values), *x.shape)) for x in (rows, bias))
    bound = bias.copy()
    unit = _gamma(sum(rows.shape[1] for rows, _ in net.hidden) + values.shape[1])
    most = np.abs(bias)  # Of the sizes of everything that is added up.
    for number in reversed(range(len(boxes) - 1)):
        low, high = boxes[number + 1]
        both = (low < 0) & (high > 0)
        slope = np.where(both, high / np.where(both, high - low, 1.0), high > 0)
        height = np.maximum(-slope * low, (1.0 - slope) * high) * (1.0 + 2.0**-40)
        height = np.where(both, height + 1e-300, 0.0)
        floor = np.where(both, high > -low, high > 0)
        down = np.minimum(rows, 0.0)
        most += _times(np.abs(rows), np.maximum(np.abs(low), np.abs(high)) + height)
        bound += _times(down, height)
        rows = (rows - down) * floor[:, None] + down * slope[:, None]
        layer, shift = net.hidden[number]
        inputs = act(np.maximum(*map(np.abs, boxes[number])), net.groups[number])
        most += _times(np.abs(rows), inputs @ np.abs(layer).T + np.abs(shift))
        bound += rows @ shift
        rows = rows @ layer
    size = np.abs(rows)
    most += _times(size, np.abs(values) + reach[:, None])
    return bound + _times(rows, values) - size.sum(-1) * reach[:, None] - unit * most


def certified(net: BoxNet, images: np.ndarray, bounds: Callable, start=0.0, rounds=13):
    """Answers and radii of images, by bisection; each radius is one that held.

    Args:
      net: the network.
      images: as `measured`.
      bounds: `by_intervals` or one like it.
      start: `[B]`, or a number, that is known to hold where the answer does.
      rounds: of halving the interval from `start` to one.

    Returns:
      Classes `[B]` and radii `[B]`, zero where nothing is certified.
    """
    values, off = measured(net, images)
    nothing = np.zeros(len(values))
    own = np.eye(len(net.rows), dtype=bool)
    scores = np.where(own, np.inf, by_intervals(net, values, nothing)).min(2)
    classes = scores.argmax(1)
    low, high = nothing + start, np.ones(len(values))
    for _ in range(rounds):
        middle = (low + high) / 2
        holds = ahead(bounds(net, values, middle * (1 + 2.0**-50) + off), classes)
        low, high = np.where(holds, middle, low), np.where(holds, high, middle)
    return classes, low


def ahead(leads, classes):
    """Whether scores of classes are the largest for all leads no less than given ones.

    A score is the least lead of its class. That of y is no less than the least of its
    bounds; that of j is at most `lead_jk = -lead_kj` for each k, of which k = y is one.

    Args:
      leads: `[B, K, K]` lower bounds on how far the first class is ahead of the second.
      classes: `[B]`.

    Returns:
      `[B]` bool.
    """
    own = np.eye(leads.shape[1], dtype=bool)
    leads = np.where(own, np.inf, leads)
    least, most = leads.min(2), -leads.max(1, where=~own, initial=-np.inf)
    mine = np.arange(len(leads)), classes
    most[mine] = -np.inf
    return least[mine] > most.max(1)


def _times(rows, values):
    """`[B, M, D]` times `[B, D]`: `[B, M]`."""
    return (rows @ values[..., None])[..., 0]


def _gamma(terms):
    """Far above what sums of so many products can be off by, relative to their sizes.

    Higham 2002, section 3.1, has `n u / (1 - n u)` for n terms, u = 2^-53. Bounds are
    made of a few such sums, and the program at the other image of one more.
    """
    return 16.0 * (terms + 16) * 2.0**-53


def lead_rows(last, head: str, classes: int):
    """`[K, K, ...]`, antisymmetric, of the last layer's rows or bias."""
    if head == "scores":
        return last[:, None] - last[None]
    found = jnp.zeros((classes, classes, *last.shape[1:]), last.dtype)
    high, low = np.triu_indices(classes, 1)
    return found.at[high, low].set(last).at[low, high].set(-last)


def as_net(params, recipe: Recipe, classes: int = 10) -> BoxNet:
    """The network that parameters stand for, in JAX; potentials may be too steep."""
    names = range(len(recipe.widths))
    hidden = tuple((params[f"rows_{n}"], params[f"bias_{n}"]) for n in names)
    last = len(recipe.widths)
    rows, bias = (
        lead_rows(params[f"{kind}_{last}"], recipe.head, classes)
        for kind in ("rows", "bias")
    )
    return BoxNet(
        params["potentials"], params["offsets"], recipe.groups, hidden, rows, bias
    )


def frozen(params, recipe: Recipe, classes: int = 10) -> BoxNet:
    """The same function for certificates: float64, potentials with checked slopes.

    In training potentials are divided by an upper bound on their slopes. What they
    measure may be larger by as much as all of them allow, if the first layer makes up
    for it; this makes no box smaller.
    """
    net = jax.tree.map(
        lambda x: np.asarray(x, np.float64), as_net(params, recipe, classes)
    )
    steep, exact = (
        np.maximum(np.asarray(bound(net.potentials, "l2"), np.float64), 1.0)
        for bound in (potentials.near_slopes, potentials.slopes)
    )
    room = (steep / exact).min()
    weights = net.potentials / steep * room
    # About their middle, so that quantising does not shift what is measured.
    middle = (weights.max((0, 1, 2)) + weights.min((0, 1, 2))) / 2
    units = potentials.quantised(weights - middle, "l2", EXPONENT)
    potentials.check_quantised(units, EXPONENT, "l2")
    (rows, bias), *rest = net.hidden
    return net._replace(
        potentials=np.ldexp(units.astype(np.float64), -EXPONENT),
        offsets=net.offsets * room + middle,
        groups=recipe.groups,
        hidden=((rows / room, bias), *rest),
    )


def fresh(key, started, recipe: Recipe, classes: int = 10):
    """Parameters with given potentials and rows of L1 norm one of few entries each."""
    offsets = -lipschitz.measure(started["mean"][None], started["potentials"])[0]
    params = {"potentials": started["potentials"], "offsets": offsets}
    outputs = classes if recipe.head == "scores" else classes * (classes - 1) // 2
    width = len(params["offsets"])
    for number, wanted in enumerate((*recipe.widths, outputs)):
        key, where, what = jax.random.split(key, 3)
        shape = wanted, width
        rows = jax.random.normal(what, shape)
        rows = jnp.where(jax.random.uniform(where, shape) < 8 / width, rows, 0.0)
        norms = jnp.abs(rows).sum(1, keepdims=True) + 1e-9
        params |= {f"rows_{number}": rows / norms, f"bias_{number}": jnp.zeros(wanted)}
        width = wanted
    return params


def loss_of(params, key, images, labels, progress, recipe: Recipe):
    """Cross-entropy of leads, clean and worst in a box; and the clean leads."""
    net = as_net(params, recipe)
    slopes = jax.lax.stop_gradient(potentials.near_slopes(net.potentials, "l2"))
    weights = net.potentials / jnp.maximum(slopes, 1.0)
    mass = images.sum((1, 2, 3), keepdims=True)
    values = lipschitz.measure(images / mass, weights) + net.offsets

    def cross_entropy(leads):
        own = jax.nn.one_hot(labels, leads.shape[1], dtype=bool)
        short = jnp.where(own, 0.0, -leads / recipe.temperature)
        return jax.nn.logsumexp(short, 1).mean()

    def worst_in(middle, reach):
        low, high = middle - reach, middle + reach
        boxes = hidden_boxes(net.hidden, net.groups, low, high, safe=False)
        return interval_leads(net, boxes[-1], labels, safe=False)

    grown = jnp.minimum(progress / recipe.growth, 1.0)
    radius, middle = recipe.radius * grown, values
    if recipe.share < 1:
        free = radius * (1 - recipe.share)
        held = values, net.hidden, net.rows, net.bias
        still, hidden, rows, bias = jax.lax.stop_gradient(held)
        fixed = net._replace(hidden=hidden, rows=rows, bias=bias)

        def lost(shift):
            point = still + shift
            boxes = hidden_boxes(hidden, net.groups, point, point, safe=False)
            return cross_entropy(interval_leads(fixed, boxes[-1], labels, safe=False))

        def step(_, shift):
            shift = shift + free / 2 * jnp.sign(jax.grad(lost)(shift))
            return jnp.clip(shift, -free, free)

        start = jax.random.uniform(key, still.shape, minval=-free, maxval=free)
        shift = jax.lax.fori_loop(0, 4, step, start)
        middle = values + jax.lax.stop_gradient(shift)
    worst = worst_in(middle, radius * recipe.share)
    clean = worst_in(values, 0.0)
    weight = recipe.worst * grown
    return weight * cross_entropy(worst) + (1 - weight) * cross_entropy(clean), worst


def projected(params):
    """Potentials less steep by one sweep; all else is free."""
    return {**params, "potentials": potentials.sweep(params["potentials"], "l2")}


def train_second(recipe: Recipe, params, train, batch_size: int, epochs: int):
    """Trained parameters, and the CPU seconds of it, compilation included."""
    per_epoch = len(train.images) // batch_size
    optimizer = make_optimizer(
        optimizer="adam",
        learning_rate=recipe.rate,
        rates={"potentials": recipe.potential_rate, "offsets": recipe.potential_rate},
        total_steps=per_epoch * epochs,
        schedule="one_cycle",
        project=projected,
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, step, images, labels):
        images = images.astype(jnp.float32) / train.scale
        key = jax.random.fold_in(jax.random.key(0), step)
        progress = step / (per_epoch * epochs)
        grads = jax.value_and_grad(loss_of, has_aux=True)
        (loss, _), gradient = grads(params, key, images, labels, progress, recipe)
        changes, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, changes), state, loss

    params = jax.tree.map(jnp.array, params)
    began, state = time.process_time(), optimizer.init(params)
    for step, batch in enumerate(_batches(train, batch_size, epochs)):
        params, state, loss = update(params, state, step, *batch)
        if step % 200 == 0:
            print(f"  step {step}: loss {float(loss):.3f}", flush=True)
    return jax.block_until_ready(params), time.process_time() - began


def train_first(
    module, started, train, batch_size: int, epochs: int, radius: float = 0.2
):
    """The same for the product's network and objective (configs/mnist_potentials.py)."""
    optimizer = make_optimizer(
        optimizer="adam",
        learning_rate=1.5e-2,
        rates={"potentials": 0.1, "offsets": 0.005, "bias": 0.005},
        total_steps=len(train.images) // batch_size * epochs,
        schedule="one_cycle",
        project=module.projected,
    )
    objective = Objective(name="radius", radius=radius, temperature=0.025)
    began, key = time.process_time(), jax.random.key(0)
    shape = train.images.shape[1:]
    state = steps.init_state(
        key,
        module,
        shape,
        optimizer,
        start=lambda params: {**params, **jax.tree.map(jnp.array, started)},
    )
    update = steps.make_train_step(
        module, optimizer, None, scale=train.scale, objective=objective
    )
    for images, labels in _batches(train, batch_size, epochs):
        state, _ = update(state, key, images, labels)
    return jax.block_until_ready(state.params), time.process_time() - began


def _batches(train, batch_size, epochs):
    for epoch in range(epochs):
        for index in data.epoch_batches(
            len(train.images), batch_size, seed=0, epoch=epoch
        ):
            yield train.images[index], train.labels[index].astype(np.int32)


def summary(name, classes, radii, labels, **seconds) -> dict[str, Any]:
    """One row: accuracy, median radius (of wrong answers zero), certified accuracy."""
    right = np.where(classes == labels, radii, 0.0)
    shares = {f"{radius:.2f}": float((right >= radius).mean()) for radius in RADII}
    return {
        "name": name,
        "images": len(labels),
        "accuracy": float((classes == labels).mean()),
        "median": float(np.median(right)),
        **shares,
        **seconds,
    }


def table_of(rows) -> Table:
    """The rows, one below the other."""
    table = Table(title="MNIST, certified accuracy in l2")
    for head in rows[0]:
        table.add_column(head, justify="left" if head == "name" else "right")
    for row in rows:
        cells = [f"{x:.4g}" if isinstance(x, float) else str(x) for x in row.values()]
        table.add_row(*cells)
    return table


def certify_first(name, module, params, test, training):
    """A row of the product's certificate."""
    certifier, began = LipschitzScores(module.frozen(params)), time.process_time()
    found = list(certifier.certify_each(test.images.astype(np.float32)))
    classes, radii = (
        np.array([getattr(certificate, part) for certificate in found])
        for part in ("selected", "radius")
    )
    each = (time.process_time() - began) / len(found)
    seconds = {"training_s": training, "certificate_s": each}
    return summary(name, classes, radii, test.labels, **seconds)


def certify_second(recipe, net, test, training, stride):
    """Rows of one recipe: by intervals, and by linear bounds if it says so."""
    chosen = slice(None, None, stride)
    found, began = [], time.process_time()
    parts = np.array_split(np.arange(len(test.images)), len(test.images) // 500 or 1)
    results = [certified(net, test.images[part], by_intervals) for part in parts]
    classes, radii = (np.concatenate(x) for x in zip(*results, strict=True))
    each = (time.process_time() - began) / len(radii)
    name = f"{recipe.name}: intervals"
    seconds = {"training_s": training, "certificate_s": each}
    found.append(summary(name, classes, radii, test.labels, **seconds))
    if recipe.crown:
        images, labels, start = test.images[chosen], test.labels[chosen], radii[chosen]
        small = summary(name, classes[chosen], start, labels, **seconds)
        found.append(small)
        for inner in (False, True):
            began, bounds = (
                time.process_time(),
                functools.partial(by_crown, inner=inner),
            )
            parts = np.array_split(np.arange(len(images)), len(images) // 25 or 1)
            results = [certified(net, images[p], bounds, start[p], 9) for p in parts]
            classes_, radii_ = (np.concatenate(x) for x in zip(*results, strict=True))
            each = (time.process_time() - began) / len(radii_)
            name = f"{recipe.name}: {'CROWN' if inner else 'CROWN-IBP'}"
            seconds = {"training_s": training, "certificate_s": each}
            found.append(summary(name, classes_, radii_, labels, **seconds))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the idx files")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--potentials", type=int, default=512)
    parser.add_argument("--stride", type=int, default=10, help="test images of CROWN")
    parser.add_argument(
        "--only", nargs="*", help='"radius", names of CONTINUED and RECIPES'
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/interval_bounds")
    )
    arguments = parser.parse_args()
    names = ["radius", *CONTINUED, *(recipe.name for recipe in RECIPES)]
    only = names if arguments.only is None else arguments.only
    if unknown := set(only) - set(names):
        parser.error(f"--only={unknown} are none of {names}")
    sets: list[Any] = [
        data.load("mnist", split, dir=arguments.data) for split in ("train", "test")
    ]
    train, test = sets
    arguments.out.mkdir(parents=True, exist_ok=True)
    module = PotentialNet(potentials=arguments.potentials, widths=(256,), groups=(8, 4))
    started = module.started({}, train.images, train.labels, 0)
    settings = train, arguments.batch_size, arguments.epochs
    rows: list[dict[str, Any]] = []
    first = None

    def add(more):
        rows.extend(more)
        with (arguments.out / "rows.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in more)
        report.show(table_of(rows), arguments.out / "table.txt")

    if "radius" in only:
        first, training = train_first(module, started, *settings)
        add([certify_first("radius: lead", module, first, test, training)])
    for name, radius in CONTINUED.items():
        if name in only:
            if first is None:
                parser.error(f'{name!r} starts from "radius": add it')
            params, training = train_first(module, first, *settings, radius=radius)
            add([certify_first(f"{name}: lead", module, params, test, training)])
    for recipe in RECIPES:
        if recipe.name in only:
            print(recipe, flush=True)
            params = fresh(jax.random.key(0), started, recipe)
            if recipe.warm:
                if first is None:
                    parser.error(f'{recipe.name!r} starts from "radius": add it')
                params = first
            params, training = train_second(recipe, params, *settings)
            net = frozen(params, recipe)
            add(certify_second(recipe, net, test, training, arguments.stride))


if __name__ == "__main__":
    main()
