"""Votes and seconds with and without early stopping, on the same images and draws.

  python benchmarks/early_stopping.py --data=FOLDER --workdir=runs/mnist
  python benchmarks/early_stopping.py --data=FOLDER --checkpoint=released/mnist_c0.1.safetensors

Certifies test images of a run with n votes at once, then with early stopping at each
radius alone and at all together, then with a number of votes chosen by a pilot, and
counts on how many images the verdicts agree. The first call, which compiles, is left
out of the seconds. Prints a table; writes one line of JSON per way to --out, with
versions and hardware.
"""

import argparse
import json
import pathlib
import platform
import time

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import wsjax
from wsjax import data, models
from wsjax.certifiers import at_radii
from wsjax.runs import artefact, cli, manifest


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the original files")
    parser.add_argument("--set", default="mnist")
    parser.add_argument("--workdir", type=pathlib.Path, help="a run with learned noise")
    parser.add_argument("--checkpoint", type=pathlib.Path, help=".safetensors instead")
    parser.add_argument("--metric", default="l2")
    radii = [0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
    parser.add_argument("--radii", type=float, nargs="+", default=radii)
    parser.add_argument("--losses", type=float, nargs="*", default=[0.05])
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--n0", type=int, default=1_000)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--first-look", type=int, default=at_radii.FIRST_LOOK)
    parser.add_argument("--block-size", type=int, default=250)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    cli.one_cpu_device_per_core()
    if (arguments.workdir is None) == (arguments.checkpoint is None):
        parser.error("name one of --workdir and --checkpoint")
    path = arguments.checkpoint or arguments.workdir / artefact.NAME
    test = data.load(arguments.set, "test", dir=arguments.data)
    chosen = np.linspace(0, len(test.labels) - 1, arguments.images).astype(int)
    images = data.as_float(test.images[chosen], test.scale)
    stored = artefact.read(path)
    module = models.create(**stored.description["model"])
    classify = models.classifier(module, stored.variables)
    smooth = wsjax.gaussian_smoothing(stored.law, images.shape[1:], arguments.metric)
    lines = list(measure(arguments, images, test.labels[chosen], classify, smooth))
    if arguments.out:
        with arguments.out.open("a") as file:
            for line in lines:
                record = {
                    **line,
                    "classifier": path.name,
                    "settings": {
                        key: value if isinstance(value, (int, float)) else str(value)
                        for key, value in vars(arguments).items()
                        if key not in ("data", "workdir", "checkpoint", "out")
                    },
                    "kappa": 1 / smooth.scores.scale,
                    "versions": manifest.versions(),
                    "devices": manifest.devices(),
                    "machine": platform.machine(),
                }
                file.write(json.dumps(record) + "\n")
    Console(width=160).print(table(arguments, path, lines))


def measure(arguments, images, labels, classify, smooth):
    """One line per way to certify."""
    protocol = {
        "n0": arguments.n0,
        "n": arguments.n,
        "alpha": arguments.alpha,
        "counting": wsjax.Counting(block_size=arguments.block_size),
    }
    keys = [jax.random.fold_in(wsjax.make_key(0), i) for i in range(len(images))]

    def timed(kind, **options):
        certifier = kind(classify, smooth, **protocol, **options)
        certifier.certify(images[0], keys[0])
        start = time.perf_counter(), time.process_time()
        found = list(certifier.certify_each(images, keys))
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        evidence = [certificate.evidence for certificate in found]
        used = [int(x.selection_votes.sum() + x.votes.sum()) for x in evidence]
        return found, {
            "mean_votes": float(np.mean(used)),
            "median_votes": float(np.median(used)),
            "seconds_per_image": wall / len(images),
            "cpu_seconds_per_image": cpu / len(images),
        }

    fixed, cost = timed(wsjax.FixedVotes)
    reached = np.array([certificate.radius for certificate in fixed])
    answers = np.array([certificate.selected for certificate in fixed])
    base = cost["mean_votes"], cost["cpu_seconds_per_image"]

    def line(way, radii, cost, certified, selected):
        """`certified` is `[images, radii]` bool."""
        at_once = reached[:, None] >= np.asarray(radii)
        right = (selected == labels)[:, None]
        return {
            "way": way,
            "radii": list(radii),
            **cost,
            "times_fewer_votes": base[0] / cost["mean_votes"],
            "times_less_cpu": base[1] / cost["cpu_seconds_per_image"],
            "certified_accuracy": (certified & right).mean(axis=0).tolist(),
            "verdicts": certified.size,
            "agree": int(np.sum(certified == at_once)),
            "only_at_once": int(np.sum(at_once & ~certified)),
            "only_early": int(np.sum(certified & ~at_once)),
            "same_class": int(np.sum(selected == answers)),
        }

    every = reached[:, None] >= np.asarray(arguments.radii)
    yield line("at once", arguments.radii, cost, every, answers)
    several = [arguments.radii] if len(arguments.radii) > 1 else []
    for radii in (*([radius] for radius in arguments.radii), *several):
        found, cost = timed(
            wsjax.VotesAtRadii, radii=tuple(radii), first_look=arguments.first_look
        )
        certified = np.array([c.radius for c in found])[:, None] >= np.asarray(radii)
        selected = np.array([certificate.selected for certificate in found])
        yield line("early", radii, cost, certified, selected)
    for loss in arguments.losses:
        found, cost = timed(wsjax.PilotVotes, max_radius_loss=loss)
        certified = np.array([c.radius for c in found])
        selected = np.array([certificate.selected for certificate in found])
        positive = reached > 0
        yield {
            **line(
                f"pilot, loss {loss:g}",
                arguments.radii,
                cost,
                certified[:, None] >= np.asarray(arguments.radii),
                selected,
            ),
            "mean_radius": float(certified.mean()),
            "mean_radius_at_once": float(reached.mean()),
            "mean_loss": float(np.mean(1 - certified[positive] / reached[positive])),
        }


def table(arguments, path, lines):
    shown = Table(
        title=f"{path.name}, {arguments.images} images, n0={arguments.n0}, "
        f"n={arguments.n}, alpha={arguments.alpha}",
        title_justify="left",
    )
    shown.add_column("way")
    shown.add_column("radii", overflow="fold")
    numbers = {
        "mean_votes": ".0f",
        "median_votes": ".0f",
        "times_fewer_votes": ".1f",
        "seconds_per_image": ".3f",
        "cpu_seconds_per_image": ".3f",
        "times_less_cpu": ".1f",
    }
    counts = ("verdicts", "agree", "only_at_once", "only_early")
    for head in (*numbers, "certified_accuracy", *counts):
        shown.add_column(head.replace("_", " "), justify="right")
    for line in lines:
        shown.add_row(
            line["way"],
            " ".join(f"{radius:g}" for radius in line["radii"]),
            *(format(line[name], form) for name, form in numbers.items()),
            " ".join(f"{share:.3f}" for share in line["certified_accuracy"]),
            *(str(line[name]) for name in counts),
        )
    return shown


if __name__ == "__main__":
    main()
