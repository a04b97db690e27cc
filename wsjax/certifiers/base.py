"""What every certifier does, and what it says about an image.

A certifier is a frozen dataclass that holds all it needs (a classifier and its noise,
or labelled images) and its settings. Kinds that draw votes take a key for each image;
the others take none. Rows of results are told and read back here too, so that a report
needs neither images nor classifiers.
"""

import abc
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np

from wsjax import scores, text


class Certificate(NamedTuple):
    """What a certifier found out about one image.

    Attributes:
      label: the certified class, or `ABSTAIN`: the classifier returns it at every image
        with the same mass in every channel whose Wasserstein distance is less than
      radius: the certified radius, in pixels x fraction of mass; 0.0 with `ABSTAIN`.
      selected: the class that was asked about, whether or not it is certified.
      lower: lower bound on its score,
      upper: upper bound on the score of the class that limits the radius,
      lipschitz: and the Lipschitz constant of their difference. The radius is
        `scores.certified_radius` of these three.
      evidence: what the bounds were made of, a NamedTuple of the kind of certifier.
    """

    label: int
    radius: float
    selected: int
    lower: float
    upper: float
    lipschitz: float
    evidence: Any

    def __repr__(self) -> str:
        return text.short_repr(self)

    def __str__(self) -> str:
        if self.label == scores.ABSTAIN:
            return f"No class is certified; class {self.selected} was asked about."
        alike = "the same mass in every channel"
        if math.isinf(self.radius):
            return f"Class {self.label} at every image with {alike}."
        return (
            f"Class {self.label} at every image with {alike} that is closer than "
            f"{text.rounded_down(self.radius)} pixels x fraction of mass."
        )


class Prediction(NamedTuple):
    """The answer to one image.

    Attributes:
      label: the class, or `ABSTAIN` where votes are too close.
      p_value: of "it is not the most likely class"; 0.0 where nothing is left to chance.
      votes: `[K]` int, or None where there are none.
    """

    label: int
    p_value: float = 0.0
    votes: np.ndarray | None = None

    def __repr__(self) -> str:
        return text.short_repr(self)


class Outcomes(NamedTuple):
    """What rows say about N images, under one theorem.

    Attributes:
      theorem: its name, "" where there is one only.
      labels: `[N]` certified classes, or `ABSTAIN`.
      radii: `[N]` certified radii.
      predictions: `[N]` answers, or `ABSTAIN`.
      passes: `[N]` how often the classifier was asked, or None.
      most_passes: how often it would be without looking in between.
      votes: `[N, K]` votes about the selected class, or None.
    """

    theorem: str
    labels: np.ndarray
    radii: np.ndarray
    predictions: np.ndarray
    passes: np.ndarray | None = None
    most_passes: int | None = None
    votes: np.ndarray | None = None


class Certifier(text.Short, abc.ABC):
    """Certifies images; subclasses are frozen dataclasses.

    Attributes:
      columns: its own columns in rows of results, with what is in them: "int", "float",
        "maybe" (a float or nothing), "votes" (`[K]` int) or "text".
      rows_file: name of the file of its rows.
      random: whether it draws, and needs a key for each image.
      several_processes: whether a run may have several processes.
      trigger: the setting of a config that, set to something, means this kind.
      ignores: settings of other kinds that may be set all the same.
    """

    columns: ClassVar[Mapping[str, str]] = {}
    rows_file: ClassVar[str] = "certificates.tsv"
    random: ClassVar[bool] = False
    several_processes: ClassVar[bool] = True
    trigger: ClassVar[str | None] = None
    ignores: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def certify_each(
        self, images: Iterable[Any], keys: Iterable[jax.Array] | None = None
    ) -> Iterator[Certificate]:
        """Certifies images one after another; see `certify`.

        Args:
          images: of `[H, W, C]` float each; read a few ahead.
          keys: one for each image, used up; None for kinds that do not draw.

        Yields:
          One `Certificate` per image, in order. Those before a bad image come first.

        Raises:
          ValueError: as `certify`.
        """

    @abc.abstractmethod
    def predict_each(
        self, images: Iterable[Any], keys: Iterable[jax.Array] | None = None
    ) -> Iterator[Prediction]:
        """Answers to images one after another; see `predict` and `certify_each`."""

    def certify(self, image: Any, key: jax.Array | None = None) -> Certificate:
        """Certifies one image: no image closer than `radius` gets another answer.

        Args:
          image: `[H, W, C]` float32 or float64, nonnegative, not all zero.
          key: used up by this call; None for kinds that do not draw.

        Returns:
          A `Certificate`.

        Raises:
          ValueError: a bad image (`images.check_image`), a key that is missing, or a
            classifier that returns NaN.
        """
        return next(self.certify_each([image], None if key is None else [key]))

    def predict(self, image: Any, key: jax.Array | None = None) -> Prediction:
        """The answer to one image; arguments and errors as `certify`."""
        return next(self.predict_each([image], None if key is None else [key]))

    @property
    def batch(self) -> int:
        """How many images are certified at a time; results come so many together."""
        return 1

    @property
    def one_key(self) -> bool:
        """Whether all images need the same key, as their noise is drawn once."""
        return False

    @abc.abstractmethod
    def held(self) -> Any:
        """Pytree of all arrays that answers depend on."""

    def laid_out_for(self, images: int) -> "Certifier":
        """The same certifier, spread over the devices as suits a number of images."""
        del images
        return self

    @classmethod
    @abc.abstractmethod
    def settings(cls) -> dict[str, Any]:
        """Names and defaults of what a config's `certify` block may set."""

    @classmethod
    @abc.abstractmethod
    def from_run(cls, run: Any, **settings: Any) -> Self:
        """Makes one for a run.

        Args:
          run: has `classify` and `smoothing`, those that were trained or configured,
            and `training_set()`, each made when it is asked for.
          **settings: a value for each of `settings()`.

        Returns:
          The certifier.

        Raises:
          ValueError: a setting is outside its range.
        """

    @abc.abstractmethod
    def recorded(self) -> dict[str, Any]:
        """What `outcomes` has to know, as plain values: kept with the rows.

        Always has "kind", the name in the registry, and "ground_metric".
        """

    @abc.abstractmethod
    def cells(self, certificate: Certificate) -> dict[str, Any]:
        """Values of the kind's own `columns` for one certificate."""

    @classmethod
    @abc.abstractmethod
    def outcomes(
        cls, rows: Mapping[str, np.ndarray], recorded: Mapping[str, Any]
    ) -> list[Outcomes]:
        """What rows say, read back.

        Args:
          rows: arrays `[N]` or `[N, K]` by column, those that all kinds share and the
            kind's own.
          recorded: what `recorded` told when they were written.

        Returns:
          One `Outcomes`, or several if the same rows serve several theorems; the
          run's own first.

        Raises:
          ValueError: the rows contradict themselves.
        """


def outside(values: np.ndarray, low: float, end: float) -> np.ndarray:
    """Where values are below `low`, or not below `end`, or NaN."""
    return ~((values >= low) & (values < end))


def refuse(rows: Mapping[str, np.ndarray], faults: Mapping[str, np.ndarray]) -> None:
    """Refuses rows that have a fault.

    Args:
      rows: arrays by column.
      faults: what each fault is, with `{idx}` for that of the first row that has it, to
        `[N]` bool.

    Raises:
      ValueError: a row has one; the message tells the first, and how many have it.
    """
    for fault, wrong in faults.items():
        if np.any(wrong):
            first = rows["idx"][np.argmax(wrong)]
            raise ValueError(
                f"{fault.format(idx=first)} ({np.count_nonzero(wrong)} such rows)."
            )


class WithoutVotes(Certifier):
    """A kind that draws nothing: one row serves one theorem, which holds for certain."""

    # So that any config may be certified this way.
    ignores: ClassVar[tuple[str, ...]] = (
        *("n0", "n", "alpha", "use_runner_up"),
        *("block_size", "backend", "groups"),
    )

    def predict_each(
        self, images: Iterable[Any], keys: Iterable[jax.Array] | None = None
    ) -> Iterator[Prediction]:
        """See `Certifier.predict_each`: the selected class, certified or not."""
        for certificate in self.certify_each(images, keys):
            yield Prediction(certificate.selected)

    def cells(self, certificate: Certificate) -> dict[str, Any]:
        return certificate.evidence._asdict()

    @classmethod
    def outcomes(
        cls, rows: Mapping[str, np.ndarray], recorded: Mapping[str, Any]
    ) -> list[Outcomes]:
        lead = scores.certified_radius(rows["lower"], rows["upper"], rows["lipschitz"])
        certified = rows["predict"] != scores.ABSTAIN
        wrong = certified & ~np.isclose(rows["radius"], lead, rtol=1e-9, atol=0)
        refuse(rows, {"The radius of image {idx} is not that of its bounds": wrong})
        return [Outcomes("", rows["predict"], rows["radius"], rows["selected"])]
