"""The index on disk: used when it holds, made again when it doesn't."""

from pathlib import Path

import pytest

from data_prep.lidc.index import build_index, lidc_index
from data_prep.lidc.index_cache import (
    IndexCacheWarning,
    cache_file,
    cached_index,
    database_digest,
    keep_index,
)
from data_prep.lidc.records import LidcIndex

DIGEST = "ab" * 32


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("data_prep.lidc.index_cache.user_cache_path", lambda name: tmp_path / name)
    return cache_file()


@pytest.fixture(scope="module")
def small(index) -> LidcIndex:
    """Return six scans, one of them ambiguous."""
    return LidcIndex((*index.scans[:5], index.ambiguous_scans[0].scan))


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch, small):
    """Count how often the index is made, and make it small."""
    calls = []

    def build() -> LidcIndex:
        calls.append(1)
        return small

    monkeypatch.setattr("data_prep.lidc.index.build_index", build)
    return calls


def test_the_same_comes_back(cache, small):
    keep_index(small, DIGEST)
    assert cached_index(DIGEST) == small
    assert cache.name == "lidc_index.json"
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_made_once(cache, builder, small):
    assert lidc_index() == lidc_index() == small
    assert len(builder) == 1
    assert cache.is_file()


def test_the_whole_archive_survives(cache, index):
    keep_index(index, DIGEST)
    assert cached_index(DIGEST) == index


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data.replace(b'"malignancy":3', b'"malignancy":4', 1),
        lambda data: data.replace(b'"schema": 1', b'"schema": 0', 1),
        lambda data: b"\x80\x04not a cache\n",
        lambda data: data.replace(b"\n", b" ", 1),
    ],
)
def test_a_damaged_file_is_made_again(cache, builder, small, damage):
    lidc_index()
    whole = cache.read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    cache.write_bytes(damaged)
    assert lidc_index() == small
    assert len(builder) == 2
    assert cache.read_bytes() == whole


def test_another_database(cache, small):
    keep_index(small, DIGEST)
    assert cached_index("cd" * 32) is None


def test_an_absurdly_large_file_is_not_read(cache, small):
    keep_index(small, DIGEST)
    with cache.open("r+b") as file:
        file.truncate(2**30)  # sparse: takes no space
    assert cached_index(DIGEST) is None


def test_a_folder_that_cannot_be_written(cache, builder, small):
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_bytes(b"a file where the folder should be")
    with pytest.warns(IndexCacheWarning, match="can't be kept in .* made again each time"):
        assert lidc_index() == small


def test_digest_follows_the_content(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert database_digest(path) == expected


def test_some_scans_only(index):
    some = [index.scans[7], index.scans[3]]
    built = build_index([scan.series_uid for scan in some] + ["1.2.3"])
    assert built.scans == (index.scans[3], index.scans[7])
