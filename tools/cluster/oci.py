"""Write an OCI image archive of one uncompressed layer, the same bytes for the same files."""

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Image:
    """What an image holds: `files` maps a path inside to a file here; `folders` and `links` are made."""

    names: Sequence[str]
    files: Mapping[str, Path]
    folders: Mapping[str, int]  # path -> mode
    links: Mapping[str, str]  # path -> target
    texts: Mapping[str, str]
    entrypoint: Sequence[str] = ()
    cmd: Sequence[str] = ()


def write_archive(target: Path, image: Image) -> None:
    """Write the archive under a temporary name and rename it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.new")
    with tempfile.TemporaryFile(dir=target.parent) as layer:
        _write_layer(layer, image)
        size = layer.tell()
        layer.seek(0)
        digest = hashlib.file_digest(layer, "sha256").hexdigest()
        layer.seek(0)
        config = _config(image, digest)
        manifest = _manifest(config, digest, size)
        with tarfile.open(partial, "w") as archive:
            _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            _add(archive, "index.json", _index(manifest, image.names))
            for blob in (config, manifest):
                _add(archive, f"blobs/sha256/{_sha(blob)}", blob)
            entry = tarfile.TarInfo(f"blobs/sha256/{digest}")
            entry.size = size
            archive.addfile(entry, layer)
    partial.rename(target)


def manifest_digest(archive: Path) -> str:
    """sha256:... of the (first) image of an archive, as containerd lists it once imported."""
    return str(_read_index(archive)[0]["digest"])


def image_names(archive: Path) -> tuple[str, ...]:
    """The full names that containerd gives to the images of an archive."""
    keys = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
    notes = [entry.get("annotations", {}) for entry in _read_index(archive)]
    return tuple(
        next(note[key] for key in keys if key in note) for note in notes if any(key in note for key in keys)
    )


def _read_index(archive: Path) -> list[dict[str, Any]]:
    with tarfile.open(archive) as tar:
        member = tar.extractfile("index.json")
        assert member is not None, "index.json of an OCI archive is a file"
        index = json.loads(member.read())
    return list(index["manifests"])


def _write_layer(stream: BinaryIO, image: Image) -> None:
    with tarfile.open(fileobj=stream, mode="w") as layer:
        for path, mode in sorted(image.folders.items()):
            folder = tarfile.TarInfo(path)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            layer.addfile(folder)
        for path, text in sorted(image.texts.items()):
            _add(layer, path, text.encode(), mode=0o644)
        for path, source in sorted(image.files.items()):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = source.stat().st_size, 0o755
            with source.open("rb") as content:
                layer.addfile(entry, content)
        for path, to in sorted(image.links.items()):
            link = tarfile.TarInfo(path)
            link.type, link.linkname = tarfile.SYMTYPE, to
            layer.addfile(link)


def _config(image: Image, layer_digest: str) -> bytes:
    runtime: dict[str, Any] = {"Env": [_PATH]}
    if image.entrypoint:
        runtime["Entrypoint"] = list(image.entrypoint)
    if image.cmd:
        runtime["Cmd"] = list(image.cmd)
    layers = {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]}
    return _json({"architecture": "amd64", "os": "linux", "config": runtime, "rootfs": layers})


def _manifest(config: bytes, layer_digest: str, layer_size: int) -> bytes:
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": f"sha256:{_sha(config)}",
                "size": len(config),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": f"sha256:{layer_digest}",
                    "size": layer_size,
                }
            ],
        }
    )


def _index(manifest: bytes, names: Sequence[str]) -> bytes:
    entry = {
        "mediaType": _MANIFEST,
        "digest": f"sha256:{_sha(manifest)}",
        "size": len(manifest),
        "platform": {"architecture": "amd64", "os": "linux"},
    }
    rows = [{**entry, "annotations": {"io.containerd.image.name": name}} for name in names]
    return _json({"schemaVersion": 2, "manifests": rows})


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
