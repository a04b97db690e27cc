"""Counting votes: classify noisy copies of an image and count the answers.

This module knows neither flows nor theorems. It takes two callables, `classify` and
`perturb`. One compiled program (`_program`) counts the `n` votes of each of several images
on a number of devices, of one process or many; one image (`count_votes`) is a case of
several (`count_votes_each`). A draw's randomness depends on the key and on the number of
the draw alone, `fold_in(key, draw)`, so the counts are the same for any number of devices,
any size and order of blocks (as far as the classifier's own arithmetic does not depend on
the size of its batch), and whichever other images are run. Memory holds one block of
noisy images per device, never `n`.
"""

import dataclasses
import functools
import inspect
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from wsjax import host

_AXIS = "devices"

BACKENDS = ("pmap", "shard_map")
BLOCK_SIZE = 250

# On a GPU or TPU: enough work for each step of a small network.
_LARGE_BLOCK = 5_000


def as_argument(function: Callable) -> jax.tree_util.Partial:
    """Wraps a callable so that it can pass through `jax.jit` as an argument.

    A `jax.tree_util.Partial(apply, variables)` is passed on as it is: its arrays
    stay arguments of the compiled program rather than constants inside it, so new
    weights need no new compilation. So it is with a callable that is a pytree of arrays,
    and with a method of one, such as `perturb` of a noise law: equal ones, and those
    that differ in their arrays alone, share programs. Any other callable is treated as
    fixed; keep one object and reuse it, since each new object compiles anew.

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
    if inspect.ismethod(function) and _is_tree_of_arrays(function.__self__):
        return jax.tree_util.Partial(function.__func__, function.__self__)
    if _is_tree_of_arrays(function):
        return jax.tree_util.Partial(_call, function)
    return jax.tree_util.Partial(function)


def _is_tree_of_arrays(value):
    leaves = jax.tree.leaves(value)  # Of what is no pytree: itself.
    return all(isinstance(leaf, (np.ndarray, jax.Array)) for leaf in leaves)


def _call(function, *arguments):
    return function(*arguments)


def suitable_block_size() -> int:
    """Draws that suit the devices of this process.

    Returns:
      250 on CPUs, whose caches are small, and 5,000 elsewhere.
    """
    return BLOCK_SIZE if jax.default_backend() == "cpu" else _LARGE_BLOCK


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


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["noise"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Addition:
    """The `perturb` of additive noise, with its parts in reach of `count_votes`.

    Attributes:
      noise: a pytree of arrays, as noise laws are, or hashable. Equal ones share their
        programs.
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
        each image and each draw, not for each copy, in full precision.
        `models.classifier` makes such. That it is linear is tried on a few images.
      classify: `[B, H, W, C] -> [B, K]` logits; a vote goes to the largest, ties
        to the smallest class index. See `as_argument` for weights. A
        `host.HostClassifier` is asked on the host, and counts are NumPy's then.
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
        2**31, the backend is unknown, the classifier's output is not `[B, K]`, or its
        first step is not linear.
    """
    check_key(key)
    devices = tuple(jax.local_devices() if devices is None else devices)
    images = np.asarray(image)[None]
    layout = (n, start, block_size, devices, 1, backend)
    return _count([key], images, classify, perturb, *layout, alone=True)


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
    devices = all_devices() if devices is None else tuple(devices)
    groups = 1 if groups is None else groups
    check_groups(groups, len(devices))
    images = np.asarray(images)
    if not len(keys) == len(images) > 0 or images.ndim not in (4, 5):
        raise ValueError(
            f"{len(keys)} keys and images {images.shape} do not belong together: "
            f"give one key for each image of [I, H, W, C], with I at least 1, or for "
            f"each stack of [I, S, H, W, C]."
        )
    layout = (n, start, block_size, devices, groups, backend)
    return _count(keys, images, classify, perturb, *layout, alone=False)


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
    everywhere = NamedSharding(_mesh(devices), PartitionSpec())
    local = [device for device in devices if _is_local(device)]

    def place(leaf):
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == set(devices):
            return leaf
        if len(local) == len(devices):
            return jax.device_put(leaf, everywhere)
        # That would compare what the processes have.
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
    """Raises ValueError unless `groups` is positive, whole and divides `devices`."""
    if int(groups) != groups or groups < 1 or devices % groups:
        raise ValueError(
            f"groups={groups!r} does not divide {devices} devices into equal groups; "
            f"use a divisor, e.g. 1 or {devices}."
        )


def _is_local(device):
    return device.process_index == jax.process_index()


def _count(
    keys,
    images,
    classify,
    perturb,
    n,
    start,
    block_size,
    devices,
    groups,
    backend,
    alone,
):
    """Votes of images `[I, ...]` on the host, or of one of them without its axis."""
    _check_sizes(n, start, block_size, backend)
    images = images.astype(jax.dtypes.canonicalize_dtype(images.dtype), copy=False)
    if not all(map(_is_local, devices)):
        backend = "shard_map"
    classify, perturb = as_argument(classify), as_argument(perturb)
    if isinstance(classify.func, host.HostClassifier):
        return _count_on_host(
            keys, images, classify.func, perturb, n, start, block_size, devices, alone
        )
    # Draws that make a block of copies of one image, or of a stack of them.
    size = max(1, int(block_size) // math.prod(images.shape[1:-3]))
    program = _program(size, devices, int(groups), backend, alone)
    draws = np.array([start, start + n], np.int32)
    if _goes_in_steps(classify, perturb, images.ndim - 1):
        _check_linear(classify, images.shape[2:], images.dtype)
    # The host never reads a key: it would wait for the votes queued before.
    keys = keys if isinstance(keys, jax.Array) else jnp.stack(keys)
    same = (classify, perturb, keys, draws)
    if backend != "pmap":  # That copies by itself, a little faster.
        same = replicate(same, devices)
    return program(*same, _shares(images, devices, groups))


def _count_on_host(
    keys, images, classifier, perturb, n, start, block_size, devices, alone
):
    """`_count` for a classifier that runs on the host."""
    if not all(map(_is_local, devices)):
        raise ValueError(
            "A HostClassifier runs on one process; give the images to one of them."
        )
    stack = images.shape[1:-3]
    counted = host.count_votes(
        classifier,
        perturb,
        [key for key in keys for _ in range(math.prod(stack))],
        images.reshape(-1, *images.shape[-3:]),
        n=n,
        start=start,
        block_size=int(block_size),
        device=devices[0],
    ).reshape(len(images), *stack, -1)
    return counted[0] if alone else counted


@functools.cache
def _mesh(devices):
    # Auto axis types: the default (explicit) ones would want every array placed.
    return Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))


def _shares(images, devices, groups):
    """`[devices, images of a group, ...]`: for each device, the images of its group.

    A process makes the parts of its own devices. What is missing to equal shares is made
    up by the last image.
    """
    each, members = -(-len(images) // groups), len(devices) // groups
    places = np.minimum(np.arange(groups * each), len(images) - 1).reshape(groups, -1)

    def part(index):
        return images[places[(index[0].start or 0) // members]][None]

    shape = (len(devices), each, *images.shape[1:])
    by_device = NamedSharding(_mesh(devices), PartitionSpec(_AXIS))
    return jax.make_array_from_callback(shape, by_device, part)


@functools.cache
def _program(block_size, devices, groups, backend, alone):
    """The compiled count on one layout of images and draws over devices.

    `backend` decides how the body is mapped over the devices, and nothing else.
    """
    members = len(devices) // groups

    def on_one_device(classify, perturb, keys, draws, images):
        group, rank = jnp.divmod(jax.lax.axis_index(_AXIS), members)
        start, end = draws

        def count(place_and_image):
            place, image = place_and_image
            # An image that only makes up for equal shares gets no draws.
            own_end = jnp.where(place < len(keys), end, start)
            key = keys[jnp.minimum(place, len(keys) - 1)]
            answer = _answer(classify, perturb, key, image)
            return _share_of_votes(rank, members, block_size, start, own_end, answer)

        votes = jax.lax.map(
            count, (group * len(images) + jnp.arange(len(images)), images)
        )
        # Each group adds its own rows to a sum over all devices: what is sent is small,
        # and the result is the same on every one.
        rows = jnp.zeros((groups, *votes.shape), jnp.int32)
        rows = jax.lax.dynamic_update_index_in_dim(rows, votes, group, axis=0)
        rows = jax.lax.psum(rows.reshape(-1, *votes.shape[1:]), _AXIS)
        return rows[0] if alone else rows[: len(keys)]

    if backend == "pmap":
        return jax.pmap(
            on_one_device,
            axis_name=_AXIS,
            in_axes=(None, None, None, None, 0),
            out_axes=None,
            devices=devices,
        )
    everywhere = PartitionSpec()
    return jax.jit(
        jax.shard_map(
            lambda c, p, k, d, images: on_one_device(c, p, k, d, images[0]),
            mesh=_mesh(devices),
            in_specs=(*(everywhere,) * 4, PartitionSpec(_AXIS)),
            out_specs=everywhere,
            check_vma=False,
        )
    )


def _share_of_votes(rank, members, size, start, end, answer):
    """`[K]` or `[S, K]` int32 votes of one device's share of draws `start ... end - 1`."""
    blocks = (end - start + size - 1) // size
    # Device d takes blocks d, d + members, ...: a loop of run-time length, so that
    # selection and estimation, with other n, share one program.
    rounds = jnp.maximum(blocks - rank + members - 1, 0) // members

    def votes_of_block(i):
        first = start + (rank + i * members) * size
        draws = first + jnp.arange(size, dtype=jnp.int32)
        logits = answer(draws, first < end)
        valid = (draws < end) & jnp.all(jnp.isfinite(logits), axis=-1)
        winners = jnp.argmax(logits, axis=-1)
        # Comparing beats scattering on every backend at these sizes.
        hits = winners[..., None] == jnp.arange(logits.shape[-1], dtype=winners.dtype)
        return jnp.sum(hits & valid[..., None], axis=-2, dtype=jnp.int32)

    nothing = jnp.zeros(jax.eval_shape(votes_of_block, 0).shape, jnp.int32)
    return jax.lax.fori_loop(
        0, rounds, lambda i, votes: votes + votes_of_block(i), nothing
    )


def _answer(classify, perturb, key, image):
    """Logits `[B, K]`, or `[S, B, K]` of a stack, as a function of draws `[B]`.

    Its second argument says that there are any, which XLA cannot know.
    """
    if _goes_in_steps(classify, perturb, image.ndim):
        return _answer_in_steps(classify, _called(perturb).noise, key, image)

    def copies_of(draws):
        keys = _keys_of(draws, key)
        of_one = jax.vmap(perturb, (0, None))
        if image.ndim == 3:
            return of_one(keys, image)
        # Noise is the same for all, so XLA takes it out of the loop. Mapped over at
        # once, it would be merged into the sum with every image and made again.
        return jax.lax.map(lambda one: of_one(keys, one), image)

    def logits_of_draws(draws, any_draws):
        copies = _made_once(copies_of, draws, any_draws)
        copies = copies.reshape(-1, *copies.shape[-3:])
        logits = logits_of(classify, copies)
        return logits.reshape(*image.shape[:-3], len(draws), -1)

    return logits_of_draws


def _called(perturb):
    return perturb.args[0] if perturb.func is _call else perturb.func


def _goes_in_steps(classify, perturb, axes):
    """Whether noise is shared, and the classifier's linear first step and the rest apart."""
    in_steps = hasattr(classify.func, "first") and hasattr(classify.func, "rest")
    return axes == 4 and in_steps and isinstance(_called(perturb), Addition)


def _first(classify, images):
    """The first step of a classifier, in full precision.

    Accelerators may round the factors of a product to ten bits. A sum of two such first
    steps would be no function of the sum of images.
    """
    with jax.default_matmul_precision("highest"):
        return classify.func.first(*classify.args, images, **classify.keywords)


# Shapes of images that first steps were tried on.
_LINEAR: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_LINEAR_TO = (
    2e-5  # Of the largest sum of sizes. float32 is within 2e-6, ten bits are not.
)


def _check_linear(classify, shape, dtype):
    """Refuses a first step that is not linear, once for each classifier and shape."""
    if shape in _LINEAR.setdefault(classify, set()):
        return

    @jax.jit
    def off(classify):
        ours, theirs = jax.random.normal(jax.random.key(0), (2, 3, *shape), dtype)
        factor = jnp.asarray(1.7, dtype)
        parts = _first(classify, ours), _first(classify, theirs)
        found = _first(classify, ours + factor * theirs)

        def of_one(found, one, other):
            size = jnp.max(jnp.abs(one) + jnp.abs(factor * other))
            worst = jnp.max(jnp.abs(found - one - factor * other))
            return worst / jnp.where(size > 0, size, 1)

        return jnp.stack(jax.tree.leaves(jax.tree.map(of_one, found, *parts))).max()

    # Of arrays that are spread over processes, this one's copy.
    own = jax.tree.map(
        lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, classify
    )
    worst = float(off(own))
    if worst > _LINEAR_TO:
        raise ValueError(
            f"The method first of the classifier is not linear: first(a + 1.7 b) and "
            f"first(a) + 1.7 first(b) differ by {worst:.2g} of their size, more than "
            f"{_LINEAR_TO:g}. Take out biases, and compute in full precision; or share "
            f"no draws."
        )
    _LINEAR[classify].add(shape)


def _answer_in_steps(classify, noise, key, image):
    """`_answer` for a stack: the first step of a copy is a sum of first steps.

    One of each image and one of each draw are all that is needed, instead of one of
    each copy.
    """
    given, options = classify.args, classify.keywords
    first = functools.partial(_first, classify)
    rest = functools.partial(classify.func.rest, *given, **options)
    of_images = first(jax.vmap(noise.picture)(image))
    strength = jax.vmap(noise.strength)(image)

    def noise_of(draws):
        one = functools.partial(
            noise.added, image_shape=image.shape[1:], dtype=image.dtype
        )
        return jax.vmap(one)(_keys_of(draws, key))

    def logits_of_draws(draws, any_draws):
        def of_draws(draws):
            return first(_made_once(noise_of, draws, any_draws))

        of_noise = _made_once(of_draws, draws, any_draws)

        def combine(of_image, of_noise):
            factor = strength.reshape(-1, *(1,) * of_noise.ndim)
            copies = of_image[:, None] + factor.astype(of_noise.dtype) * of_noise
            return copies.reshape(-1, *of_noise.shape[1:])

        logits = check_logits(
            rest(jax.tree.map(combine, of_images, of_noise)), len(image) * len(draws)
        )
        return logits.reshape(len(image), len(draws), -1)

    return logits_of_draws


def logits_of(
    classify: Callable[[jax.Array], jax.Array], images: jax.Array
) -> jax.Array:
    """Logits of images by a classifier; the usual slips take a sentence.

    Args:
      classify: `[B, H, W, C] -> [B, K]`.
      images: `[B, H, W, C]`, as a rule traced.

    Returns:
      `[B, K]`.

    Raises:
      ValueError: as `check_logits`; `classify` cannot be compiled or takes other arguments.
    """
    try:
        found = classify(images)
    except Exception as error:
        if not (hint := _slip(error, classify, images)):
            raise
        raise ValueError(hint) from error
    return check_logits(found, len(images))


def _slip(error, classify, images):
    """What a classifier that raised an error does, and the remedy; "" for others."""
    host = "or run it as it is, wsjax.HostClassifier(classify)."
    if isinstance(error, jax.errors.TracerArrayConversionError):
        return f"classify hands images to NumPy, which JAX cannot compile: use jax.numpy, {host}"
    if isinstance(error, jax.errors.ConcretizationTypeError):
        return (
            f"classify asks for values of images (by if, float or int), which JAX cannot "
            f"compile: use jnp.where and the like, {host}"
        )
    if type(error).__name__ == "TraceContextError":  # Of flax.nnx.
        return (
            "classify changes a state of its own, as NNX modules do in training: call "
            "model.eval() first."
        )
    if isinstance(error, TypeError):
        try:
            inspect.signature(classify).bind(images)
        except TypeError as other:
            return (
                f"classify cannot be called with images alone ({other}): bind what else "
                f"it takes, jax.tree_util.Partial(apply, params)."
            )
        except ValueError:  # It has no signature.
            pass
    return ""


def check_key(key: Any) -> Any:
    """One key, as it is.

    Args:
      key: a typed key, `jax.random.key(seed)`, or the old kind, `[2]` uint32.

    Returns:
      The key.

    Raises:
      ValueError: it is something else.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if (typed and not shape) or (dtype == np.uint32 and len(shape) == 1):
        return key
    what = f"a {type(key).__name__}" if dtype is None else f"{dtype} of shape {shape}"
    seed = isinstance(key, (int, np.integer))
    raise ValueError(
        f"key={key} is a seed and no key: pass jax.random.key({key})."
        if seed
        else f"The key is {what}, where one key is needed, such as jax.random.key(0); an "
        f"image comes before its key."
    )


def check_logits(logits: Any, images: int) -> jax.Array:
    """Logits; refuses a classifier that returned something else for so many images.

    Raises:
      ValueError: it is no array `[B, K]` of real numbers, with K at least 2.
    """
    wanted = f"It should return logits [B, K], here [{images}, number of classes]"
    if not hasattr(logits, "shape") or not hasattr(logits, "dtype"):
        kind = "nothing (None)" if logits is None else f"a {type(logits).__name__}"
        raise ValueError(
            f"classify turned {images} images into {kind}. {wanted}, and nothing beside "
            f"them: pick them out of what a model returns, in a function around it, as "
            f"in apply(variables, images)[0] of Haiku with state or of Flax with mutable."
        )
    if logits.ndim != 2 or len(logits) != images or logits.shape[1] < 2:
        raise ValueError(
            f"classify turned {images} images into {logits.dtype} of shape "
            f"{logits.shape}. {wanted}, at least two."
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"classify turned {images} images into {logits.dtype}. {wanted}, as floats: "
            f"not the classes themselves, nor votes for them."
        )
    return logits


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
