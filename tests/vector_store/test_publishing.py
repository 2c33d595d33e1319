"""Publishing is all or nothing: killed or failing at any step, and with many publishers at once."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
from filelock import FileLock

from steering.errors import SteeringError, StoreNotWritable
from vector_store import publishing
from vector_store.local import LocalStore

STEPS = ("open", "os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.scandir", "fcntl.flock", "os.listdir")

PROGRAM = """
import os, signal, sys
from pathlib import Path
import torch
from vector_store.local import LocalStore
from vector_store.manifest import Manifest, ModelRecord

model = ModelRecord(id="tiny", architecture="Tiny", layers=6, hidden_size=4, fingerprint="ab" * 32)
manifest = Manifest(name="truthful", model=model, layers=(1,), method="grains")

def publish(root, value):
    return LocalStore(Path(root)).publish(manifest, {1: torch.full((4,), value)}, {"report.json": b"{}"})

def spawn(work):
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
"""

KILLED_AT_EACH_STEP = """
def killed_at(step, root):
    left = step
    def count(event, arguments):
        nonlocal left
        if event in STEPS or event == "fsync":
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
    sync = os.fsync
    os.fsync = lambda descriptor: (sys.audit("fsync"), sync(descriptor))
    sys.addaudithook(count)
    publish(root, 2.0)

for step in range(1000):
    root = f"{sys.argv[1]}/{step}"
    publish(root, 1.0)
    _, status = os.waitpid(spawn(lambda: killed_at(step, root)), 0)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
print(step)
"""

AT_ONCE = """
def many(worker):
    for each in range(6):
        publish(sys.argv[1], float(10 * worker + each + 1))

children = [spawn(lambda: many(worker)) for worker in range(4)]
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
"""


def run(program: str, root: Path) -> str:
    """Run the program in a process of its own, because it forks and kills."""
    text = f"{PROGRAM}\nSTEPS = {STEPS!r}\n{program}"
    command = [sys.executable, "-W", "ignore", "-c", text, str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def check_sound(root: Path) -> list[int]:
    """Return the versions, all of which must pass every check."""
    store = LocalStore(root)
    versions = store.versions("truthful")
    for version in versions:
        assert store.get("truthful", version).vectors.version == version
    assert [entry.problem for entry in store.entries()] == [None] * bool(versions)
    return versions


def leftovers(root: Path) -> list[Path]:
    return list(root.glob("*/.tmp-*"))


def test_a_publisher_killed_at_any_step_leaves_the_old_state_or_the_new(
    tmp_path: Path, make_manifest, make_deltas
):
    steps = int(run(KILLED_AT_EACH_STEP, tmp_path))
    seen = [check_sound(tmp_path / str(step)) for step in range(steps)]
    crashed = [root for step in range(steps) if leftovers(root := tmp_path / str(step))]
    assert steps > 15
    assert len(crashed) > 5
    assert sorted(seen, key=len) == seen
    assert {len(versions) for versions in seen} == {1, 2}
    for step in range(steps):
        root = tmp_path / str(step)
        LocalStore(root).publish(make_manifest("concise"), make_deltas(), {})
        assert leftovers(root) == []


def test_processes_that_publish_at_once_get_versions_of_their_own(tmp_path: Path):
    run(AT_ONCE, tmp_path)
    assert check_sound(tmp_path) == list(range(1, 25))
    store = LocalStore(tmp_path)
    values = [store.get("truthful", version).vectors.deltas[1][0].item() for version in range(1, 25)]
    assert sorted(values) == [10 * worker + each + 1 for worker in range(4) for each in range(6)]
    assert leftovers(tmp_path) == []


class Failure:
    """Fails the n-th step of this thread that touches the disk, while armed; audit hooks stay for good."""

    def __init__(self) -> None:
        self.left = -1

    def step(self, event: str, _: tuple[object, ...]) -> None:
        if self.left < 0 or event not in (*STEPS, "fsync"):
            return
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    @contextmanager
    def armed(self, step: int) -> Iterator[None]:
        self.left = step
        try:
            yield
        finally:
            self.left = -1


@pytest.fixture(scope="module")
def failure() -> Failure:
    failure = Failure()
    sys.addaudithook(failure.step)
    return failure


def test_a_step_that_fails_leaves_the_old_state_or_the_new_and_no_litter(
    tmp_path: Path, make_manifest, make_deltas, failure: Failure, monkeypatch: pytest.MonkeyPatch
):
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (sys.audit("fsync"), sync(descriptor)))
    messages: list[str] = []
    for step in range(1000):
        root = tmp_path / str(step)
        store = LocalStore(root)
        store.publish(make_manifest(), make_deltas(), {})
        with failure.armed(step):
            try:
                store.publish(make_manifest(), make_deltas(1), {"report.json": b"{}"})
            except SteeringError as error:
                messages.append(error.message)
            finished = failure.left >= 0
        assert check_sound(root) in ([1], [1, 2])
        if finished:
            break
    assert len(messages) > 15
    assert all("No space left on device" in message for message in messages)
    assert sum(bool(leftovers(tmp_path / str(each))) for each in range(step)) <= 1


def test_the_files_are_on_the_disk_before_they_show(
    tmp_path: Path, make_manifest, make_deltas, monkeypatch: pytest.MonkeyPatch
):
    steps: list[str] = []
    sync: Callable[[int], None] = os.fsync
    rename = Path.rename

    def told_sync(descriptor: int) -> None:
        steps.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    def told_rename(source: Path, target: Path) -> Path:
        steps.append(f"{source.name} -> {target.name}")
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", told_sync)
    monkeypatch.setattr(Path, "rename", told_rename)
    LocalStore(tmp_path).publish(make_manifest(), make_deltas(), {"report.json": b"{}"})
    staging = steps[3]
    assert staging.startswith(".tmp-")
    assert steps == [
        "vectors.safetensors",
        "report.json",
        "manifest.json",
        staging,
        f"{staging} -> 1",
        "truthful",
        tmp_path.name,
    ]


def test_a_reader_never_sees_half_a_profile(tmp_path: Path, make_manifest, make_deltas):
    publisher, reader = LocalStore(tmp_path), LocalStore(tmp_path)
    publisher.publish(make_manifest(), make_deltas(), {})
    done, newest = Event(), []

    def publish() -> None:
        for seed in range(30):
            publisher.publish(make_manifest(), make_deltas(seed), {})
        done.set()

    thread = Thread(target=publish)
    thread.start()
    while not done.is_set():
        newest.append(reader.get("truthful").vectors.version)
        assert [entry.problem for entry in reader.entries()] == [None]
    thread.join()
    assert newest == sorted(newest)
    assert reader.get("truthful").vectors.version == 31


def test_a_profile_is_as_readable_as_the_users_other_files(tmp_path: Path, make_manifest, make_deltas):
    (tmp_path / "other").mkdir()
    path = LocalStore(tmp_path / "root").publish(make_manifest(), make_deltas(), {}).path
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_first_publication_that_is_refused_leaves_no_profile(tmp_path: Path, make_manifest, make_deltas):
    deltas = make_deltas()
    deltas[1].zero_()
    with pytest.raises(SteeringError):
        LocalStore(tmp_path).publish(make_manifest(), deltas, {})
    assert [each.name for each in tmp_path.iterdir() if each.is_dir()] == []


def test_a_publisher_waits_for_the_lock_and_says_so_when_it_gives_up(
    tmp_path: Path, make_manifest, make_deltas, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(publishing, "PATIENCE_SECONDS", 0.2)
    with FileLock(tmp_path / ".lock", is_singleton=False):
        outcome: list[Exception] = []

        def publish() -> None:
            try:
                LocalStore(tmp_path).publish(make_manifest(), make_deltas(), {})
            except StoreNotWritable as error:
                outcome.append(error)

        thread = Thread(target=publish)
        thread.start()
        thread.join()
    assert "lock" in str(outcome[0])
    assert LocalStore(tmp_path).publish(make_manifest(), make_deltas(), {}).vectors.version == 1


def test_the_lock_dies_with_its_process(tmp_path: Path, make_manifest, make_deltas):
    held = "from filelock import FileLock; import os, signal, sys; FileLock(sys.argv[1]).acquire()"
    command = [sys.executable, "-c", f"{held}; os.kill(os.getpid(), signal.SIGKILL)", str(tmp_path / ".lock")]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    assert LocalStore(tmp_path).publish(make_manifest(), make_deltas(), {}).vectors.version == 1


def test_after_the_last_version_there_can_be_no_other(tmp_path: Path, make_manifest, make_deltas):
    (tmp_path / "truthful" / "999999999").mkdir(parents=True)
    with pytest.raises(StoreNotWritable, match="no version after 999999999"):
        LocalStore(tmp_path).publish(make_manifest(), make_deltas(), {})
    assert [each.name for each in (tmp_path / "truthful").iterdir()] == ["999999999"]
