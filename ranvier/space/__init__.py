"""Where neurons are, and how far that is: positions -> delays. Speed is 1, so lengths are in ms."""

from ranvier.space.embeddings import Embedding as Embedding
from ranvier.space.embeddings import Euclidean as Euclidean
from ranvier.space.embeddings import FreeDelay as FreeDelay
from ranvier.space.embeddings import Lattice as Lattice
from ranvier.space.embeddings import NoDelay as NoDelay
from ranvier.space.initial import init_space as init_space
from ranvier.space.layouts import LAYOUTS as LAYOUTS
from ranvier.space.layouts import lattice as lattice
from ranvier.space.parameters import Space as Space
from ranvier.space.parameters import longest as longest
from ranvier.space.parameters import matched_free as matched_free
from ranvier.space.spec import Spec as Spec
from ranvier.space.spec import parse as parse
