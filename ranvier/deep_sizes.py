"""Sizes of a deep network from its options: neurons of each layer, and the room in its lists."""

import math

from ranvier.errors import RanvierError

# By the number of layers, as published (Finkbeiner et al. 2023).
PUBLISHED = {
    2: (512, 128),
    3: (1024, 512, 128),
    4: (1472, 1024, 512, 128),
    5: (1472, 1024, 1024, 512, 128),
    6: (1472, 1024, 1024, 1024, 512, 128),
}
# What a network has that asks for nothing: three layers are enough for the shipped speech.
DEFAULT = (512, 512, 128)


def layer_sizes(sizes: str | None, depth: int | None) -> tuple[int, ...]:
    """Neurons of each layer.

    Parameters
    ----------
    sizes : whole numbers with commas between them, such as "1024,512,128"; None: by depth
    depth : 2 to 6, a network of the published sizes; None: by `sizes`, else 512,512,128

    Returns
    -------
    tuple of int

    Raises
    ------
    RanvierError
        Both are given, `sizes` is no such text, or there are no published sizes for `depth`.
    """
    if sizes is None:
        if depth is not None and depth not in PUBLISHED:
            raise RanvierError(f"layer_sizes: depth is {depth}; needs 2 to 6; name other networks by sizes")
        return DEFAULT if depth is None else PUBLISHED[depth]
    if depth is not None:
        raise RanvierError(f"layer_sizes: got sizes {sizes} and depth {depth}; needs one of them; leave out the other")
    words = sizes.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise RanvierError(
            f"layer_sizes: sizes is '{sizes}'; needs whole numbers of 1 or more with commas between them; "
            "write them as 1024,512,128"
        )
    return tuple(int(word) for word in words)


def capacities(max_activity: float | str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Room in the list of a step of each layer.

        S_l = ceil(a_l n_l)

    Parameters
    ----------
    max_activity : fraction a of the neurons of each layer, or text with one for each of them, such as "0.1,0.05"
    sizes : n of each layer

    Returns
    -------
    tuple of int

    Raises
    ------
    RanvierError
        A fraction is not in (0, 1], or there is not one for each layer.
    """
    words = [str(max_activity)] if isinstance(max_activity, int | float) else max_activity.split(",")
    try:
        fractions = [float(word) for word in words]
    except ValueError:
        fractions = []
    if not fractions or not all(0 < x <= 1 for x in fractions) or len(fractions) not in (1, len(sizes)):
        raise RanvierError(
            f"capacities: max_activity is {max_activity}; needs a fraction in (0, 1], or {len(sizes)} of them with "
            f"commas between them for layers of {', '.join(map(str, sizes))}; change it"
        )
    fractions = fractions * len(sizes) if len(fractions) == 1 else fractions
    # 0.07 x 100 is 7.000000000000001
    return tuple(math.ceil(x * n - 1e-9) for x, n in zip(fractions, sizes, strict=True))
