"""Training-time augmentation on the device. Needs JAX, unlike its neighbours."""

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
    if images.ndim != 4:
        raise ValueError(
            f"Expected a batch [B, H, W, C], got shape {images.shape}. For a single "
            f"image pass image[None]."
        )
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
