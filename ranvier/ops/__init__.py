"""Sparse spike operators: lists of spikes, and products with the few rows of a matrix that they name."""

from ranvier.ops.lif_layer import LIFState as LIFState
from ranvier.ops.lif_layer import lif_layer as lif_layer
from ranvier.ops.matmul import sparse_matmul as sparse_matmul
from ranvier.ops.matmul import spike_matmul as spike_matmul
from ranvier.ops.spike_layer import spike_layer as spike_layer
from ranvier.ops.spike_vector import SpikeVector as SpikeVector
from ranvier.ops.spikes_from_events import events_a_step as events_a_step
from ranvier.ops.spikes_from_events import spikes_from_events as spikes_from_events
from ranvier.ops.spikes_from_state import spikes_from_state as spikes_from_state
from ranvier.ops.surrogates import arctan as arctan
from ranvier.ops.surrogates import fast_sigmoid as fast_sigmoid
from ranvier.ops.surrogates import super_spike as super_spike
from ranvier.ops.surrogates import triangular as triangular
