"""Counting votes: classify noisy copies of an image and count the answers.

The room knows neither flows nor theorems. It takes two callables, `classify` and
`perturb`, and spreads `n` draws over the local devices (`count_votes`), or several
images and their draws over those of all processes (`count_votes_each`). A draw's
randomness depends
on the key and on the number of the draw alone, `fold_in(key, draw)`, so the counts
are the same for any number of devices, any size and order of blocks (as far as the
classifier's own arithmetic does not depend on the size of its batch), and whichever
other images are run. Memory holds one block of noisy images per device, never `n`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_AXIS = "draws"
_IMAGES = "images"

BACKENDS = ("pmap", "shard_map")
BLOCK_SIZE = 250


def as_argument(function: Callable) -> jax.tree_util.Partial:
    """Wraps a callable so that it can pass through `jax.jit` as an argument.

    A `jax.tree_util.Partial(apply, variables)` is passed on as it is: its arrays
    stay arguments of the compiled program rather than constants inside it, so new
    weights need no new compilation. Any other callable is treated as fixed; keep
    one object and reuse it, since each new object compiles anew.

    Args:
      function: any callable.

    Returns:
      A `Partial` with the same behaviour.

    Raises:
      TypeError: `function` is not callable.
    """
    if isinstance(function, jax.tree_util.Partial):
        return function
    if not callable(function):
        raise TypeError(f"Expected a callable, got {type(function).__name__}.")
    return jax.tree_util.Partial(function)


class Additive(Protocol):
    """Noise that is added to an image and does not depend on it, but for a factor.

    `noise.NoiseLaw` and `smoothing.Smoothing` are of this kind. The copy
    `perturb(key, image)` is `picture(image) + strength(image) * added(key, ...)`, up to
    rounding.
    """

    def perturb(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """One noisy copy, `[H, W, C]`."""

    def picture(self, image: jax.Array) -> jax.Array:
        """What noise is added to, `[H, W, C]`."""

    def strength(self, image: jax.Array) -> jax.Array:
        """The factor of the noise, a scalar."""

    def added(
        self, key: jax.Array, image_shape: tuple[int, ...], dtype: Any
    ) -> jax.Array:
        """The noise, `[H, W, C]`."""


@dataclasses.dataclass(frozen=True)
class Addition:
    """The `perturb` of additive noise, with its parts in reach of `count_votes`.

    Attributes:
      noise: hashable. Equal ones share their programs.
    """

    noise: Additive

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """One noisy copy `[H, W, C]` of one image."""
        return self.noise.perturb(key, image)


def count_votes(
    key: jax.Array,
    image: jax.Array,
    classify: Callable[[jax.Array], jax.Array],
    perturb: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    n: int,
    start: int = 0,
    block_size: int = BLOCK_SIZE,
    devices: Sequence[Any] | None = None,
    backend: str = "pmap",
) -> jax.Array:
    """Counts how often each class wins among `n` noisy copies of one image.

    Draw `i` is `argmax(classify(perturb(fold_in(key, i), image)))`. A copy whose
    logits are not all numbers votes for nothing, so counts that sum to less than
    `n` reveal a broken classifier.

    One program serves every `n` and every image of one shape. The call returns as
    soon as the work is queued; reading the result waits for it.

    Args:
      key: used up by this call.
      image: `[H, W, C]` float, or a stack `[S, H, W, C]` whose images get the same
        noise, drawn once: row `s` of the result is what `image[s]` alone would give,
        up to the rounding of what comes next. Where `perturb` is an `Addition` and
        `classify` a `Partial` whose function also has methods `first`, linear in the
        images, and `rest`, with `rest(first(x))` the logits, `first` is done once for
        each image and each draw, not for each copy. `models.classifier` makes such.
      classify: `[B, H, W, C] -> [B, K]` logits; a vote goes to the largest, ties
        to the smallest class index. See `as_argument` for weights.
      perturb: `(key, [H, W, C]) -> [H, W, C]`, one noisy copy, e.g. the method
        `perturb` of a noise law.
      n: number of draws, at least one.
      start: number of the first draw. Counts of `n` draws and those of `m` more from
        `start=n` sum to the counts of `n + m` draws.
      block_size: noisy copies classified at a time on one device. Around 250 suits a
        CPU's caches; larger is better on accelerators. Keep it fixed within a run.
      devices: local devices to use; default all of this process.
      backend: "pmap", or "shard_map", what `pmap` compiles to; same counts.

    Returns:
      `[K]` or `[S, K]` int32 counts.

    Raises:
      ValueError: `n` or `block_size` is not positive, `start` is negative, draws reach
        2**31, the backend is unknown, or the classifier's output is not `[B, K]`.
    """
    _check_sizes(n, start, block_size, backend)
    devices = tuple(jax.local_devices() if devices is None else devices)
    classify, perturb = as_argument(classify), as_argument(perturb)
    image = jnp.asarray(image)
    size = _draws_at_a_time(block_size, image.shape)
    num_classes = _num_classes(classify, size, image.shape, image.dtype)
    counter = _counter(size, num_classes, devices, backend)
    draws = np.array([start, start + n], np.int32)
    return counter(classify, perturb, key, image, draws)


def count_votes_each(
    keys: Sequence[jax.Array] | jax.Array,
    images: Sequence[Any] | Any,
    classify: Callable[[jax.Array], jax.Array],
    perturb: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    n: int,
    start: int = 0,
    block_size: int = BLOCK_SIZE,
    devices: Sequence[Any] | None = None,
    groups: int | None = None,
    backend: str = "pmap",
) -> jax.Array:
    """`count_votes` for several images, on the devices of all processes.

    The devices form `groups` of equal size. A group takes a share of the images, its
    members share the draws of each. Row `i` of the result is `count_votes(keys[i],
    images[i], ...)` whatever the layout. With several processes each one makes the
    same call with the same arguments, in the same order, and gets the same result.

    One program serves every `n`, every images of one number and shape, and all weights.

    Args:
      keys: `I` keys, one for each image.
      images: `[I, H, W, C]` float, on the host; or stacks `[I, S, H, W, C]`.
      classify: as in `count_votes`. Weights that `replicate` spread over the devices
        are used where they lie; others are copied to each device by every call.
      perturb: as in `count_votes`.
      n: number of draws of each image.
      start: number of the first draw.
      block_size: draws classified at a time on one device.
      devices: default all of all processes.
      groups: a divisor of the number of devices; default 1, so that all devices share
        the draws of one image after another. See `choose_groups`.
      backend: as in `count_votes`. `pmap` sees the devices of one process; where there
        are others, `shard_map` is used.

    Returns:
      `[I, K]` or `[I, S, K]` int32 counts, on every device.

    Raises:
      ValueError: as `count_votes`; keys and images differ in number, there are none, or
        `groups` does not divide the number of devices.
    """
    _check_sizes(n, start, block_size, backend)
    devices = all_devices() if devices is None else tuple(devices)
    groups = 1 if groups is None else groups
    check_groups(groups, len(devices))
    keys, images = list(keys), np.asarray(images)
    if not len(keys) == len(images) > 0 or images.ndim not in (4, 5):
        raise ValueError(
            f"{len(keys)} keys and images {images.shape} do not belong together: "
            f"give one key for each image of [I, H, W, C], with I at least 1, or for "
            f"each stack of [I, S, H, W, C]."
        )
    classify, perturb = as_argument(classify), as_argument(perturb)
    images = images.astype(jax.dtypes.canonicalize_dtype(images.dtype), copy=False)
    size = _draws_at_a_time(block_size, images.shape[1:])
    num_classes = _num_classes(classify, size, images.shape[1:], images.dtype)
    each = -(-len(images) // groups)
    layout = _Layout(size, num_classes, devices, int(groups), each)
    # What is missing to equal shares is made up by the last image without any draws.
    padding = layout.places.size - len(images)
    draws = np.array([[start, start + n]] * len(images) + [[0, 0]] * padding, np.int32)
    keys += keys[-1:] * padding
    images = np.concatenate([images, images[-1:].repeat(padding, axis=0)])
    by_mesh = backend == "shard_map" or not all(map(_is_local, devices))
    count = (_counter_by_shard_map if by_mesh else _counter_by_pmap)(layout)
    counts = count(classify, perturb, keys, images, draws)
    return counts[:-padding] if padding else counts


def all_devices() -> tuple[Any, ...]:
    """The devices of all processes, those of one process side by side."""
    return tuple(sorted(jax.devices(), key=lambda d: (d.process_index, d.id)))


def choose_groups(
    devices: int, images: int, trials: Sequence[int], block_size: int
) -> int:
    """How many groups of devices certify a number of images soonest.

    Time is counted in blocks: a group needs `ceil(blocks / members)` rounds for each
    entry of `trials`, and `ceil(images / groups)` such turns. One group for each device
    wastes no rounds, but leaves devices idle when the images run out; one group for
    all has idle members whenever there are fewer blocks than devices. Among layouts
    within 5 % of the best the one with fewest groups is taken: its rows come earlier,
    and less is lost when a machine dies.

    Args:
      devices: how many there are.
      images: how many are to be certified.
      trials: draws per image and call of the counter, such as `(n0, n)`.
      block_size: of those calls.

    Returns:
      A divisor of `devices`.
    """
    blocks = [-(-trial // block_size) for trial in trials]

    def time_of(groups):
        members = devices // groups
        rounds = sum(-(-block // members) for block in blocks)
        return -(-max(images, 1) // groups) * rounds

    possible = [g for g in range(1, devices + 1) if devices % g == 0]
    best = min(map(time_of, possible))
    return next(g for g in possible if time_of(g) <= 1.05 * best)


def replicate(tree: Any, devices: Sequence[Any] | None = None) -> Any:
    """Copies arrays to every device, so that no later call has to.

    Args:
      tree: of arrays, such as a classifier that is a `Partial`; the same on all
        processes. Nothing is sent between processes.
      devices: default those of all processes.

    Returns:
      The tree, each array on every device.
    """
    devices = all_devices() if devices is None else tuple(devices)
    everywhere = NamedSharding(_mesh(devices, 1), PartitionSpec())

    def place(leaf):
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == set(devices):
            return leaf
        local = [device for device in devices if _is_local(device)]
        parts = [jax.device_put(leaf, device) for device in local]
        return jax.make_array_from_single_device_arrays(
            np.shape(leaf), everywhere, parts
        )

    return jax.tree.map(place, tree)


def _check_sizes(n, start, block_size, backend):
    for name, value in (("n", n), ("block_size", block_size)):
        if int(value) != value or not 1 <= value < 2**31 - 2**24:
            raise ValueError(
                f"{name}={value!r} is not a whole number between 1 and 2**31 - 2**24."
            )
    if int(start) != start or not 0 <= start < 2**31 - 2**24 - n:
        raise ValueError(
            f"start={start!r} is not a whole number from 0 with start + n={n} below "
            f"2**31 - 2**24."
        )
    if block_size > 2**24:
        raise ValueError(f"block_size={block_size} is above 2**24; use smaller blocks.")
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not one of {BACKENDS}.")


def check_groups(groups: int, devices: int) -> None:
    """Refuses numbers of groups that a number of devices cannot form.

    Args:
      groups: as in `count_votes_each`.
      devices: how many there are.

    Raises:
      ValueError: `groups` is not a positive whole number that divides `devices`.
    """
    if int(groups) != groups or groups < 1 or devices % groups:
        raise ValueError(
            f"groups={groups!r} does not divide {devices} devices into equal groups; "
            f"use a divisor, e.g. 1 or {devices}."
        )


def _draws_at_a_time(block_size, image_shape):
    """Draws that make a block of copies of one image, or of a stack of them."""
    return max(1, int(block_size) // math.prod(image_shape[:-3]))


def _num_classes(classify, draws, shape, dtype):
    """Number of classes; refuses a classifier that returns no logits `[B, K]`."""
    count = draws * math.prod(shape[:-3])
    blocks = jax.ShapeDtypeStruct((count, *shape[-3:]), dtype)
    logits = jax.eval_shape(classify, blocks)
    if logits.ndim != 2 or logits.shape[0] != count:
        raise ValueError(
            f"classify turned images {blocks.shape} into {logits.shape}; it should "
            f"return logits [B, K], here [{count}, number of classes]."
        )
    return logits.shape[1]


def _is_local(device):
    return device.process_index == jax.process_index()


def _block_votes(first, end, size, num_classes, answer):
    """`[K]` or `[S, K]` int32 votes of draws `first + (0 ... size - 1)` below `end`."""
    draws = first + jnp.arange(size, dtype=jnp.int32)
    logits = answer(draws, first < end)
    valid = (draws < end) & jnp.all(jnp.isfinite(logits), axis=-1)
    winners = jnp.argmax(logits, axis=-1)
    # Comparing beats scattering on every backend at these sizes.
    hits = winners[..., None] == jnp.arange(num_classes, dtype=winners.dtype)
    return jnp.sum(hits & valid[..., None], axis=-2, dtype=jnp.int32)


def _answer(classify, perturb, key, image):
    """Logits `[B, K]`, or `[S, B, K]` of a stack, as a function of draws `[B]`.

    Its second argument says that there are any, which XLA cannot know.
    """
    if image.ndim == 4 and _in_steps(classify) and isinstance(perturb.func, Addition):
        return _answer_in_steps(classify, perturb.func.noise, key, image)

    def copies_of(draws):
        keys = _keys_of(draws, key)
        of_one = jax.vmap(perturb, (0, None))
        if image.ndim == 3:
            return of_one(keys, image)
        # Noise is the same for all, so XLA takes it out of the loop. Mapped over at
        # once, it would be merged into the sum with every image and made again.
        return jax.lax.map(lambda one: of_one(keys, one), image)

    def logits_of(draws, any_draws):
        copies = _made_once(copies_of, draws, any_draws)
        logits = classify(copies.reshape(-1, *image.shape[-3:]))
        return logits.reshape(*image.shape[:-3], len(draws), -1)

    return logits_of


def _in_steps(classify):
    """Whether a classifier comes with its linear first step and the rest apart."""
    return hasattr(classify.func, "first") and hasattr(classify.func, "rest")


def _answer_in_steps(classify, noise, key, image):
    """`_answer` for a stack: the first step of a copy is a sum of first steps.

    One of each image and one of each draw are all that is needed, instead of one of
    each copy.
    """
    given, options = classify.args, classify.keywords
    first = functools.partial(classify.func.first, *given, **options)
    rest = functools.partial(classify.func.rest, *given, **options)
    of_images = first(jax.vmap(noise.picture)(image))
    strength = jax.vmap(noise.strength)(image)

    def noise_of(draws):
        one = functools.partial(
            noise.added, image_shape=image.shape[1:], dtype=image.dtype
        )
        return jax.vmap(one)(_keys_of(draws, key))

    def logits_of(draws, any_draws):
        def of_draws(draws):
            return first(_made_once(noise_of, draws, any_draws))

        of_noise = _made_once(of_draws, draws, any_draws)

        def combine(of_image, of_noise):
            factor = strength.reshape(-1, *(1,) * of_noise.ndim)
            copies = of_image[:, None] + factor.astype(of_noise.dtype) * of_noise
            return copies.reshape(-1, *of_noise.shape[1:])

        logits = rest(jax.tree.map(combine, of_images, of_noise))
        return logits.reshape(len(image), len(draws), -1)

    return logits_of


def _keys_of(draws, key):
    return jax.vmap(lambda draw: jax.random.fold_in(key, draw))(draws)


def _made_once(make, draws, any_draws):
    """`make(draws)`, kept apart from whatever reads it.

    XLA merges cheap steps of the noise into whatever reads it, and makes the random
    bits anew for every reader. It does not look into a branch; this one is always
    taken, which it cannot know.
    """

    def never(draws):
        # Of the draws, as a mapped program wants both branches to be.
        return jax.tree.map(
            lambda made: (
                jnp.zeros(made.shape, made.dtype) + (0 * draws[0]).astype(made.dtype)
            ),
            jax.eval_shape(make, draws),
        )

    return jax.lax.cond(any_draws, make, never, draws)


def _no_votes(image, num_classes):
    return jnp.zeros((*image.shape[:-3], num_classes), jnp.int32)


def _votes_of_one_device(
    rank, members, size, num_classes, nothing, classify, perturb, key, image, draws
):
    """Votes of one device's share of the draws `start ... end - 1`."""
    start, end = draws
    blocks = (end - start + size - 1) // size
    # Device d takes blocks d, d + members, ...: a loop of run-time length, so that
    # selection and estimation, with other n, share one program.
    rounds = jnp.maximum(blocks - rank + members - 1, 0) // members
    answer = _answer(classify, perturb, key, image)

    def add_block(i, votes):
        first = start + (rank + i * members) * size
        return votes + _block_votes(first, end, size, num_classes, answer)

    return jax.lax.fori_loop(0, rounds, add_block, nothing)


@functools.cache
def _counter(block_size, num_classes, devices, backend):
    """The compiled counting loop for one layout of blocks over devices."""
    members = len(devices)

    def on_one_device(rank, classify, perturb, key, image, draws):
        votes = _no_votes(image, num_classes)
        if backend == "shard_map":
            votes = jax.lax.pcast(votes, _AXIS, to="varying")
        given = (classify, perturb, key, image, draws)
        votes = _votes_of_one_device(
            rank, members, block_size, num_classes, votes, *given
        )
        return jax.lax.psum(votes, _AXIS)

    ranks = np.arange(members, dtype=np.int32)
    if backend == "pmap":
        mapped = jax.pmap(
            on_one_device,
            axis_name=_AXIS,
            in_axes=(0, None, None, None, None, None),
            out_axes=None,
            devices=devices,
        )
        return functools.partial(mapped, ranks)

    # Auto axis types: the default (explicit) ones would want every array placed.
    mesh = Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))
    everywhere = PartitionSpec()
    mapped = jax.jit(
        jax.shard_map(
            lambda rank, *rest: on_one_device(rank[0], *rest),
            mesh=mesh,
            in_specs=(PartitionSpec(_AXIS),) + (everywhere,) * 5,
            out_specs=everywhere,
        )
    )
    return functools.partial(mapped, ranks)


@functools.cache
def _mesh(devices, groups):
    return Mesh(
        np.array(devices).reshape(groups, -1),
        (_IMAGES, _AXIS),
        axis_types=(AxisType.Auto,) * 2,
    )


class _Layout(NamedTuple):
    """How images and draws are spread: what the program depends on besides shapes."""

    block_size: int
    num_classes: int
    devices: tuple[Any, ...]
    groups: int
    each: int  # Images of one group.

    @property
    def members(self):
        return len(self.devices) // self.groups

    @property
    def places(self):
        """`[groups, each]` numbers of the images of every group."""
        return np.arange(self.groups * self.each).reshape(self.groups, self.each)


def _votes_of_group(
    layout, rank, group, vary, axes, classify, perturb, keys, images, draws
):
    """Votes `[groups * each, ...]` of all images, from one member of one group."""

    def count(per_image):
        return _votes_of_one_device(
            rank,
            layout.members,
            layout.block_size,
            layout.num_classes,
            vary(_no_votes(images[0], layout.num_classes)),
            classify,
            perturb,
            *per_image,
        )

    votes = jax.lax.map(count, (keys, images, draws))
    # Each group adds its own rows to a sum over all devices: what is sent is small, and
    # the result is the same on every one.
    rows = jnp.zeros((layout.groups, *votes.shape), jnp.int32)
    rows = jax.lax.dynamic_update_index_in_dim(rows, votes, group, axis=0)
    return jax.lax.psum(rows.reshape(-1, *votes.shape[1:]), axes)


@functools.cache
def _counter_by_pmap(layout):
    """The compiled loop over several images on the devices of one process."""

    def on_one_device(*arguments):
        number = jax.lax.axis_index(_AXIS)
        rank, group = number % layout.members, number // layout.members
        return _votes_of_group(layout, rank, group, lambda x: x, _AXIS, *arguments)

    mapped = jax.pmap(
        on_one_device,
        axis_name=_AXIS,
        in_axes=(None, None, 0, 0, 0),
        out_axes=None,
        devices=layout.devices,
    )
    # Of every device in order: the images of its group.
    places = layout.places.repeat(layout.members, axis=0)

    def count(classify, perturb, keys, images, draws):
        keys = jnp.stack(keys)[places]
        return mapped(classify, perturb, keys, images[places], draws[places])

    return count


@functools.cache
def _counter_by_shard_map(layout):
    """The compiled loop over several images on a mesh, also of several processes."""
    mesh = _mesh(layout.devices, layout.groups)
    axes = mesh.axis_names
    everywhere, by_group = PartitionSpec(), PartitionSpec(_IMAGES)

    def on_one_device(*arguments):
        group, rank = map(jax.lax.axis_index, axes)
        vary = functools.partial(jax.lax.pcast, axis_name=axes, to="varying")
        return _votes_of_group(layout, rank, group, vary, axes, *arguments)

    mapped = jax.jit(
        jax.shard_map(
            on_one_device,
            mesh=mesh,
            in_specs=(everywhere, everywhere, by_group, by_group, by_group),
            out_specs=everywhere,
        )
    )
    local = [
        (number // layout.members, device)
        for number, device in enumerate(layout.devices)
        if _is_local(device)
    ]

    def spread(pick, shape):
        """A global array, of which this process makes the parts that lie with it."""
        parts = [
            jax.device_put(pick(layout.places[group]), device)
            for group, device in local
        ]
        return jax.make_array_from_single_device_arrays(
            (layout.places.size, *shape), NamedSharding(mesh, by_group), parts
        )

    def count(classify, perturb, keys, images, draws):
        return mapped(
            replicate(classify, layout.devices),
            replicate(perturb, layout.devices),
            # The host never reads a key: it would wait for the votes queued before.
            spread(lambda places: jnp.stack([keys[i] for i in places]), keys[0].shape),
            spread(images.__getitem__, images.shape[1:]),
            spread(draws.__getitem__, draws.shape[1:]),
        )

    return count
