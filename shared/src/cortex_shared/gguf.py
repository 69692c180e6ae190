"""Reads the header of a GGUF file: what a model is, and whether the file is whole. No tensor data is read.

The format is described in ggml's docs/gguf.md: magic, version, two counts, key-value pairs, tensor entries,
padding, data. A file may be hostile: no memory is taken for a count that the file's own size cannot hold.
"""

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cortex_shared.gguf_types import FILE_TYPES, POOLING, TENSOR_TYPES

__all__ = ["BadGguf", "GgufInfo", "inspect"]

type Order = Literal["<", ">"]
type Scalar = int | float | bool | str

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_HEADER_BYTES = 24
_ENTRIES_MAX = 1 << 17  # keys, and tensors of one file: the largest known models have some thousands
_SPLITS_MAX = 4096
_HEADER_BYTES_MAX = 512 * 1024 * 1024
_STRINGS_MAX = 4_000_000  # vocabularies and merges of large models: up to a million together
_WINDOW_BYTES = 1024 * 1024
_TEXT_BYTES_MAX = 4 * 1024 * 1024  # chat templates are tens of kilobytes
_NAME_BYTES_MAX = 65_535
_DIMENSIONS_MAX = 4
_ALIGNMENT_DEFAULT = 32

_STRING, _ARRAY = 8, 9
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_BOOL = 7

_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_FETCH_AGAIN = "fetch or copy the file again, and compare its size with the source's"


class BadGguf(Exception):
    """A file that llama.cpp could not load: `reason` in plain words, and `remedy`, what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class GgufInfo:
    """What a model's header says, over all parts of a split model. None: the file does not say.

    `parameters` is the number of weights, summed over tensors; `quantization` names the file type, or the
    tensor type that holds most bytes where the file does not say; lengths are in tokens, widths in numbers;
    `context_length` is what the model was trained for. `files` are all parts, `file_bytes` their size.
    """

    architecture: str | None
    name: str | None
    parameters: int
    quantization: str | None
    context_length: int | None
    block_count: int | None
    embedding_length: int | None
    head_count: int | None
    head_count_kv: int | None
    vocab_size: int | None
    has_chat_template: bool
    pooling: str | None
    split_number: int
    split_count: int
    tensor_count: int
    tensor_bytes: int
    file_bytes: int
    files: tuple[Path, ...]


def inspect(path: str | os.PathLike[str]) -> GgufInfo:
    """Read the header of the model at `path`, and of its other parts if it is the first one of a split.

    Takes milliseconds: tokens are skipped over, data is not touched. Raises BadGguf for anything that
    llama.cpp would not load (no file, a folder, not GGUF, truncated, a part missing, absurd counts).
    """
    first = Path(path)
    part = _read(first)
    parts = [part]
    count = _integer(part.values, "split.count") or 1
    if count > 1:
        parts += _other_parts(first, part, count)
    return _describe(first, parts, count)


@dataclass(slots=True)
class _Part:
    """One file: its scalar keys, lengths of its arrays, and sums over its tensors."""

    path: Path
    values: dict[str, Scalar]
    lengths: dict[str, int]
    tensors: int
    parameters: int
    bytes_by_type: dict[str, int]
    file_bytes: int


def _other_parts(first: Path, part: _Part, count: int) -> list[_Part]:
    if (_integer(part.values, "split.no") or 0) != 0:
        raise BadGguf(
            f"{first.name!r} is not the first part of a split model",
            "use the file whose name ends in -00001-of-..., it carries the model's description",
        )
    match = _SPLIT_NAME.fullmatch(first.name)
    if count > _SPLITS_MAX or match is None or int(match["count"]) != count:
        raise BadGguf(
            f"{first.name!r} says it is one of {count} parts, which its name does not",
            "give the parts their original names, NAME-00001-of-00003.gguf and so on",
        )
    others: list[_Part] = []
    for number in range(2, count + 1):
        other = _read(first.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf"))
        if _integer(other.values, "split.no") != number - 1 or _integer(other.values, "split.count") != count:
            raise BadGguf(f"{other.path.name!r} is not part {number} of {count}", _FETCH_AGAIN)
        others.append(other)
    return others


def _read(path: Path) -> _Part:
    try:
        if path.is_dir():
            raise BadGguf(f"{path.name!r} is a folder", "choose the GGUF file in it")
        # Not blocking: opening a named pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise BadGguf(
            f"there is no file {path.name!r}", "check the path and, of a split, all parts"
        ) from None
    except PermissionError:
        raise BadGguf(f"{path.name!r} is not readable", "let the agent's user read the file") from None
    except (OSError, ValueError) as error:
        raise BadGguf(f"{path.name!r} cannot be opened ({error})", "check the path and the disk") from error
    try:
        size = os.fstat(descriptor).st_size
        if size < _HEADER_BYTES:
            raise BadGguf(f"{path.name!r} has only {size} bytes, too few for a GGUF file", _FETCH_AGAIN)
        return _parse(path, _Cursor(path.name, descriptor, size))
    except OSError as error:
        raise BadGguf(f"{path.name!r} cannot be read ({error})", "check that it is a regular file") from error
    finally:
        os.close(descriptor)


class _Cursor:
    """A position in the file; every step is checked against its end, and memory holds one window of it.

    Read, not mapped: a file cut off while it is mapped would kill the process that looks at it.
    """

    def __init__(self, name: str, descriptor: int, size: int) -> None:
        self.name = name
        self.size = size
        self.position = 0
        self.strings_left = _STRINGS_MAX
        self._descriptor = descriptor
        self._window = b""
        self._base = 0
        self.set_order("<")

    def set_order(self, order: Order) -> None:
        self._order = order
        self._u32 = struct.Struct(order + "I").unpack_from
        self._u64 = struct.Struct(order + "Q").unpack_from

    def take(self, count: int) -> bytes:
        """The next `count` bytes, fewer than a window."""
        index = self._hold(count)
        self.position += count
        return self._window[index : index + count]

    def skip(self, count: int) -> None:
        if count > min(self.size, _HEADER_BYTES_MAX) - self.position:
            raise self.truncated()
        self.position += count

    def u32(self) -> int:
        index = self._hold(4)
        self.position += 4
        return self._u32(self._window, index)[0]

    def u64(self) -> int:
        index = self._hold(8)
        self.position += 8
        return self._u64(self._window, index)[0]

    def scalar(self, code: str) -> int | float:
        return struct.unpack(self._order + code, self.take(struct.calcsize(f"={code}")))[0]

    def text(self, bytes_max: int, what: str) -> str:
        length = self.u64()
        if length > bytes_max:
            raise self.absurd(f"a {what} of {length} bytes")
        return self.take(length).decode("utf-8", "replace")

    def skip_strings(self, count: int) -> None:
        """Step over `count` strings without making any."""
        if count > self.strings_left:
            raise self.absurd(f"more than {_STRINGS_MAX} texts")
        self.strings_left -= count
        u64 = self._u64
        while count:
            index = self._hold(8)
            window = self._window
            last = len(window) - 8
            # The one long loop, some hundred thousand rounds for a vocabulary.
            while count and index <= last:
                index += 8 + u64(window, index)[0]
                count -= 1
            self.skip(self._base + index - self.position)

    def truncated(self) -> BadGguf:
        if self.size > _HEADER_BYTES_MAX:
            return self.absurd(f"a header of more than {_HEADER_BYTES_MAX} bytes")
        return BadGguf(f"{self.name!r} ends inside its header, it is truncated or damaged", _FETCH_AGAIN)

    def absurd(self, what: str) -> BadGguf:
        return BadGguf(f"{self.name!r} claims {what}, it is damaged or not a model", _FETCH_AGAIN)

    def _hold(self, count: int) -> int:
        """Have the next `count` bytes in the window; where in it they begin."""
        index = self.position - self._base
        if index + count > len(self._window):
            if count > min(self.size, _HEADER_BYTES_MAX) - self.position:
                raise self.truncated()
            self._window = os.pread(self._descriptor, max(count, _WINDOW_BYTES), self.position)
            self._base, index = self.position, 0
            if len(self._window) < count:
                raise self.truncated()
        return index


def _parse(path: Path, cursor: _Cursor) -> _Part:
    if cursor.take(4) != _MAGIC:
        raise BadGguf(
            f"{path.name!r} is not a GGUF file (it does not start with the letters GGUF)",
            "choose a .gguf file, or convert the model with llama.cpp's convert_hf_to_gguf.py",
        )
    version = cursor.u32()
    if version > 0xFFFF:
        # Big-endian files, for IBM Z, differ only in the order of bytes; a version is a small number.
        cursor.set_order(">")
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in _VERSIONS:
        raise BadGguf(
            f"{path.name!r} is GGUF version {version}; versions 2 and 3 are supported",
            "convert the model again with a present llama.cpp",
        )
    tensors, keys = cursor.u64(), cursor.u64()
    if tensors > _ENTRIES_MAX or keys > _ENTRIES_MAX:
        raise cursor.absurd(f"{tensors} tensors and {keys} keys")
    values, lengths = _keys(cursor, keys)
    alignment = _integer(values, "general.alignment") or _ALIGNMENT_DEFAULT
    if alignment < 1 or alignment & (alignment - 1):
        raise cursor.absurd(f"an alignment of {alignment}")
    part = _Part(path, values, lengths, tensors, 0, {}, cursor.size)
    _tensors(cursor, part, alignment)
    return part


def _keys(cursor: _Cursor, count: int) -> tuple[dict[str, Scalar], dict[str, int]]:
    values: dict[str, Scalar] = {}
    lengths: dict[str, int] = {}
    for _ in range(count):
        key = cursor.text(_NAME_BYTES_MAX, "key")
        kind = cursor.u32()
        if kind == _ARRAY:
            lengths[key], first = _skip_array(cursor)
            if first is not None:
                values[f"{key}[0]"] = first
        elif kind == _STRING:
            values[key] = cursor.text(_TEXT_BYTES_MAX, "text")
        elif kind in _SCALARS:
            value = cursor.scalar(_SCALARS[kind])
            values[key] = bool(value) if kind == _BOOL else value
        else:
            raise cursor.absurd(f"a value of type {kind} for {key!r}")
    return values, lengths


def _skip_array(cursor: _Cursor) -> tuple[int, int | float | None]:
    """Step over an array; its length, and its first value where it holds numbers."""
    kind, count = cursor.u32(), cursor.u64()
    if kind == _STRING:
        cursor.skip_strings(count)
        return count, None
    if kind not in _SCALARS:
        # Arrays of arrays are in the format's description, but llama.cpp does not load them.
        raise cursor.absurd(f"an array of values of type {kind}")
    code = _SCALARS[kind]
    first = None
    width = struct.calcsize(f"={code}")
    if count:
        first = cursor.scalar(code)
        cursor.skip((count - 1) * width)
    return count, first


def _tensors(cursor: _Cursor, part: _Part, alignment: int) -> None:
    end = 0
    for _ in range(part.tensors):
        name = cursor.text(_NAME_BYTES_MAX, "tensor name")
        dimensions = cursor.u32()
        if dimensions > _DIMENSIONS_MAX:
            raise cursor.absurd(f"{dimensions} dimensions for tensor {name!r}")
        shape = [cursor.u64() for _ in range(dimensions)]
        kind, offset = cursor.u32(), cursor.u64()
        elements = 1
        for width in shape:
            elements *= width
        if elements >= 1 << 63:
            raise cursor.absurd(f"{elements} weights in tensor {name!r}")
        if kind in TENSOR_TYPES:
            type_name, block, block_bytes = TENSOR_TYPES[kind]
            if (shape[0] if shape else 1) % block:
                raise cursor.absurd(f"rows of {shape[0]} for tensor {name!r} of type {type_name}")
            stored = elements // block * block_bytes
        else:
            # A type newer than this table: the engine decides; at least the offset can be checked.
            type_name, stored = f"type {kind}", 0
        if offset % alignment:
            raise cursor.absurd(f"an offset of {offset} for tensor {name!r}")
        end = max(end, offset + stored)
        part.parameters += elements
        part.bytes_by_type[type_name] = part.bytes_by_type.get(type_name, 0) + stored
    data_start = -(-cursor.position // alignment) * alignment
    if part.tensors and data_start + end > cursor.size:
        missing = data_start + end - cursor.size
        raise BadGguf(
            f"{cursor.name!r} is truncated: its tensors need {data_start + end} bytes, {missing} are missing",
            _FETCH_AGAIN,
        )


def _describe(path: Path, parts: list[_Part], count: int) -> GgufInfo:
    first = parts[0]
    values = first.values
    architecture = _text(values, "general.architecture")

    def of_model(key: str) -> int | None:
        # Some models give one number for each layer: the first layer's stands for the model.
        name = f"{architecture}.{key}"
        return _integer(values, name) or _integer(values, f"{name}[0]")

    heads = of_model("attention.head_count")
    sizes: dict[str, int] = {}
    for part in parts:
        for type_name, stored in part.bytes_by_type.items():
            sizes[type_name] = sizes.get(type_name, 0) + stored
    file_type = _integer(values, "general.file_type")
    pooling = _integer(values, f"{architecture}.pooling_type")
    largest = max(sizes, key=lambda name: sizes[name]) if sizes else None
    return GgufInfo(
        architecture=architecture,
        name=_text(values, "general.name"),
        parameters=sum(part.parameters for part in parts),
        quantization=FILE_TYPES.get(file_type, largest) if file_type is not None else largest,
        context_length=of_model("context_length"),
        block_count=of_model("block_count"),
        embedding_length=of_model("embedding_length"),
        head_count=heads,
        head_count_kv=of_model("attention.head_count_kv") or heads,
        vocab_size=of_model("vocab_size") or first.lengths.get("tokenizer.ggml.tokens"),
        has_chat_template="tokenizer.chat_template" in values,
        pooling=POOLING.get(pooling) if pooling is not None else None,
        split_number=_integer(values, "split.no") or 0,
        split_count=count,
        tensor_count=sum(part.tensors for part in parts),
        tensor_bytes=sum(sizes.values()),
        file_bytes=sum(part.file_bytes for part in parts),
        files=tuple(part.path for part in parts),
    )


def _text(values: dict[str, Scalar], key: str) -> str | None:
    value = values.get(key)
    return value if isinstance(value, str) else None


def _integer(values: dict[str, Scalar], key: str) -> int | None:
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
