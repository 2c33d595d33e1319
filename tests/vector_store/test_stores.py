"""What every store promises: the same tests for the directory and for the fake."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steering.errors import ProfileCorrupt, ProfileNotFound
from vector_store.local import LocalStore, open_store
from vector_store.manifest import Manifest
from vector_store.memory import MemoryStore
from vector_store.store import VectorStore

Manifests = Callable[..., Manifest]
Deltas = Callable[..., dict[int, Tensor]]


@pytest.fixture(params=["memory", "local", "local with a shipped directory", "opened"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VectorStore:
    monkeypatch.setattr("vector_store.local.SHIPPED", tmp_path / "nothing ships")
    makers: dict[str, Callable[[], VectorStore]] = {
        "memory": MemoryStore,
        "local": lambda: LocalStore(tmp_path / "store"),
        "local with a shipped directory": lambda: LocalStore(tmp_path / "store", [tmp_path / "shipped"]),
        "opened": lambda: open_store(tmp_path / "store"),
    }
    return makers[request.param]()


def test_a_published_profile_comes_back_bit_for_bit(store: VectorStore, make_manifest, make_deltas):
    deltas = make_deltas()
    published = store.publish(make_manifest(positions="generated"), deltas, {})
    found = store.get("truthful").vectors
    assert published.vectors.digest == found.digest
    assert (found.name, found.version, found.positions, found.layers) == ("truthful", 1, "generated", (1, 3))
    assert all(torch.equal(found.deltas[layer], deltas[layer]) for layer in deltas)
    assert all(delta.dtype == torch.float32 for delta in found.deltas.values())


def test_version_and_digest_are_filled_in(store: VectorStore, make_manifest, make_deltas):
    published = store.publish(make_manifest(version=77), make_deltas(), {})
    assert published.manifest.version == published.vectors.version == 1
    assert published.manifest.digest == published.vectors.digest != "0" * 64
    assert store.get("truthful").manifest == published.manifest


def test_the_newest_version_is_found_and_older_ones_stay(store: VectorStore, make_manifest, make_deltas):
    for seed in range(11):
        store.publish(make_manifest(), make_deltas(seed), {})
    assert store.versions("truthful") == list(range(1, 12))
    assert store.get("truthful").vectors.version == 11
    assert torch.equal(store.get("truthful", 3).vectors.deltas[1], make_deltas(2)[1])


def test_equal_vectors_have_one_digest_and_others_another(store: VectorStore, make_manifest, make_deltas):
    first, second, third = (
        store.publish(make_manifest(name), make_deltas(seed), {})
        for name, seed in [("a", 1), ("b", 1), ("a", 2)]
    )
    assert first.vectors.digest == second.vectors.digest != third.vectors.digest


def test_entries_are_the_newest_versions_by_name(store: VectorStore, make_manifest, make_deltas):
    for name in ["b", "c", "a", "b"]:
        store.publish(make_manifest(name), make_deltas(), {})
    assert [(entry.name, entry.version, entry.problem) for entry in store.entries()] == [
        ("a", 1, None),
        ("b", 2, None),
        ("c", 1, None),
    ]
    assert store.entries()[1].manifest == store.get("b").manifest


def test_a_misspelt_name_is_answered_with_the_nearest(store: VectorStore, make_manifest, make_deltas):
    store.publish(make_manifest("truthful"), make_deltas(), {})
    store.publish(make_manifest("concise"), make_deltas(), {})
    with pytest.raises(ProfileNotFound, match=r"'thruthful'; did you mean 'truthful'\? .*concise, truthful"):
        store.get("thruthful")


def test_an_empty_store_says_so(store: VectorStore):
    assert store.entries() == []
    assert store.versions("truthful") == []
    with pytest.raises(ProfileNotFound, match="no profile named 'truthful'; the store is empty"):
        store.get("truthful")


def test_a_directory_without_versions_is_no_profile(tmp_path: Path, make_manifest, make_deltas):
    local = LocalStore(tmp_path)
    local.publish(make_manifest("truthful"), make_deltas(), {})
    (local.root / "concise").mkdir()
    with pytest.raises(ProfileNotFound, match=r"no profile named 'concise'; the store has truthful$"):
        local.get("concise")


def test_many_profiles_are_not_all_named_in_an_error(store: VectorStore, make_manifest, make_deltas):
    for number in range(12):
        store.publish(make_manifest(f"p{number}"), make_deltas(), {})
    with pytest.raises(ProfileNotFound, match=r"p0, p1, p10, p11, p2, p3, p4, p5 and 4 more$"):
        store.get("zebra")


@pytest.mark.parametrize("version", [0, -1, 3, 10**9, 1 << 20_000, -(1 << 20_000)], ids=int.bit_length)
def test_an_unknown_version_is_answered_with_those_there_are(
    store: VectorStore, make_manifest, make_deltas, version: int
):
    store.publish(make_manifest(), make_deltas(), {})
    store.publish(make_manifest(), make_deltas(), {})
    with pytest.raises(ProfileNotFound, match=r"profile 'truthful' has no .*version.*; it has 2, 1"):
        store.get("truthful", version)


@pytest.mark.parametrize(
    "name",
    [
        *[
            "",
            ".",
            "..",
            "../truthful",
            "/etc",
            "a/b",
            "a\\b",
            "a\0b",
            "a\n",
            "Truthful",
            "é",
            "-a",
            "~",
            ".tmp-1",
        ],
        *["\ud800", "x" * 65, "x" * 1_000_000],
    ],
    ids=lambda name: ascii(name)[:20],
)
def test_an_impossible_name_is_not_found(store: VectorStore, make_manifest, make_deltas, name: str):
    store.publish(make_manifest(), make_deltas(), {})
    assert store.versions(name) == []
    with pytest.raises(ProfileNotFound, match="a name has 1 to 64 of") as caught:
        store.get(name)
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()


def spoil(deltas: dict[int, Tensor], how: str) -> None:
    spoilers: dict[str, Callable[[], object]] = {
        "missing": lambda: deltas.pop(3),
        "extra": lambda: deltas.update({5: torch.ones(4)}),
        "short": lambda: deltas.update({3: torch.ones(3)}),
        "two-dimensional": lambda: deltas.update({3: torch.ones(1, 4)}),
        "empty": lambda: deltas.update({3: torch.ones(0)}),
        "nan": lambda: deltas[3].fill_(float("nan")),
        "infinite": lambda: deltas[3].index_fill_(0, torch.tensor([2]), float("-inf")),
        "zero": lambda: deltas[3].zero_(),
        "too long to add up in float32": lambda: deltas[3].fill_(1e18),
        "too short to move anything": lambda: deltas[3].fill_(1e-12),
    }
    spoilers[how]()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("missing", "no tensor layer.3"),
        ("extra", "tensor 'layer.5', which manifest.json does not list"),
        ("short", r"layer.3 is F32 \[3\], not F32 \[4\]"),
        ("two-dimensional", r"layer.3 is F32 \[1, 4\]"),
        ("empty", r"layer.3 is F32 \[0\]"),
        ("nan", "layer.3 has length nan"),
        ("infinite", "layer.3 has length inf"),
        ("zero", "layer.3 has length 0, which must be between"),
        ("too long to add up in float32", "layer.3 has length 2e"),
        ("too short to move anything", "layer.3 has length 2e-"),
    ],
)
def test_vectors_that_cannot_steer_are_not_published(
    store: VectorStore, make_manifest, make_deltas, how: str, reason: str
):
    deltas = make_deltas()
    spoil(deltas, how)
    with pytest.raises(
        ProfileCorrupt, match=rf"'truthful' cannot be published.*{reason}.*nothing was stored"
    ):
        store.publish(make_manifest(), deltas, {})
    assert store.versions("truthful") == []
    assert store.entries() == []


@pytest.mark.parametrize(
    "filename",
    [
        *[
            "",
            "..",
            "../report.json",
            "/etc/passwd",
            "a/b.png",
            "manifest.json",
            "Vectors.SafeTensors",
            ".hidden",
        ],
        *["x" * 65, "a\0.png", "a\n"],
    ],
    ids=ascii,
)
def test_an_attachment_cannot_leave_the_profile_or_replace_it(
    store: VectorStore, make_manifest, make_deltas, filename: str
):
    with pytest.raises(ProfileCorrupt, match="an attachment cannot be named"):
        store.publish(make_manifest(), make_deltas(), {filename: b"x"})
    assert store.versions("truthful") == []


def test_an_unchecked_name_is_not_published(store: VectorStore, tmp_path: Path, make_manifest, make_deltas):
    evil = make_manifest().model_copy(update={"name": "../evil"})
    with pytest.raises(ProfileCorrupt, match="nothing was stored"):
        store.publish(evil, make_deltas(), {})
    assert not (tmp_path / "evil").exists()


def test_later_changes_to_the_callers_tensors_change_nothing(store: VectorStore, make_manifest, make_deltas):
    deltas = make_deltas()
    published = store.publish(make_manifest(), deltas, {})
    for delta in deltas.values():
        delta.zero_()
    assert torch.equal(published.vectors.deltas[1], make_deltas()[1])
    assert torch.equal(store.get("truthful").vectors.deltas[1], make_deltas()[1])


def test_deltas_of_any_memory_layout_and_precision_are_stored(store: VectorStore, make_manifest):
    stacked = torch.arange(1.0, 9.0, dtype=torch.bfloat16).reshape(4, 2).requires_grad_()
    store.publish(make_manifest(), {3: stacked[:, 1], 1: stacked[:, 0]}, {})
    found = store.get("truthful").vectors.deltas
    assert found[1].tolist() == [1.0, 3.0, 5.0, 7.0]
    assert found[3].tolist() == [2.0, 4.0, 6.0, 8.0]


def test_the_deltas_of_a_profile_cannot_be_exchanged(store: VectorStore, make_manifest, make_deltas):
    published = store.publish(make_manifest(), make_deltas(), {})
    with pytest.raises(TypeError):
        published.vectors.deltas[1] = torch.ones(4)  # type: ignore[index]


def test_threads_that_publish_at_once_get_versions_of_their_own(
    store: VectorStore, make_manifest, make_deltas
):
    def publish(seed: int) -> tuple[int, str]:
        vectors = store.publish(make_manifest(), make_deltas(seed), {}).vectors
        return vectors.version, vectors.digest

    with ThreadPoolExecutor(8) as pool:
        published = dict(pool.map(publish, range(24)))
    assert store.versions("truthful") == list(range(1, 25))
    assert {version: store.get("truthful", version).vectors.digest for version in published} == published


def test_attachments_are_kept(tmp_path: Path, make_manifest, make_deltas):
    attachments = {"report.json": b"{}", "dose-response.png": b"\x89PNG"}
    memory, local = MemoryStore(), LocalStore(tmp_path)
    memory.publish(make_manifest(), make_deltas(), attachments)
    path = local.publish(make_manifest(), make_deltas(), attachments).path
    assert memory.attachments["truthful", 1] == attachments
    assert {name: (path / name).read_bytes() for name in attachments} == attachments
    assert path == tmp_path / "truthful" / "1"
    assert (
        sha256((path / "vectors.safetensors").read_bytes()).hexdigest()
        == local.get("truthful").vectors.digest
    )


@given(name=st.text())
@settings(max_examples=200, deadline=None)
def test_no_text_is_a_name_that_does_harm(name: str):
    with TemporaryDirectory() as directory:
        for store in (MemoryStore(), LocalStore(Path(directory))):
            with pytest.raises(ProfileNotFound):
                store.get(name)


@given(names=st.lists(st.sampled_from(["a", "b", "b.c", "b-c", "0"]), max_size=8))
@settings(max_examples=25, deadline=None)
def test_the_fake_and_the_directory_answer_alike(names: list[str], make_manifest, make_deltas):
    with TemporaryDirectory() as directory:
        stores = (MemoryStore(), LocalStore(Path(directory)))
        for seed, name in enumerate(names):
            memory, local = (store.publish(make_manifest(name), make_deltas(seed), {}) for store in stores)
            assert memory.manifest == local.manifest
        assert stores[0].entries() == stores[1].entries() == LocalStore(Path(directory)).entries()
        for name in ["a", "b", "c"]:
            assert stores[0].versions(name) == stores[1].versions(name)
