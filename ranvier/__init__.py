"""Train spiking neural networks that live in space and time: distance is delay, and both are learned."""

from ranvier.errors import RanvierError as RanvierError

__version__ = "0.1.0"
