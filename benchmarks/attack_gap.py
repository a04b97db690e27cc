"""The space between certificates and attacks, for noise laws and theorems here.

  python benchmarks/attack_gap.py --out=runs/gap
  python benchmarks/attack_gap.py --set=cifar --data=FOLDER --out=runs/gap-cifar

For each noise law: trains, certifies, attacks the smoothed classifier with the flow
attack, all by the scripts of this repository, on the same test images; CIFAR-10 in both
ground metrics. Then the accuracy under attack must lie above the certified one at every
radius, for each theorem about the law, and no image may be fooled inside its radius.
Prints a table, writes gap.png and gap.json. Finished parts are not run again. About two
minutes a law on two cores for digits.
"""

import argparse
import json
import pathlib
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import repository
from objectives import SETTINGS
from rich.table import Table

from wsjax import plots
from wsjax.runs import attack_report, manifest, report


class Law(NamedTuple):
    """One noise law.

    Attributes:
      title: as docs/attacks.md calls it.
      changes: "KEY=VALUE" in its config.
      config: path below configs/, without .py; empty for that of the set.
    """

    title: str
    changes: tuple[str, ...]
    config: str = ""


class Plan(NamedTuple):
    """What is attacked on one data set.

    Attributes:
      laws: by the name of their run directory.
      config: as in `Law`.
      changes: "KEY=VALUE" in the config of all.
      stride: of the test images.
      metrics: in which they are attacked, beside that of the law.
    """

    laws: dict[str, Law]
    config: str
    changes: tuple[str, ...]
    stride: int
    metrics: tuple[str, ...] = ()


def of_digits(noise, title, **smoothing):
    """Noise of about the same loss of accuracy as all others."""
    given = {"noise": noise, "certificate_scale": 0.0, **smoothing}
    return Law(title, tuple(f"smoothing.{k}={v}" for k, v in given.items()))


def laplace(title, **smoothing):
    return of_digits("flow_laplace", title, sigma=0.02, **smoothing)


PLANS = {
    "digits": Plan(
        {
            "flow_laplace": laplace("flow Laplace"),
            "flow_laplace-wrapped": laplace("flow Laplace, wrapped", wrap=True),
            "flow_laplace-l1": laplace("flow Laplace, l1", ground_metric="l1"),
            "flow_uniform": of_digits("flow_uniform", "flow uniform", sigma=0.02),
            "pixel_laplace": of_digits("pixel_laplace", "pixel Laplace", sigma=0.02),
            "flow_gaussian": of_digits("flow_gaussian", "flow Gaussian", sigma=0.02),
            "laplacian_gaussian": of_digits(
                "laplacian_gaussian", "stencil", sigma=0.02
            ),
            "power_law": of_digits(
                "power_law", "power law, gamma = 1.5", sigma=0.02, gamma=1.5
            ),
            "learned_spectrum": of_digits(
                "learned_spectrum",
                "learned spectrum, c = .03",
                certificate_scale=0.03,
                gamma=1.0,
                bins=0,
            ),
            "learned_view": of_digits(
                "learned_view", "learned view, c = .03", certificate_scale=0.03
            ),
        },
        "digits",
        (),
        stride=6,
    ),
    "cifar": Plan(
        {
            "published": Law("published, sigma = 2e-4", (), "paper/cifar_fast"),
            "not-coupled": Law(
                "learned, channels independent, c = 2.83e-4",
                ("smoothing.couple_channels=False",),
            ),
            "coupled": Law("learned, c = 2.83e-4", ()),
        },
        "cifar",
        (
            *SETTINGS["cifar"].changes,
            "train.num_epochs=6",
            "attack.flow.start_radius=0.002",
            "attack.flow.num_samples=32",
            "attack.flow.num_votes=500",
        ),
        stride=50,
        metrics=("l1",),
    ),
}
COLOURS = {"published": plots.COLOURS[0], "tight": plots.COLOURS[1]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=PLANS, default="digits")
    parser.add_argument("--data", help="folder of the original files; not for digits")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/gap"))
    parser.add_argument("--stride", type=int, help="of the test images")
    parser.add_argument("--only", nargs="*", help="laws to run; default all")
    arguments = parser.parse_args()
    plan, found, target = PLANS[arguments.set], {}, "attack.target=smoothed"
    common = [*plan.changes, f"data.stride={arguments.stride or plan.stride}"]
    common += [f"data.dir={arguments.data}"] if arguments.data else []
    for name, law in plan.laws.items():
        if arguments.only and name not in arguments.only:
            continue
        workdir = arguments.out / name
        config, changes = law.config or plan.config, (*common, *law.changes)
        for script in ("train.py", "certify.py", "attack.py"):
            repository.run(script, config, workdir, *changes, target)
        found.update(compare(law.title, workdir, workdir))
        for metric in plan.metrics:
            folder = workdir / metric
            wanted = target, f"attack.flow.ground_metric={metric}"
            repository.run(
                "attack.py", config, folder, *changes, *wanted, trained=workdir
            )
            title = f"{law.title}, {metric}"
            found.update(compare(title, workdir, folder, metric))
    report.show(table(arguments.set, found), arguments.out / "gap.txt")
    draw(found, arguments.out / "gap.png")
    lines = {
        name: {k: v for k, v in line.items() if k != "curves"}
        for name, line in found.items()
    }
    record = {
        "lines": lines,
        "versions": manifest.versions(),
        "devices": manifest.devices(),
    }
    (arguments.out / "gap.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"Table and figure: {arguments.out}")


def compare(name, workdir, folder, metric=None):
    """One line for each theorem about a law; radii in l2 hold in l1."""
    case = attack_report.Attacked("flow", "smoothed")
    attacked = attack_report.read(folder, case)
    entry = manifest.read(workdir)["certify"]["config"]["smoothing"]
    metric = metric or entry["ground_metric"]
    labels = attacked.ints("label")
    distances = np.where(
        attacked.ints("verified") == 1, attacked.floats(metric), np.inf
    )
    distances[attacked.floats("radius") == 0] = 0
    lines = {}
    for certified in report.read_certified(workdir):
        np.testing.assert_array_equal(certified.labels, labels)
        right = certified.found.labels == labels
        radii = np.where(right, certified.found.radii, 0)
        at = np.unique(radii)
        under_attack = np.mean(distances >= at[:, None], axis=1)
        held = np.mean(radii >= at[:, None], axis=1)
        both = np.isfinite(distances) & (radii > 0) & (distances > 0)
        lines[f"{name} ({certified.found.theorem})"] = {
            "images": len(labels),
            "accuracy": certified.summary.accuracy,
            "median_certified": float(np.median(radii)),
            "median_attacked": float(np.median(distances)),
            "closest": float((distances[both] / radii[both]).min(initial=np.inf)),
            "inside": int(np.sum((distances < radii) & (radii > 0))),
            "least_gap": float((under_attack - held)[at > 0].min(initial=1)),
            "curves": (radii, distances, metric),
        }
    return lines


def table(title, found):
    shown = Table(title=f"Certified and attacked: {title}", title_justify="left")
    shown.add_column("noise (theorem)")
    for head in (
        "images",
        "accuracy",
        "median certified",
        "median attacked",
        "closest: attacked / certified",
        "fooled inside",
        "least gap of the curves",
    ):
        shown.add_column(head, justify="right")
    for name, line in found.items():
        cells = [f"{v:.3g}" for k, v in line.items() if k != "curves"]
        shown.add_row(name, *cells)
    return shown


def draw(found, path):
    """Certified curves below, the attack's above, one panel for each law."""
    laws = list(dict.fromkeys(name.split(" (")[0] for name in found))
    columns = min(4, len(laws))
    rows = -(-len(laws) // columns)
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(3 * columns, 2.3 * rows),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel in panels.ravel()[len(laws) :]:
        panel.set_visible(False)
    counts, looks = set(), {}
    for law, panel in zip(laws, panels.ravel()):
        for name, line in found.items():
            if name.split(" (")[0] != law:
                continue
            radii, distances, metric = line["curves"]
            theorem = name.split("(")[-1].rstrip(")")
            counts.add(len(radii))
            for values, label, colour, dashes in (
                (
                    radii[radii > 0],
                    f"certified, {theorem} bound",
                    COLOURS[theorem],
                    "-",
                ),
                (distances[distances > 0], "under attack", "black", "--"),
            ):
                # Infinite distances keep the curve up to the edge of the panel.
                steps = np.sort(values)
                left = (len(steps) - np.arange(len(steps) + 1)) / len(radii)
                (looks[label],) = panel.step(
                    [0, *steps], [*left], color=colour, linestyle=dashes, where="pre"
                )
            reached = distances[np.isfinite(distances)].max(initial=1e-3)
            panel.set_xlim(0, reached * 1.02)
            panel.set_xlabel(f"Wasserstein distance ({metric})", fontsize=8)
        panel.set_title(law, fontsize=9)
        panel.tick_params(labelsize=7)
    for panel in panels[:, 0]:
        panel.set_ylabel(f"accuracy, {max(counts)} images", fontsize=8)
    figure.legend(
        looks.values(), looks, loc="outside lower center", ncols=min(3, columns)
    )
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
