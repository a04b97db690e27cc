"""Certifies a classifier that is nothing but a function and its parameters.

  python examples/certify_a_plain_function.py

Needs jax, numpy and scipy only. Anything that maps images to logits will do in place
of `logits` below: a Haiku or Flax `apply`, an Equinox module, a function by hand.
"""

import jax
import jax.numpy as jnp

from wsjax import (
    ABSTAIN,
    FixedVotes,
    FlowPlan,
    apply_flow,
    flow_cost,
    flow_shape,
    image_mass,
    make_key,
    make_smoothing,
)

SHAPE = (6, 6, 1)


def logits(params, images):
    """The base classifier: images `[B, H, W, C]` in, logits `[B, K]` out."""
    return images.reshape(len(images), -1) @ params["weights"] + params["bias"]


def make_images(key, count):
    """Dim pictures with one bright row, in the upper (0) or the lower half (1)."""
    key_row, key_noise = jax.random.split(key)
    row = jax.random.randint(key_row, (count,), 0, SHAPE[0])
    bright = jax.nn.one_hot(row, SHAPE[0])[:, :, None, None]
    dim = 0.3 * jax.random.uniform(key_noise, (count, *SHAPE))
    return bright + dim, (row >= SHAPE[0] // 2).astype(jnp.int32)


def train(key, images, labels, smoothing, steps=60):
    """Plain gradient descent, on images under the noise they will be judged with."""

    def loss(params, noisy):
        log_probabilities = jax.nn.log_softmax(logits(params, noisy))
        return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], 1))

    @jax.jit
    def step(params, key):
        keys = jax.random.split(key, len(images))
        gradient = jax.grad(loss)(params, jax.vmap(smoothing.perturb)(keys, images))
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)

    pixels = images[0].size
    params = {"weights": jnp.zeros((pixels, 2)), "bias": jnp.zeros(2)}
    for step_key in jax.random.split(key, steps):
        params = step(params, step_key)
    return params


def push_down(image, cost):
    """An attack: moves the same share of every pixel's mass one row down.

    `cost` is in the unit of a radius, pixels x fraction of the image's mass.
    """
    mass = image_mass(image)
    down = image[:-1] * (cost * mass / image[:-1].sum())
    plan = FlowPlan(down, jnp.zeros(flow_shape(image.shape).horizontal))
    assert jnp.isclose(flow_cost(plan), cost * mass)
    return apply_flow(image, plan)


def main():
    key_data, key_train, key_test, key_certify, key_attack = jax.random.split(
        make_key(0), 5
    )
    smoothing = make_smoothing("flow_laplace", sigma=0.05, ground_metric="l1")
    params = train(key_train, *make_images(key_data, 100), smoothing)
    images, labels = make_images(key_test, 6)

    # The parameters stay arguments of the compiled program: others need no new one.
    classify = jax.tree_util.Partial(logits, params)
    certifier = FixedVotes(classify, smoothing, n0=100, n=1_000, alpha=0.01)

    print("label  certified  radius  after an attack of 0.99 radius")
    for index, (image, label) in enumerate(zip(images, labels)):
        certificate = certifier.certify(image, jax.random.fold_in(key_certify, index))
        if certificate.label == ABSTAIN:
            print(f"{label:5d}    abstains")
            continue
        attacked = certifier.predict(
            push_down(image, 0.99 * certificate.radius),
            jax.random.fold_in(key_attack, index),
        )
        print(
            f"{label:5d}  {certificate.label:9d}  {certificate.radius:6.4f}  "
            f"{attacked.label:d}"
        )


if __name__ == "__main__":
    main()
