"""What the published files contain: names, sizes and SHA-256 of every one.

Digests are of unpacked bytes, so it does not matter how a file was compressed. They
were computed from files whose MD5 sums are the ones their authors published.
"""

from typing import NamedTuple


class RawFile(NamedTuple):
    """A published file, unpacked.

    Attributes:
      name: its published name, less the ending of the compression.
      size: bytes.
      sha256: hex digest.
    """

    name: str
    size: int
    sha256: str


class KnownSet(NamedTuple):
    """A published data set.

    Attributes:
      title: its name in messages.
      image_shape: (H, W, C).
      num_classes: number of classes.
      folders: where to look below the given folder, first match first.
      archive: a tar file that may hold the files instead, or None.
      origin: where the authors published it, for messages.
      files: split to its files. For idx, images before labels.
      checksums: split to `Dataset.checksum`.
    """

    title: str
    image_shape: tuple[int, int, int]
    num_classes: int
    folders: tuple[str, ...]
    archive: str | None
    origin: str
    files: dict[str, tuple[RawFile, ...]]
    checksums: dict[str, str]


def _raw(files: dict[str, int], digests: str) -> tuple[RawFile, ...]:
    pairs = zip(files.items(), digests.split(), strict=True)
    return tuple(RawFile(name, size, digest) for (name, size), digest in pairs)


_IDX_TRAIN = {"train-images-idx3-ubyte": 47_040_016, "train-labels-idx1-ubyte": 60_008}
_IDX_TEST = {"t10k-images-idx3-ubyte": 7_840_016, "t10k-labels-idx1-ubyte": 10_008}
_CIFAR_TRAIN = {f"data_batch_{i}.bin": 30_730_000 for i in range(1, 6)}
_CIFAR_TEST = {"test_batch.bin": 30_730_000}

KNOWN = {
    "mnist": KnownSet(
        title="MNIST",
        image_shape=(28, 28, 1),
        num_classes=10,
        folders=("mnist", "", "MNIST/raw"),
        archive=None,
        origin="yann.lecun.com/exdb/mnist",
        files={
            "train": _raw(
                _IDX_TRAIN,
                """
                ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db
                65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5
                """,
            ),
            "test": _raw(
                _IDX_TEST,
                """
                0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7
                ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2
                """,
            ),
        },
        checksums={
            "train": "6a364e333ea1f8ab86e4d641d64a8cf8d8644433f54b0a78e32c2b9e143672d0",
            "test": "45a60edfded3b2bb860a7fd195c83431011e7f04318268b4f2de30030af9444e",
        },
    ),
    "fashion_mnist": KnownSet(
        title="Fashion-MNIST",
        image_shape=(28, 28, 1),
        num_classes=10,
        folders=("fashion_mnist", "", "FashionMNIST/raw"),
        archive=None,
        origin="github.com/zalandoresearch/fashion-mnist",
        files={
            "train": _raw(
                _IDX_TRAIN,
                """
                c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888
                bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9
                """,
            ),
            "test": _raw(
                _IDX_TEST,
                """
                5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b
                0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34
                """,
            ),
        },
        checksums={
            "train": "c7d8cfe8172756709eda8bbe8b201cb44f70785b4cd9974a82408b36cc1f72e4",
            "test": "2589de149ea70a51076dfb7116c581fbd9b4c7b39b8e9c9f19ec089d65d659b8",
        },
    ),
    "cifar10": KnownSet(
        title="CIFAR-10",
        image_shape=(32, 32, 3),
        num_classes=10,
        folders=("cifar10", "", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"),
        archive="cifar-10-binary.tar.gz",
        origin="www.cs.toronto.edu/~kriz/cifar.html, the binary version",
        files={
            "train": _raw(
                _CIFAR_TRAIN,
                """
                cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5
                a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed
                bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67
                014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48
                755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add
                """,
            ),
            "test": _raw(
                _CIFAR_TEST,
                """
                8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b
                """,
            ),
        },
        checksums={
            "train": "72c15e60c081b70e34054cb162580e0d24094d4efdce45b6c8c1fe5acc39221e",
            "test": "8353b1fbf11acba6dc8b5e9d2fb108294de95b6e979d31428bf914289e4189c5",
        },
    ),
}


def whose_file(sha256: str) -> str | None:
    """Such as "the file t10k-images-idx3-ubyte of Fashion-MNIST", by its digest, or None."""
    for known in KNOWN.values():
        for raw_files in known.files.values():
            for raw in raw_files:
                if raw.sha256 == sha256:
                    return f"the file {raw.name} of {known.title}"
    return None


def whose_arrays(checksum: str) -> str | None:
    """Such as "the test split of Fashion-MNIST", by `Dataset.checksum`, or None."""
    for known in KNOWN.values():
        for split, expected in known.checksums.items():
            if checksum == expected:
                return f"the {split} split of {known.title}"
    return None
