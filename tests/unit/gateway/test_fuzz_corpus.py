"""Everything that the fuzzer found worth keeping, run again: see tests/fuzz."""

from pathlib import Path

import pytest

from tests.fuzz.script import run

_FUZZ = Path(__file__).parents[2] / "fuzz"
_CORPUS = _FUZZ / "corpus"
_SIZE_MAX_BYTES = 1024 * 1024


@pytest.mark.parametrize("part", range(8))
def test_no_input_breaks_anything(part: int) -> None:
    inputs = sorted(_CORPUS.iterdir())[part::8]
    assert inputs
    for path in inputs:
        try:
            run(path.read_bytes())
        except Exception as error:
            error.add_note(f"input: {path.name}")
            raise


@pytest.mark.parametrize("path", sorted((_FUZZ / "regressions").iterdir()), ids=lambda path: path.name)
def test_what_broke_once(path: Path) -> None:
    run(path.read_bytes())


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in _CORPUS.iterdir()) < _SIZE_MAX_BYTES
