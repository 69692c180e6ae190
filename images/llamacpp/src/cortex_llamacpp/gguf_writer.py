"""Writes GGUF files (version 3, little-endian) of float tensors; the format is ggml's docs/gguf.md."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cortex_llamacpp.whole_file import write_whole

__all__ = ["Int32", "TensorData", "Uint16", "write_gguf"]

type TensorData = NDArray[np.float16] | NDArray[np.float32]


class Uint16(int):
    """A value that the file holds in 16 bits, unsigned."""


class Int32(int):
    """A value that the file holds in 32 bits, signed."""


_MAGIC, _VERSION, _ALIGNMENT = b"GGUF", 3, 32
_UINT16, _UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 2, 4, 5, 6, 7, 8, 9
_TENSOR_F32, _TENSOR_F16 = 0, 1


def write_gguf(
    path: Path, metadata: Mapping[str, object], tensors: Mapping[str, TensorData], *, parts: int = 1
) -> list[Path]:
    """Write tensors [rows, columns] or [columns] with `metadata`; return the files, the one to load first.

    A value's type follows from Python's: str, bool, int (unsigned 32 bits), float (32 bits), Uint16,
    Int32, list of str, list of int (signed 32 bits); anything else is a ValueError. With `parts` above
    one the names are those of llama.cpp's gguf-split, STEM-00001-of-00003.gguf.
    """
    if not 1 <= parts <= len(tensors):
        raise ValueError(f"parts must be between 1 and the number of tensors, {len(tensors)}")
    if parts == 1:
        write_whole(path, _file(metadata, tensors))
        return [path]
    names = list(tensors)
    stem = path.name.removesuffix(".gguf")
    written: list[Path] = []
    for index in range(parts):
        chosen = names[index * len(names) // parts : (index + 1) * len(names) // parts]
        split: dict[str, object] = {
            "split.no": Uint16(index),
            "split.count": Uint16(parts),
            "split.tensors.count": Int32(len(names)),
        }
        target = path.with_name(f"{stem}-{index + 1:05d}-of-{parts:05d}.gguf")
        # Only the first part carries the model's own keys.
        values = {**metadata, **split} if index == 0 else split
        write_whole(target, _file(values, {name: tensors[name] for name in chosen}))
        written.append(target)
    return written


def _file(metadata: Mapping[str, object], tensors: Mapping[str, TensorData]) -> Iterator[bytes]:
    header = bytearray(_MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _string(key) + _value(value)
    offset = 0
    for name, tensor in tensors.items():
        # GGUF lists dimensions from the innermost outwards.
        dimensions = tensor.shape[::-1]
        kind = _TENSOR_F16 if tensor.dtype == np.float16 else _TENSOR_F32
        header += _string(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        header += struct.pack("<IQ", kind, offset)
        offset += tensor.nbytes + -tensor.nbytes % _ALIGNMENT
    yield bytes(header) + bytes(-len(header) % _ALIGNMENT)
    for tensor in tensors.values():
        yield np.ascontiguousarray(tensor).tobytes() + bytes(-tensor.nbytes % _ALIGNMENT)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: object) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", _BOOL, value)
        case Uint16():
            return struct.pack("<IH", _UINT16, value)
        case Int32():
            return struct.pack("<Ii", _INT32, value)
        case int():
            return struct.pack("<II", _UINT32, value)
        case float():
            return struct.pack("<If", _FLOAT32, value)
        case str():
            return struct.pack("<I", _STRING) + _string(value)
        case list():
            return _array(value)  # pyright: ignore[reportUnknownArgumentType] # a list of what, _array checks
        case _:
            raise ValueError(f"no GGUF type for a value of {type(value).__name__}")


def _array(values: Sequence[object]) -> bytes:
    strings = [item for item in values if isinstance(item, str)]
    integers = [item for item in values if isinstance(item, int)]
    if len(strings) == len(values):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(values)) + b"".join(map(_string, strings))
    if len(integers) == len(values):
        return struct.pack(f"<IIQ{len(values)}i", _ARRAY, _INT32, len(values), *integers)
    raise ValueError("a GGUF array is all strings or all integers")
