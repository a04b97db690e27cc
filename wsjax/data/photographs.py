"""Photographs to fixed-size pixels, with Pillow."""

import io
import math

import numpy as np


def _pillow():
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "Reading photographs needs Pillow, which is not installed: "
            "pip install 'wsjax[data]'."
        ) from error
    return Image


def decode(content: bytes, source: str, *, keep_gray: bool = False):
    """Decodes a JPEG, PNG or other photograph to RGB.

    Gray becomes three equal channels, CMYK is converted, transparency is dropped.
    The content decides, not a file's name: ImageNet has a PNG called .JPEG. EXIF
    orientation is ignored, as is usual for ImageNet.

    Args:
      content: the file's bytes.
      source: where they come from, for messages.
      keep_gray: leaves gray images with one channel.

    Returns:
      `PIL.Image.Image` of mode RGB, or L with `keep_gray` where it is gray.

    Raises:
      ValueError: not a complete image of eight bits per channel.
      ImportError: Pillow is not installed.
    """
    image_module = _pillow()
    try:
        with image_module.open(io.BytesIO(content)) as photograph:
            if photograph.mode[0] in "IF":
                raise ValueError(f"mode {photograph.mode} has more than eight bits")
            gray = keep_gray and photograph.mode in ("1", "L", "LA")
            found = photograph.convert("L" if gray else "RGB")
            if content.startswith(b"\xff\xd8") and _ends_early(content, photograph):
                raise ValueError("it ends before its last rows, which would be gray")
            return found
    # Pillow's plugins raise these for broken content, beside OSError.
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        image_module.DecompressionBombError,
    ) as error:
        raise ValueError(
            f"{source} cannot be decoded: {error}. It has {len(content):,} bytes and "
            f"begins with {content[:8]!r}. Replace the file, or take it out of both "
            f"the training and the test list of every run that is compared."
        ) from error


def _ends_early(content, photograph):
    """Whether a JPEG's end mark comes before all of its data.

    Decoders make up what is missing, without a word. Data put in front of the mark are
    read only where some are missing.
    """
    whole = photograph.mode in ("L", "RGB") and not photograph.info.get("progressive")
    last = photograph.getpixel((photograph.width - 1, photograph.height - 1))
    if whole and np.any(np.asarray(last) != 128):  # As always: what is made up is gray.
        return False
    place = 2
    while content[place + 1 : place + 2] not in (b"\xda", b""):  # Start of the data.
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    end = content.find(b"\xff\xd9", place)
    if end < 0:
        return False
    longer = content[:end] + 500 * b"\x5a\xa5" + content[end:]
    with _pillow().open(io.BytesIO(longer)) as other:
        return not np.array_equal(np.asarray(other), np.asarray(photograph))


def resize_and_crop(photograph, resize: int, size: int) -> np.ndarray:
    """The evaluation view: short side to `resize`, then the central square.

    Args:
      photograph: `PIL.Image.Image` of mode RGB.
      resize: length of the short side before cropping, at least `size`.
      size: side of the result.

    Returns:
      `[size, size, 3]` uint8. Bilinear, with Pillow's antialiasing.
    """
    width, height = photograph.size
    short = min(width, height)
    resized = (width * resize // short, height * resize // short)
    photograph = photograph.resize(resized, _pillow().Resampling.BILINEAR)
    left, top = ((length - size) // 2 for length in resized)
    return np.array(photograph.crop((left, top, left + size, top + size)))


def random_resized_crop(
    photograph, size: int, rng: np.random.Generator, min_area: float = 0.08
) -> np.ndarray:
    """The training view: a random part, resized, mirrored half of the time.

    The part covers a uniform share of the area in [`min_area`, 1], with an aspect
    ratio log-uniform in [3/4, 4/3]. If ten draws do not fit into the photograph, the
    largest central part with a ratio in that range is taken.

    Args:
      photograph: `PIL.Image.Image` of mode RGB.
      size: side of the result.
      rng: source of the randomness.
      min_area: smallest share of the area.

    Returns:
      `[size, size, 3]` uint8. Bilinear, with Pillow's antialiasing.
    """
    box = _random_box(photograph.size, rng, min_area)
    photograph = photograph.crop(box).resize(
        (size, size), _pillow().Resampling.BILINEAR
    )
    pixels = np.array(photograph)
    return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels


def _random_box(
    photograph_size: tuple[int, int], rng: np.random.Generator, min_area: float
) -> tuple[int, int, int, int]:
    """Draws (left, top, right, bottom)."""
    width, height = photograph_size
    for _ in range(10):
        area = rng.uniform(min_area, 1.0) * width * height
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(width - w + 1))
            top = int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = max(1, min(width, round(height * 4 / 3)))
    h = max(1, min(height, round(width * 4 / 3)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
