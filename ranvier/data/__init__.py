"""Data sets: labelled spike trains, by name or from a file."""

from ranvier.data.dataset import Dataset as Dataset
from ranvier.data.dataset import Splits as Splits
from ranvier.data.pixels import downsample as downsample
from ranvier.data.sources import load as load
from ranvier.data.sources import names as names
