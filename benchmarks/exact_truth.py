"""Certificate, truth and attack side by side, where the truth can be computed.

  python benchmarks/exact_truth.py --data=FOLDER

makes 8 x 8 digits of MNIST, trains a small network that is 1-Lipschitz in W, and finds for
50 test images

  * `certificate`, half of the lead of the scores (`certifiers.lipschitz`),
  * `relaxed`, what a linear program certifies: the one below, orders left open,
  * `truth`, the exact distance to the nearest image of another answer, and
  * `attack`, the distance at which the flow attack finds one.

**The truth as a mixed-integer linear program.** An image of equal mass in every channel is
what a plan makes of this one: masses m(a, b) that go from pixel a to b. Its cost
`sum m(a, b) d(a, b)` is to be small. What potentials measure is linear in the plan, layers
are linear, and what remains is choices, written as 0 or 1: which of two numbers is larger,
at every comparison that sorting makes; which class is ahead of the answer; and which output
is the minimum of the answer's own. A choice switches an inequality off by a large constant.
Any distance A at which an attack has succeeded bounds the cost, hence all numbers to within
A of what they are at the image; the constants are as large as linear programs say that
costs of at most A can make them, and choices that these leave no choice are fixed.

The threat model of certificates has nonnegative pixels of any size, so that is `truth`. The
attack stays within [0, 1] also; `in_range` is the truth about these images, and differs
where the nearest image has a pixel above one.

What HiGHS says is checked: the cheapest plan's image has a tie of scores (the distance is
that to the closure of other answers), and the exact distance that the plan claims. `bound`
is what it proved no plan to be below. Errors are loud unless certificate <= relaxed <=
truth <= in_range <= attack, within `TOLERANCE`.

Rows go to OUT/METRIC.tsv, and a stopped run goes on from there.
"""

import argparse
import pathlib
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
from rich.table import Table
from scipy import optimize, sparse

from wsjax import data
from wsjax.attacks import FlowAttack, flow_attack, victims
from wsjax.certifiers.lipschitz import LipschitzScores
from wsjax.console.progress import progress
from wsjax.console.signals import StopFlag, Stopped
from wsjax.data.dataset import as_float, make_dataset
from wsjax.metrics import pixel_distances
from wsjax.models import PotentialNet
from wsjax.network import LipschitzNetwork
from wsjax.runs import report, rows
from wsjax.training import loop, objectives, optimizers
from wsjax.transport import exact_distance

NUMBERS = ("certificate", "relaxed", "truth", "in_range", "attack")
COLUMNS = ("idx", "label", "answer", "rival", *NUMBERS, "bound", "choices", "seconds")
TOLERANCE = 2e-5  # Of HiGHS: 1e-6 of a choice, 1e-7 of a sum, a few of each.
RADIUS = 0.06  # What the network is trained for; pixels here are three of MNIST's.


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the idx files")
    parser.add_argument("--metric", choices=("l1", "l2"), default="l2")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds a program")
    parser.add_argument("--potentials", type=int, default=24)
    parser.add_argument("--width", type=int, default=12, help="of the hidden layer")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/truth"))
    arguments = parser.parse_args()
    train, test = (
        small_digits(data.load("mnist", split, dir=arguments.data))
        for split in ("train", "test")
    )
    module = PotentialNet(
        potentials=arguments.potentials,
        widths=(arguments.width,),
        groups=(2, 2),
        ground_metric=arguments.metric,
    )
    chosen = range(0, len(test), len(test) // arguments.images)[: arguments.images]
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = f"{arguments.metric}-{arguments.potentials}-{arguments.width}"
    path = arguments.out / f"{name}.tsv"
    try:
        network = trained(arguments.out / name, module, train, test, arguments.epochs)
        with rows.RowWriter(path, COLUMNS) as writer, StopFlag() as stop:
            todo = [index for index in chosen if index not in writer.done]
            images = as_float(test.images[todo], test.scale)
            found = side_by_side(images, network, arguments.limit)
            bar = progress(found, total=len(todo), desc="truth", unit="image")
            for index, row in zip(todo, bar, strict=True):
                writer.write(idx=index, label=test.labels[index], **row)
                stop.check()
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from {path}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    report.show(table(rows.read_rows(path), name), path.with_suffix(".txt"))
    print(f"Rows: {path}")


def small_digits(digits):
    """8 x 8 of 28 x 28: means of 3 x 3, two pixels of each border left out."""
    inner = digits.images[:, 2:26, 2:26].astype(np.float64)
    means = inner.reshape(-1, 8, 3, 8, 3, 1).mean((2, 4))
    return make_dataset(np.rint(means).astype(np.uint8), digits.labels, 10, digits.scale)


def trained(workdir, module, train, test, epochs):
    """The network of `workdir`, trained there unless it has been."""
    workdir.mkdir(exist_ok=True)
    state = loop.train(
        workdir,
        module,
        lambda steps: optimizers.make_optimizer(
            optimizer="adam",
            learning_rate=1.5e-2,
            potential_learning_rate=0.05,
            schedule="one_cycle",
            total_steps=steps,
            project=module.projected,
        ),
        None,
        train,
        test,
        key=jax.random.key(0),
        seed=0,
        batch_size=128,
        num_epochs=epochs,
        evaluate_every=epochs,
        objective=objectives.Objective(
            "radius",
            ground_metric=module.ground_metric,
            radius=RADIUS,
            temperature=RADIUS / 8,
        ),
        start=lambda params: module.started(params, *train.arrays, 0),
    )
    return module.frozen(jax.device_get(state.params))


def side_by_side(images, network, limit=np.inf):
    """Yields what rows say of each image `[N, H, W, C]`, all but where it is from.

    Raises:
      ValueError: a certificate, a truth or an attack contradicts another.
    """
    answers = network.scores(images).argmax(1)
    settings = FlowAttack(
        network.ground_metric, neighbours=16, restarts=4, start_radius=RADIUS
    )
    attacked = flow_attack(
        images,
        answers,
        victims.scored(network),
        key=jax.random.key(1),
        settings=settings,
    )
    certified = LipschitzScores(network).certify_each(images)
    for image, answer, certificate, attack in zip(
        images, answers, certified, attacked.epsilon, strict=True
    ):
        started = time.perf_counter()
        truth = exact_truth(network, image, attack, limit)
        seconds = time.perf_counter() - started
        in_range = truth
        if truth.image.max() > 1 + 1e-6:
            in_range = exact_truth(network, image, attack, limit, most=1.0)
        row = {
            "answer": answer,
            "rival": truth.rival,
            "certificate": certificate.radius,
            "relaxed": truth.relaxed,
            "truth": truth.distance,
            "in_range": in_range.distance,
            "attack": attack,
            "bound": truth.bound,
            "choices": truth.choices,
            "seconds": seconds,
        }
        proved = (certificate.radius, truth.relaxed, truth.bound)
        order = (*proved, truth.distance, in_range.distance, attack)
        if (np.diff(order) < -TOLERANCE).any() or certificate.radius > truth.bound + (
            TOLERANCE
        ):
            raise ValueError(f"Certificate, truth and attack contradict each other: {row}")
        yield row


class Truth(NamedTuple):
    """The nearest image at which an answer is about to change.

    Attributes:
      distance: W from the image to it, in pixels x fraction of mass.
      bound: no image of another answer is nearer than this; `distance` but for
        tolerances, unless time ran out.
      relaxed: the same by one linear program.
      image: `[H, W, C]` float64, it, with the mass of the original.
      rival: the class whose score has caught up.
      choices: numbers of 0 or 1 that were open.
    """

    distance: float
    bound: float
    relaxed: float
    image: np.ndarray
    rival: int
    choices: int


def exact_truth(
    network: LipschitzNetwork,
    image: np.ndarray,
    known: float,
    limit: float = np.inf,
    most: float = np.inf,
) -> Truth:
    """The distance to another answer, by the program at the head of this file.

    Args:
      network: who answers.
      image: `[H, W, C]`, nonnegative and not black.
      known: a distance at which there is another answer; infinite for none.
      limit: seconds.
      most: that pixels may have.

    Returns:
      `Truth`.

    Raises:
      ValueError: there is no other answer within `known`, or none was found in time; or
        what was found is not what it is said to be.
    """
    image = np.asarray(image, np.float64)
    program = Program()
    start, channel, flow = _plans(program, network, image, known, most)
    answer = int(network.scores(image[None])[0].argmax())
    rivals = _overtake(program, network, _measured(program, network, image, flow), answer)
    relaxed = program.solve(relaxed=True)
    solved = program.solve(limit=limit)
    if solved.x is None or relaxed.x is None:
        raise ValueError(f"No other answer within {known}: {solved.message}")
    moved = solved.x[flow].clip(0.0)
    arrived = np.zeros((image.shape[0] * image.shape[1], image.shape[2]))
    for mass, where in zip(moved, channel, strict=True):
        arrived[:, where] += mass
    found = Truth(
        solved.fun,
        solved.mip_dual_bound,
        relaxed.fun,
        arrived.reshape(image.shape) * image.sum(),
        int(np.argmax(solved.x[rivals])),
        program.choices,
    )
    lead = network.scores(found.image[None])[0]
    lead = lead[answer] - np.delete(lead, answer).max()
    away = exact_distance(image, found.image, network.ground_metric)
    if lead > TOLERANCE or abs(away - found.distance) > TOLERANCE:
        raise ValueError(
            f"The image found is {away} away, not {found.distance}, and {answer} leads by "
            f"{lead} there."
        )
    return found


def _plans(program, network, image, known, most):
    """Where masses start, in which channel, and the masses `[starts, pixels]`."""
    height, width, channels = image.shape
    mass = image.reshape(-1, channels) / image.sum()
    start, channel = np.nonzero(mass)
    far = pixel_distances(height, width, network.ground_metric)[start]
    flow = program.numbers(np.zeros_like(far), mass[start, channel, None])
    program.cost = flow, far
    program.require(mass[start, channel], mass[start, channel], (flow, 1.0))
    if np.isfinite(known):
        program.require([0.0], [known + TOLERANCE], (flow.reshape(1, -1), far.ravel()))
    if np.isfinite(most):
        for each in range(channels):
            arrive = flow[channel == each].T
            program.require(0.0, np.full(len(arrive), most / image.sum()), (arrive, 1.0))
    return start, channel, flow


def _measured(program, network, image, flow):
    """What potentials say, as numbers of the program."""
    channels = image.shape[2]
    units = network.potentials.astype(np.float64)
    given = np.ldexp(units, -network.exponent).reshape(-1, channels, units.shape[-1])
    mass = image.reshape(-1, channels) / image.sum()
    start, channel = np.nonzero(mass)
    before = np.einsum("pc,pcj->j", mass, given) + network.offsets
    rises = given[:, channel] - given[start, channel]  # [pixels, starts, J]
    rises = np.moveaxis(rises, -1, 0).swapaxes(1, 2).reshape(len(before), -1)
    flat = np.broadcast_to(flow.ravel(), rises.shape)
    return program.equal(before, (flat, rises))


def _overtake(program, network, numbers, answer):
    """Requires another class to be ahead; returns the choices `[K]` of which one."""
    for layer, group in zip((*network.hidden, network.last), network.groups, strict=True):
        numbers = _sorted(program, numbers, group)
        inputs = np.broadcast_to(numbers, layer.weights.shape)
        numbers = program.equal(layer.bias, (inputs, layer.weights))
    outputs = numbers.reshape(-1, network.pieces)
    # The score of the answer: below all its outputs, and not below the chosen one.
    own = outputs[answer]
    score = program.numbers(program.low[own].min(), program.high[own].min())[None]
    same = np.repeat(score, len(own))
    program.require(0.0, np.inf, (own, 1.0), (same, -1.0))
    room = (program.high[own] - program.low[score]).clip(0.0)
    least = program.numbers(0.0, program.low[own] <= program.high[score], whole=True)
    program.require(-np.inf, room, (own, 1.0), (same, -1.0), (least, room))
    program.require([1.0], [1.0], (least[None], 1.0))
    # All outputs of the chosen rival are above it.
    able = (program.high[outputs] >= program.low[score]).all(1)
    able[answer] = False
    rivals = program.numbers(0.0, able, whole=True)
    program.require([1.0], [1.0], (rivals[None], 1.0))
    for rival in np.flatnonzero(able):
        room = (program.high[score] - program.low[outputs[rival]]).clip(0.0)
        which = np.repeat(rivals[rival], len(room))
        program.require(
            -room, np.inf, (outputs[rival], 1.0), (same, -1.0), (which, -room)
        )
    return rivals


def _sorted(program, numbers, size):
    """Sorts groups as `lipschitz.sorted_groups`, by comparing neighbours in turn."""
    lanes = list(numbers.reshape(size, -1))
    for end in range(size - 1, 0, -1):
        for lane in range(end):
            lanes[lane], lanes[lane + 1] = _compared(program, *lanes[lane : lane + 2])
    return np.concatenate(lanes)


def _compared(program, one, other):
    """The minima and maxima of pairs of numbers `[n]`."""
    low, high = program.low, program.high
    least, most = program.differences(one, other)
    # Chosen: the other is larger.
    larger = program.numbers(most < 0.0, least <= 0.0, whole=True)
    maxima = program.numbers(np.maximum(low[one], low[other]), *[
        np.maximum(high[one], high[other])
    ])
    minima = program.numbers(
        np.minimum(low[one], low[other]), np.minimum(high[one], high[other])
    )
    above, below = most.clip(0.0), (-least).clip(0.0)
    program.require(
        0.0, np.zeros(len(one)), (maxima, 1.0), (minima, 1.0), (one, -1.0), (other, -1.0)
    )
    program.require(0.0, np.inf, (maxima, 1.0), (one, -1.0))
    program.require(0.0, np.inf, (maxima, 1.0), (other, -1.0))
    program.require(-np.inf, 0.0, (maxima, 1.0), (one, -1.0), (larger, -below))
    program.require(-np.inf, above, (maxima, 1.0), (other, -1.0), (larger, above))
    return minima, maxima


class Program:
    """A mixed-integer linear program that is built step by step.

    Attributes:
      low: `[variables]`, and
      high: what variables are between.
      cost: variables and what each unit of them costs, to be small.
    """

    def __init__(self):
        self.low, self.high, self._whole = np.zeros(0), np.zeros(0), np.zeros(0, bool)
        self.cost = None
        self._entries, self._sides, self._count = [], [], 0

    def numbers(self, low, high, whole=False):
        """New variables, as many as there are bounds, by their numbers."""
        low, high = np.broadcast_arrays(np.float64(low), np.float64(high))
        found = len(self.low) + np.arange(low.size).reshape(low.shape)
        self.low, self.high = np.r_[self.low, low.ravel()], np.r_[self.high, high.ravel()]
        self._whole = np.r_[self._whole, np.full(low.size, whole)]
        return found

    def require(self, low, high, *terms):
        """Sums between bounds: of each term `(variables [n] or [n, m], factors)`."""
        count = len(terms[0][0])
        for variables, factors in terms:
            columns = variables.reshape(count, -1)
            factors = np.asarray(factors)
            factors = factors.reshape(-1, 1) if variables.ndim == 1 else factors
            where = self._count + np.arange(count)[:, None]
            self._entries.append(
                [x.ravel() for x in np.broadcast_arrays(factors, where, columns)]
            )
        self._sides.append(np.stack(np.broadcast_arrays(low, high, np.zeros(count))[:2]))
        self._count += count

    def equal(self, constant, term):
        """New variables that are sums of others, `[n]`, with the bounds they have."""
        variables, factors = term
        found = self.numbers(np.full(len(constant), -np.inf), np.inf)
        self.require(-constant, -constant, (variables, factors), (found, -1.0))
        for place, row in enumerate(found):
            self.low[row], self.high[row] = self._range(
                variables[place], factors[place], constant[place]
            )
        return found

    def differences(self, one, other):
        """The least and most that `other - one` can be, `[n]` each."""
        least, most = self.low[other] - self.high[one], self.high[other] - self.low[one]
        for place in np.flatnonzero((least < 0) & (most > 0)):
            pair = np.array([other[place], one[place]])
            found = self._range(pair, np.array([1.0, -1.0]), 0.0)
            least[place] = max(least[place], found[0])
            most[place] = min(most[place], found[1])
        return least, most

    def _range(self, variables, factors, constant):
        """What a sum can be, whole numbers or not, and a little more."""
        ends = []
        for sign in (1.0, -1.0):
            solved = self.solve((variables, sign * factors), relaxed=True)
            assert solved.x is not None, solved.message
            ends.append(constant + sign * solved.fun)
        return ends[0] - 1e-6, ends[1] + 1e-6

    @property
    def choices(self):
        """Whole numbers that are not fixed."""
        return int((self._whole & (self.low < self.high)).sum())

    def solve(self, cost=None, *, relaxed=False, limit=np.inf):
        """What HiGHS says of the least `cost`, whole numbers being any if `relaxed`."""
        objective = np.zeros(len(self.low))
        variables, factors = cost or self.cost
        np.add.at(objective, variables.ravel(), factors.ravel())
        values, places, columns = map(np.concatenate, zip(*self._entries, strict=True))
        matrix = sparse.csr_array(
            (values, (places, columns)), shape=(self._count, len(self.low))
        )
        options = {"mip_rel_gap": 1e-7}
        if np.isfinite(limit):
            options["time_limit"] = limit
        return optimize.milp(
            objective,
            integrality=self._whole & (not relaxed),
            bounds=optimize.Bounds(self.low, self.high),
            constraints=optimize.LinearConstraint(matrix, *np.hstack(self._sides)),
            options=options,
        )


def table(found, name):
    """Medians of rows, and how far apart certificate, truth and attack are."""
    numbers = {column: found.floats(column) for column in (*NUMBERS, "bound", "seconds")}
    shown = Table(title=f"The truth about {len(found)} small digits, {name}: medians")
    cells = {column: np.median(numbers[column]) for column in NUMBERS}
    truth = numbers["truth"]
    cells["truth / certificate"] = np.median(truth / numbers["certificate"])
    cells["truth / relaxed"] = np.median(truth / numbers["relaxed"])
    cells["attack / in range"] = np.median(numbers["attack"] / numbers["in_range"])
    cells["seconds"] = np.median(numbers["seconds"])
    texts = {head: f"{value:.4f}" for head, value in cells.items()}
    texts["proved"] = str(int((truth - numbers["bound"] <= TOLERANCE).sum()))
    for head in texts:
        shown.add_column(head, justify="right")
    shown.add_row(*texts.values())
    return shown


if __name__ == "__main__":
    main()
