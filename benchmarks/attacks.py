"""The attacks side by side on one network, on one thread, judged alike.

  python benchmarks/attacks.py --data=FOLDER --checkpoint=mnist_vanilla.pth

Every attack gets the same test images; what it returns is repaired to a valid image
(pixels in [0, 1], mass of every channel kept), asked again and measured by the exact
distance. With --line-search the published attacks get the segment search of the flow
attack on top. CPU seconds are those of the attack, without measuring, after a first
batch that compiles. Writes one line of JSON per attack to --out, with versions and
hardware.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import time

# One thread: what is compared is the work, not how it is spread.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from wsjax import attacks, data, models
from wsjax.attacks import repair
from wsjax.interop import torch_checkpoints
from wsjax.runs import artefact, experiment, manifest
from wsjax.runs.examples import Examples
from wsjax.transport import exact_distance

FLOW = attacks.FlowAttack()


def plans(metric, scale, on="mnist"):
    """Attack and settings by name; `scale` is the radius where flow attacks start.

    The published attacks have the schedules of their authors for MNIST or CIFAR-10.
    """
    flow = dataclasses.replace(FLOW, ground_metric=metric, start_radius=scale)
    wong = attacks.SinkhornAttack(ground_metric=metric)
    hu = attacks.CapacityAttack(ground_metric=metric)
    step = {}
    if on == "cifar10":
        wong = dataclasses.replace(
            wong,
            epsilon=0.001,
            epsilon_factor=1.17,
            max_steps=400,
            regularization=3000.0,
        )
        step = {"step_size": 0.01}
    # Their budgets cover a range of radii; a fair range for Wu's fixed ones.
    several = tuple(scale * np.array([0.25, 0.5, 1.0, 1.5, 2.5]))
    changes = {
        "flow 30 steps": {"max_steps": 30},
        "flow": {},
        "flow 300 steps": {"max_steps": 300},
        "flow 3 searches": {"restarts": 3},
        "flow 8-bit": {"levels": 255},
    }
    if metric == "l2":
        changes["flow 4 directions"] = {"neighbours": 4}
        changes["flow 16 directions"] = {"neighbours": 16}
    return {
        **{
            name: (attacks.flow_attack, dataclasses.replace(flow, **change))
            for name, change in changes.items()
        },
        "Hu": (attacks.capacity_attack, hu),
        "Hu, half of the step, grown slowly": (
            attacks.capacity_attack,
            dataclasses.replace(
                hu,
                step_size=0.03,
                epsilon=scale / 20,
                epsilon_growth=scale / 20,
                slack=0.0,
                mass_tolerance=1e-3,
            ),
        ),
        "Wong": (attacks.sinkhorn_attack, wong),
        **{
            name: (
                attacks.dual_attack,
                dataclasses.replace(
                    preset, ground_metric=metric, epsilons=several, **step
                ),
            )
            for name, preset in {
                "Wu Frank-Wolfe": attacks.WU_FRANK_WOLFE,
                "Wu projection": attacks.WU_PROJECTION,
            }.items()
        },
    }


def grids(metric, scale, step):
    """Settings to choose from for each published attack; `step` is a pixel's change."""
    radii = tuple(scale * np.array([0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3]))
    hu = attacks.CapacityAttack(ground_metric=metric, slack=0.0, mass_tolerance=1e-3)
    wong = attacks.SinkhornAttack(ground_metric=metric, epsilon=scale / 10)
    wu = attacks.DualAttack(ground_metric=metric, epsilons=radii)
    return {
        "Hu": (
            attacks.capacity_attack,
            [
                dataclasses.replace(
                    hu,
                    step_size=size,
                    epsilon=growth,
                    epsilon_growth=growth,
                    projection_iterations=rounds,
                )
                for size in (0.01, 0.03, 0.06, 0.12)
                for growth in (scale / 20, scale / 8)
                for rounds in (30, 400)
            ],
        ),
        "Wong": (
            attacks.sinkhorn_attack,
            [
                dataclasses.replace(
                    wong,
                    step_size=size,
                    epsilon_every=every,
                    epsilon_factor=1.15,
                    projection_iterations=rounds,
                )
                for size in (step / 10, step / 3, step)
                for every in (1, 4)
                for rounds in (30, 400)
            ],
        ),
        "Wu Frank-Wolfe": (
            attacks.dual_attack,
            [
                dataclasses.replace(
                    wu, method="frank_wolfe", max_steps=steps, early_stop=early
                )
                for steps in (10, 40, 120)
                for early in (False, True)
            ],
        ),
        "Wu projection": (
            attacks.dual_attack,
            [
                dataclasses.replace(
                    wu, step_size=size, max_steps=steps, early_stop=early
                )
                for size in (step, 3 * step)
                for steps in (10, 40, 120)
                for early in (False, True)
            ],
        ),
    }


def tune(arguments, images, labels, classify):
    """The best of each grid, on images that are not shown later."""
    limit = None
    _, flow = plans(arguments.metric, arguments.scale)["flow"]
    cases = {"flow": (attacks.flow_attack, [flow])}
    cases |= grids(arguments.metric, arguments.scale, arguments.step)
    chosen = {}
    for name, (attack, settings) in cases.items():
        tried = []
        for one in settings:
            one = dataclasses.replace(one, batch_size=arguments.batch)
            line = measure(attack, one, images, labels, classify, arguments)
            tried.append((line["median_exact"], line["cpu_ms_per_image"], one))
            print(f"  tuning {name}: {tried[-1]}", flush=True)
        if name == "flow":
            limit = tried[0][1]
            continue
        chosen[f"{name} tuned"] = (attack, min(tried, key=lambda t: t[0])[2])
        quick = [t for t in tried if t[1] <= limit]
        # Where nothing is that fast, the fastest.
        pick = (
            min(quick, key=lambda t: t[0]) if quick else min(tried, key=lambda t: t[1])
        )
        chosen[f"{name} in flow's time"] = (attack, pick[2])
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the original files")
    parser.add_argument("--set", default="mnist")
    parser.add_argument(
        "--checkpoint", required=True, help=".pth, .safetensors or a run directory"
    )
    parser.add_argument("--metric", default="l1")
    parser.add_argument("--scale", type=float, default=0.2)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument(
        "--only",
        nargs="*",
        help='attacks to run beside the tuned ones, e.g. "flow" "Hu"',
    )
    parser.add_argument("--step", type=float, default=0.1, help="of a pixel, --tune")
    parser.add_argument("--tune", type=int, default=0, help="images to tune on")
    parser.add_argument("--line-search", action="store_true")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    test = data.load(arguments.set, "test", dir=arguments.data)
    count = min(arguments.images, len(test.labels) - arguments.tune)
    others = slice(count, count + arguments.tune)
    images = data.as_float(test.images[: others.stop], test.scale)
    labels = test.labels[: others.stop]
    classify = classifier(arguments.checkpoint, images.shape[1:])
    cases = plans(arguments.metric, arguments.scale, arguments.set)
    if arguments.only:
        cases = {name: case for name, case in cases.items() if name in arguments.only}
    if arguments.tune:
        cases |= tune(arguments, images[others], labels[others], classify)
    images, labels = images[:count], labels[:count]
    lines = {}
    for name, (attack, settings) in cases.items():
        settings = dataclasses.replace(settings, batch_size=arguments.batch)
        lines[name] = line = measure(
            attack, settings, images, labels, classify, arguments
        )
        print(name, line, flush=True)
        if arguments.out:
            record = {
                "attack": name,
                **line,
                "checkpoint": pathlib.Path(arguments.checkpoint).name,
                "metric": arguments.metric,
                "line_search": arguments.line_search,
                "settings": dataclasses.asdict(settings),
                "versions": manifest.versions(),
                "devices": manifest.devices(),
                "machine": platform.machine(),
            }
            with arguments.out.open("a") as file:
                file.write(json.dumps(record) + "\n")
    Console(width=160).print(table(arguments, lines))


def classifier(path, image_shape):
    """A network of the paper's authors, one of `released/`, or what train.py left."""
    if path.endswith(".pth"):
        module = models.ConvSmall()
        variables = torch_checkpoints.load_variables(path, module, image_shape)
        return jax.tree_util.Partial(module.apply, variables)
    if pathlib.Path(path).is_dir():
        config = manifest.read(pathlib.Path(path))["train"]["config"]
        examples = Examples(config["data"], "test")
        return experiment.restore_classifier(config, pathlib.Path(path), examples)
    stored = artefact.read(pathlib.Path(path))
    module = models.create(**stored.description["model"])
    return models.classifier(module, stored.variables)


def measure(attack, settings, images, labels, classify, arguments):
    """One line of the table."""
    first = slice(arguments.batch)
    key, metric = jax.random.key(0), arguments.metric
    attack(images[first], labels[first], classify, key=key, settings=settings)
    clock = CpuClock(metric)
    with clock:
        result = attack(images, labels, classify, key=key, settings=settings)
    valid = np.array(repair.nearest_valid(images, result.adversarial))
    found = result.success.copy()
    if arguments.line_search and attack is not attacks.flow_attack:
        valid, found = shorten(images, valid, labels, classify)
    wrong = np.argmax(classify(valid), -1) != labels
    before = np.argmax(classify(images), -1) != labels
    exact = np.full(len(images), np.inf)
    for place in np.flatnonzero(wrong & found):
        exact[place] = exact_distance(images[place], valid[place], metric)
    exact[before] = 0
    outside = np.maximum(result.adversarial - 1, 0).sum((1, 2, 3))
    mass = images.sum((1, 2, 3))
    lost = np.abs(result.adversarial.sum((1, 2, 3)) - mass) / mass
    nominal = np.isfinite(result.epsilon) & (result.epsilon > 0)
    return {
        "cpu_ms_per_image": round(1e3 * clock.seconds / len(images), 1),
        "success": round(float(result.success.mean()), 3),
        "median_nominal": significant(np.median(result.epsilon)),
        "success_valid": round(float((wrong & found).mean()), 3),
        "median_exact": significant(np.median(exact)),
        **{
            f"accuracy_{radius:g}": round(float((exact > radius).mean()), 3)
            for radius in (arguments.scale / 2, arguments.scale, 1.5 * arguments.scale)
        },
        "mass_error": round(float(lost[nominal].mean()) if nominal.any() else 0.0, 5),
        "mass_above_one": round(float((outside / mass).mean()), 5),
    }


def significant(value, digits=3):
    """The number in three digits, however small."""
    return float(f"{value:.{digits}g}")


class CpuClock:
    """CPU seconds of the attack, without the exact distances inside the flow attack."""

    def __init__(self, metric):
        self.metric, self.seconds = metric, 0.0

    def __enter__(self):
        from wsjax.attacks import flow

        self.solver, self.solving = flow.exact_distance, 0.0

        def timed(*pair):
            start = time.process_time()
            answer = self.solver(*pair)
            self.solving += time.process_time() - start
            return answer

        flow.exact_distance = timed
        self.start = time.process_time()

    def __exit__(self, *_):
        from wsjax.attacks import flow

        self.seconds = time.process_time() - self.start - self.solving
        flow.exact_distance = self.solver


def shorten(images, points, labels, classify, halvings=10):
    """Ten halvings of the segment from each image to a wrong answer."""
    wrong = np.argmax(classify(points), -1) != labels
    low, high = np.zeros(len(images)), np.ones(len(images))
    kept = points.copy()
    for _ in range(halvings):
        middle = (low + high) / 2
        share = middle[:, None, None, None].astype(images.dtype)
        here = images + share * (points - images)
        there = (np.argmax(classify(here), -1) != labels) & wrong
        kept[there] = here[there]
        low, high = np.where(there, low, middle), np.where(there, middle, high)
    return kept, wrong


def table(arguments, lines):
    heads = list(next(iter(lines.values()))) if lines else []
    shown = Table(
        title=f"{pathlib.Path(arguments.checkpoint).name}, {arguments.images} images, "
        f"{arguments.metric}",
        title_justify="left",
    )
    shown.add_column("attack")
    for head in heads:
        shown.add_column(head.replace("_", " "), justify="right")
    for name, line in lines.items():
        shown.add_row(name, *(f"{value:g}" for value in line.values()))
    return shown


if __name__ == "__main__":
    main()
