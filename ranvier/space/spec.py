"""Spec strings: `inf`, `0`, `k`, `kex`, `kgx`."""

import math
import re
from dataclasses import dataclass

from ranvier.errors import RanvierError

_SPEC = re.compile(r"([0-9]{1,6})(?:([eg])(.*))?")
_FORMS = "inf (free delays), 0 (none), 2 (Euclidean in 2-D), 2e0.1 (with slack 0.1), 2g0.1 (lattice with slack 0.1)"


@dataclass(frozen=True)
class Spec:
    """A delay embedding as named by a spec string; `str(spec)` is the canonical string. Made by `parse`.

    Parameters
    ----------
    kind : str
        `none`, `free`, `euclidean` or `lattice`.
    dim : int
        Dimension k of space; 0 for `none` and `free`, which have no positions.
    slack : float or None
        Slack amount x; None without slack.
    """

    kind: str
    dim: int = 0
    slack: float | None = None

    def __str__(self) -> str:
        if self.kind == "free":
            return "inf"
        if self.slack is None:
            return str(self.dim)
        # repr is the shortest text that reads back as the same number.
        return f"{self.dim}{'e' if self.kind == 'euclidean' else 'g'}{repr(self.slack).removesuffix('.0')}"

    @property
    def has_positions(self) -> bool:
        return self.dim > 0


def parse(spec: "str | Spec") -> Spec:
    """Spec of a spec string.

        inf | 0 | k | kex | kgx

    Parameters
    ----------
    spec : str or Spec
        `inf` free delays, `0` none, `k` Euclidean in k >= 1 dimensions, `kex` the same with slack x >= 0, `kgx` a
        Manhattan lattice with slack x >= 0. A `Spec` is returned as it is.

    Returns
    -------
    Spec

    Raises
    ------
    RanvierError
        On any other string, k = 0 with slack, slack without an amount, a negative or non-finite amount.
    """
    if isinstance(spec, Spec):
        return spec
    if spec == "inf":
        return Spec("free")
    match = _SPEC.fullmatch(spec) if isinstance(spec, str) else None
    if match is None:
        raise RanvierError(f"parse: got the spec {spec!r}; needs one of {_FORMS}; choose one")
    dim, letter, text = int(match[1]), match[2], match[3]
    if letter is None:
        return Spec("euclidean", dim) if dim else Spec("none")
    if dim == 0:
        raise RanvierError(f"parse: got the spec {spec!r}; needs at least 1 dimension for slack; write 1{letter}{text}")
    try:
        slack = float(text)
    except ValueError:
        got = f"the slack {text!r}" if text else "no slack amount"
        raise RanvierError(
            f"parse: got {got} in {spec!r}; needs a number after {letter!r}; write {dim}{letter}0.1"
        ) from None
    if not (math.isfinite(slack) and slack >= 0):
        raise RanvierError(f"parse: got slack {slack} in {spec!r}; needs a finite number >= 0; write {dim}{letter}0.1")
    # abs turns -0.0 into 0.0, so that equal specs have equal strings.
    return Spec("euclidean" if letter == "e" else "lattice", dim, abs(slack))
