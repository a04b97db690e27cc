"""Certificates from votes under noise, a fixed number of them: the published protocol.

`n0` votes select a class, `n` fresh votes bound its probability, and the theorem that
belongs to the noise turns bounds into scores. Selection and estimation never share a
draw, and no label is looked at.
"""

import dataclasses
import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np

from wsjax import confidence, fixed, scores, sequential, text, votes
from wsjax.certificates import ProbabilityScores
from wsjax.certifiers import base, queue
from wsjax.certifiers.base import Certificate, Outcomes, Prediction
from wsjax.scores import ABSTAIN
from wsjax.smoothing import Smoothing

RUNNER_UP = ("never", "always", "auto")

# Images at work at a time where each decides alone when it has enough votes: while the
# host reads one's votes, the devices have others'.
IN_FLIGHT = 3

# For selection and estimation. Compiled: keys of `make_key` split op by op otherwise.
halves = jax.jit(jax.random.split)


@dataclasses.dataclass(frozen=True)
class Counting:
    """How votes are spread over the devices: what changes their speed and nothing else.

    Attributes:
      block_size: noisy copies classified at a time on one device. Around 250 suits a
        CPU's caches; larger is better on accelerators.
      backend: "pmap", or "shard_map", what `pmap` compiles to; same counts.
      devices: as in `votes.count_votes`; None for all of this process, or with `groups`
        for those of all processes.
      groups: of devices, each with images of its own, as in `votes.count_votes_each`;
        None for one image at a time on the devices of this process, 0 for as many as
        suit the number of images (`Certifier.laid_out_for`).
    """

    block_size: int = votes.BLOCK_SIZE
    backend: str = "pmap"
    devices: tuple[Any, ...] | None = None
    groups: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `votes.count_votes`."""
        return {name: value for name, value in vars(self).items() if name != "groups"}


class VoteEvidence(NamedTuple):
    """What votes say about one image.

    Attributes:
      p_lower: lower confidence bound on the probability of the selected class.
      runner_up: upper bound on every other class's, or None when `1 - p_lower` stood in.
      selection_votes: `[K]` int, sums to `n0` or, where looks are taken, to less.
      votes: `[K]` int, likewise of `n`; fresh draws.
    """

    p_lower: float
    runner_up: float | None
    selection_votes: np.ndarray
    votes: np.ndarray

    def __repr__(self) -> str:
        return text.short_repr(self)


class Counter:
    """Votes of one classifier under one noise, counted in one way.

    Attributes:
      groups: how many images are counted at a time, or None.
    """

    def __init__(self, classify: Callable, smoothing: Smoothing, counting: Counting):
        """Places the classifier where it is needed.

        Raises:
          ValueError: `counting.groups` does not divide the number of devices.
        """
        self._classify = self._original = votes.as_argument(classify)
        # The law alone: its arrays are arguments, and equal shapes share a program.
        self._perturb = votes.as_argument(votes.Addition(smoothing.noise))
        self._smoothing = smoothing
        self._options = counting.options
        self.groups = counting.groups or None
        if self.groups is not None:
            devices = counting.devices or votes.all_devices()
            votes.check_groups(self.groups, len(devices))
            self._classify = votes.replicate(self._classify, devices)
            self._perturb = votes.replicate(self._perturb, devices)

    def _prepared(self, image):
        """What the noise is added to.

        Refuses another shape than noise has, and a classifier that is not fixed.
        """
        shape = np.shape(image)[-3:]
        self._smoothing.check_shape(shape)
        fixed.check_fixed(self._original, np.reshape(image, (-1, *shape))[0])
        return self._smoothing.noise.prepare(image)

    def one(self, key: jax.Array, image: Any, n: int, start: int = 0) -> jax.Array:
        """`votes.count_votes`."""
        return votes.count_votes(
            key,
            self._prepared(image),
            self._classify,
            self._perturb,
            n=n,
            start=start,
            **self._options,
        )

    def each(self, keys: list, images: list, n: int) -> jax.Array:
        """Votes `[I, K]` or `[I, S, K]` of images or stacks, one key each."""
        if self.groups is None:
            return self.one(keys[0], images[0], n)[None]
        return votes.count_votes_each(
            keys,
            [self._prepared(image) for image in images],
            self._classify,
            self._perturb,
            n=n,
            groups=self.groups,
            **self._options,
        )


@dataclasses.dataclass(frozen=True)
class VoteCertifier(base.Certifier):
    """What all kinds that vote have in common.

    Attributes:
      classify: base classifier `[B, H, W, C] -> [B, K]` logits, one fixed function of
        each image.
      smoothing: noise law and theorem.
      n0: votes that select the class.
      n: fresh votes that bound its probability.
      alpha: probability that one certificate, or one answer, is wrong.
      counting: how the votes are spread over devices.
    """

    classify: Callable[[jax.Array], jax.Array]
    smoothing: Smoothing
    _: dataclasses.KW_ONLY
    n0: int = 1_000
    n: int = 10_000
    alpha: float = 0.05
    counting: Counting = Counting()

    random: ClassVar[bool] = True

    def __post_init__(self):
        confidence.check_alpha(self.alpha)
        for name in ("n0", "n"):
            value = getattr(self, name)
            if int(value) != value or value < 1:
                raise ValueError(
                    f"{name}={value!r} is not a positive whole number of votes; the "
                    f"paper uses n0=1000 to select a class and n=10000 to bound it."
                )

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """See `Certifier.settings`; those of `Counting` are among them."""
        given = ("classify", "smoothing", "counting")
        own = {
            field.name: field.default
            for field in dataclasses.fields(cls)
            if field.name not in given
        }
        layout = {"block_size": 0, "backend": "pmap", "groups": 0}
        return {**own, **layout}

    @classmethod
    def from_run(cls, run: Any, **settings: Any) -> Self:
        layout = {k: settings.pop(k) for k in ("block_size", "backend", "groups")}
        layout["block_size"] = layout["block_size"] or votes.suitable_block_size()
        counting = Counting(**layout)
        if counting.groups:
            votes.check_groups(counting.groups, len(votes.all_devices()))
        return cls(run.classify, run.smoothing, counting=counting, **settings)

    def held(self) -> Any:
        """The classifier and the law."""
        return votes.as_argument(self.classify), self.smoothing.noise

    def counter(self, most_per_block: int | None = None) -> Counter:
        """Counts votes as the certifier does.

        No block has more than `most_per_block` draws, so that no device's is half empty.
        """
        counting = self.counting
        if most_per_block is not None:
            size = min(counting.block_size, most_per_block)
            counting = dataclasses.replace(counting, block_size=size)
        return Counter(self._argument, self.smoothing, counting)

    @functools.cached_property
    def _argument(self):
        """One object for all counters, so that it is tried once."""
        return votes.as_argument(self.classify)

    def predict_each(
        self,
        images: Iterable[Any],
        keys: Iterable[jax.Array] | None = None,
        first_look: int | None = None,
    ) -> Iterator[Prediction]:
        """Answers of the smoothed classifier, `ABSTAIN` where votes are too close.

        Args:
          images: as in `Certifier.predict_each`.
          keys: one for each image.
          first_look: stop as soon as the votes are clear, looking at them first after
            so many (`sequential.looks`); None takes all `n` at once.

        Returns:
          Iterator of one `Prediction` per image. With probability 1 - alpha each is the
          most likely class, or `ABSTAIN`.

        Raises:
          ValueError: as `Certifier.certify`.

        Source: Cohen, Rosenfeld & Kolter 2019, PREDICT, as in the paper's code;
        docs/theory.md, 3.8, with looks.
        """
        moments = (
            [self.n] if first_look is None else sequential.looks(first_look, self.n)
        )
        counter = self.counter(None if first_look is None else share(self, first_look))

        def answer(counts):
            if first_look is None:
                return prediction_from_votes(counts, self.alpha)
            p_value = sequential.leading_class_p_value(counts, self.n)
            label = int(np.argmax(counts)) if p_value <= self.alpha else ABSTAIN
            return Prediction(label, p_value, counts)

        def work(images, keys):
            drawing = Drawing(counter, keys[0], images[0], moments)
            counts = yield from drawing.until(lambda so_far: answer(so_far).label >= 0)
            return [answer(counts)]

        return queue.run(work, images, needed(keys), 1, IN_FLIGHT)

    def recorded(self) -> dict[str, Any]:
        return {
            "ground_metric": self.smoothing.ground_metric,
            "scores": self.smoothing.scores.described(),
            "alpha": self.alpha,
            "n0": self.n0,
            "n": self.n,
        }


@dataclasses.dataclass(frozen=True)
class FixedVotes(VoteCertifier):
    """`n0` votes select, `n` fresh votes bound: with probability 1 - alpha it holds.

    The other attributes are those of `VoteCertifier`.

    Attributes:
      use_runner_up: "always" also bounds the other classes, at half of `alpha` each
        side; this pays when no class has nearly all votes. "auto" does so where the
        selection votes promise a larger radius that way (they are independent of
        those that bound, so choosing by them costs nothing). "never" does not.
      share_draws: how many images get the same noise, drawn once; all keys must then be
        equal. Each certificate holds with probability 1 - alpha as before. What they no
        longer are is independent: more of them can be wrong at once, and less often.

    Source: Levine & Feizi, arXiv:1910.10783, Section 5; Cohen, Rosenfeld & Kolter
    2019, CERTIFY.
    """

    _: dataclasses.KW_ONLY
    use_runner_up: str = "never"
    share_draws: int = 1

    columns: ClassVar[Mapping[str, str]] = {
        "p_lower": "float",
        "runner_up": "maybe",
        "count": "int",
        "n": "int",
        "selection_votes": "votes",
        "votes": "votes",
    }
    # Numbers of votes that are the same for all images.
    exactly: ClassVar[tuple[str, ...]] = ("n0", "n")

    def __post_init__(self):
        super().__post_init__()
        check_runner_up(self.use_runner_up)
        # Half of alpha is for the other classes then.
        level = self.alpha / 2 if self.use_runner_up == "always" else self.alpha
        if not confidence.lower_bound(self.n, self.n, level) > 0.5:
            needed = math.floor(math.log2(1 / level)) + 1
            raise ValueError(
                f"n={self.n} votes certify nothing at alpha={self.alpha}, even if all of "
                f"them agree: the bound on the probability would be 1/2 or less. It "
                f"takes n={needed} or more."
            )
        if int(self.share_draws) != self.share_draws or self.share_draws < 1:
            raise ValueError(
                f"share_draws={self.share_draws!r} is not a positive whole number of "
                f"images; 1 gives each its own noise."
            )

    @property
    def batch(self) -> int:
        """Images of one call of the counter."""
        return (self.counting.groups or 1) * self.share_draws

    @property
    def one_key(self) -> bool:
        """Where draws are shared."""
        return self.share_draws > 1

    def laid_out_for(self, images: int) -> "FixedVotes":
        """Chooses `counting.groups` where that is 0; see `votes.choose_groups`."""
        if self.counting.groups != 0:
            return self
        groups = votes.choose_groups(
            len(self.counting.devices or votes.all_devices()),
            -(-images // self.share_draws),
            (self.share_draws * self.n0, self.share_draws * self.n),
            self.counting.block_size,
        )
        counting = dataclasses.replace(self.counting, groups=groups)
        return dataclasses.replace(self, counting=counting)

    def certify_each(
        self, images: Iterable[Any], keys: Iterable[jax.Array] | None = None
    ) -> Iterator[Certificate]:
        """See `Certifier.certify_each`; reads one batch ahead.

        With several processes all of them take part, with the same images and keys.

        Raises:
          ValueError: as `Certifier.certify`; keys differ that should not.
        """
        counter = self.counter()

        def work(images, keys):
            count = len(images)
            if self.share_draws > 1:
                keys, images = _stacks(keys, images, self.share_draws)
            splits = [halves(key) for key in keys]
            queued = [
                counter.each([split[phase] for split in splits], images, trials)
                for phase, trials in enumerate((self.n0, self.n))
            ]
            yield
            rows = [np.reshape(q, (-1, np.shape(q)[-1]))[:count] for q in queued]
            return [
                certificate_from_votes(
                    fetch(first, self.n0),
                    fetch(second, self.n),
                    self.smoothing.scores,
                    alpha=self.alpha,
                    use_runner_up=self.use_runner_up,
                )
                for first, second in zip(*rows)
            ]

        return queue.run(work, images, needed(keys), self.batch, 2)

    def recorded(self) -> dict[str, Any]:
        return {
            **super().recorded(),
            "kind": "votes",
            "use_runner_up": self.use_runner_up,
        }

    def cells(self, certificate: Certificate) -> dict[str, Any]:
        evidence = certificate.evidence
        return {
            "p_lower": evidence.p_lower,
            "runner_up": evidence.runner_up,
            "count": int(evidence.votes[certificate.selected]),
            "n": int(evidence.votes.sum()),
            "selection_votes": evidence.selection_votes,
            "votes": evidence.votes,
        }

    @classmethod
    def outcomes(
        cls, rows: Mapping[str, np.ndarray], recorded: Mapping[str, Any]
    ) -> list[Outcomes]:
        """See `Certifier.outcomes`; Laplace votes under both of their theorems."""
        check_votes(rows, recorded, cls.exactly)
        own = ProbabilityScores(**recorded["scores"])
        theorems = {"tight": own}
        if own.function in ("laplace", "logarithm"):
            theorems = {
                "published": dataclasses.replace(own, function="logarithm"),
                "tight": dataclasses.replace(own, function="laplace"),
            }
        pairs = list(zip(rows["selection_votes"], rows["votes"]))
        alpha, way = recorded["alpha"], recorded["use_runner_up"]
        answers = [prediction_from_votes(fresh, alpha).label for _, fresh in pairs]

        def under(theorem) -> tuple[np.ndarray, np.ndarray]:
            found = [
                certificate_from_votes(*pair, theorem, alpha=alpha, use_runner_up=way)
                for pair in pairs
            ]
            if theorem == own:
                _check_written(rows, found, theorem.scale)
            return (
                np.array([result.label for result in found]),
                np.array([result.radius for result in found]),
            )

        passes = rows["selection_votes"].sum(1) + rows["votes"].sum(1)
        return [
            Outcomes(
                bound,
                *under(theorem),
                predictions=np.array(answers),
                passes=passes,
                votes=rows["votes"],
            )
            for bound, theorem in theorems.items()
        ]


def check_votes(
    rows: Mapping[str, np.ndarray],
    recorded: Mapping[str, Any],
    exactly: Sequence[str] = (),
) -> None:
    """Refuses rows that have other votes than were to be cast, or of another class.

    Args:
      rows: as in `Certifier.outcomes`.
      recorded: see there; `n0` and `n` are the most votes.
      exactly: which of these are the number of votes of every image.

    Raises:
      ValueError: which row, and why.
    """
    faults = {}
    for column, name in (("selection_votes", "n0"), ("votes", "n")):
        cast, number = rows[column].sum(1), recorded[name]
        fault = f"The {column} of image {{idx}} do not add up to {name}={number}"
        faults[fault] = (
            cast != number if name in exactly else base.outside(cast, 1, number + 1)
        )
    leading = rows["selection_votes"].argmax(1)
    fault = "The class selected for image {idx} does not lead in its selection votes"
    base.refuse(rows, {**faults, fault: rows["selected"] != leading})


def _check_written(rows, found, scale):
    """Refuses rows that are not what their own votes certify, but for rounding."""

    def differs(column, values, near=0.0):
        written, expected = rows[column], np.array(values, np.float64)
        return ~np.isclose(written, expected, rtol=1e-9, atol=near, equal_nan=True)

    own = [int(c.evidence.votes[c.selected]) for c in found]
    base.refuse(
        rows,
        {
            "The votes of image {idx} do not add up to its n": rows["n"]
            != rows["votes"].sum(1),
            "The count of image {idx} is not that of its votes": differs("count", own),
            "The p_lower of image {idx} is not what its votes bound": differs(
                "p_lower", [c.evidence.p_lower for c in found]
            ),
            "The runner_up of image {idx} is not what its votes bound": differs(
                "runner_up", [c.evidence.runner_up for c in found]
            ),
            "The class of image {idx} is not what its votes certify": differs(
                "predict", [c.label for c in found]
            ),
            "The radius of image {idx} is not what its votes certify": differs(
                "radius", [c.radius for c in found], near=1e-9 * scale
            ),
        },
    )


def needed(keys: Iterable[jax.Array] | None) -> Iterable[jax.Array]:
    """Keys, each looked at when its turn comes, or an error that says what they are for."""
    if keys is None:
        raise ValueError(
            "Votes are random: pass a key for each image, e.g. "
            "certifier.certify(image, jax.random.key(0))."
        )
    if isinstance(keys, (int, float)) or getattr(keys, "ndim", 1) == 0:
        votes.check_key(keys)
        raise ValueError(
            "keys is one key, and each image needs its own: jax.random.split(key, "
            "number of images)."
        )
    return (votes.check_key(key) for key in keys)


def share(certifier: VoteCertifier, first_look: int) -> int:
    """A device's share of the votes before the first look."""
    devices = certifier.counting.devices
    return -(-first_look // len(jax.local_devices() if devices is None else devices))


class Drawing:
    """Votes under one key that grow from look to look; the next ones are queued."""

    def __init__(
        self, counter: Counter, key: jax.Array, image: Any, moments: Sequence[int]
    ):
        """Queues the first votes; `moments` are increasing numbers after which to look."""
        self._count = lambda start, n: counter.one(key, image, n, start)
        self._moments, self._drawn = deque(moments), 0
        self._votes: Any = 0
        self._queued: Any = None
        self._queue()

    def _queue(self):
        if self._queued is None:
            size = self._moments.popleft() - self._drawn
            self._queued = self._count(self._drawn, size), size

    def more(self):
        """Yields once, to let others use the time; returns all votes so far."""
        self._queue()
        yield
        counts, size = self._queued
        self._queued = None
        self._votes = self._votes + fetch(counts, size)
        self._drawn += size
        return self._votes

    def until(self, enough: Callable[[np.ndarray], bool]):
        """Likewise, looking until `enough(votes)` or there are no more."""
        while True:
            counts = yield from self.more()
            if not self._moments or enough(counts):
                return counts


def _stacks(keys, images, size):
    """Keys and images as stacks of one size; the last image fills up the last one."""
    if len({np.asarray(jax.random.key_data(key)).tobytes() for key in keys}) > 1:
        raise ValueError(
            "Images that share their noise need one key: pass the same one for every "
            "image, or share_draws=1."
        )
    images = [*images, *images[-1:] * (-len(images) % size)]
    stacks = [np.stack(images[i : i + size]) for i in range(0, len(images), size)]
    return keys[:1] * len(stacks), stacks


def certificate_from_votes(
    selection_votes: np.ndarray,
    estimation_votes: np.ndarray,
    theorem: ProbabilityScores,
    *,
    alpha: float,
    use_runner_up: str = "never",
) -> Certificate:
    """The statistical half of `FixedVotes`, on votes that were counted already.

    Args:
      selection_votes: `[K]` int counts that pick the class.
      estimation_votes: `[K]` int counts of draws independent of the former.
      theorem: what probabilities under the noise are worth.
      alpha: probability that this certificate is wrong.
      use_runner_up: as in `FixedVotes`.

    Returns:
      A `Certificate` with `VoteEvidence`.

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
    if _bounds_others(use_runner_up, selection_votes, n, theorem, alpha):
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
    return Certificate(
        *scores.lead(selected, *theorem.bounds(p_lower, runner_up)),
        VoteEvidence(p_lower, runner_up, selection_votes, estimation_votes),
    )


def prediction_from_votes(counts: np.ndarray, alpha: float) -> Prediction:
    """An answer from votes that were counted already.

    Args:
      counts: `[K]` int.
      alpha: probability of returning a class that is not the most likely one.

    Returns:
      A `Prediction`.

    Raises:
      ValueError: `alpha` or the counts are outside their range.

    Source: Cohen, Rosenfeld & Kolter 2019, PREDICT.
    """
    confidence.check_alpha(alpha)
    p_value = confidence.top_two_p_value(counts)
    label = int(np.argmax(counts)) if p_value <= alpha else ABSTAIN
    return Prediction(label, p_value, counts)


def check_runner_up(choice: str) -> None:
    """Raises ValueError unless `choice` is of `RUNNER_UP`."""
    if choice not in RUNNER_UP:
        raise ValueError(f"use_runner_up={choice!r} is not one of {RUNNER_UP}.")


def _bounds_others(choice, selection_votes, n, theorem, alpha):
    """Whether the other classes are bounded too; looks at selection votes alone."""
    check_runner_up(choice)
    if choice != "auto":
        return choice == "always"
    # What the certificate would be if estimation voted like selection.
    shares = np.asarray(selection_votes) / max(int(np.sum(selection_votes)), 1)
    expected = np.floor(shares * n).astype(np.int64)
    expected[np.argmax(shares)] += n - expected.sum()
    with_others, without = (
        certificate_from_votes(
            selection_votes, expected, theorem, alpha=alpha, use_runner_up=way
        ).radius
        for way in ("always", "never")
    )
    return with_others > without


def fetch(counts: jax.Array, n: int) -> np.ndarray:
    """Waits for counts `[K]` of `votes.count_votes`, and brings them to the host.

    Raises:
      ValueError: they do not sum to the `n` draws: some logits were NaN or infinite.
    """
    found = np.asarray(counts)
    if found.sum() != n:
        raise ValueError(
            f"The classifier returned NaN or infinite logits for {n - found.sum()} "
            f"of {n} noisy copies. Check its weights, and that it accepts pixels "
            f"below 0 and above 1."
        )
    return found
