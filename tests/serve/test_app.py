"""The routes of the real service."""

from __future__ import annotations

import concurrent.futures
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eao.embedder import Embedder
from eao.retrieval.index import Index

from .http_service import Library, Site


def test_health_says_what_is_served(site: Site, local: Embedder) -> None:
    answer = site.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ok",
        "clips": 6,
        "files": 4,
        "encoders": list(local.encoders),
        "model": local.model_hash,
    }


def test_facets_are_those_of_the_index(site: Site) -> None:
    facets = site.get("/facets").json()
    assert facets["folders"] == ["", "quiet"] and facets["has_audio"] and facets["uploads"] == 3_000_000
    assert facets["encoders"] == ["video-audio", "video", "audio"]


def test_a_search_gives_what_the_index_gives(site: Site, library: Library) -> None:
    expected = Index(library.index, library.bundle).search("red dog", k=3)
    answer = site.get("/search", params={"q": "red dog", "k": 3}).json()
    assert [hit["name"] for hit in answer["hits"]] == [Path(hit.file).name for hit in expected]
    # The batch may round differently.
    np.testing.assert_allclose([h["score"] for h in answer["hits"]], [h.score for h in expected], atol=1e-6)
    assert [hit["start"] for hit in answer["hits"]] == [hit.start for hit in expected]
    assert answer["query"] == {
        "q": "red dog", "like": "", "file": "", "k": 3, "encoder": "text", "weights": {"video-audio": 1.0},
    }  # fmt: skip
    assert answer["milliseconds"] > 0


def test_no_answer_tells_where_files_lie(site: Site, library: Library) -> None:
    for path in ("/search?q=red&explain=true", "/facets", "/health", "/search?q=zzz", "/videos/x", "/openapi.json"):
        assert str(library.clips.parent) not in site.get(path).text


def test_what_is_seen_is_weighed_against_what_is_heard(site: Site, library: Library) -> None:
    index = Index(library.index, library.bundle)
    for seen, weights in ((1, {"video": 1.0}), (0, {"audio": 1.0}), (0.25, {"video": 0.25, "audio": 0.75})):
        answer = site.get("/search", params={"q": "blue", "seen": seen}).json()
        expected = index.search("blue", weights=weights)
        assert answer["query"]["weights"] == weights
        assert [hit["name"] for hit in answer["hits"]] == [Path(hit.file).name for hit in expected]


def test_more_like_a_clip_leaves_out_its_own_file(site: Site) -> None:
    first = site.get("/search", params={"q": "red", "k": 1}).json()["hits"][0]
    answer = site.get("/search", params={"like": first["clip"]}).json()
    assert len(answer["hits"]) == 3 and first["id"] not in {hit["id"] for hit in answer["hits"]}
    assert answer["query"]["encoder"] == "video-audio"


def test_searches_are_narrowed(site: Site) -> None:
    def names(**fields: object) -> set[str]:
        return {hit["name"] for hit in site.get("/search", params={"q": "red", **fields}).json()["hits"]}

    assert names(folder="quiet") == {"blue.mp4"}
    assert names(min_duration=4) == {"long.mp4"}
    assert names(max_duration=1.3) == {"blue.mp4"}
    assert names(after="2200-01-01") == set() and len(names(before="2200-01-01T10:00:00Z")) == 4


def test_hits_are_explained(site: Site) -> None:
    hit = site.get("/search", params={"q": "red", "explain": "true"}).json()["hits"][0]
    assert hit["explanation"]["strongest"] in hit["explanation"]["matches"]
    assert site.get("/search", params={"q": "red"}).json()["hits"][0]["explanation"] is None


def test_a_container_that_browsers_do_not_play_is_told(site: Site) -> None:
    hits = site.get("/search", params={"q": "red"}).json()["hits"]
    assert {hit["name"]: hit["playable"] for hit in hits}["it's <odd>.mkv"] is False
    assert sum(hit["playable"] for hit in hits) == 3


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 400),
        ({"q": ""}, 400),
        ({"q": "zzz unknown"}, 400),
        ({"q": "!?"}, 400),
        ({"q": "red", "like": "x"}, 400),
        ({"q": "red", "folder": "../.."}, 400),
        ({"q": "red", "min_duration": 5, "max_duration": 1}, 400),
        ({"q": "red", "after": "2020-01-02", "before": "2020-01-01"}, 400),
        ({"like": "x"}, 404),
        ({"like": "../../etc/passwd~0,1"}, 404),
        ({"q": "red", "k": 0}, 422),
        ({"q": "red", "k": 101}, 422),
        ({"q": "red", "seen": 1.5}, 422),
        ({"q": "red", "seen": "nan"}, 422),
        ({"q": "red", "after": "0001-01-01"}, 422),
        ({"q": "red", "after": "99999999999999"}, 422),
        ({"q": "x" * 1001}, 422),
        ({"q": "red", "max_duration": "inf"}, 422),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(site: Site, fields: dict[str, object], status: int) -> None:
    answer = site.get("/search", params=fields)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_fields_that_a_form_leaves_empty_are_not_there(site: Site) -> None:
    assert site.get("/search?q=red&seen=&folder=&after=&k=").status_code == 200


def test_a_video_is_searched_with(site: Site, library: Library, local: Embedder) -> None:
    path = library.clips / "red.mp4"
    expected = Index(library.index, local).search(video=path, audio=path)
    answer = site.post("/search", files={"file": ("mine.mp4", path.read_bytes())}, data={"k": "2"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["query"]["file"] == "mine.mp4" and answer.json()["query"]["encoder"] == "video-audio"
    hits = answer.json()["hits"]
    # The same bytes are in the index twice, as mp4 and as mkv.
    assert {hit["name"] for hit in hits} == {"red.mp4", "it's <odd>.mkv"} and hits[0]["score"] > 0.999
    assert hits[0]["score"] == pytest.approx(expected[0].score, abs=1e-5)


def test_a_video_is_searched_with_together_with_words(site: Site, library: Library) -> None:
    files = {"file": ("mine.mp4", (library.clips / "quiet" / "blue.mp4").read_bytes())}
    answer = site.post("/search", files=files, data={"q": "red", "seen": "1", "folder": "quiet"}).json()
    assert answer["query"]["encoder"] == "text-video" and [hit["name"] for hit in answer["hits"]] == ["blue.mp4"]


def test_a_sound_is_searched_with(site: Site, sound: Path) -> None:
    answer = site.post("/search", files={"file": ("tone.wav", sound.read_bytes(), "audio/wav")})
    assert answer.status_code == 200, answer.text
    assert answer.json()["query"]["encoder"] == "audio" and answer.json()["query"]["weights"] == {"audio": 1.0}
    assert len(answer.json()["hits"]) == 3  # one file has no sound


def test_sentences_are_embedded(site: Site, local: Embedder) -> None:
    texts = ["red dog", "blue cat", "dog"]
    answer = site.post("/embed", json={"text": texts}).json()
    assert answer["encoder"] == "text" and answer["model"] == local.model_hash
    np.testing.assert_allclose(answer["embeddings"], local.embed(text=texts), atol=1e-6)


@pytest.mark.parametrize("fields", [("video",), ("audio",), ("video", "audio"), ("text", "video", "audio")])
def test_files_are_embedded(site: Site, local: Embedder, library: Library, fields: tuple[str, ...]) -> None:
    path = library.clips / "red.mp4"
    files = {name: ("clip.mp4", path.read_bytes()) for name in fields if name != "text"}
    words = {"text": "red dog"} if "text" in fields else {}
    answer = site.post("/embed", files=files, data=words)
    assert answer.status_code == 200, answer.text
    assert answer.json()["encoder"] == "-".join(fields)
    expected = local.embed(**{name: words.get(name, path) for name in fields})  # type: ignore[arg-type]
    np.testing.assert_allclose(answer.json()["embeddings"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"json": {}}, 422),
        ({"json": {"text": []}}, 422),
        ({"json": {"text": ["x"] * 65}}, 422),
        ({"json": {"text": ["x" * 1001]}}, 422),
        ({"json": {"text": "red"}}, 422),
        ({"json": {"text": ["red", "zzz"]}}, 400),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 422),
        ({"content": b"\xff\xfe", "headers": {"Content-Type": "application/json"}}, 422),
        ({"content": b"red", "headers": {"Content-Type": "text/plain"}}, 415),
        ({}, 415),
        ({"files": {"other": ("x", b"x")}}, 400),
        ({"content": b"nonsense", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400),
        ({"content": b"nonsense", "headers": {"Content-Type": "multipart/form-data"}}, 400),
        ({"content": b"x" * (2**20 + 1), "headers": {"Content-Type": "application/json"}}, 413),
    ],
)
def test_what_cannot_be_embedded_is_refused(site: Site, request_: dict, status: int) -> None:
    answer = site.post("/embed", **request_)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_malformed_media_are_refused_under_the_name_they_came_with(site: Site, library: Library) -> None:
    whole = (library.clips / "red.mp4").read_bytes()
    broken = {
        "empty.mp4": b"",
        "noise.mp4": np.random.default_rng(0).bytes(50_000),
        "cut.mp4": whole[: len(whole) // 2],
        "text.mp4": b"#EXTM3U\nfile:///etc/passwd\n",
        "../../etc/cron.d/x.mp4": b"nothing",
    }
    for name, content in broken.items():
        for answer in (
            site.post("/search", files={"file": (name, content)}),
            site.post("/embed", files={"video": (name, content)}),
        ):
            assert answer.status_code == 400, (name, answer.text)
            message = answer.json()["error"]["message"]
            assert name.rpartition("/")[2] in message and "/tmp" not in message and "eao-uploads" not in message
    assert site.get("/health").status_code == 200


def test_a_file_beyond_the_limit_is_refused(site: Site) -> None:
    answer = site.post("/search", files={"file": ("large.mp4", b"x" * 3_500_000)})
    assert answer.status_code == 413 and "3,000,000" in answer.json()["error"]["message"]


def test_a_decoder_that_is_killed_is_replaced(site: Site, library: Library) -> None:
    # What makes a decoder crash makes one request fail; here files follow each other that end it by their size.
    for _ in range(2):
        assert site.post("/search", files={"file": ("x.mp4", b"\0" * 1000)}).status_code == 400
    files = {"file": ("x.mp4", (library.clips / "red.mp4").read_bytes())}
    assert site.post("/search", files=files).status_code == 200


def test_concurrent_searches_share_batches(site: Site) -> None:
    def embedded() -> np.ndarray:
        return np.array([site.metric(f'eao_batch_size_{name}{{encoder="text"') for name in ("sum", "count")])

    before = embedded()
    # On a machine that has much else to do, a round of them may come one by one.
    for searches in range(64, 64 * 20, 64):
        with concurrent.futures.ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(lambda i: site.get("/search", params={"q": f"red dog {i}"}), range(64)))
        assert {answer.status_code for answer in answers} == {200}
        rows, batches = embedded() - before
        assert rows == searches
        if batches < 0.75 * rows:
            return
    raise AssertionError(f"{rows:.0f} searches made {batches:.0f} batches")


def test_metrics_count_requests_by_route(site: Site) -> None:
    name = 'eao_requests_total{method="GET",route="/facets",status="200"'
    site.get("/facets")
    before = site.metric(name)
    site.get("/facets")
    assert site.metric(name) == before + 1
    text = site.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    for known in ("eao_request_seconds_bucket", "eao_queue_depth", "eao_in_flight", "process_resident_memory_bytes"):
        assert known in text.text


def test_unknown_paths_are_one_route_in_the_metrics(site: Site) -> None:
    for path in ("/nothing", "/search/x", "/videos"):
        answer = site.get(path)
        assert answer.status_code == 404 and answer.json()["error"]["message"]
    assert "/nothing" not in site.get("/metrics").text


def test_other_methods_are_refused(site: Site) -> None:
    answer = site.client.put("/search")
    assert answer.status_code == 405 and answer.json()["error"]["message"]


def test_each_request_is_one_line_in_the_log(site: Site) -> None:
    secret = "Bearer not-to-be-seen"
    site.get("/search", params={"q": "red " + "x" * 200}, headers={"X-Request-ID": "mine-1", "Authorization": secret})
    (line,) = site.wait_for_lines(1, id="mine-1")
    assert (line["event"], line["route"], line["method"], line["status"]) == ("request", "/search", "GET", 200)
    assert line["ms"] > 0 and len(line["q"]) == 64
    assert "not-to-be-seen" not in site.log.read_text()


def test_the_page_is_there_and_may_load_nothing_from_elsewhere(site: Site) -> None:
    answer = site.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    script = site.get("/app.js")
    assert script.status_code == 200 and script.headers["content-type"].startswith("text/javascript")


def test_an_index_that_changes_while_it_is_served_is_seen(
    start: Callable[..., Site], library: Library, bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(library.clips, tmp_path / "clips")
    Index(tmp_path / "index", bundle).add(tmp_path / "clips" / "red.mp4")
    own = start(of=Library(tmp_path / "index", bundle, tmp_path / "clips"))
    assert own.get("/health").json()["files"] == 1
    Index(tmp_path / "index", bundle).add(tmp_path / "clips")  # a process of its own does the same
    answer = own.get("/search", params={"q": "red"}).json()
    assert len(answer["hits"]) == 4
    assert all(own.get(hit["url"]).status_code == 200 for hit in answer["hits"])
    Index(tmp_path / "index", bundle).remove([str(tmp_path / "clips" / "red.mp4")])
    hits = own.get("/search", params={"q": "red"}).json()["hits"]
    assert len(hits) == 3 and "red.mp4" not in json.dumps(hits)
