"""Certificates per second: a network that needs no votes beside voting.

  python benchmarks/certificates_per_second.py --data=FOLDER

certifies test images of MNIST with released/mnist_potentials.safetensors (all of them)
and with released/mnist_c0.037.safetensors (n0 = 1,000, n = 10,000, a few), in turn,
several times over, in one process on all cores. Medians count, also of the ratios within
each round. Both start from images in memory and end with labels and radii; everything is
compiled and read before.
"""

import argparse
import pathlib
import time

import jax
import numpy as np

import wsjax
from wsjax import FixedVotes, data, models
from wsjax.certifiers.lipschitz import LipschitzScores
from wsjax.runs import artefact, cli, config, experiment, manifest

RELEASED = pathlib.Path(__file__).parents[1] / "released"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", required=True, help="folder of the idx files of MNIST"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--voted", type=int, default=10, help="images voted on")
    arguments = parser.parse_args()
    cli.one_cpu_device_per_core()
    test = data.load("mnist", "test", dir=arguments.data)
    images = [data.as_float(image, test.scale) for image in test.images]
    scores = LipschitzScores(
        artefact.load_network(RELEASED / "mnist_potentials.safetensors")
    )
    stored = artefact.read(RELEASED / "mnist_c0.037.safetensors")
    block = config.resolve(
        {"data": {"name": "mnist"}, "model": stored.description["model"]}
    ).model
    module = experiment.make_model(block, 10)
    votes = FixedVotes(
        models.classifier(module, stored.variables),
        wsjax.gaussian_smoothing(stored.law, images[0].shape, "l2"),
        n0=1_000,
        n=10_000,
        alpha=0.05,
    )
    keys = list(jax.random.split(jax.random.key(0), arguments.voted))
    few = images[: arguments.voted]
    list(votes.certify_each(few, keys))  # Compiles.
    rates = []
    for _ in range(arguments.rounds):
        fast = len(images) / seconds(scores.certify_each(images))
        slow = len(few) / seconds(votes.certify_each(few, keys))
        rates.append((fast, slow, fast / slow))
    fast, slow, ratio = np.median(rates, 0)
    print(
        f"{fast:,.0f} certificates a second without votes, {slow:.2f} with n = 10,000: "
        f"{ratio:,.0f} times as many, least {min(r[2] for r in rates):,.0f}.\n"
        f"{', '.join(manifest.devices())}; "
        f"{', '.join(f'{k} {v}' for k, v in manifest.versions().items())}"
    )


def seconds(results):
    before = time.perf_counter()
    for _ in results:
        pass
    return time.perf_counter() - before


if __name__ == "__main__":
    main()
