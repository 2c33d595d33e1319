"""A profile directory: written whole, verified whole each time it is read."""

import os
import re
import stat
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, deserialize
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from steering.errors import ProfileCorrupt
from steering.types import SteeringVectors
from vector_store.manifest import Manifest
from vector_store.names import is_name, is_version, quoted
from vector_store.store import Profile

MANIFEST = "manifest.json"
VECTORS = "vectors.safetensors"
LARGEST_MANIFEST = 1 << 20
LARGEST_VECTORS = 256 << 20
HEADER_ROOM = 1 << 20
# Lengths of a delta; activations are 1 to 100,000 long.
SHORTEST, LONGEST = 1e-4, 1e9

_attachment = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def read(path: Path) -> Profile:
    """Return the profile in the directory `<name>/<version>`; ProfileCorrupt if any check fails."""
    path = path.absolute()
    version = int(path.name) if is_version(path.name) else 0
    return read_as(path, path.parent.name, version)


def read_as(path: Path, name: str, version: int) -> Profile:
    """Return the profile in the directory, which must be this version of this name."""
    try:
        _refuse_links(path)
        manifest = decode_manifest(_bytes_of(path / MANIFEST, LARGEST_MANIFEST), name, version)
        vectors = decode_vectors(manifest, _bytes_of(path / VECTORS, _largest_vectors(manifest)))
    except (OSError, ValueError) as error:
        raise ProfileCorrupt(
            f"profile '{name}@{version}' is corrupt: {_reason(error)}; "
            "publish it again or remove this version"
        ) from error
    return Profile(manifest, vectors, path)


def write(
    directory: Path, manifest: Manifest, deltas: Mapping[int, Tensor], attachments: Mapping[str, bytes]
) -> Manifest:
    """Return the manifest, its digest filled in, once the files lie in the empty directory, durable."""
    sealed, files = seal(manifest, deltas, attachments)
    for filename, content in files.items():
        with (directory / filename).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    sync_directory(directory)
    return sealed


def seal(
    manifest: Manifest, deltas: Mapping[int, Tensor], attachments: Mapping[str, bytes]
) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest with its digest, and the files; ProfileCorrupt if `read` would refuse them."""
    try:
        _check_attachments(attachments)
        vectors = _encode(deltas)
        sealed = manifest.model_copy(update={"digest": sha256(vectors).hexdigest()})
        text = sealed.model_dump_json(indent=2).encode()
        decode_vectors(decode_manifest(text, manifest.name, manifest.version), vectors)
    except ValueError as error:
        raise ProfileCorrupt(
            f"profile {quoted(manifest.name)} cannot be published: {_reason(error)}; nothing was stored"
        ) from error
    return sealed, {VECTORS: vectors, **attachments, MANIFEST: text}


def decode_manifest(text: bytes, name: str, version: int) -> Manifest:
    """Return the manifest, which must be of this name and version; ValueError says what is wrong."""
    if len(text) > LARGEST_MANIFEST:
        raise ValueError(f"{MANIFEST} has {len(text)} bytes, more than {LARGEST_MANIFEST}")
    manifest = Manifest.model_validate_json(text, strict=True)
    if (manifest.name, manifest.version) != (name, version):
        raise ValueError(
            f"{MANIFEST} is of '{manifest.name}@{manifest.version}', the directory of '{name}@{version}'"
        )
    return manifest


def decode_vectors(manifest: Manifest, content: bytes) -> SteeringVectors:
    """Return the vectors, which must be as the manifest states them; ValueError says what is wrong."""
    if len(content) > _largest_vectors(manifest):
        raise ValueError(f"{VECTORS} has {len(content)} bytes, more than {_largest_vectors(manifest)}")
    digest = sha256(content).hexdigest()
    if digest != manifest.digest:
        raise ValueError(f"{VECTORS} has SHA-256 {digest[:12]}..., {MANIFEST} says {manifest.digest[:12]}...")
    _check_header(manifest, content)
    tensors = load_tensors(content)
    deltas = {layer: tensors[f"layer.{layer}"] for layer in manifest.layers}
    for layer, delta in deltas.items():
        _check_length(layer, delta)
    return SteeringVectors(
        manifest.name, manifest.version, digest, MappingProxyType(deltas), manifest.positions, manifest.tokens
    )


def sync_directory(directory: Path) -> None:
    """Make the directory's entries durable, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encode(deltas: Mapping[int, Tensor]) -> bytes:
    tensors = {
        f"layer.{layer}": deltas[layer].detach().to("cpu", torch.float32, copy=True).contiguous()
        for layer in sorted(deltas)
    }
    return bytes(save_tensors(tensors))


def _check_attachments(attachments: Mapping[str, bytes]) -> None:
    for filename in attachments:
        if not _attachment.fullmatch(filename) or filename.lower() in (MANIFEST, VECTORS):
            raise ValueError(f"an attachment cannot be named {quoted(filename)}")


def _check_header(manifest: Manifest, content: bytes) -> None:
    try:
        views = deserialize(content)  # type: ignore[no-untyped-call]
        found = {name: (view["dtype"], list(view["shape"])) for name, view in views}
    except SafetensorError as error:
        raise ValueError(f"{VECTORS} is not a safetensors file ({error})") from error
    wanted = ("F32", [manifest.model.hidden_size])
    expected = [f"layer.{layer}" for layer in manifest.layers]
    for name in expected:
        if name not in found:
            raise ValueError(f"{VECTORS} has no tensor {name}")
        if found[name] != wanted:
            raise ValueError(f"{name} is {found[name][0]} {found[name][1]}, not {wanted[0]} {wanted[1]}")
    for name in found.keys() - set(expected):
        raise ValueError(f"{VECTORS} has a tensor {quoted(name)}, which {MANIFEST} does not list")


def _check_length(layer: int, delta: Tensor) -> None:
    """Refuse what cannot be added and renormalised in float32, at any strength and beside other terms."""
    length = torch.linalg.vector_norm(delta).item()
    if not SHORTEST <= length <= LONGEST:
        raise ValueError(
            f"layer.{layer} has length {length:g}, which must be between {SHORTEST:g} and {LONGEST:g}"
        )


def _largest_vectors(manifest: Manifest) -> int:
    return min(LARGEST_VECTORS, 4 * manifest.model.hidden_size * len(manifest.layers) + HEADER_ROOM)


def _refuse_links(path: Path) -> None:
    for directory in (path.parent, path):
        if directory.is_symlink():
            raise ValueError(f"its directory {quoted(directory.name)} is a symbolic link; copy it instead")
    if not is_name(path.parent.name):
        raise ValueError(f"its directory cannot be named {quoted(path.parent.name)}")


def _bytes_of(path: Path, largest: int) -> bytes:
    """Return the content of a regular file that is no link, of at most `largest` bytes."""
    if path.is_symlink():
        raise ValueError(f"{path.name} is a symbolic link; copy the file instead")
    with open(path, "rb", opener=_open_here) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        if status.st_size > largest:
            raise ValueError(f"{path.name} has {status.st_size} bytes, more than {largest}")
        content = file.read(status.st_size + 1)
    if len(content) != status.st_size:
        raise ValueError(f"{path.name} changed while it was read")
    return content


def _open_here(path: str, flags: int) -> int:
    """Open without following a link and without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return f"{Path(error.filename or 'it').name} cannot be read ({error.strerror})"
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{MANIFEST}: {quoted(place) + ': ' if place else ''}{first['msg'][:200]}"
