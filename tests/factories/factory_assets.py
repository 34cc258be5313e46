"""Small packages as registries have them, and the assets that name them."""

import hashlib
import zipfile

from stagealign.data.download import Asset


def make_wheel(path, files):
    """A zip of `files`: name -> content, or a ZipInfo -> content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def an_asset(archive=None, **changes):
    values = {
        "key": "tiny",
        "package": "tiny-model",
        "version": "1.0",
        "kind": "wheel",
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest() if archive else "0" * 64,
        "members": ("tiny_model/data/*",),
        "licence": "MIT",
        "what": "a test",
        "size_mb": 0.001,
    }
    return Asset(**{**values, **changes})


WHEEL = "tiny_model-1.0-py3-none-any.whl"
