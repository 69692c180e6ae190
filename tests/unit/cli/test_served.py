"""What MODEL of `cortex run MODEL` means, and the list of folders that the local agent may read."""

from pathlib import Path

import pytest
from cortex_cli.embedded.layout import Home, read_json
from cortex_cli.served import read_wanted
from cortex_cli.served_folders import register_folder, roots_file
from cortex_shared.errors import InvalidInput


def test_a_file_is_named_after_itself(tmp_path: Path) -> None:
    file = tmp_path / "Qwen3 0.6B-Q8_0-00001-of-00002.gguf"
    file.touch()
    wanted = read_wanted(str(file))
    assert wanted.name == "qwen3-0.6b-q8_0"
    assert wanted.file == file
    assert wanted.body == {"engine_type": "llamacpp", "local_path": str(file)}


@pytest.mark.parametrize(
    ("text", "repo", "filename"),
    [
        ("hf:org/Some-GGUF", "org/Some-GGUF", "*Q4_K_M*.gguf"),
        ("hf:org/Some-GGUF:Q8_0", "org/Some-GGUF", "*Q8_0*.gguf"),
        ("hf:org/Some-GGUF:sub/file.gguf", "org/Some-GGUF", "sub/file.gguf"),
    ],
)
def test_a_repository_with_a_quantisation_or_a_file(text: str, repo: str, filename: str) -> None:
    wanted = read_wanted(text)
    assert wanted.name == "some"
    assert wanted.body == {"engine_type": "llamacpp", "repo_id": repo, "filename": filename}


def test_anything_else_is_the_name_of_a_model() -> None:
    assert read_wanted("tiny").body is None


@pytest.mark.parametrize("text", ["hf:nothing", "hf:a/b/c:d", "no/such/file", "missing.gguf", "."])
def test_what_cannot_be_meant_is_refused_with_a_remedy(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    with pytest.raises(InvalidInput) as caught:
        read_wanted(text)
    assert caught.value.field == "MODEL"
    assert caught.value.remedy


def test_a_folder_is_registered_once_and_the_homes_own_never(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    outside = tmp_path / "models" / "a.gguf"
    for file in (outside, outside, home.models / "b.gguf"):
        register_folder(home, file)
    assert read_json(roots_file(home)) == {"roots": [str(outside.parent)]}
