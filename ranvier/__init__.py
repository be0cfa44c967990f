"""Train spiking neural networks that live in space and time: distance is delay, and both are learned."""

from ranvier import data as data
from ranvier import ops as ops
from ranvier import space as space
from ranvier.errors import RanvierError as RanvierError
from ranvier.events import Events as Events
from ranvier.layer import Layer as Layer
from ranvier.neurons import LIF as LIF
from ranvier.neurons import AdEx as AdEx
from ranvier.simulate import Simulation as Simulation
from ranvier.simulate import simulate as simulate

__version__ = "0.1.0"
