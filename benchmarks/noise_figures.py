"""Draws docs/figures/mnist_noise*.png: noise laws at one certificate, and a view.

  python benchmarks/noise_figures.py --data=FOLDER --released=FILE.safetensors

adds the noise that was learned with a classifier, a file that train.py wrote, and takes
ground metric and certificate scale from it. Without a file, the last law is the view
that learning starts from. Prints the table of docs/noise.md; half a minute on two cores.
"""

import argparse
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import noise_plots
import numpy as np
from scipy import fft

from wsjax import certificates, data, gaussian, noise, spectrum
from wsjax.runs import artefact
from wsjax.training import learned_noise

# Test images that are easy to tell apart at a glance.
DIGITS = (0, 2, 4)
MEASURED = 500


class Law(NamedTuple):
    """A noise law and how to look at it.

    Attributes:
      name: a short title.
      detail: a line below it.
      plain: the law whose pictures nothing was filtered out of.
      seen: `(key, image) -> picture` of the same draw, after the linear filter.
      features: `[D, H, W, C]` of the view, or None for noise that is not Gaussian.
    """

    name: str
    detail: str
    plain: noise.NoiseLaw
    seen: Callable
    features: np.ndarray | None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the MNIST idx files")
    parser.add_argument("--released", type=pathlib.Path, help="FILE.safetensors")
    parser.add_argument("--scale", type=float, default=0.04, help="c without a file")
    parser.add_argument("--probability", type=float, default=0.99)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("docs/figures")
    )
    arguments = parser.parse_args()

    train = data.load("mnist", "train", dir=arguments.data)
    test = data.load("mnist", "test", dir=arguments.data)
    statistics = learned_noise.statistics(train.images)
    images = data.as_float(test.images[:MEASURED], test.scale)
    views, metric = learned_laws(arguments, statistics)
    scale = 1.0 / gaussian.kappa(views[-1].plain, statistics.mean.shape, metric)
    p = arguments.probability
    radius = float(certificates.gaussian(p, 1.0 / scale, metric))
    laws = [
        laplace_flow(statistics, radius, p, metric),
        stationary("Gaussian flow", 1.0, statistics, scale, metric),
        stationary("power law", 2.0, statistics, scale, metric),
        *views,
    ]

    arguments.out.mkdir(parents=True, exist_ok=True)
    shown = images[list(DIGITS)]
    noise_plots.noise_pictures(
        arguments.out / "mnist_noise.png",
        shown,
        [row_of(law, shown) for law in laws],
        title=f"Noise that certifies the {metric} radius {radius:.3f} "
        f"at a class probability of {p:g}",
    )
    draw_view(arguments.out / "mnist_noise_view.png", laws[-1], statistics, metric)
    draw_spectra(
        arguments.out / "mnist_noise_spectrum.png", laws[1:], images, statistics, scale
    )
    print_table(laws, images, statistics)
    print(f"c = {scale:.6g} ({metric}); figures in {arguments.out}")


def learned_laws(arguments, statistics):
    """The view that learning starts from, the learned law if any, and their metric."""
    scale, metric = arguments.scale, "l2"
    settings, learned = {}, []
    if arguments.released is not None:
        stored = artefact.read(arguments.released)
        scale, metric = 1.0 / stored.claim["kappa"], stored.claim["ground_metric"]
        kept = stored.provenance["config"]["smoothing"]
        if kept["noise"] == "learned_view":
            settings = {key: kept[key] for key in ("waves", "gamma")}
        learned = [as_drawn(stored.law, kept["noise"].replace("_", " "))]
    start = learned_noise.LearnedView(statistics, scale, metric, **settings)
    return [
        as_drawn(start.freeze(start.init()), "view,\nbefore learning"),
        *learned,
    ], metric


def laplace_flow(statistics, radius, p, metric):
    """The paper's law, as loud as makes its tight radius equal at one probability."""
    sigma = radius / float(certificates.flow_laplace(p, 1.0, metric))
    law = noise.FlowLaplace(sigma)
    power = spectrum.power_law(statistics.mean.shape, sigma, 1.0)
    filtered = linear_filter(power, statistics)
    return Law(
        "Laplace flow",
        f"$\\sigma$ = {sigma:.3g} per edge",
        law,
        lambda key, image: filtered(law.perturb(key, image)),
        None,
    )


def stationary(name, gamma, statistics, scale, metric):
    """Noise of the spectrum `sigma**2 lap**gamma` with `1 / kappa = scale`."""
    shape = statistics.mean.shape
    sigma = scale * spectrum.kappa(spectrum.power_law(shape, 1.0, gamma), metric)
    power = spectrum.power_law(shape, sigma, gamma)
    law = gaussian.ColouredGaussian(spectrum.square_root(power))
    filtered = linear_filter(power, statistics)
    return Law(
        name,
        f"$\\gamma$ = {gamma:g}, $\\sigma$ = {sigma:.3g}",
        law,
        lambda key, image: filtered(law.perturb(key, image)),
        whitener(power),
    )


def as_drawn(law, name):
    """A law that draws its own filtered picture, and the picture without a filter."""
    if isinstance(law, gaussian.ColouredGaussian):
        plain = gaussian.ColouredGaussian(law.amplitude)
        return Law(name, "", plain, law.perturb, whitener(law.spectrum))
    # The least-squares picture of a noisy view, without knowledge of the images.
    flat = law.features.reshape(len(law.features), -1).astype(np.float64)
    inverse = np.linalg.pinv(flat).T.reshape(law.features.shape)
    plain = gaussian.GaussianView(law.features, inverse, law.mean)
    detail = f"{len(law.features)} features"
    return Law(name, detail, plain, law.perturb, law.features)


def linear_filter(power, statistics):
    """`noisy image -> picture` by the Wiener filter for noise of this spectrum."""
    gain = spectrum.wiener(statistics.power.astype(np.float64), power)
    half = jnp.asarray(gain[:, : gain.shape[1] // 2 + 1], jnp.float32)
    mean = statistics.mean

    def apply(noisy):
        mass = jnp.sum(noisy)
        waves = jnp.fft.rfft2(noisy / mass - mean, axes=(0, 1))
        waves = jnp.einsum("hwij,hwj->hwi", half, waves)
        picture = jnp.fft.irfft2(waves, s=noisy.shape[:2], axes=(0, 1))
        return mass * (picture + mean)

    return apply


def whitener(power):
    """`Sigma^{-1/2}` of a spectrum as features `[H W C, H, W, C]`."""
    height, width, channels, _ = power.shape
    root = spectrum.square_root(power)
    inverse = np.zeros_like(root)
    flat = inverse.reshape(-1, channels, channels)
    flat[1:] = np.linalg.inv(root.reshape(flat.shape)[1:])
    unit = np.eye(power[..., 0].size).reshape(-1, height, width, channels)
    waves = np.einsum("hwij,nhwj->nhwi", inverse, np.fft.fft2(unit, axes=(1, 2)))
    return np.fft.ifft2(waves, axes=(1, 2)).real


def row_of(law, images):
    """The row of one law in the figure, every picture with its own draw."""
    noisy, seen = pictures_of(law, images, seed=1)
    title = f"{law.name}\n{law.detail}".strip()
    return noise_plots.NoiseRow(title, alone(law, images[0], 0), noisy, seen)


def alone(law, image, seed):
    """One draw of the noise without an image, as loud as on this image."""
    draw = law.plain.sample(jax.random.key(seed), image.shape, jnp.float32)
    return np.asarray(image.sum() * draw)


def pictures_of(law, images, seed):
    """Noisy and filtered pictures of one draw for each image."""
    keys = jax.random.split(jax.random.key(seed), len(images))
    noisy = jax.jit(jax.vmap(law.plain.perturb))(keys, images)
    seen = jax.jit(jax.vmap(law.seen))(keys, images)
    return np.asarray(noisy), np.asarray(seen)


def signal_in(law, statistics):
    """Directions of a view by falling signal: standard deviations, and weights."""
    factor = statistics.factor.astype(np.float64)
    flat = np.asarray(law.features, np.float64).reshape(len(law.features), -1)
    turn, size, _ = np.linalg.svd(flat @ factor.reshape(len(factor), -1).T, False)
    return size, (turn.T @ flat).reshape(-1, *statistics.mean.shape)


def draw_view(path, law, statistics, metric):
    """Most informative directions, and the slope between adjacent pixels."""
    size, weights = signal_in(law, statistics)
    phi = np.asarray(law.features, np.float64)
    kappa = gaussian.feature_kappa(phi, metric)
    slope = np.zeros(phi.shape[1:3])
    for axis in (0, 1):
        step = np.sqrt((np.diff(phi, axis=axis + 1) ** 2).sum(axis=0).max(axis=-1))
        # A pixel's neighbours before and after it; none beyond the border.
        before = np.pad(step, [(int(a == axis), 0) for a in (0, 1)])
        after = np.pad(step, [(0, int(a == axis)) for a in (0, 1)])
        slope = np.maximum(slope, np.maximum(before, after))
    noise_plots.view_pictures(
        path,
        list(weights[:12].sum(axis=-1)),
        [f"{value:.1f}" for value in size[:12]],
        slope / kappa,
        title=f"{law.name}: directions by signal over noise; "
        f"{int((size > 1).sum())} of {len(size)} above 1".replace("\n", " "),
    )


def draw_spectra(path, laws, images, statistics, scale):
    """Precision of the laws over frequency, and where the certificate is spent.

    In cosine waves, which end at the border of the image: slopes between adjacent
    pixels inside the image are `lap` times the power there, with no seam to cross.
    """
    height, width, _ = statistics.mean.shape
    y, x = np.arange(height)[:, None], np.arange(width)
    lap = 4 * (
        np.sin(np.pi * y / (2 * height)) ** 2 + np.sin(np.pi * x / (2 * width)) ** 2
    )
    edges = height * (width - 1) + width * (height - 1)
    precision, budget = {}, {}
    for law in laws:
        label = law.name.replace("\n", " ")
        power = cosine_power(law.features).sum(axis=0)
        precision[label] = rings(power, np.mean)
        periods, spent = rings(lap * power, np.sum)
        budget[label] = periods, 100 * spent * scale**2 / edges
    signal = cosine_power(images / mass(images) - statistics.mean).mean(axis=0)
    periods, power = rings(signal, np.mean)
    precision["(1 / power of the images)"] = periods, 1.0 / power
    noise_plots.frequency_curves(
        path,
        [
            noise_plots.FrequencyPanel(
                "What the classifier is told", "precision 1 / S", precision, True
            ),
            noise_plots.FrequencyPanel(
                "What it costs", "% of the certificate's budget", budget, False
            ),
        ],
    )


def cosine_power(pictures):
    """Squared cosine transform of `[N, H, W, C]`, the mean over channels."""
    waves = fft.dctn(np.asarray(pictures, np.float64), axes=(1, 2), norm="ortho")
    return (waves**2).mean(axis=-1)


def rings(values, reduce):
    """`(periods, reduced values)` over rings around frequency zero, half a period wide.

    Wave number k of a cosine transform has half of k periods.
    """
    height, width = values.shape
    ring = np.rint(np.hypot(np.arange(height)[:, None], np.arange(width))).astype(int)
    found = np.array([reduce(values[ring == k]) for k in range(1, ring.max() + 1)])
    kept = np.flatnonzero(found > 1e-6 * found.max())
    return (kept + 1) / 2, found[kept]


def print_table(laws, images, statistics):
    """Loudness, and how much of the images is left after the filter."""
    print("| law | pixel | image recovered | directions above noise | bits |")
    print("|---|---|---|---|---|")
    average = images.mean(axis=0)
    spread = ((images / mass(images) - statistics.mean) ** 2).sum()
    for law in laws:
        _, seen = pictures_of(law, images, seed=2)
        error = (((seen - images) / mass(images)) ** 2).sum()
        cells = [law.name.replace("\n", " "), "", f"{100 * (1 - error / spread):.0f} %"]
        if law.features is None or len(law.features) == average.size:
            loud = np.std([alone(law, average, number) for number in range(20)])
            cells[1] = f"{loud:.2g}"  # What a view forgets is noise without bound.
        if law.features is not None:
            size, _ = signal_in(law, statistics)
            bits = 0.5 * np.log2(1 + size**2).sum()
            cells += [f"{(size > 1).sum()}", f"{bits:.0f}"]
        cells += [""] * (5 - len(cells))
        print(f"| {' | '.join(cells)} |")


def mass(images):
    return images.sum(axis=(1, 2, 3), keepdims=True)


if __name__ == "__main__":
    main()
