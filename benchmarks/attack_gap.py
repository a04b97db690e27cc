"""The space between certificates and attacks, for every noise and theorem here: digits.

  python benchmarks/attack_gap.py --out=runs/gap

For each noise law: trains (40 epochs), certifies, attacks the smoothed classifier with
the flow attack, all by the scripts of this repository, on the same test images. Then the
accuracy under attack must lie above the certified one at every radius, for each theorem
about the law, and no image may be fooled inside its radius. Prints a table, writes
gap.png and gap.json. Finished parts are not run again. About two minutes a law on two
cores.
"""

import argparse
import json
import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import repository
from rich.table import Table

from wsjax import plots
from wsjax.runs import attack_report, manifest, report

# Overrides of configs/digits.py: noise of about the same loss of accuracy.
LAWS: dict[str, dict[str, Any]] = {
    "flow_laplace": {"sigma": 0.02},
    "flow_laplace, wrapped": {"noise": "flow_laplace", "sigma": 0.02, "wrap": True},
    "flow_laplace, l1": {
        "noise": "flow_laplace",
        "sigma": 0.02,
        "ground_metric": "l1",
    },
    "flow_uniform": {"sigma": 0.02},
    "pixel_laplace": {"sigma": 0.02},
    "flow_gaussian": {"sigma": 0.02},
    "laplacian_gaussian": {"sigma": 0.02},
    "power_law": {"sigma": 0.02, "gamma": 1.5},
    "learned_spectrum": {"certificate_scale": 0.03, "gamma": 1.0, "bins": 0},
    "learned_view": {"certificate_scale": 0.03},
}
# As docs/attacks.md calls them.
TITLES = {
    "flow_laplace": "flow Laplace",
    "flow_laplace, wrapped": "flow Laplace, wrapped",
    "flow_laplace, l1": "flow Laplace, l1",
    "flow_uniform": "flow uniform",
    "pixel_laplace": "pixel Laplace",
    "flow_gaussian": "flow Gaussian",
    "laplacian_gaussian": "stencil",
    "power_law": "power law, gamma = 1.5",
    "learned_spectrum": "learned spectrum, c = .03",
    "learned_view": "learned view, c = .03",
}
COLOURS = {"published": plots.COLOURS[0], "tight": plots.COLOURS[1]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/gap"))
    parser.add_argument("--stride", type=int, default=6, help="of the test images")
    parser.add_argument("--only", nargs="*", help="laws to run; default all")
    arguments = parser.parse_args()
    found = {}
    for name, smoothing in LAWS.items():
        if arguments.only and name not in arguments.only:
            continue
        workdir = arguments.out / name.replace(", ", "-")
        given = {"noise": name, "certificate_scale": 0.0, **smoothing}
        for script in ("train.py", "certify.py", "attack.py"):
            repository.run(
                script,
                "digits",
                workdir,
                f"data.stride={arguments.stride}",
                "attack.target=smoothed",
                *(f"smoothing.{key}={value}" for key, value in given.items()),
            )
        found.update(compare(name, workdir))
    report.show(table(found), arguments.out / "gap.txt")
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


def compare(name, workdir):
    """One line for each theorem about a law."""
    case = attack_report.Attacked("flow", "smoothed")
    attacked = attack_report.read(workdir, case)
    entry = manifest.read(workdir)["certify"]["config"]["smoothing"]
    metric = entry["ground_metric"]
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


def table(found):
    shown = Table(title="Certified and attacked: digits", title_justify="left")
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
        panel.set_title(TITLES.get(law, law), fontsize=9)
        panel.tick_params(labelsize=7)
    for panel in panels[:, 0]:
        panel.set_ylabel(f"accuracy, {max(counts)} images", fontsize=8)
    figure.legend(looks.values(), looks, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
