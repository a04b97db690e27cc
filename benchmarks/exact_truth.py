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
The distance at which the attack succeeds bounds the cost, hence how far apart two numbers
can be (`Plans.most`): constants are no larger than that, and choices that it decides are
fixed. Two kinds of inequality that hold anyway make proofs several times as fast: no number
of any layer moves by more than the cost, and the cost is at least the lead of the answer
over the chosen class by the constant of the two.

The threat model of certificates has nonnegative pixels of any size, so that is `truth`. The
attack stays within [0, 1] also; `in_range` is the truth about these images, and differs
where the nearest image has a pixel above one.

What HiGHS says is checked: the cheapest plan's image has a tie of scores (the distance is
that to the closure of other answers), and the exact distance that the plan claims. `bound`
is what it proved no plan to be below. Errors are loud unless certificate <= relaxed <=
truth <= in_range <= attack, within `TOLERANCE`.

Rows go to OUT/METRIC-POTENTIALS-WIDTH.tsv, and a stopped run goes on from there. `seconds`
are of one core, for `relaxed` and `truth`.
"""

import argparse
import contextlib
import pathlib
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
from rich.table import Table
from scipy import optimize, sparse

from wsjax import data, files
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
from wsjax.training.checkpoints import fingerprint
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
    parser.add_argument(
        "--limit", type=float, default=600.0, help="seconds (wall clock) a program"
    )
    parser.add_argument("--potentials", type=int, default=16)
    parser.add_argument("--width", type=int, default=8, help="of the hidden layer")
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
        with contextlib.ExitStack() as stack:
            stack.enter_context(files.locked(arguments.out))
            network = trained(
                arguments.out / name, module, train, test, arguments.epochs
            )
            held = fingerprint(LipschitzScores(network).held())
            run = rows.digest([test.checksum, held, arguments.limit])
            writer = stack.enter_context(rows.RowWriter(path, COLUMNS, run))
            stop = stack.enter_context(StopFlag())
            todo = [index for index in chosen if index not in writer.done]
            images = as_float(test.images[todo], test.scale)
            found = side_by_side(images, network, arguments.limit)
            bar = progress(found, total=len(todo), desc="truth", unit="image")
            for index, row in zip(todo, bar, strict=True):
                if row is None:
                    bar.write(f"Image {index}: no answer in {arguments.limit} s.")
                else:
                    writer.write(idx=index, label=test.labels[index], **row)
                stop.check()
    except files.InUse as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from {path}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    report.show(table(rows.read_rows(path), name), path.with_suffix(".txt"))
    print(f"Rows: {path}")


def small_digits(digits):
    """8 x 8 of 28 x 28: means of 3 x 3, two pixels of each border left out."""
    inner = digits.images[:, 2:26, 2:26].astype(np.float64)
    means = inner.reshape(-1, 8, 3, 8, 3, 1).mean((2, 4))
    return make_dataset(
        np.rint(means).astype(np.uint8), digits.labels, 10, digits.scale
    )


def trained(workdir, module, train, test, epochs):
    """The network of `workdir`, trained there unless it has been."""
    workdir.mkdir(exist_ok=True)
    state = loop.train(
        workdir,
        module,
        lambda steps: optimizers.make_optimizer(
            optimizer="adam",
            learning_rate=1.5e-2,
            rates={"potentials": 0.05, "offsets": 0.005, "bias": 0.005},
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

    None for an image whose programs run out of time.

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
        started = time.process_time()
        try:
            truth = in_range = exact_truth(network, image, attack, limit)
            seconds = time.process_time() - started
            if truth.image.max() > 1 + 1e-6:
                in_range = exact_truth(network, image, attack, limit, most=1.0)
        except TimeoutError:
            yield None
            continue
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
        if (np.diff(order) < -TOLERANCE).any():
            raise ValueError(
                f"Certificate, truth and attack contradict each other: {row}"
            )
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
      ValueError: there is no other answer within `known`, or what was found is not what
        it is said to be.
      TimeoutError: none was found in time.
    """
    image = np.asarray(image, np.float64)
    plans = Plans(image, network.ground_metric, known)
    program = Program(plans.known)
    flow = program.numbers(np.zeros_like(plans.far), plans.mass[:, None])
    program.require(plans.mass, plans.mass, (flow, 1.0))
    program.require(
        [0.0], 0.0, (program.cost, 1.0), (flow.reshape(1, -1), -plans.far.ravel())
    )
    if np.isfinite(most):
        for channel in range(image.shape[2]):
            arriving = flow[plans.channel == channel].T
            program.require(0.0, most / image.sum(), (arriving, 1.0))
    answer = int(network.scores(image[None])[0].argmax())
    numbers = _measured(program, plans, network, image, flow)
    rivals = _overtaken(program, plans, network, numbers, answer)
    relaxed = program.solve(relaxed=True)
    solved = program.solve(limit=limit)
    if solved.status == 1 and solved.x is None:
        raise TimeoutError(
            f"Another answer within {known} was neither found nor excluded in {limit} s."
        )
    if solved.x is None or relaxed.x is None:
        raise ValueError(f"No other answer found within {known}: {solved.message}")
    arrived = np.zeros((image.shape[0] * image.shape[1], image.shape[2]))
    np.add.at(arrived.T, plans.channel, solved.x[flow].clip(0.0))
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


class Plans:
    """Where mass can go from an image at costs of at most `known`.

    Attributes:
      start: `[S]` pixels, in row-major order,
      channel: `[S]` and
      mass: `[S]` of the masses there are.
      far: `[S, P]`, what each unit costs on its way to each pixel.
    """

    def __init__(self, image, ground_metric, known):
        height, width, channels = image.shape
        mass = image.reshape(-1, channels) / image.sum()
        self.start, self.channel = np.nonzero(mass)
        self.mass = mass[self.start, self.channel]
        self.far = pixel_distances(height, width, ground_metric)[self.start]
        self.known = min(known, self.far.max()) + TOLERANCE

    def most(self, rises):
        """An upper bound `[n]` on `sum flow * rises` of `rises` `[n, S, P]`.

        By duality: for any price l of cost, `sum flow (rises - l far) + l known`, of which
        each mass has at most its best way. The best price is found by bisection.
        """
        low, high = np.zeros(len(rises)), np.full(len(rises), 2.0)
        found = np.full(len(rises), np.inf)
        for _ in range(20):
            price = (low + high) / 2
            gain = rises - price[:, None, None] * self.far
            best = gain.argmax(2)[..., None]
            gain = np.take_along_axis(gain, best, 2)[..., 0] @ self.mass
            found = np.minimum(found, gain + price * self.known)
            ways = np.take_along_axis(self.far[None], best, 2)[..., 0]
            dear = ways @ self.mass > self.known
            low, high = np.where(dear, price, low), np.where(dear, high, price)
        return found + 1e-9


class Numbers(NamedTuple):
    """Numbers of a layer: linear in the plan, but for something between bounds.

    Attributes:
      variables: `[n]` of the program.
      here: `[n]`, what they are at the image.
      rises: `[n, S, P]`, of the linear part for each mass that moves.
      value: `[n]`, that part where none does.
      less: `[n]`, and
      more: what is added to it, at least and at most.
    """

    variables: np.ndarray
    here: np.ndarray
    rises: np.ndarray
    value: np.ndarray
    less: np.ndarray
    more: np.ndarray

    def pick(self, places):
        """Some of the numbers."""
        return Numbers(*(part[places] for part in self))

    def most_above(self, other, plans):
        """Upper bounds `[n]` on how far these are above others."""
        rise = plans.most(self.rises - other.rises)
        linear = self.value - other.value + rise + self.more - other.less
        return np.minimum(linear, self.here - other.here + 2 * plans.known)


def _measured(program, plans, network, image, flow):
    """What potentials say."""
    units = network.potentials.astype(np.float64)
    given = np.ldexp(units, -network.exponent)
    given = given.reshape(-1, image.shape[2], units.shape[-1])
    rises = given[:, plans.channel] - given[plans.start, plans.channel]
    rises = np.transpose(rises, (2, 1, 0))
    value = plans.mass @ given[plans.start, plans.channel] + network.offsets
    found = program.near(value)
    flat = np.broadcast_to(flow.ravel(), (len(value), flow.size))
    program.require(value, value, (found, 1.0), (flat, -rises.reshape(len(value), -1)))
    return Numbers(
        found, value, rises, value, np.zeros(len(value)), np.zeros(len(value))
    )


def _dense(program, layer, numbers):
    """What a layer of the network makes of sorted numbers."""
    weights, positive = layer.weights, layer.weights.clip(0.0)
    negative = weights - positive
    here = weights @ numbers.here + layer.bias
    found = program.near(here)
    inputs = np.broadcast_to(numbers.variables, weights.shape)
    program.require(layer.bias, layer.bias, (found, 1.0), (inputs, -weights))
    return Numbers(
        found,
        here,
        np.tensordot(weights, numbers.rises, 1),
        weights @ numbers.value + layer.bias,
        positive @ numbers.less + negative @ numbers.more,
        positive @ numbers.more + negative @ numbers.less,
    )


def _sorted(program, plans, numbers, size):
    """Sorts groups as `lipschitz.sorted_groups`, by comparing neighbours in turn."""
    places = np.arange(len(numbers.value)).reshape(size, -1)
    lanes = [numbers.pick(lane) for lane in places]
    for end in range(size - 1, 0, -1):
        for lane in range(end):
            lanes[lane : lane + 2] = _compared(program, plans, *lanes[lane : lane + 2])
    return Numbers(*map(np.concatenate, zip(*lanes, strict=True)))


def _compared(program, plans, one, other):
    """The minima and maxima of pairs of numbers."""
    ahead, behind = other.most_above(one, plans), one.most_above(other, plans)
    larger = program.numbers(behind < 0, ahead >= 0, whole=True)  # The other one is.
    here = [pick(one.here, other.here) for pick in (np.minimum, np.maximum)]
    minima, maxima = map(program.near, here)
    sums = (one.variables, -1.0), (other.variables, -1.0)
    program.require(0.0, 0.0, (maxima, 1.0), (minima, 1.0), *sums)
    ahead, behind = ahead.clip(0.0), behind.clip(0.0)
    for term, room, factor in zip(sums, (0.0, behind), (-ahead, behind), strict=True):
        program.require(0.0, np.inf, (maxima, 1.0), term)
        program.require(-np.inf, room, (maxima, 1.0), term, (larger, factor))
    # Half of the sum, and half of the distance, which is linear if the order is known.
    half, sign = np.maximum(ahead, behind) / 2, np.sign(ahead - behind)
    known = (ahead == 0) | (behind == 0)
    found = []
    for variables, at, side in zip((minima, maxima), here, (-1.0, 1.0), strict=True):
        share = np.where(known, 1 + side * sign, 1.0) / 2
        rises, value, less, more = (
            ((1 - share) * a.T + share * b.T).T
            for a, b in zip(one[2:], other[2:], strict=True)
        )
        beyond = np.where(known, 0.0, side * half)
        less, more = less + beyond.clip(max=0.0), more + beyond.clip(min=0.0)
        found.append(Numbers(variables, at, rises, value, less, more))
    return found


def _overtaken(program, plans, network, numbers, answer):
    """Requires another class to be ahead; returns the choices `[K]` of which one."""
    layers = *network.hidden, network.last
    for layer, group in zip(layers, network.groups, strict=True):
        numbers = _dense(program, layer, _sorted(program, plans, numbers, group))
    outputs = np.arange(len(numbers.value)).reshape(-1, network.pieces)
    own = numbers.pick(outputs[answer])
    # The score of the answer: below all its outputs, and not below the chosen one.
    scores = numbers.here.reshape(outputs.shape).min(1)
    score = program.near(scores[[answer]])
    each = [own.pick([place]) for place in range(network.pieces)]
    apart = np.stack([own.most_above(one, plans) for one in each])
    least = program.numbers(0.0, apart.min(1) >= 0, whole=True)
    room = apart.max(0).clip(0.0)
    same = np.repeat(score, len(room)), -1.0
    program.require(0.0, np.inf, (own.variables, 1.0), same)
    program.require(-np.inf, room, (own.variables, 1.0), same, (least, room))
    program.require([1.0], 1.0, (least[None], 1.0))
    # All outputs of the chosen rival are above it.
    radii = (scores[answer] - scores) / np.maximum(network.constants[answer], 1e-9)
    able = radii <= plans.known
    able[answer] = False
    rivals = program.numbers(0.0, able, whole=True)
    program.require([1.0], 1.0, (rivals[None], 1.0))
    program.require([0.0], np.inf, (program.cost, 1.0), (rivals[None], -radii))
    for rival in np.flatnonzero(able):
        theirs = numbers.pick(outputs[rival])
        apart = np.stack([one.most_above(theirs, plans) for one in each])
        room = apart.min(0).clip(0.0)
        which = np.repeat(rivals[rival], len(room))
        program.require(-room, np.inf, (theirs.variables, 1.0), same, (which, -room))
    return rivals


class Program:
    """A mixed-integer linear program that is built step by step.

    Attributes:
      low: `[variables]`, and
      high: what variables are between.
      cost: `[1]`, the variable to be small.
    """

    def __init__(self, most):
        self.low, self.high, self._whole = np.zeros(0), np.zeros(0), np.zeros(0, bool)
        self._entries, self._sides, self._count = [], [], 0
        self.cost = self.numbers([0.0], most)

    def numbers(self, low, high, whole=False):
        """New variables, as many as there are bounds, by their numbers."""
        low, high = np.broadcast_arrays(np.float64(low), np.float64(high))
        found = len(self.low) + np.arange(low.size).reshape(low.shape)
        self.low = np.r_[self.low, low.ravel()]
        self.high = np.r_[self.high, high.ravel()]
        self._whole = np.r_[self._whole, np.full(low.size, whole)]
        return found

    def near(self, here):
        """New variables `[n]` that are no further from `here` than the cost."""
        found = self.numbers(np.full(len(here), -np.inf), np.inf)
        cost = np.repeat(self.cost, len(here))
        self.require(here, np.inf, (found, 1.0), (cost, 1.0))
        self.require(-np.inf, here, (found, 1.0), (cost, -1.0))
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
        sides = np.broadcast_arrays(low, high, np.zeros(count))[:2]
        self._sides.append(np.stack(sides))
        self._count += count

    @property
    def choices(self):
        """Whole numbers that are not fixed."""
        return int((self._whole & (self.low < self.high)).sum())

    def solve(self, *, relaxed=False, limit=np.inf):
        """What HiGHS says of the least cost, whole numbers being any if `relaxed`."""
        cost = np.zeros(len(self.low))
        cost[self.cost] = 1.0
        values, places, columns = map(np.concatenate, zip(*self._entries, strict=True))
        matrix = sparse.csr_array(
            (values, (places, columns)), shape=(self._count, len(self.low))
        )
        options = {"mip_rel_gap": 1e-6}
        if np.isfinite(limit):
            options["time_limit"] = limit
        return optimize.milp(
            cost,
            integrality=self._whole & (not relaxed),
            bounds=optimize.Bounds(self.low, self.high),
            constraints=optimize.LinearConstraint(matrix, *np.hstack(self._sides)),
            options=options,
        )


def table(found, name):
    """Medians of rows, and how far apart certificate, truth and attack are."""
    numbers = {
        column: found.floats(column) for column in (*NUMBERS, "bound", "seconds")
    }
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
