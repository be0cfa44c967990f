"""The process that opens HDF5 files, run by `ranvier.data.hdf5_process`: what kills the HDF5 library kills no more.

After a line `{}`, which says that the libraries are there, requests come as lines of JSON
`{"path", "start", "stop", "names"}` on standard input. An answer is a line of JSON and behind it the bytes of the
arrays that it names: `{"arrays": {name: [type, length]}, "keys": [...], "attributes": {name: number or numbers}}`, or
`{"error": found}`, or `{"refused": [found, needed, remedy]}`. Nothing of the package is imported, so that it starts
quickly.
"""

import gzip
import io
import json
import sys
import zlib

import h5py
import numpy as np

ARRAYS = ("spikes/times", "spikes/units", "labels", "extra/speaker", "extra/keys")
# What a file may say of itself, and the shape of each.
ATTRIBUTES = {"n_channels": (), "sensor": (3,)}
Contents = tuple[dict[str, np.ndarray], list[str] | None, dict[str, int | list[int]]]


class Refused(Exception):
    """What was found, what is needed, what to do."""


def contents(path: str, samples: slice, names: list[str]) -> Contents:
    """Arrays of a file, names of its classes, attributes; rows of events as one array and, under `NAME counts`, their
    lengths."""
    source = path
    if path.endswith(".gz"):
        # Into memory: HDF5 seeks, and every seek backwards in a gzip stream would unpack it from the start again.
        with gzip.open(path) as stream:
            source = io.BytesIO(stream.read())
    with h5py.File(source, "r") as file:
        attributes = _attributes(file)
        return *_arrays(file, samples, names), attributes


def _attributes(file) -> dict[str, int | list[int]]:
    found = {}
    for name, shape in ATTRIBUTES.items():
        if name in file.attrs:
            value = np.asarray(file.attrs[name])
            if value.dtype.kind not in "iu" or value.shape != shape:
                needed = "a whole number" if shape == () else f"{shape[0]} whole numbers"
                raise Refused(f"attribute {name} of shape {value.shape} and type {value.dtype}", needed, "remove it")
            found[name] = value.tolist()
    return found


def _arrays(file, samples: slice, names: list[str]) -> tuple[dict[str, np.ndarray], list[str] | None]:
    found, lengths, keys = {}, {}, None
    for name in names:
        item = file.get(name)
        if item is None and name.startswith("extra/"):
            continue
        if not isinstance(item, h5py.Dataset):
            raise Refused(f"no dataset {name}", "spikes/times, spikes/units and labels", "check how it was written")
        kind = item.dtype.kind
        if name.startswith("spikes/"):
            row_type = h5py.check_vlen_dtype(item.dtype)
            kind = "O" if row_type is None else np.dtype(row_type).kind
            if row_type is not None and not np.dtype(row_type).isnative:
                # h5py hands out the bytes of such rows unswapped.
                found_order = f"{name} in foreign byte order"
                raise Refused(found_order, "rows in the byte order of this machine", "write it again")
        if item.ndim != 1 or kind not in ("SO" if name == "extra/keys" else "iuf"):
            needed = "rows of numbers, one a sample" if name.startswith("spikes/") else "one entry a sample or class"
            raise Refused(f"{name} of shape {item.shape} and type {item.dtype}", needed, "check how it was written")
        if name == "extra/keys":
            keys = [key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key) for key in item[:]]
            continue
        lengths[name] = len(item)
        values = item[samples]
        if name.startswith("spikes/"):
            found[f"{name} counts"] = np.array([len(row) for row in values], np.int64)
            full = [row for row in values if len(row)]
            values = np.concatenate(full) if full else np.zeros(0, np.float32)
        found[name] = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    if len(set(lengths.values())) != 1 or lengths["labels"] == 0:
        shown = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise Refused(f"numbers of samples: {shown}", "the same number in all, at least 1", "check how it was written")
    return found, keys


def answer(request: dict) -> tuple[dict, list[np.ndarray]]:
    """Answer to one request: its line, and the arrays behind it."""
    try:
        samples = slice(request["start"], request["stop"])
        found, keys, attributes = contents(request["path"], samples, request["names"])
    except Refused as refused:
        return {"refused": list(refused.args)}, []
    except (OSError, EOFError, zlib.error, RuntimeError, LookupError, TypeError, ValueError, MemoryError) as error:
        return {"error": " ".join(str(error).split()) or type(error).__name__}, []
    arrays = {name: [a.dtype.str, len(a)] for name, a in found.items()}
    return {"arrays": arrays, "keys": keys, "attributes": attributes}, list(found.values())


def main() -> None:
    """Say that the libraries are there, and answer requests until there are no more."""
    sys.stdout.buffer.write(b"{}\n")
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        head, arrays = answer(json.loads(line))
        sys.stdout.buffer.write(json.dumps(head).encode() + b"\n")
        for array in arrays:
            sys.stdout.buffer.write(array.view(np.uint8).data if array.size else b"")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
