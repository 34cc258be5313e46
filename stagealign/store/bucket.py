"""A store backed by an object store: missing artifacts are fetched from it, and built ones are sent to it.

It serves machines that share no folder. The bucket has the layout of the store. A record is sent last, so an artifact
with a record is complete. Object stores have no locks: two commands that build the same artifact at the same time both
do the work, and the artifact that was sent first is kept.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from stagealign.base.errors import CannotRun, Damaged, StagealignError
from stagealign.base.secrets import without_secrets
from stagealign.store.artifact import Artifact, Context
from stagealign.store.checksums import WrittenFile, damage
from stagealign.store.files import NO_ROOM
from stagealign.store.folder import Store, Waiting
from stagealign.store.locks import held
from stagealign.store.record import RECORD, Record, parsed_record, remove
from stagealign.store.room import naming_room

BUCKET = "STAGEALIGN_BUCKET"
"""Environment variable with the URL of the bucket for fsspec, such as `s3://bucket/grid` or `gs://bucket/grid`."""


def opened(context: Context = Context()) -> Store:  # noqa: B008, it is frozen
    """The user's store: a folder, backed by a bucket if `$STAGEALIGN_BUCKET` names one.

    Raises CannotRun if the bucket cannot be reached.
    """
    url = os.environ.get(BUCKET, "").strip()
    if not url:
        return Store(context=context)
    store = Bucketed(url, context=context)
    store.check()
    return store


class Bucketed(Store):
    """A folder of artifacts on this machine, and the bucket with those of all machines."""

    def __init__(
        self,
        url: str,
        home: Path | None = None,
        context: Context = Context(),  # noqa: B008, it is frozen
    ):
        super().__init__(home, context)
        self.url = url.rstrip("/")
        self._seen: dict[str, bytes | None] = {}

    def __getstate__(self) -> dict[str, object]:
        """State without the connection and the cached records, as another process opens its own."""
        state = {name: value for name, value in self.__dict__.items() if name != "_bucket"}
        return {**state, "_seen": {}}

    @property
    def place(self) -> str:
        return self.url

    @cached_property
    def _bucket(self) -> tuple[Any, str]:
        """File system and root folder of the bucket."""
        from fsspec.core import url_to_fs

        local = {"auto_mkdir": True} if self.url.startswith(("file:", "local:")) or "://" not in self.url else {}
        with self._naming_errors():
            bucket: tuple[Any, str] = url_to_fs(self.url, **local)
            return bucket

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        """Adds the bucket's name to every error of its library."""
        try:
            yield
        except (StagealignError, FileNotFoundError):
            raise
        except Exception as error:  # each object store has its own error classes
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise  # an error of this machine's disk
            first = (str(error).strip().splitlines() or [""])[0]
            why = without_secrets(f"{type(error).__name__}: {first}")
            raise CannotRun(
                f"{BUCKET}={without_secrets(self.url)}: {why}; check the URL, the installation of its fsspec package "
                "and your access rights"
            ) from error

    def check(self) -> None:
        """Raises CannotRun if the bucket cannot be reached. An empty bucket is valid."""
        fs, root = self._bucket
        with self._naming_errors():
            fs.exists(root)

    def leave(self, name: str, text: str) -> None:
        """Writes a note into the bucket, or removes the note if `text` is empty."""
        fs, root = self._bucket
        with self._naming_errors():
            fs.pipe_file(f"{root}/{name}", text.encode()) if text else fs.rm_file(f"{root}/{name}")

    def note(self, name: str) -> str | None:
        """Text of a note in the bucket; None if there is none."""
        fs, root = self._bucket
        try:
            with self._naming_errors():
                return str(fs.cat_file(f"{root}/{name}").decode())
        except FileNotFoundError:
            return None

    def look(self, artifacts: Iterable[Artifact]) -> None:
        fs, root = self._bucket
        paths = [artifact.path for artifact in artifacts if artifact.path not in self._seen]
        wanted = {f"{root}/{path}/{RECORD}": path for path in paths}
        with self._naming_errors():
            texts = fs.cat(list(wanted), on_error="return") if wanted else {}
            for name, text in texts.items():
                if isinstance(text, Exception) and not isinstance(text, FileNotFoundError):
                    raise text
                self._seen[wanted[name]] = text if isinstance(text, bytes) else None

    def forget(self, artifact: Artifact) -> None:
        self._seen.pop(artifact.path, None)

    def shared(self, artifact: Artifact) -> bool:
        return self._theirs(artifact) is not None

    def record(self, artifact: Artifact) -> Record | None:
        return super().record(artifact) or self._theirs(artifact)

    def changes(self, artifact: Artifact) -> list[str] | None:
        own = super().changes(artifact)
        return own if own is not None else self.differing(self._read(artifact), artifact)

    def standing(self, artifact: Artifact) -> tuple[list[str] | None, bool]:
        changes = self.changes(artifact)
        return changes, changes == [] and self.differing(self._read(artifact), artifact) == []

    def file(self, artifact: Artifact, name: str) -> Path:
        if super().record(artifact) is not None:
            return super().file(artifact, name)
        record = self._theirs(artifact)
        if record is None or name not in record.get("files", {}):
            return super().file(artifact, name)
        place = self.home / "fetched" / artifact.path
        self._fetch(artifact, place, {name: record["files"][name]})
        return place / name

    def bring(self, artifact: Artifact) -> Path:
        folder = self.folder(artifact)
        if super().record(artifact) is not None:
            return folder
        record = self._theirs(artifact)
        if record is None:
            raise StagealignError(
                f"{artifact.path}: neither in {self.home} nor in {without_secrets(self.url)}; build it first"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with held(folder):
            if super().record(artifact) is None:
                part = folder.with_name(f"{folder.name}.{artifact.fingerprint}.fetched.part")
                self._fetch(artifact, part, record["files"])
                (part / RECORD).write_bytes(self._seen[artifact.path] or b"")
                part.rename(folder)
        return folder

    def obtain(self, artifact: Artifact, waiting: Waiting | None = None) -> tuple[Record, bool]:
        self.forget(artifact)
        remote = self._theirs(artifact)
        if remote is not None:
            return remote, False
        with naming_room(self.folder(artifact)):
            if super().record(artifact) is None:
                for parent in artifact.inputs.values():
                    self.bring(parent)
            record, built = super().obtain(artifact, waiting)
            self.forget(artifact)
            remote = self._theirs(artifact)
            if remote is None:
                self._send(artifact, record)
            elif remote != record:
                shutil.rmtree(self.folder(artifact))  # another machine was faster, and its artifact is the shared one
        return remote or record, built

    def _theirs(self, artifact: Artifact) -> Record | None:
        """Record in the bucket, checked against the artifact's spec; None without one. Raises StoreDrift, Damaged."""
        record = self._read(artifact)
        if record is None:
            return None
        return self.fitting(record, artifact, self._folder(artifact), "it is removed", BUCKET)

    def _folder(self, artifact: Artifact) -> str:
        return f"{without_secrets(self.url)}/{artifact.path}"

    def _read(self, artifact: Artifact) -> Record | None:
        """Record in the bucket, of any spec; None if there is none."""
        self.look([artifact])
        text = self._seen[artifact.path]
        again = f"remove {self._folder(artifact)} to rebuild it"
        return None if text is None else parsed_record(text, f"{self._folder(artifact)}/{RECORD}", again)

    def _fetch(self, artifact: Artifact, place: Path, files: Mapping[str, WrittenFile]) -> None:
        """Fetches these files into `place` and checks them against the record. Raises Damaged."""
        outside = [name for name in files if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
        if outside:
            raise Damaged(
                f"{self._folder(artifact)}: its record names {outside[0]!r}, outside of the folder; remove it there"
            )
        wanted = [name for name, entry in files.items() if damage(place, {name: entry}, deep=True)]
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, suffix=".part") as part:
            for name in wanted:
                self._fetch_file(artifact, Path(part), name, files[name])
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(part) / name, place / name)

    def _fetch_file(self, artifact: Artifact, place: Path, name: str, entry: WrittenFile) -> None:
        """Fetches one file into `place` and checks it against its `entry` in the record. Raises Damaged."""
        fs, root = self._bucket
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._naming_errors():
                fs.get_file(f"{root}/{artifact.path}/{name}", str(place / name))
            fault = damage(place, {name: entry}, deep=True)
        except FileNotFoundError:
            fault = f"{name} is missing"
        if fault:
            fault = fault.replace(str(place), "").lstrip("/")
            raise Damaged(f"{self._folder(artifact)}: {fault}; remove it there to rebuild it")

    def _send(self, artifact: Artifact, record: Record) -> None:
        """Sends files first and the record last, so that a half-sent artifact does not count."""
        fs, root = self._bucket
        folder, target = self.folder(artifact), f"{root}/{artifact.path}"
        if "files" not in record:
            raise StagealignError(
                f"{folder}: its old record lists no files to check; rebuild it after {remove(folder)}"
            )
        text = (folder / RECORD).read_bytes()
        with self._naming_errors():
            for name in record["files"]:
                fs.put_file(str(folder / name), f"{target}/{name}")
            fs.pipe_file(f"{target}/{RECORD}", text)
        self._seen[artifact.path] = text
