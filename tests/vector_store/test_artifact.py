"""A profile directory that differs in anything from what was written is refused, with the reason."""

import json
import os
import pickle
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from steering.errors import ProfileCorrupt
from vector_store import artifact
from vector_store.manifest import Manifest, ModelRecord

FLOATS = st.floats(-1e6, 1e6, width=32).filter(lambda value: abs(value) > 1e-6)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def path(tmp_path: Path, make_manifest, make_deltas) -> Path:
    """The directory of a sound profile, truthful@1."""
    path = tmp_path / "truthful" / "1"
    path.mkdir(parents=True)
    artifact.write(path, make_manifest(), make_deltas(), {"report.json": b"{}"})
    return path


def reason(path: Path) -> str:
    with pytest.raises(ProfileCorrupt) as caught:
        artifact.read(path)
    message = caught.value.message
    assert message.startswith("profile 'truthful@1' is corrupt: ")
    assert message.endswith("publish it again or remove this version")
    assert len(message) < 600
    return message


def reseal(path: Path, vectors: bytes) -> None:
    """Replace the vectors and state their digest, as one would who means harm."""
    (path / "vectors.safetensors").write_bytes(vectors)
    amend(path, digest=sha256(vectors).hexdigest())


def amend(path: Path, **fields: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text()) | fields
    (path / "manifest.json").write_text(json.dumps(manifest))


@given(
    description=TEXT,
    evidence=st.dictionaries(TEXT, JSON, max_size=3),
    rows=st.dictionaries(st.integers(0, 7), st.lists(FLOATS, min_size=3, max_size=3), min_size=1),
)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(description: str, evidence: dict, rows: dict[int, list[float]]):
    model = ModelRecord(id="m", architecture="A", layers=8, hidden_size=3, fingerprint="0" * 64)
    manifest = Manifest(
        name="any",
        model=model,
        layers=tuple(sorted(rows)),
        method="m",
        description=description,
        evidence=evidence,
    )
    with TemporaryDirectory() as directory:
        path = Path(directory) / "any" / "1"
        path.mkdir(parents=True)
        written = artifact.write(
            path, manifest, {layer: torch.tensor(row) for layer, row in rows.items()}, {}
        )
        profile = artifact.read(path)
    assert profile.manifest == written == manifest.model_copy(update={"digest": profile.vectors.digest})
    assert {layer: delta.tolist() for layer, delta in profile.vectors.deltas.items()} == rows


def test_a_sound_profile_is_read_from_a_relative_path(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(path)
    assert artifact.read(Path()).path == path


def test_a_flipped_bit_anywhere_in_the_vectors_is_noticed(path: Path):
    file = path / "vectors.safetensors"
    sound = file.read_bytes()
    for place in range(len(sound)):
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        assert "vectors.safetensors has SHA-256" in reason(path)


def test_a_flipped_bit_in_the_manifest_never_changes_the_vectors(path: Path):
    file = path / "manifest.json"
    sound, digest = file.read_bytes(), artifact.read(path).vectors.digest
    for place in range(len(sound)):
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        try:
            vectors = artifact.read(path).vectors
        except ProfileCorrupt:
            continue
        assert (vectors.name, vectors.version, vectors.digest, vectors.layers) == (
            "truthful",
            1,
            digest,
            (1, 3),
        )


@pytest.mark.parametrize("filename", ["manifest.json", "vectors.safetensors"])
def test_a_truncated_file_is_noticed_at_any_length(path: Path, filename: str):
    sound = (path / filename).read_bytes()
    for length in range(len(sound)):
        (path / filename).write_bytes(sound[:length])
        assert filename in reason(path)


@pytest.mark.parametrize("filename", ["manifest.json", "vectors.safetensors"])
def test_a_file_with_more_at_its_end_is_noticed(path: Path, filename: str):
    with (path / filename).open("ab") as file:
        file.write(b"\0")
    assert filename in reason(path)


@given(junk=st.binary(max_size=200), header=st.none() | JSON)
@settings(max_examples=200, deadline=None)
def test_junk_with_a_right_digest_is_refused(junk: bytes, header: Any, make_manifest):
    if header is not None:
        text = json.dumps(header).encode()
        junk = len(text).to_bytes(8, "little") + text + junk
    manifest = make_manifest(digest=sha256(junk).hexdigest())
    with pytest.raises(ValueError, match=r"safetensors|has no tensor"):
        artifact.decode_vectors(manifest, junk)


ONES = torch.ones(4)


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"layer.1": ONES}, "has no tensor layer.3"),
        ({"layer.1": ONES, "layer.3": ONES, "layer.5": ONES}, "a tensor 'layer.5', which"),
        ({"layer.1": ONES, "layer.3": ONES, "\x1b[2J": ONES}, r"a tensor '\x1b[2J', which"),
        ({"layer.1": ONES, "layer.03": ONES}, "has no tensor layer.3"),
        ({"layer.1": ONES, "layer.3": ONES.half()}, "layer.3 is F16 [4], not F32 [4]"),
        ({"layer.1": ONES, "layer.3": ONES.double()}, "layer.3 is F64 [4], not F32 [4]"),
        ({"layer.1": ONES, "layer.3": ONES.int()}, "layer.3 is I32 [4], not F32 [4]"),
        ({"layer.1": ONES, "layer.3": torch.ones(5)}, "layer.3 is F32 [5], not F32 [4]"),
        ({"layer.1": ONES, "layer.3": torch.ones(())}, "layer.3 is F32 [], not F32 [4]"),
        ({"layer.1": ONES, "layer.3": torch.tensor([1, 2, float("nan"), 4])}, "layer.3 has length nan"),
        ({"layer.1": ONES, "layer.3": torch.tensor([1, 2, float("inf"), 4])}, "layer.3 has length inf"),
        ({"layer.1": torch.zeros(4), "layer.3": ONES}, "layer.1 has length 0, which"),
    ],
)
def test_tensors_other_than_the_manifests_are_refused(path: Path, tensors: dict, told: str):
    reseal(path, save({name: tensor.clone() for name, tensor in tensors.items()}))
    assert told in reason(path)


def test_a_pickle_is_refused_unread(path: Path):
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return os.mkdir, (str(path / "sprung"),)

    reseal(path, pickle.dumps(Trap()))
    assert "not a safetensors file" in reason(path)
    assert not (path / "sprung").exists()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "other"}, "manifest.json is of 'other@1', the directory of 'truthful@1'"),
        ({"version": 2}, "manifest.json is of 'truthful@2', the directory of 'truthful@1'"),
        ({"name": "../up"}, "'name': String should match"),
        ({"version": "1"}, "'version': Input should be a valid integer"),
        ({"version": True}, "'version': Input should be a valid integer"),
        ({"schema_version": 2}, "'schema_version': Input should be 1"),
        ({"surprise": 1}, "'surprise': Extra inputs are not permitted"),
        ({"s" * 100_000: 1}, "Extra inputs are not permitted"),
        ({"layers": [3, 1]}, "layers must be ascending"),
        ({"layers": [1, 1]}, "layers must be ascending and without repeats"),
        ({"layers": [1, 6]}, "layers must lie in 0..5"),
        ({"layers": [-1, 1]}, "layers must lie in 0..5"),
        ({"layers": []}, "'layers'"),
        ({"layers": [1, 2]}, "has no tensor layer.2"),
        ({"operation": "replace"}, "'operation': Input should be"),
        ({"evidence": {"loss": float("nan")}}, "'evidence': Value error"),
        ({"calibration": {"dose": [1, {"a": float("inf")}]}}, "'calibration': Value error"),
        ({"digest": "0" * 64}, "manifest.json says 000000000000..."),
        ({"digest": "../../etc"}, "'digest': String should match"),
    ],
)
def test_a_wrong_field_in_the_manifest_is_told(path: Path, fields: dict, told: str):
    amend(path, **fields)
    assert told in reason(path)


@pytest.mark.parametrize(
    "text",
    [
        *[
            b"",
            b"null",
            b"[]",
            b"{",
            b"\xff\xfe",
            b'{"name": "\xff"}',
            b'{"name": "\\ud800"}',
            b"\xef\xbb\xbf{}",
        ],
        *[b"[" * 100_000, b'{"a":' * 50_000, b'{"seed": ' + b"9" * 100_000 + b"}"],
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_a_manifest_that_is_no_json_object_is_refused(path: Path, text: bytes):
    (path / "manifest.json").write_bytes(text)
    assert "manifest.json: " in reason(path)


@pytest.mark.parametrize("filename", ["manifest.json", "vectors.safetensors"])
def test_a_huge_file_is_refused_unread(path: Path, filename: str):
    os.truncate(path / filename, 1 << 40)
    assert f"{filename} has {1 << 40} bytes, more than" in reason(path)


def test_a_manifest_cannot_raise_the_limit_of_its_vectors(path: Path, make_manifest):
    model = make_manifest().model.model_dump() | {"hidden_size": 1 << 50}
    amend(path, model=model)
    os.truncate(path / "vectors.safetensors", artifact.LARGEST_VECTORS + 1)
    assert "more than" in reason(path)


@pytest.mark.parametrize("filename", ["manifest.json", "vectors.safetensors"])
def test_what_is_no_regular_file_is_refused(path: Path, tmp_path: Path, filename: str):
    file, outside = path / filename, tmp_path / "outside"
    file.rename(outside)
    assert f"{filename} cannot be read (No such file or directory)" in reason(path)
    file.symlink_to(outside)
    assert f"{filename} is a symbolic link" in reason(path)
    file.unlink()
    os.mkfifo(file)
    assert f"{filename} is not a regular file" in reason(path)
    file.unlink()
    file.mkdir()
    assert f"{filename} cannot be read (Is a directory)" in reason(path)


def test_a_link_to_a_profile_elsewhere_is_refused(path: Path, tmp_path: Path):
    outside = tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    assert "its directory '1' is a symbolic link" in reason(path)
    path.unlink()
    outside.rename(path)
    path.parent.rename(outside)
    path.parent.symlink_to(outside)
    assert "its directory 'truthful' is a symbolic link" in reason(path)


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path):
    (tmp_path / "truthful").mkdir()
    (tmp_path / "truthful" / "1").write_text("")
    assert "manifest.json cannot be read (Not a directory)" in reason(tmp_path / "truthful" / "1")


def test_a_directory_that_is_no_version_is_refused(path: Path):
    with pytest.raises(ProfileCorrupt, match=r"manifest.json is of 'truthful@1'"):
        artifact.read(path.rename(path.parent / "latest"))


def test_writing_never_replaces_a_file(path: Path, make_manifest, make_deltas):
    with pytest.raises(FileExistsError):
        artifact.write(path, make_manifest(), make_deltas(1), {})
    assert torch.equal(artifact.read(path).vectors.deltas[1], make_deltas()[1])


def test_an_oversized_manifest_is_not_written(path: Path, make_manifest, make_deltas):
    manifest = make_manifest(parameters={"text": "x" * artifact.LARGEST_MANIFEST})
    with pytest.raises(ProfileCorrupt, match="more than 1048576; nothing was stored"):
        artifact.seal(manifest, make_deltas(), {})
