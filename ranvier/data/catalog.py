"""What is known of each data set: where it comes from, and the figures that its files are checked against."""

from dataclasses import dataclass, field

HEIDELBERG = ("https://zenkelab.org/datasets/", "https://compneuro.net/datasets/")
MENDELEY = "https://data.mendeley.com/public-files/datasets/468j46mzdv/files/"


@dataclass(frozen=True)
class File:
    """A published file.

    Parameters
    ----------
    name : str
    md5 : str
    addresses : tuple of str
        Empty: the publisher hands it out by hand alone.
    """

    name: str
    md5: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """A data set.

    Parameters
    ----------
    title : str
        One line.
    reference : str
        Authors, year, title.
    licence : str
    page : str
        Where its publishers describe it; empty for what comes with the package.
    files : dict of str to File
        Published files, by part; empty for what needs no download.
    samples : dict of str to int
        Known number of samples of a part.
    n_channels, n_classes : int
    most_events : int, optional
        Of the longest sample.
    latest : float, optional
        Time of the last event [ms].
    sensor : (height, width), optional
    """

    title: str
    reference: str
    licence: str
    n_channels: int
    n_classes: int
    page: str = ""
    files: dict[str, File] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    most_events: int | None = None
    latest: float | None = None
    sensor: tuple[int, int] | None = None


def _heidelberg(name: str, md5: str) -> File:
    return File(name, md5, tuple(address + name for address in HEIDELBERG))


_CRAMER = (
    "Cramer, Stradmann, Schemmel, Zenke (2020), The Heidelberg spiking data sets for the systematic evaluation of "
    "spiking neural networks"
)


def _digits(title: str, n_channels: int) -> Facts:
    return Facts(
        title=f"Handwritten digits of 8 x 8 pixels, {title}; needs scikit-learn",
        reference="Alpaydin, Kaynak (1998), Optical recognition of handwritten digits, UCI machine learning repository",
        licence="CC BY 4.0",
        n_channels=n_channels,
        n_classes=10,
        samples={"train": 1078, "validation": 360, "test": 359},
    )


FACTS: dict[str, Facts] = {
    "speech": Facts(
        title="Spoken digits of 12 synthetic voices, English and German; comes with the package",
        reference="its data card, ranvier/data/speech/README.md",
        licence="Apache-2.0, as the package",
        n_channels=700,
        n_classes=20,
        samples={"train": 400, "validation": 200, "test": 360},
    ),
    "yinyang": Facts(
        title="Points in a disc of three regions, four events each: x, y, 1 - x, 1 - y; made when it is loaded",
        reference="Kriener, Goeltz, Petrovici (2021), The Yin-Yang dataset, doi 10.1145/3517343.3517380",
        licence="MIT",
        n_channels=4,
        n_classes=3,
        samples={"train": 5000, "validation": 1000, "test": 1000},
    ),
    "delays": Facts(
        title="Patterns that differ in relative timing alone, best possible accuracy 98.4 %; made when it is loaded",
        reference="ranvier/data/delays.py",
        licence="Apache-2.0",
        n_channels=8,
        n_classes=10,
        samples={"train": 2000, "validation": 500, "test": 1000},
    ),
    "digits": _digits("one event a pixel that is not black, the earlier the brighter", 64),
    "digits-rate": _digits("Poisson events, the more the brighter", 64),
    "digits-rows": _digits("row after row, a channel a column", 8),
    "digits-permuted": _digits("row after row, their pixels in one random order", 8),
    "shd": Facts(
        title="Spiking Heidelberg Digits: spoken digits, English and German, 12 speakers",
        reference=_CRAMER,
        licence="CC BY 4.0",
        page="https://zenkelab.org/resources/spiking-heidelberg-datasets-shd/",
        files={
            "train": _heidelberg("shd_train.h5.gz", "d47c9825dee33347913e8ce0f2be08b0"),
            "test": _heidelberg("shd_test.h5.gz", "3062a80ec0c5719404d5b02e166543b1"),
        },
        samples={"train": 8156, "test": 2264},
        n_channels=700,
        n_classes=20,
        most_events=14_917,
        latest=1369.0,
    ),
    "ssc": Facts(
        title="Spiking Speech Commands: 35 spoken words",
        reference=_CRAMER,
        licence="CC BY 4.0",
        page="https://zenkelab.org/resources/spiking-heidelberg-datasets-shd/",
        files={
            "train": _heidelberg("ssc_train.h5.zip", "d102be95e7144fcc0553d1f45ba94170"),
            "validation": _heidelberg("ssc_valid.h5.zip", "b4eee3516a4a90dd0c71a6ac23a8ae43"),
            "test": _heidelberg("ssc_test.h5.zip", "a35ff1e9cffdd02a20eb850c17c37748"),
        },
        samples={"train": 75_466, "validation": 9_981, "test": 20_382},
        n_channels=700,
        n_classes=35,
    ),
    "nmnist": Facts(
        title="N-MNIST: handwritten digits before a moving event camera of 34 x 34 pixels",
        reference=(
            "Orchard, Jayawant, Cohen, Thakor (2015), Converting static image datasets to spiking neuromorphic "
            "datasets using saccades"
        ),
        licence="CC BY-SA 4.0",
        page="https://www.garrickorchard.com/datasets/n-mnist",
        files={
            "train": File(
                "Train.zip",
                "20959b8e626244a1b502305a9e6e2031",
                (f"{MENDELEY}39c25547-014b-4137-a934-9d29fa53c7a0/file_downloaded",),
            ),
            "test": File(
                "Test.zip",
                "69ca8762b2fe404d9b9bad1103e97832",
                (f"{MENDELEY}05a4d654-7e03-4c15-bdfa-9bb2bcbea494/file_downloaded",),
            ),
        },
        samples={"train": 60_000, "test": 10_000},
        n_channels=2 * 34 * 34,
        n_classes=10,
        sensor=(34, 34),
    ),
    "dvs-gesture": Facts(
        title="DVS128 Gesture: 11 hand and arm gestures of 29 people before an event camera of 128 x 128 pixels",
        reference="Amir and others (2017), A low power, fully event-based gesture recognition system",
        licence="CC BY 4.0",
        page="https://research.ibm.com/interactive/dvsgesture/",
        files={"all": File("DvsGesture.tar.gz", "8a5c71fb11e24e5ca5b11866ca6c00a1")},
        # Twelve rows of a table for each of 98 and 24 recordings, class 8 twice; the paper counts 1,342 instances.
        samples={"train": 1176, "test": 288},
        n_channels=2 * 128 * 128,
        n_classes=11,
        sensor=(128, 128),
    ),
}
