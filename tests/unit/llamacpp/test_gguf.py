"""Reading GGUF headers: what is in them, and one clear error for everything else."""

import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from cortex_llamacpp.gguf_writer import write_gguf
from cortex_llamacpp.tiny import write_tiny_model
from cortex_shared.gguf import BadGguf, GgufInfo, inspect
from hypothesis import example, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    return write_tiny_model(path, hidden=64, layers=1, ffn=64, heads=2, kv_heads=1, context=512)[0]


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(*, version: int = 3, tensors: int = 0, keys: int = 0, order: str = "<") -> bytes:
    return b"GGUF" + struct.pack(f"{order}IQQ", version, tensors, keys)


def refusal(path: Path) -> BadGguf:
    with pytest.raises(BadGguf) as caught:
        inspect(path)
    assert caught.value.remedy
    return caught.value


def of_bytes(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    return path


def test_a_whole_model(whole: Path) -> None:
    info = inspect(str(whole))
    assert info.files == (whole,)
    assert info.file_bytes == whole.stat().st_size
    assert info.tensor_count == 12
    assert 0 < info.tensor_bytes < info.file_bytes
    # float16 throughout, but for the norms
    assert info.tensor_bytes == 2 * info.parameters + 2 * 3 * 64


def test_a_split_model_is_summed_and_each_part_checked(tmp_path: Path, whole: Path) -> None:
    parts = write_tiny_model(
        tmp_path / "m.gguf", hidden=64, layers=1, ffn=64, heads=2, kv_heads=1, context=512, parts=3
    )
    info, single = inspect(parts[0]), inspect(whole)
    assert (info.split_number, info.split_count, info.files) == (0, 3, tuple(parts))
    assert (info.parameters, info.tensor_bytes) == (single.parameters, single.tensor_bytes)
    assert "not the first part" in refusal(parts[1]).reason
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(parts[0].read_bytes())
    assert "one of 3 parts" in refusal(renamed).reason
    data = parts[2].read_bytes()
    parts[2].write_bytes(data[:-64])
    assert parts[2].name in refusal(parts[0]).reason
    parts[2].write_bytes(parts[1].read_bytes())
    assert "is not part 3 of 3" in refusal(parts[0]).reason
    parts[2].unlink()
    assert "no file" in refusal(parts[0]).reason


def test_what_is_no_model(tmp_path: Path, whole: Path) -> None:
    assert "folder" in refusal(tmp_path).reason
    assert "no file" in refusal(tmp_path / "none.gguf").reason
    assert "no file" in refusal(whole / "x").reason or "opened" in refusal(whole / "x").reason
    assert "too few" in refusal(of_bytes(tmp_path, b"")).reason
    assert "letters GGUF" in refusal(of_bytes(tmp_path, b"PK\x03\x04" + bytes(100))).reason
    assert "version 1" in refusal(of_bytes(tmp_path, header(version=1))).reason
    assert "version 99" in refusal(of_bytes(tmp_path, header(version=99))).reason
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "too few" in refusal(pipe).reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = of_bytes(tmp_path, header())
    path.chmod(0)
    assert "not readable" in refusal(path).reason


def test_truncated_data_says_how_much_is_missing(tmp_path: Path, whole: Path) -> None:
    data = whole.read_bytes()
    assert "64 are missing" in refusal(of_bytes(tmp_path, data[:-64])).reason
    assert "inside its header" in refusal(of_bytes(tmp_path, data[:500])).reason


@pytest.mark.parametrize(
    "data",
    [
        header(tensors=2**63),
        header(keys=2**40),
        header(keys=1) + struct.pack("<Q", 2**60),
        header(keys=1) + text(b"k") + struct.pack("<I", 77),
        header(keys=1) + text(b"k") + struct.pack("<IQ", 8, 2**62),
        header(keys=1) + text(b"k") + struct.pack("<IIQ", 9, 8, 2**62),
        header(keys=1) + text(b"k") + struct.pack("<IIQ", 9, 8, 10**6),
        header(keys=1) + text(b"k") + struct.pack("<IIQ", 9, 4, 2**61),
        header(keys=1) + text(b"k") + struct.pack("<IIQ", 9, 9, 1),
        header(keys=1) + text(b"k") + struct.pack("<IIQQ", 9, 8, 1, 2**64 - 1),
        header(keys=1) + text(b"general.alignment") + struct.pack("<II", 4, 3),
        header(tensors=1) + text(b"t") + struct.pack("<I", 2**31),
        header(tensors=1) + text(b"t") + struct.pack("<I4QIQ", 4, *[2**60] * 4, 0, 0),
        header(tensors=1) + text(b"t") + struct.pack("<IQIQ", 1, 33, 2, 0),
        header(tensors=1) + text(b"t") + struct.pack("<IQIQ", 1, 32, 0, 5),
    ],
)
def test_absurd_counts_are_refused_quickly(tmp_path: Path, data: bytes) -> None:
    started = time.process_time()
    refusal(of_bytes(tmp_path, data + bytes(64)))
    assert time.process_time() - started < 1


def test_a_hostile_sparse_file_does_not_keep_the_reader_busy(tmp_path: Path) -> None:
    path = of_bytes(tmp_path, header(keys=1) + text(b"k") + struct.pack("<IIQ", 9, 8, 10**9))
    os.truncate(path, 1 << 36)
    assert "texts" in refusal(path).reason


def test_a_large_vocabulary_is_skimmed(tmp_path: Path) -> None:
    count = 150_000
    tokens = b"".join(text(b"token-%d" % index) for index in range(count))
    key = text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, count)
    path = of_bytes(tmp_path, header(keys=1) + key + tokens)
    started = time.process_time()
    assert inspect(path).vocab_size == count
    # Processor time, and ten times what it takes: a guard against making an object for each token.
    assert time.process_time() - started < 0.5


def test_one_number_for_each_layer_and_unknown_tensor_types(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    metadata: dict[str, object] = {"general.architecture": "x", "x.attention.head_count_kv": [8, 8, 4]}
    write_gguf(path, metadata, {"t": np.ones((2, 4), np.float32)})
    data = path.read_bytes()
    entry = struct.pack("<I2QI", 2, 4, 2, 0)
    path.write_bytes(data.replace(entry, entry[:-4] + struct.pack("<I", 200)))
    info = inspect(path)
    assert (info.head_count_kv, info.quantization, info.parameters) == (8, "type 200", 8)


def test_big_endian(tmp_path: Path) -> None:
    data = header(keys=1, order=">") + struct.pack(">Q", 20) + b"general.architecture"
    data += struct.pack(">IQ", 8, 3) + b"abc"
    assert inspect(of_bytes(tmp_path, data)).architecture == "abc"


def outcome(path: Path) -> GgufInfo | BadGguf:
    try:
        return inspect(path)
    except BadGguf as error:
        return error


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_truncation_anywhere_is_an_error(whole: Path, data: st.DataObject) -> None:
    content = whole.read_bytes()
    length = data.draw(st.one_of(st.integers(0, 20_000), st.integers(0, len(content) - 1)))
    path = whole.with_name("cut.gguf")
    path.write_bytes(content[:length])
    assert isinstance(outcome(path), BadGguf)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 16_000), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
@example([(4, b"\x00\x00\x00\x03")])
def test_mutations_give_an_answer_or_the_error(whole: Path, changes: list[tuple[int, bytes]]) -> None:
    content = bytearray(whole.read_bytes())
    for position, replacement in changes:
        content[position : position + len(replacement)] = replacement
    path = whole.with_name("mutated.gguf")
    path.write_bytes(content)
    assert isinstance(outcome(path), GgufInfo | BadGguf)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_noise_after_the_magic(whole: Path, noise: bytes) -> None:
    path = whole.with_name("noise.gguf")
    path.write_bytes(b"GGUF" + noise)
    assert isinstance(outcome(path), GgufInfo | BadGguf)
