"""Artifacts of tiny builders, and the harm that a disk does to their files."""

from stagealign.base.kind import Kind
from stagealign.store import checksums as seals
from stagealign.store.artifact import Artifact


def make(path="a", function="write", inputs=(), **params):
    return Artifact(path, Kind(f"factory_builders:{function}", price="free"), params, {one.path: one for one in inputs})


def flip(path, place=None, bit=1):
    """One byte of a file changed, its length and time kept, as a disk would; and what was noted of it forgotten."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= bit
    path.write_bytes(data)
    seals._digests.clear()


def cut(path, count=1):
    path.write_bytes(path.read_bytes()[:-count])
    seals._digests.clear()
