"""What the directory store promises beyond the protocol: it sees the disk as it is, whatever lies there."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree, rmtree

import pytest
import torch

from steering.errors import ProfileCorrupt, ProfileNotFound, StoreNotWritable
from vector_store import local
from vector_store.local import LocalStore, open_store

Publish = Callable[..., Path]

events: list[tuple[str, str]] = []
watching = False


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if watching and event in ("open", "os.scandir", "os.listdir"):
        events.append((event, str(arguments[0])))


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """Collect what is opened and listed; audit hooks stay for good, so this one is asleep at other times."""
    global watching
    events.clear()
    watching = True
    try:
        yield events
    finally:
        watching = False


@pytest.fixture(scope="module", autouse=True)
def hook() -> None:
    sys.addaudithook(watch)


@pytest.fixture
def publish(make_manifest, make_deltas) -> Publish:
    """Publish a version and return its directory."""

    def publish(root: Path, name: str = "truthful", seed: int = 0) -> Path:
        return LocalStore(root).publish(make_manifest(name), make_deltas(seed), {}).path

    return publish


def corrupt(version: Path) -> None:
    (version / "vectors.safetensors").write_bytes(b"junk")


def test_a_version_published_by_another_process_is_seen_at_once(tmp_path: Path, publish: Publish):
    store = LocalStore(tmp_path)
    assert store.entries() == []
    for version in (1, 2):
        publish(tmp_path)
        assert store.get("truthful").vectors.version == version
        assert [(entry.name, entry.version) for entry in store.entries()] == [("truthful", version)]


def test_a_removed_version_is_gone_at_once(tmp_path: Path, publish: Publish):
    store = LocalStore(tmp_path)
    publish(tmp_path)
    rmtree(publish(tmp_path))
    assert store.get("truthful").vectors.version == 1
    rmtree(tmp_path / "truthful")
    with pytest.raises(ProfileNotFound):
        store.get("truthful")
    assert store.entries() == []


def test_a_running_request_keeps_the_version_it_has(tmp_path: Path, publish: Publish, make_deltas):
    publish(tmp_path)
    held = LocalStore(tmp_path).get("truthful")
    publish(tmp_path, seed=1)
    rmtree(tmp_path / "truthful")
    assert held.vectors.version == 1
    assert torch.equal(held.vectors.deltas[1], make_deltas(0)[1])


def test_versions_that_ship_and_versions_in_root_are_one_sequence(
    tmp_path: Path, publish: Publish, make_manifest, make_deltas
):
    root, shipped = tmp_path / "root", tmp_path / "shipped"
    publish(shipped), publish(shipped)
    store = LocalStore(root, [shipped])
    assert store.get("truthful").path == shipped / "truthful" / "2"
    assert store.publish(make_manifest(), make_deltas(), {}).path == root / "truthful" / "3"
    assert store.versions("truthful") == [1, 2, 3]
    assert store.get("truthful").path == root / "truthful" / "3"
    assert store.get("truthful", 1).path == shipped / "truthful" / "1"


def test_a_version_in_root_hides_the_one_that_ships(tmp_path: Path, publish: Publish):
    root, shipped = tmp_path / "root", tmp_path / "shipped"
    publish(root, seed=1), publish(shipped, seed=2), publish(shipped, "concise")
    store = LocalStore(root, [shipped])
    assert store.get("truthful").path == root / "truthful" / "1"
    assert [(entry.name, entry.version) for entry in store.entries()] == [("concise", 1), ("truthful", 1)]


def test_the_package_ships_nothing_that_fails_its_checks(tmp_path: Path):
    store = open_store(tmp_path / "absent")
    for entry in store.entries():
        assert entry.problem is None
        for version in store.versions(entry.name):
            store.get(entry.name, version)


def test_an_opened_store_has_the_profiles_that_ship(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
):
    publish(tmp_path / "shipped")
    monkeypatch.setattr(local, "SHIPPED", tmp_path / "shipped")
    assert open_store(tmp_path / "absent").get("truthful").vectors.version == 1


def test_a_corrupt_newest_version_is_an_error_and_never_replaced_by_an_older(
    tmp_path: Path, publish: Publish
):
    store = LocalStore(tmp_path)
    publish(tmp_path), publish(tmp_path, "concise")
    corrupt(publish(tmp_path))
    for _ in range(2):
        with pytest.raises(ProfileCorrupt, match=r"'truthful@2' is corrupt: vectors.safetensors has SHA-256"):
            store.get("truthful")
    assert store.get("truthful", 1).vectors.version == 1
    concise, truthful = store.entries()
    assert (concise.name, concise.problem) == ("concise", None)
    assert (truthful.name, truthful.version, truthful.manifest) == ("truthful", 2, None)
    assert "vectors.safetensors has SHA-256" in str(truthful.problem)


def test_a_new_version_replaces_a_corrupt_one(tmp_path: Path, publish: Publish):
    corrupt(publish(tmp_path))
    assert publish(tmp_path).name == "2"
    assert LocalStore(tmp_path).get("truthful").vectors.version == 2


def test_corruption_and_repair_are_noticed_after_a_read(tmp_path: Path, publish: Publish):
    store, path = LocalStore(tmp_path), publish(tmp_path)
    file = path / "vectors.safetensors"
    sound = file.read_bytes()
    assert store.entries()[0].problem is None
    assert store.get("truthful")
    corrupt(path)
    assert "SHA-256" in str(store.entries()[0].problem)
    with pytest.raises(ProfileCorrupt):
        store.get("truthful")
    file.write_bytes(sound)
    assert store.get("truthful")
    assert store.entries()[0].problem is None


def test_a_file_that_could_not_be_opened_is_tried_again(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
):
    store, path = LocalStore(tmp_path), publish(tmp_path)

    def exhausted(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files", str(path / "manifest.json"))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", exhausted)
        with pytest.raises(ProfileCorrupt, match=r"manifest.json cannot be read \(Too many open files\)"):
            store.get("truthful")
    assert store.get("truthful").vectors.version == 1


def test_a_get_looks_at_its_own_profile_only_and_reads_nothing_twice(tmp_path: Path, publish: Publish):
    for name in ("a", "b", "truthful"):
        publish(tmp_path, name)
    store = LocalStore(tmp_path, [tmp_path / "shipped"])
    first = store.get("truthful")
    with watched() as seen:
        assert store.get("truthful") is first
    assert seen == [
        ("os.scandir", str(tmp_path / "truthful")),
        ("os.scandir", str(tmp_path / "shipped" / "truthful")),
    ]


def test_a_second_listing_opens_no_profile_not_even_a_corrupt_one(tmp_path: Path, publish: Publish):
    for name in ("a", "b", "c"):
        publish(tmp_path, name)
    corrupt(tmp_path / "b" / "1")
    store = LocalStore(tmp_path)
    first = store.entries()
    with watched() as seen:
        assert store.entries() == first
    assert {event for event, _ in seen} == {"os.scandir"}


def test_the_vectors_used_last_are_kept_up_to_the_limit(tmp_path: Path, publish: Publish):
    for name in ("a", "b", "c"):
        publish(tmp_path, name)
    size = 2 * 4 * 4
    store = LocalStore(tmp_path, cache_bytes=2 * size)
    a, b = store.get("a"), store.get("b")
    assert store.get("a") is a
    store.get("c")
    assert store.get("a") is a
    assert store.get("b") is not b


def test_a_listing_drops_no_vectors_in_use(tmp_path: Path, publish: Publish):
    for name in ("a", "b", "c"):
        publish(tmp_path, name)
    store = LocalStore(tmp_path, cache_bytes=32)
    a = store.get("a")
    store.entries()
    assert store.get("a") is a


def test_a_profile_larger_than_the_limit_is_read_each_time(tmp_path: Path, publish: Publish):
    publish(tmp_path)
    store = LocalStore(tmp_path, cache_bytes=0)
    assert store.get("truthful") is not store.get("truthful")
    assert store.get("truthful").vectors.digest == store.get("truthful").vectors.digest


def test_stray_things_are_no_profiles(tmp_path: Path, publish: Publish):
    path = publish(tmp_path)
    (tmp_path / "readme.md").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "Upper" / "1").mkdir(parents=True)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for stray in ("0", "01", "-1", "1.0", "latest", ".tmp-9", "1" * 10, "²"):
        copytree(path, path.parent / stray)
    store = LocalStore(tmp_path)
    assert [(entry.name, entry.version, entry.problem) for entry in store.entries()] == [
        ("truthful", 1, None)
    ]
    assert store.versions("truthful") == [1]
    for name in ("readme.md", "empty", "broken"):
        with pytest.raises(ProfileNotFound, match="no profile named"):
            store.get(name)


def test_a_file_or_an_empty_directory_in_the_place_of_a_version_is_corrupt(tmp_path: Path, publish: Publish):
    home = publish(tmp_path).parent
    store = LocalStore(tmp_path)
    (home / "2").write_text("")
    with pytest.raises(
        ProfileCorrupt, match=r"'truthful@2' is corrupt: manifest.json cannot be read \(Not a dir"
    ):
        store.get("truthful")
    (home / "3").mkdir()
    with pytest.raises(
        ProfileCorrupt, match=r"'truthful@3' is corrupt: manifest.json cannot be read \(No such"
    ):
        store.get("truthful")
    assert publish(tmp_path).name == "4"


def test_a_profile_that_is_a_link_is_listed_as_a_problem(tmp_path: Path, publish: Publish):
    publish(tmp_path / "elsewhere")
    root = tmp_path / "root"
    root.mkdir()
    (root / "truthful").symlink_to(tmp_path / "elsewhere" / "truthful")
    (root / "loop").symlink_to(root / "loop")
    loop, truthful = LocalStore(root).entries()
    assert "symbolic link; copy it instead" in str(truthful.problem)
    assert (loop.version, "symbolic links" in str(loop.problem)) == (0, True)
    with pytest.raises(StoreNotWritable, match="symbolic link"):
        publish(root)
    assert (tmp_path / "elsewhere" / "truthful" / "1").exists()


def test_a_root_that_is_a_link_is_a_store(tmp_path: Path, publish: Publish):
    publish(tmp_path / "elsewhere")
    (tmp_path / "root").symlink_to(tmp_path / "elsewhere")
    publish(tmp_path / "root")
    assert LocalStore(tmp_path / "root").get("truthful").vectors.version == 2


def test_a_missing_root_is_empty_until_something_is_published(tmp_path: Path, publish: Publish):
    root = tmp_path / "not" / "yet"
    store = open_store(root)
    store.entries(), store.versions("truthful")
    assert not root.exists()
    publish(root)
    assert store.get("truthful").path == root / "truthful" / "1"


def test_a_root_that_is_a_file_is_empty_and_cannot_be_published_into(
    tmp_path: Path, publish: Publish, caplog: pytest.LogCaptureFixture
):
    root = tmp_path / "root"
    root.write_text("")
    assert LocalStore(root).entries() == []
    assert open_store(root).versions("truthful") == []
    assert "is read as empty: Not a directory" in caplog.text
    with pytest.raises(StoreNotWritable, match=f"cannot publish into {root}: File exists"):
        publish(root)


def test_a_closed_root_is_empty_and_the_shipped_profiles_stay(
    unprivileged_root: Path, publish: Publish, caplog: pytest.LogCaptureFixture
):
    root, shipped = unprivileged_root / "root", unprivileged_root / "shipped"
    publish(root), publish(root, "concise"), publish(shipped)
    for mode in (0o000, 0o200, 0o400):
        root.chmod(mode)
        store = LocalStore(root, [shipped])
        assert store.get("truthful").path == shipped / "truthful" / "1"
        assert store.versions("concise") == []
        assert [entry.name for entry in store.entries()] == ["truthful"]
    root.chmod(0o000)
    open_store(root)
    assert f"profile store {root} is read as empty: Permission denied" in caplog.text
    root.chmod(0o700)
    assert [entry.name for entry in store.entries()] == ["concise", "truthful"]


def test_a_root_that_cannot_be_written_is_told(unprivileged_root: Path, publish: Publish):
    home = publish(unprivileged_root).parent
    for closed, name in [(home, "truthful"), (unprivileged_root, "concise")]:
        closed.chmod(0o500)
        with pytest.raises(StoreNotWritable, match="Permission denied; make it a directory that this user"):
            publish(unprivileged_root, name)
        with pytest.raises(
            StoreNotWritable, match=f"cannot publish into {closed / 'deeper'}: Permission denied"
        ):
            publish(closed / "deeper")
        closed.chmod(0o700)
    store = LocalStore(unprivileged_root)
    assert (store.versions("truthful"), store.versions("concise")) == ([1], [])


def test_unreadable_parts_of_a_profile_are_its_own_problem(unprivileged_root: Path, publish: Publish):
    path = publish(unprivileged_root)
    publish(unprivileged_root, "concise")
    store = LocalStore(unprivileged_root)
    store.entries()
    for closed, version in [(path.parent, 0), (path, 1), (path / "manifest.json", 1)]:
        mode = closed.stat().st_mode
        closed.chmod(0o000)
        with pytest.raises(ProfileCorrupt, match="Permission denied"):
            store.get("truthful")
        concise, truthful = store.entries()
        assert (concise.problem, truthful.version) == (None, version)
        assert "Permission denied" in str(truthful.problem)
        closed.chmod(mode)
        assert store.get("truthful").vectors.version == 1


def test_a_version_that_became_a_link_is_refused_though_it_was_read_before(tmp_path: Path, publish: Publish):
    path = publish(tmp_path)
    store = LocalStore(tmp_path)
    store.get("truthful")
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(ProfileCorrupt, match="symbolic link"):
        store.get("truthful")
