"""The one exception of the package for bad input."""


class RanvierError(ValueError):
    """Bad input: the message says in one line what was got, what is needed, what to do.

    The command line prints the message and exits with code 2; a library user catches it as a `ValueError`.
    """
