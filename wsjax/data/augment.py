"""Training-time augmentation on the device. Needs JAX, unlike its neighbours."""

from functools import partial

import jax
import jax.numpy as jnp


def random_crop_flip(key: jax.Array, images: jax.Array, padding: int = 4) -> jax.Array:
    """Shifts and mirrors each image at random, as is usual for CIFAR-10.

    Each image is surrounded by `padding` black pixels, cut back to its size at a
    uniformly random place, and mirrored left to right with probability 1/2.

    A shift pushes pixels over the border and draws black ones in, so **it changes
    an image's total mass**. The mass that a Wasserstein noise level refers to is
    that of the image the noise is added to: normalize after this function, not
    before.

    Args:
      key: used up; image `i` draws from `fold_in(key, i)`, so what happens to an
        image depends on its place in the batch, not on the batch size.
      images: `[B, H, W, C]`, any dtype.
      padding: largest shift in pixels, at least 0.

    Returns:
      `[B, H, W, C]`, dtype of `images`.

    Raises:
      ValueError: `images` is not a batch of images, or `padding` is negative.
    """
    _check_batch(images)
    if padding < 0:
        raise ValueError(f"padding={padding} is negative.")
    shape = images.shape[1:]

    def augment(index, image):
        key_shift, key_flip = jax.random.split(jax.random.fold_in(key, index))
        top, left = jax.random.randint(key_shift, (2,), 0, 2 * padding + 1)
        padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        crop = jax.lax.dynamic_slice(padded, (top, left, 0), shape)
        return jnp.where(jax.random.bernoulli(key_flip), crop[:, ::-1], crop)

    return jax.vmap(augment)(jnp.arange(len(images)), images)


def random_affine(
    key: jax.Array,
    images: jax.Array,
    degrees: float = 10.0,
    zoom: float = 0.1,
    shift: float = 1.0,
) -> jax.Array:
    """Turns, scales and moves each image a little, as is usual for handwriting.

    Each image is turned about its centre by up to `degrees`, scaled along each axis
    by a factor between `1 - zoom` and `1 + zoom`, and moved by up to `shift` pixels
    along each axis, all uniformly at random; pixels in between are interpolated and
    black ones come in from outside. Like `random_crop_flip` it changes the mass.

    Args:
      key: used up; image `i` draws from `fold_in(key, i)`.
      images: `[B, H, W, C]` float.
      degrees: largest angle, at least 0.
      zoom: largest relative change of size, in [0, 1).
      shift: largest move in pixels, at least 0.

    Returns:
      `[B, H, W, C]`, dtype of `images`.

    Raises:
      ValueError: `images` is not a batch of images, or a number is outside its range.
    """
    _check_batch(images)
    if degrees < 0 or shift < 0 or not 0 <= zoom < 1:
        raise ValueError(
            f"degrees={degrees} and shift={shift} are at least 0, zoom={zoom} is in "
            f"[0, 1)."
        )
    height, width, _ = images.shape[1:]
    middle = jnp.array([(height - 1) / 2, (width - 1) / 2])
    grid = jnp.stack(jnp.mgrid[:height, :width], axis=-1) - middle

    def augment(index, image):
        draws = jax.random.uniform(
            jax.random.fold_in(key, index), (5,), minval=-1.0, maxval=1.0
        )
        angle = draws[0] * degrees * jnp.pi / 180
        turn = jnp.array(
            [[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]]
        )
        # Where each new pixel comes from.
        place = (grid - shift * draws[3:]) @ turn / (1 + zoom * draws[1:3]) + middle
        rows, columns = place[..., 0], place[..., 1]
        sample = partial(jax.scipy.ndimage.map_coordinates, order=1, cval=0.0)
        return jax.vmap(
            lambda channel: sample(channel, [rows, columns]), in_axes=-1, out_axes=-1
        )(image)

    return jax.vmap(augment)(jnp.arange(len(images)), images)


def _check_batch(images):
    if images.ndim != 4:
        raise ValueError(
            f"Expected a batch [B, H, W, C], got shape {images.shape}. For a single "
            f"image pass image[None]."
        )


# By the name that `train.augment` gives.
AUGMENTATIONS = {
    "none": None,
    "crop_flip": random_crop_flip,
    "flip": partial(random_crop_flip, padding=0),
    "affine": random_affine,
}
