"""How a product of lists with a matrix is computed: from the rows that lists name, or as a dense product."""

from dataclasses import dataclass, replace

from ranvier.errors import RanvierError

MODES = ("sparse", "dense", "auto")
PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Ways:
    """The way of each of the three products that a bilinear form has; static, and part of their derivatives.

    A word is `sparse`, a dense product by name (`ranvier.ops.products.WORDS`), `dense`, which is the faster one of
    those of `precision`, or `auto`, which is the faster one of that and `sparse`. The last two are settled for the
    sizes and the platform that a program is compiled for (`ranvier.ops.costs`).

    Parameters
    ----------
    gather, scatter, dots : the way of each product
    precision : float32, tf32 or bfloat16, of dense products
    activity : fractions of neurons that spike, and that are on a list at all; None: as many as there is room for
    real : the values are known to be no whole numbers
    """

    gather: str = "sparse"
    scatter: str = "sparse"
    dots: str = "sparse"
    precision: str = "float32"
    activity: tuple[float, float] | None = None
    real: bool = False

    def of_real(self) -> "Ways":
        """The same for values that are derivatives."""
        return replace(self, real=True)


SPARSE = Ways()


def ways_of(where, mode, precision, activity) -> Ways:
    """The ways that a user's words ask for; `activity` is None, one fraction, or two (`Ways`)."""
    for name, given, words in (("mode", mode, MODES), ("precision", precision, PRECISIONS)):
        if given not in words:
            raise RanvierError(f"{where}: {name} is {given!r}; needs {', '.join(words)}; take one of them")
    if activity is not None:
        both = activity if isinstance(activity, tuple) else (activity, min(1.0, 2 * _number(activity)))
        if len(both) != 2 or not 0 <= _number(both[0]) <= _number(both[1]) <= 1:
            raise RanvierError(
                f"{where}: activity is {activity!r}; needs a fraction from 0 to 1, of spikes, or two, of spikes and of "
                "entries of a list, static; give the mean that was measured, as a Python number"
            )
        activity = (float(both[0]), float(both[1]))
    return Ways(mode, mode, mode, precision, activity)


def _number(x):
    """`x`, or no number, which is in no range."""
    return float(x) if isinstance(x, int | float) and not isinstance(x, bool) else float("nan")
