"""Cards of released classifiers: what each certifies, computed from its rows.

  python benchmarks/cards.py --data=FOLDER mnist_potentials

certifies and attacks the test images with `certify.py` and `attack.py` (rows that are there
are not made again), keeps the rows in released/runs/NAME, and writes released/NAME.json.
FOLDER holds a folder of the original files for each data set.

  python benchmarks/cards.py --check NAME

computes the numbers of the card from the rows again, in seconds; with --data it also
certifies some images anew and compares them with their rows. Without names,

  python benchmarks/cards.py

writes docs/leaderboard.md from all cards.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile
from typing import NamedTuple

import numpy as np
from repository import ROOT, keep, run

from wsjax import data
from wsjax.runs import attack_report, manifest, released, report

LEADERBOARD = ROOT / "docs" / "leaderboard.md"
TEST_IMAGES = 10_000  # Of each of the data sets.
SPOTS = 5  # Images that --check certifies anew.

WHOLE = {
    "mnist": (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
    "fashion_mnist": (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
    "cifar10": (2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2),
}

CERTAIN = (
    "Holds for certain and for the program's own answers, for images of equal mass in every "
    "channel that differ in where it is; says nothing of other changes."
)
LIKELY = (
    "Each certificate is wrong with probability alpha at most, and is about the smoothed "
    "classifier in real arithmetic (smoothing.exact=True: about the program); for images of "
    "equal mass in every channel."
)


HEAD = """\
# Released classifiers

Written by `python benchmarks/cards.py` from the cards in `released/`, whose numbers come
from the rows in `released/runs/`; `python benchmarks/cards.py --check` computes them again.
Load one by name:

```python
import wsjax

model = wsjax.load_model("mnist-potentials")
print(model.certify(image))  # [28, 28, 1], pixels in [0, 1]
```

Columns are certified accuracy at the radius above them (pixels x fraction of mass); a wrong
class counts as -1 in the median. *Attack* is the median distance at which the flow attack
finds another answer, *ratio* its median ratio to the certified radius of the same image.
"""


class Entry(NamedTuple):
    """What a card cannot compute: of which config a classifier is, and what for."""

    config: str
    description: str
    changes: tuple[str, ...] = ()
    # On the data set's every so many images; the attack on 200, or so many, and in l1
    # (whose distances are larger, so that l2's certificates hold) on so many.
    stride: int = 1
    attacked: int = 200
    attacked_l1: int = 0
    attack: tuple[str, ...] = ()


def smoothed(config, scale, description, **more):
    changes = (f"smoothing.certificate_scale={scale}",)
    return Entry(config, description, changes, **more)


ENTRIES = {
    "mnist_potentials": Entry(
        "mnist_potentials", "digits, large radii: a network that needs no votes"
    ),
    "mnist_c0.037": smoothed(
        "mnist", 0.037, "digits, clean accuracy: Gaussian noise on a learned view"
    ),
    "mnist_c0.1": smoothed(
        "mnist", 0.1, "digits, large radii by votes: Gaussian noise on a learned view"
    ),
    "fashion_mnist_potentials": Entry(
        "fashion_mnist_potentials", "clothes: a network that needs no votes"
    ),
    "fashion_mnist_c0.08": smoothed(
        "fashion_mnist", 0.08, "clothes: Gaussian noise on a learned view"
    ),
    "cifar10_potentials": Entry(
        "cifar_potentials", "photographs, large radii: a network that needs no votes"
    ),
    "cifar10_c0.000283": smoothed(
        "cifar",
        0.000283,
        "photographs, a network for two cores: Gaussian noise of a learned spectrum",
        stride=10,
        attacked_l1=100,
        # A third of the time; distances of six images were 2 % (median) above the default's.
        attack=("attack.flow.num_samples=32", "attack.flow.num_votes=500"),
    ),
    "cifar10_wide_c0.0004": smoothed(
        "cifar_wide",
        0.0004,
        "photographs, a network for a GPU: Gaussian noise of a learned spectrum",
        stride=10,
        attacked=0,
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ENTRIES))
    parser.add_argument("--data", type=pathlib.Path, help="folder of the data sets")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in ENTRIES:
            parser.error(f"{name!r} is not one of {', '.join(ENTRIES)}.")
    wrong = []
    for name in arguments.names or (ENTRIES if arguments.check else ()):
        if arguments.check:
            wrong += check(name, arguments.data)
        else:
            make(name, arguments.data)
    if arguments.check:
        if LEADERBOARD.read_text() != leaderboard():
            wrong.append(
                f"{LEADERBOARD} is not what the cards say: run benchmarks/cards.py"
            )
        sys.exit("\n".join(wrong) or None)
    LEADERBOARD.write_text(leaderboard())
    print(f"Written: {LEADERBOARD}")


def rows_of(name):
    """Folder of the rows of a classifier."""
    return released.folder() / "runs" / name


def commands(name):
    """`(script, folder in the run's, changes)` that make the rows."""
    entry = ENTRIES[name]
    both = f"model.checkpoint={released.folder() / name}.safetensors", *entry.changes
    yield "certify.py", "", (*both, f"data.stride={entry.stride}")
    attack = "attack.method=flow", f"attack.target={target_of(name)}", *entry.attack
    if entry.attacked:
        stride = TEST_IMAGES // entry.attacked
        yield "attack.py", "", (*both, *attack, f"data.stride={stride}")
    if entry.attacked_l1:
        l1 = "attack.flow.ground_metric=l1"
        stride = TEST_IMAGES // entry.attacked_l1
        yield "attack.py", "l1", (*both, *attack, l1, f"data.stride={stride}")


def target_of(name):
    """What is attacked: the network itself, or its smoothed classifier."""
    return "base" if name.endswith("_potentials") else "smoothed"


def kept(name):
    """Names of the files of a run that are kept."""
    return report.CERTIFICATES, f"attack_flow_{target_of(name)}.tsv"


def make(name, folder):
    """Certifies, attacks, and writes the card."""
    if folder is None:
        sys.exit("error: --data=FOLDER is needed to certify; --check does without.")
    runs = rows_of(name)
    # Figures and pictures of the attack stay out of what is released.
    with tempfile.TemporaryDirectory() as scratch:
        work = pathlib.Path(scratch) / name
        shutil.copytree(runs, work) if runs.exists() else work.mkdir()
        for script, part, changes in commands(name):
            here = f"data.dir={folder / data_of(name)}"
            try:
                run(script, ENTRIES[name].config, work / part, *changes, here)
            finally:
                if (work / part / "run.json").exists():
                    keep(work / part, runs / part, kept(name))
    write(name)


def write(name):
    """Writes the card of rows that are there."""
    path = released.folder() / f"{name}.json"
    path.write_text(json.dumps(card(name), indent=2) + "\n")
    print(f"Written: {path}")


def data_of(name):
    """Its data set."""
    return released.describe(released.folder() / f"{name}.safetensors")["data"]


def card(name):
    """The card, computed from the rows and the file alone."""
    entry, runs = ENTRIES[name], rows_of(name)
    (found, *_) = report.read_certified(runs)
    recorded, _ = manifest.read_rows(runs, "certify", report.CERTIFICATES)
    entries = json.loads((runs / "run.json").read_text())
    votes = recorded["certifier"]
    path = released.folder() / f"{name}.safetensors"
    loaded = released.describe(path)
    radii = WHOLE[loaded["data"]]
    shares = found.certified_accuracy(radii)
    total = found.summary
    return {
        "name": name,
        "description": entry.description,
        "kind": loaded["kind"],
        "data": loaded["data"],
        "image_shape": loaded["image_shape"],
        "ground_metric": found.metric,
        "scale": loaded["scale"],
        "config": entry.config,
        "settings": list(entry.changes),
        "sha256": released.checksum(path),
        "licence": "Apache-2.0",
        "limits": CERTAIN if loaded["kind"] == "potentials" else LIKELY,
        "images": total.images,
        "accuracy": number(total.accuracy),
        "median_radius": number(total.median_radius),
        "mean_radius": number(total.mean_radius),
        "curve": {f"{r:g}": number(s) for r, s in zip(radii, shares)},
        "attack": attacks_of(runs, found.metric, target_of(name)),
        "alpha": votes.get("alpha", 0.0),
        "n0": votes.get("n0", 0),
        "n": votes.get("n", 0),
        "commands": [" ".join(["python", *e["command"]]) for e in entries.values()],
        "versions": recorded["versions"],
        "devices": recorded["devices"],
    }


def number(value):
    """Six digits are more than are shown anywhere."""
    return float(f"{value:.6g}")


def attacks_of(runs, metric, target):
    """What the flow attack found, in l1 as well if that was tried."""
    case = attack_report.Attacked("flow", target)
    if not (runs / case.rows).exists():
        return {}
    _, certificates = manifest.read_rows(runs, "certify", report.CERTIFICATES)
    found = attack_of(runs, metric, case, certificates)
    if (runs / "l1" / case.rows).exists():
        found["l1"] = attack_of(runs / "l1", "l1", case, certificates)
    return found


def attack_of(runs, metric, case, certificates):
    """What an attack found, beside the certificates of the same images."""
    made = json.loads((runs / "run.json").read_text())["attack flow"]
    attacked = attack_report.read(runs, case)
    gaps = attack_report.gaps(attacked, certificates, metric)
    distances = np.where(
        attacked.ints("verified") == 1, attacked.floats(metric), np.inf
    )
    return {
        "images": len(distances),
        "median_distance": number(np.median(distances)),
        "compared": len(gaps.ratios),
        "median_ratio": number(np.median(gaps.ratios)),
        "least_ratio": number(gaps.ratios.min()),
        "inside": len(gaps.inside),
        "versions": made["versions"],
        "devices": made["devices"],
    }


def check(name, folder):
    """What is wrong with a card, in sentences."""
    path = released.folder() / f"{name}.json"
    there, now = released.read_card(path), json.loads(json.dumps(card(name)))
    wrong = [
        f"{path}: {key} is {there.get(key)!r}, the rows say {now[key]!r}"
        for key in now
        if there.get(key) != now[key]
    ]
    if folder is not None:
        wrong += certified_anew(name, folder)
    print(f"{name}: {'; '.join(wrong) if wrong else 'as its rows say'}", flush=True)
    return wrong


def certified_anew(name, folder):
    """Differences of some certificates from their rows.

    Without votes they are equal but for rounding. With votes the arithmetic of another
    machine changes a few, and a radius a little.
    """
    model = released.load_model(name)
    _, rows = manifest.read_rows(rows_of(name), "certify", report.CERTIFICATES)
    set_ = data.load(data_of(name), "test", dir=folder / data_of(name))
    wrong = []
    for place in range(0, len(rows), max(1, len(rows) // SPOTS)):
        index, radius = rows.ints("idx")[place], rows.floats("radius")[place]
        image = data.as_float(set_.images[index], set_.scale)
        found = model.certify(image)
        # In another batch float64 sums in another order.
        near = (0.2 if model.certifier.random else 1e-12) * max(radius, found.radius)
        same = found.label == rows.ints("predict")[place]
        if not (same and abs(found.radius - radius) <= near):
            wrong.append(
                f"{name}: image {index} is certified as {found.label} at "
                f"{found.radius:.6g}, its row says {rows.ints('predict')[place]} at "
                f"{radius:.6g}"
            )
    return wrong


def leaderboard():
    """Markdown: a table for each data set."""
    by_data = {}
    for each in released.cards():
        by_data.setdefault(each["data"], []).append(each)
    lines = HEAD.splitlines()
    for name, found in by_data.items():
        radii = WHOLE[name]
        head = [
            "",
            "kind",
            "images",
            "accuracy",
            "median r",
            *(f"{r:g}" for r in radii),
        ]
        head += ["attack", "ratio"]
        lines += ["", f"## {name} ({found[0]['ground_metric']})", "", row(head)]
        lines.append("|" + "---|" * len(head))
        for each in sorted(found, key=lambda c: -c["mean_radius"]):
            attack = each["attack"]
            cells = [f"`{each['name']}`", each["kind"], f"{each['images']:,}"]
            cells += [short(each["accuracy"]), f"{each['median_radius']:.3g}"]
            cells += [short(each["curve"][f"{r:g}"]) for r in radii]
            cells += [
                f"{attack['median_distance']:.3g}" if attack else "",
                f"{attack['median_ratio']:.2f}" if attack else "",
            ]
            lines.append(row(cells))
        lines.append("")
        lines += [f"* `{c['name']}`: {c['description']}. {where(c)}" for c in found]
    return "\n".join(lines) + "\n"


def where(each):
    """How a row came about."""
    votes = f"n0 = {each['n0']:,}, n = {each['n']:,}, alpha = {each['alpha']:g}; "
    made, attack = machine(each), each["attack"]
    told = f"{votes if each['n'] else 'No votes; '}{made}."
    if attack:
        told += f" {attack['images']} images attacked, {attack['inside']} inside"
        if l1 := attack.get("l1"):
            told += (
                f"; in l1 {l1['images']}, at a median of {l1['median_distance']:.3g}, ratio "
                f"{l1['median_ratio']:.2f}, {l1['inside']} inside"
            )
        told += "." if machine(attack) == made else f" ({machine(attack)})."
    return told


def machine(each):
    """Version of JAX and device."""
    device = each["devices"][0].removeprefix("1 x ").replace("2 x cpu", "cpu")
    return f"JAX {each['versions']['jax']}, {device.replace('cpu', 'a CPU')}"


def row(cells):
    return "| " + " | ".join(cells) + " |"


def short(share):
    return f"{share:.3f}".lstrip("0") if share else "0"


if __name__ == "__main__":
    main()
