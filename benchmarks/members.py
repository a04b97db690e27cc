"""Several networks in place of one: the mean of their probabilities, certified alike.

  python benchmarks/members.py --data=FOLDER --members=3

trains configs/cifar.py at a quarter of its size once for each seed, and certifies the same
test images by the first alone, the first two, and so on, under the noise that the first
learned: a certificate asks for one law, and holds whatever the others were trained with.
Finished networks are not trained again; one line for each number of members goes to
benchmarks/results/members.jsonl.
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import repository
from envelope import RESULTS, table
from objectives import SETTINGS

import wsjax
from wsjax import data, evaluation
from wsjax.certifiers.base import Outcomes
from wsjax.console.progress import progress
from wsjax.runs import artefact, cli, manifest, report
from wsjax.runs.released import load_model
from wsjax.training.objectives import averaged_logits

RADII = SETTINGS["cifar"].radii


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the original files")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument(
        "--counts", type=int, nargs="+", help="how many to average; default each number"
    )
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--stride", type=int, default=10, help="every so many images")
    parser.add_argument("--n0", type=int, default=100)
    parser.add_argument("--n", type=int, default=1_000)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "members.jsonl")
    arguments = parser.parse_args()
    changes = *SETTINGS["cifar"].changes, f"train.num_epochs={arguments.epochs}"
    files = []
    for seed in range(arguments.members):
        workdir = arguments.runs / f"members-{arguments.epochs}" / f"seed={seed}"
        here = f"seed={seed}", f"data.dir={arguments.data}"
        repository.run("train.py", "cifar", workdir, *changes, *here)
        files.append(workdir / artefact.NAME)
    cli.one_cpu_device_per_core()
    test = data.load("cifar10", "test", dir=arguments.data)
    chosen = np.arange(0, len(test.labels), arguments.stride)
    images = data.as_float(test.images[chosen], test.scale)
    members = [load_model(file) for file in files]
    lines = []
    for count in arguments.counts or range(1, arguments.members + 1):
        certifier = wsjax.FixedVotes(
            jax.tree_util.Partial(averaged, [m.classify for m in members[:count]]),
            members[0].certifier.smoothing,
            n0=arguments.n0,
            n=arguments.n,
            use_runner_up="auto",
        )
        name = f"{count} of {arguments.members}"
        found = certified(certifier, images, test.labels[chosen], chosen, name)
        total, shares = found.summary, found.certified_accuracy(RADII).tolist()
        line = {
            "members": count,
            "images": total.images,
            "accuracy": total.accuracy,
            "median_radius": total.median_radius,
            "mean_radius": total.mean_radius,
            "certified_accuracy": dict(zip(map(str, RADII), shares)),
            "scale": certifier.smoothing.scores.scale,
            "changes": changes,
            "n0": certifier.n0,
            "n": certifier.n,
            "alpha": certifier.alpha,
            "versions": manifest.versions(),
            "devices": manifest.devices(),
        }
        lines.append((name, "learned", found))
        with arguments.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
    report.show(table("CIFAR-10, networks averaged", RADII, lines))


def averaged(members, images):
    """Logarithms of the mean probabilities of some classifiers."""
    return averaged_logits(jnp.stack([member(images) for member in members]))


def certified(certifier, images, labels, indices, name):
    """`report.Certified`, one image after another, each by draws of its own."""
    keys = [jax.random.fold_in(wsjax.make_key(0), i) for i in range(len(images))]
    found = certifier.certify_each(images, keys)
    found = list(progress(found, total=len(images), desc=name, unit="image"))
    answers = np.array([certificate.label for certificate in found])
    radii = np.array([certificate.radius for certificate in found])
    outcomes = Outcomes("", answers, radii, predictions=answers)
    total = evaluation.summarize(labels, outcomes)
    metric = certifier.smoothing.ground_metric
    return report.Certified(name, metric, total, indices, labels, outcomes, ())


if __name__ == "__main__":
    main()
