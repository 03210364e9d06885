"""The index on disk: used when it holds, made again when it doesn't."""

from pathlib import Path

import pytest

from data_prep.lidc.index import IndexCacheWarning, LidcIndex, build_index, lidc_index


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("data_prep.lidc.index.user_cache_path", lambda name: tmp_path / name)
    return tmp_path / "cdam-med" / "lidc_index.json"


@pytest.fixture(scope="module")
def small(index) -> LidcIndex:
    """Return six scans, one of them ambiguous."""
    ambiguous = next(scan for scan in index.scans if scan.is_ambiguous)
    return LidcIndex((*index.scans[:5], ambiguous))


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch, small):
    """Count how often the index is made, and make it small."""
    calls = []

    def build() -> LidcIndex:
        calls.append(1)
        return small

    monkeypatch.setattr("data_prep.lidc.index.build_index", build)
    return calls


def test_made_once(cache, builder, small):
    assert lidc_index() == lidc_index() == small
    assert len(builder) == 1
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data.replace(b'"malignancy":3', b'"malignancy":4', 1),
        lambda data: data.replace(b'"schema": 2', b'"schema": 0', 1),
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


def test_another_database(cache, builder, small, tmp_path, monkeypatch):
    lidc_index()
    (tmp_path / "other.sqlite").write_bytes(b"abc")
    monkeypatch.setattr("data_prep.lidc.index.database_path", lambda: tmp_path / "other.sqlite")
    lidc_index()
    assert len(builder) == 2
    # FIPS 180-2, appendix B.1
    expected = b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert expected in cache.read_bytes()


def test_a_folder_that_cannot_be_written(cache, builder, small):
    cache.parent.write_bytes(b"a file where the folder should be")
    with pytest.warns(IndexCacheWarning, match="can't be kept in .* made again each time"):
        assert lidc_index() == small


def test_some_scans_only(index):
    """Made anew they are the same as read from the cache, ints and floats alike."""
    some = [index.scans[7], index.scans[3]]
    built = build_index([scan.series_uid for scan in some] + ["1.2.3"])
    assert built.scans == (index.scans[3], index.scans[7])
    assert repr(built.scans[0].nodules) == repr(index.scans[3].nodules)
