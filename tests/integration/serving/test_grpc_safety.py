"""What the gRPC server refuses: callers without rights, messages that are too much, ports and files that do not do."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from toy_embedder import ToyEmbedder
from toy_llm import ToyLLM

from qwenstack.core.errors import ConfigError
from qwenstack.serving import ServeConfig, create_app, open_socket
from qwenstack.serving.grpc.health import MAX_WATCHERS
from qwenstack.serving.grpc.method import read_methods, takes
from qwenstack.serving.grpc.v1 import generation_pb2 as pb
from qwenstack.serving.grpc.v1.embeddings_pb2 import EmbedRequest
from qwenstack.serving.grpc.v1.generation_pb2_grpc import GenerationServiceStub
from qwenstack.serving.grpc.v1.messages_pb2 import ROLE_USER, Message
from qwenstack.serving.grpc.v1.models_pb2 import ListModelsRequest
from qwenstack.serving.grpc.v1.models_pb2_grpc import ModelServiceStub
from qwenstack.serving.grpc.v1.tokens_pb2 import DetokenizeRequest, TokenizeRequest
from qwenstack.serving.identity import Access
from qwenstack.storage import ApiKeys, AuditLog, Database, open_database

Serve = Callable[..., contextlib.AbstractContextManager[tuple[str, str]]]
HELLO = pb.GenerateRequest(messages=[Message(role=ROLE_USER, content="my secret wish")], max_tokens=5)
OK, UNAUTHENTICATED, DENIED = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'q.db'}")


@pytest.fixture
def texts(database: Database) -> dict[str, str]:
    """A key of each kind."""
    keys = ApiKeys(database)
    revoked = keys.create(name="revoked", tenant="ours", actor="me")
    keys.revoke(revoked.key.id, actor="me")
    return {
        "user": keys.create(name="user", tenant="ours", actor="me").text,
        "other tenant": keys.create(name="user", tenant="theirs", actor="me").text,
        "watcher": keys.create(name="watcher", tenant="ours", actor="me", scopes=["metrics"]).text,
        "other model": keys.create(name="narrow", tenant="ours", actor="me", models=["another"]).text,
        "revoked": revoked.text,
        "expired": ApiKeys(database, clock=lambda: 1.0).create(name="e", tenant="t", actor="me", lifetime_s=1).text,
        "nobody": "",
    }


@pytest.fixture
def address(serve_both: Serve, database: Database, texts: dict[str, str]) -> Iterator[str]:
    with serve_both(database, ToyEmbedder(), body_timeout_s=1.0) as (_, address):
        yield address


@pytest.fixture
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as channel:
        yield channel


def with_key(text: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {text}")] if text else []


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    """Make a call, and say how it ended."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined]
    return OK


def first_of(method: grpc.StreamStreamMultiCallable, message: bytes, metadata: list[tuple[str, str]]) -> bytes:
    call = method(iter([message]), metadata=metadata)
    try:
        return next(iter(call))
    finally:
        call.cancel()


MESSAGES = {
    "/qwenstack.v1.GenerationService/Generate": HELLO,
    "/qwenstack.v1.GenerationService/StreamGenerate": HELLO,
    "/qwenstack.v1.EmbeddingService/Embed": EmbedRequest(input=["a"]),
    "/qwenstack.v1.ModelService/ListModels": ListModelsRequest(),
    "/qwenstack.v1.TokenService/Tokenize": TokenizeRequest(prompt="x"),
    "/qwenstack.v1.TokenService/Detokenize": DetokenizeRequest(tokens=[1]),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": health_pb2.HealthCheckRequest(),
    "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest(),
    "/grpc.health.v1.Health/List": health_pb2.HealthListRequest(),
    "/grpc.health.v1.Health/Watch": health_pb2.HealthCheckRequest(),
}
"""A message that each method takes."""
WITHOUT_MODEL = {
    "/qwenstack.v1.ModelService/ListModels",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}


def expected(path: str, caller: str) -> grpc.StatusCode:
    if path.startswith("/grpc.health.") or caller in {"user", "other tenant"}:
        return OK
    if caller == "other model" and path in WITHOUT_MODEL:
        return OK
    return DENIED if caller in {"watcher", "other model"} else UNAUTHENTICATED


def test_sec_12_every_method_answers_each_kind_of_caller_as_expected(
    channel: grpc.Channel, texts: dict[str, str], llm: ToyLLM
) -> None:
    methods = create_app(llm, ServeConfig(grpc_port=0)).state.grpc._gate._methods
    assert set(MESSAGES) == set(methods)
    for path, message in MESSAGES.items():
        call = channel.stream_stream(path)
        for caller, text in texts.items():
            code = code_of(lambda: first_of(call, message.SerializeToString(), with_key(text)))  # noqa: B023
            assert code == expected(path, caller), (path, caller)


def test_sec_12_what_does_not_exist_is_told_to_key_holders_alone(channel: grpc.Channel, texts: dict[str, str]) -> None:
    for path in ("/a.b/C", "/qwenstack.v1.GenerationService/Nothing", "/", "/grpc.reflection.v1.ServerReflection/X"):
        call = channel.stream_stream(path)
        assert code_of(lambda: first_of(call, b"x", [])) == UNAUTHENTICATED  # noqa: B023
        code = code_of(lambda: first_of(call, b"x", with_key(texts["user"])))  # noqa: B023
        assert code == grpc.StatusCode.UNIMPLEMENTED


def test_sec_12_a_key_is_shown_in_one_way_once(channel: grpc.Channel, texts: dict[str, str]) -> None:
    models = ModelServiceStub(channel)
    right, wrong = texts["user"], texts["revoked"]
    for metadata, code in (
        ([("authorization", f"bearer  {right} ")], OK),
        ([("x-api-key", right)], OK),
        ([("authorization", right)], UNAUTHENTICATED),
        ([("authorization", f"Bearer {wrong}"), ("x-api-key", right)], UNAUTHENTICATED),
        (
            [("authorization", f"Bearer {right}"), ("authorization", f"Bearer {wrong}")],
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        ([("authorization-bin", right.encode())], UNAUTHENTICATED),
    ):
        assert code_of(lambda: models.ListModels(ListModelsRequest(), metadata=metadata)) == code, metadata  # noqa: B023


def test_sec_12_who_cannot_be_checked_is_a_stranger_and_learns_nothing(
    serve_both: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret address of the keys")

    with serve_both(api_keys=("sk-right-key",)) as (_, address), grpc.insecure_channel(address) as channel:
        monkeypatch.setattr("qwenstack.serving.identity.KeyRing.identify", fail)
        call = GenerationServiceStub(channel).Generate.future(HELLO, metadata=with_key("sk-right-key"))
        assert call.code() == UNAUTHENTICATED
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
    assert "secret" not in f"{call.details()}{caplog.text}"


def test_sec_12_each_call_has_its_tenant_and_a_key_sees_its_models(
    channel: grpc.Channel, texts: dict[str, str], llm: ToyLLM
) -> None:
    for caller, tenant in (("user", "ours"), ("other tenant", "theirs")):
        GenerationServiceStub(channel).Generate(HELLO, metadata=with_key(texts[caller]))
        assert llm.options[-1].tenant == tenant
    models = ModelServiceStub(channel)
    assert list(models.ListModels(ListModelsRequest(), metadata=with_key(texts["other model"])).models) == []


class Undeclared:
    descriptor = pb.DESCRIPTOR.services_by_name["GenerationService"]

    @takes(Access.INFERENCE)
    async def generate(self, request: pb.GenerateRequest, call: object) -> pb.GenerateResponse:
        return pb.GenerateResponse()

    async def stream_generate(self, request: pb.GenerateRequest, call: object) -> pb.GenerateResponse:
        return pb.GenerateResponse()


class Missing(Undeclared):
    stream_generate = None


@pytest.mark.parametrize("service", [Undeclared(), Missing()])
def test_sec_12_a_method_that_declares_nothing_keeps_the_server_from_starting(service: Any) -> None:
    with pytest.raises(ConfigError, match="StreamGenerate"):
        read_methods([service])


def test_calls_are_in_the_audit_log_without_what_users_wrote(
    serve_both: Serve, database: Database, texts: dict[str, str]
) -> None:
    with serve_both(database) as (_, address), grpc.insecure_channel(address) as channel:
        generation = GenerationServiceStub(channel)
        _, call = generation.Generate.with_call(HELLO, metadata=with_key(texts["user"]))
        assert code_of(lambda: generation.Generate(HELLO)) == UNAUTHENTICATED
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    log = AuditLog(database)
    records = [entry.record for entry in log.newest()]
    (answered,) = (record for record in records if record.subject.startswith("gRPC"))
    (refused,) = (record for record in records if record.actor == "-")  # strangers' are one entry a minute
    assert refused.details["by_status"] == {"UNAUTHENTICATED": 1}
    assert (answered.subject, answered.outcome) == ("gRPC /qwenstack.v1.GenerationService/Generate", "OK")
    assert answered.actor == texts["user"].removeprefix("qs-").partition(".")[0]
    assert answered.details["request_id"] == dict(call.trailing_metadata())["x-request-id"]
    assert answered.details["tenant"] == "ours"
    assert database.path is not None
    stored = b"".join(path.read_bytes() for path in database.path.parent.iterdir() if path.is_file())
    assert b"secret wish" not in stored
    assert log.verify().broken_at is None


def test_sec_22_messages_and_metadata_are_bounded(serve_both: Serve) -> None:
    with serve_both(max_body_bytes=10_000) as (_, address), grpc.insecure_channel(address) as channel:
        generation = GenerationServiceStub(channel)
        assert code_of(lambda: generation.Generate(pb.GenerateRequest(prompt="x" * 300))) == OK
        too_long = pb.GenerateRequest(prompt="x" * 10_001)
        assert code_of(lambda: generation.Generate(too_long)) == grpc.StatusCode.RESOURCE_EXHAUSTED
        metadata = [("x-a", "a" * 20_000)]
        code = code_of(lambda: generation.Generate(pb.GenerateRequest(prompt="x"), metadata=metadata))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_sec_22_a_compressed_message_is_not_unfolded(serve_both: Serve, compression: grpc.Compression) -> None:
    with serve_both() as (_, address), grpc.insecure_channel(address, compression=compression) as channel:
        generation = GenerationServiceStub(channel)
        bomb = pb.GenerateRequest(prompt="x" * 20_000_000)
        assert code_of(lambda: generation.Generate(bomb)) == grpc.StatusCode.UNIMPLEMENTED


def test_sec_22_a_message_that_does_not_come_is_not_waited_for(channel: grpc.Channel, texts: dict[str, str]) -> None:
    is_over = threading.Event()

    def never() -> Iterator[bytes]:
        is_over.wait(60)
        yield from ()

    method = channel.stream_unary("/qwenstack.v1.GenerationService/Generate")
    code = code_of(lambda: method(never(), metadata=with_key(texts["user"])))
    is_over.set()
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED


def silent_check(channel: grpc.Channel, is_over: threading.Event) -> Any:
    """Begin a call without a key whose message does not come."""

    def never() -> Iterator[bytes]:
        is_over.wait(60)
        yield from ()

    return channel.stream_unary("/grpc.health.v1.Health/Check").future(never())


def test_sec_22_the_message_of_a_call_without_a_key_comes_at_once(serve_both: Serve) -> None:
    is_over = threading.Event()
    with serve_both(body_timeout_s=50.0) as (_, address), grpc.insecure_channel(address) as channel:
        call = silent_check(channel, is_over)
        code = code_of(lambda: call.result(timeout=20))
        is_over.set()
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED


def test_sec_22_calls_without_a_key_cannot_take_all_places(serve_both: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenstack.serving.grpc.places.MAX_CALLS_OF_ONE", 3)
    monkeypatch.setattr("qwenstack.serving.grpc.gate.PUBLIC_MESSAGE_TIMEOUT_S", 60.0)
    monkeypatch.setattr("qwenstack.serving.grpc.server.MAX_CALLS", 5)
    is_over = threading.Event()
    with serve_both(body_timeout_s=50.0) as (_, address), grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        silent = [silent_check(channel, is_over) for _ in range(10)]
        wait_until = time.monotonic() + 20
        while code_of(lambda: health.Check(health_pb2.HealthCheckRequest())) == OK:
            assert time.monotonic() < wait_until
        assert code_of(lambda: health.Check(health_pb2.HealthCheckRequest())) == grpc.StatusCode.UNAVAILABLE
        assert code_of(lambda: GenerationServiceStub(channel).Generate(HELLO)) == OK
        is_over.set()
        for call in silent:
            call.cancel()
        while code_of(lambda: health.Check(health_pb2.HealthCheckRequest())) != OK:
            assert time.monotonic() < wait_until


REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def open_reflection(channel: grpc.Channel, text: str, is_over: threading.Event) -> Any:
    """Begin a call that asks one thing and stays open."""

    def ask_once() -> Iterator[bytes]:
        yield b""
        is_over.wait(60)

    return channel.stream_stream(REFLECTION)(ask_once(), metadata=with_key(text))


def tokenize(channel: grpc.Channel, text: str, metadata: list[tuple[str, str]]) -> Any:
    """Begin a call whose only message is read when the test says so."""
    method = channel.unary_stream(
        "/qwenstack.v1.TokenService/Tokenize", request_serializer=TokenizeRequest.SerializeToString
    )
    return method(TokenizeRequest(prompt=text), metadata=metadata)


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sec_22_a_caller_who_falls_silent_is_not_waited_for(channel: grpc.Channel, texts: dict[str, str]) -> None:
    is_over = threading.Event()
    call = open_reflection(channel, texts["user"], is_over)
    answers: list[bytes] = []
    code = code_of(lambda: answers.extend(call))
    is_over.set()
    assert (len(answers), code) == (1, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert "did not come within 1 s" in call.details()


def test_who_watches_the_health_has_nothing_more_to_say(serve_both: Serve, llm: ToyLLM) -> None:
    with serve_both(body_timeout_s=0.1) as (_, address), grpc.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        time.sleep(0.5)
        llm.is_ready = False
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


def test_sec_22_one_tenant_cannot_take_all_places(
    serve_both: Serve, database: Database, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenstack.serving.grpc.places.MAX_CALLS_OF_ONE", 3)
    monkeypatch.setattr("qwenstack.serving.grpc.server.MAX_CALLS", 5)
    is_over = threading.Event()
    with serve_both(database) as (_, address), grpc.insecure_channel(address) as channel:
        generation, health = GenerationServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        own, other = with_key(texts["user"]), with_key(texts["other tenant"])
        held = [open_reflection(channel, texts["user"], is_over) for _ in range(3)]
        assert all(next(call) for call in held)
        refused = generation.Generate.future(HELLO, metadata=own)
        assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "3 of your calls are open" in refused.details()
        assert dict(refused.trailing_metadata())["retry-after"] == "1"
        assert code_of(lambda: generation.Generate(HELLO, metadata=other)) == OK
        assert code_of(lambda: health.Check(health_pb2.HealthCheckRequest())) == OK
        is_over.set()
        assert all(code_of(lambda: list(call)) == OK for call in held)  # noqa: B023
        wait_for(lambda: code_of(lambda: generation.Generate(HELLO, metadata=own)) == OK)


def test_sec_22_an_answer_that_nobody_reads_ends_and_takes_no_place_of_others(
    serve_both: Serve,
    database: Database,
    texts: dict[str, str],
    llm: ToyLLM,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("qwenstack.serving.grpc.places.MAX_CALLS_OF_ONE", 2)
    monkeypatch.setattr("qwenstack.serving.grpc.server.MAX_CALLS", 3)
    llm.endless, llm.card = True, replace(llm.card, max_model_len=1 << 20)
    small = [("grpc.http2.lookahead_bytes", 65_535), ("grpc.http2.bdp_probe", 0)]  # of a stream until it is read
    with serve_both(database, send_timeout_s=0.3) as (_, address), grpc.insecure_channel(address, small) as channel:
        generation = GenerationServiceStub(channel)
        own, other = with_key(texts["user"]), with_key(texts["other tenant"])
        endless = pb.GenerateRequest(prompt="x", max_tokens=900_000)
        stream = generation.StreamGenerate(endless, metadata=own)
        assert next(stream).choices
        tokens = tokenize(channel, "x" * 200_000, own)
        wait_for(lambda: llm.num_open == 0)
        llm.endless = False
        until = time.monotonic() + 1
        while time.monotonic() < until:  # their ends wait behind what is not read, so that they are still open
            assert code_of(lambda: generation.Generate(HELLO, metadata=own)) == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert code_of(lambda: generation.Generate(HELLO, metadata=other)) == OK
        for call in (stream, tokens):
            assert code_of(lambda: list(call)) == grpc.StatusCode.DEADLINE_EXCEEDED  # noqa: B023
            assert "was not read within 0." in call.details()
        wait_for(lambda: code_of(lambda: generation.Generate(HELLO, metadata=own)) == OK)
        tokens = tokenize(channel, "x" * 200_000, own)
        time.sleep(1)
        tokens.cancel()  # behind its end, which it does not read either
    assert caplog.records == []


def test_sec_22_watchers_of_the_health_cannot_take_all_places(channel: grpc.Channel, texts: dict[str, str]) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(MAX_WATCHERS)]
    assert all(next(watch).status == health_pb2.HealthCheckResponse.SERVING for watch in watches)
    assert code_of(lambda: next(health.Watch(health_pb2.HealthCheckRequest()))) == grpc.StatusCode.UNAVAILABLE
    assert code_of(lambda: health.Check(health_pb2.HealthCheckRequest())) == OK
    for watch in watches:
        watch.cancel()


def test_sec_22_calls_beyond_the_servers_number_are_refused_at_once(
    serve_both: Serve, llm: ToyLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenstack.serving.grpc.server.MAX_CALLS", 4)
    llm.endless, llm.step_s = True, 0.01
    with serve_both() as (_, address), grpc.insecure_channel(address) as channel:
        generation = GenerationServiceStub(channel)
        endless = pb.GenerateRequest(prompt="x", max_tokens=500)
        streams = [generation.StreamGenerate(endless) for _ in range(4)]
        assert all(next(stream).choices for stream in streams)
        assert code_of(lambda: generation.Generate(HELLO)) == grpc.StatusCode.RESOURCE_EXHAUSTED
        for stream in streams:
            stream.cancel()
        wait_until_ok = time.monotonic() + 20
        llm.endless = False
        while code_of(lambda: generation.Generate(HELLO)) != OK:
            assert time.monotonic() < wait_until_ok


def test_open_calls_end_when_the_server_stops(serve_both: Serve, llm: ToyLLM) -> None:
    llm.endless, llm.step_s = True, 0.01
    server = contextlib.ExitStack()
    url, address = server.enter_context(serve_both())
    with grpc.insecure_channel(address) as channel, server:
        stream = GenerationServiceStub(channel).StreamGenerate(pb.GenerateRequest(prompt="x", max_tokens=500))
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        next(stream)
        next(watch)
        assert httpx.get(f"{url}/livez").status_code == 200
        server.close()
        for call in (stream, watch):
            assert code_of(lambda: list(call)) == grpc.StatusCode.UNAVAILABLE  # noqa: B023
            assert "shutting down" in call.details()
    assert llm.num_open == 0


def test_a_taken_port_is_named_with_the_flag() -> None:
    with contextlib.closing(open_socket(ServeConfig(port=0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port}.*--grpc-port"):
            open_socket(ServeConfig(port=0, grpc_port=port))


def test_sec_12_a_second_program_cannot_take_the_same_port(serve_both: Serve) -> None:
    with serve_both() as (_, address), socket.socket() as other:
        host, _, port = address.rpartition(":")
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind((host, int(port)))


def test_sec_12_without_keys_other_machines_cannot_reach_it(llm: ToyLLM) -> None:
    with pytest.raises(ConfigError, match="keys create"):
        create_app(llm, ServeConfig(host="0.0.0.0", grpc_port=0))


@pytest.mark.parametrize("module", ["grpc", "grpc_health", "grpc_reflection"])
def test_without_the_extra_the_message_has_the_line_that_installs_it(module: str) -> None:
    script = f"""
import sys
sys.modules[{module!r}] = None
from qwenstack.core.errors import MissingExtraError
from qwenstack.serving import ServeConfig, open_socket
open_socket(ServeConfig(port=0)).close()
try:
    open_socket(ServeConfig(port=0, grpc_port=0))
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert ".venv/bin/pip install -e '.[grpc]'" in done.stdout


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> dict[str, Path]:
    issued = authority.issue_cert("localhost", "127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    return {"tls_cert": cert, "tls_key": key}


def test_both_wires_are_encrypted_where_there_is_a_certificate(
    serve_both: Serve, authority: trustme.CA, tls: dict[str, Path], tmp_path: Path
) -> None:
    root = authority.cert_pem.bytes()
    (tmp_path / "root.pem").write_bytes(root)
    with serve_both(**tls) as (url, address):
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(root)) as channel:
            assert code_of(lambda: GenerationServiceStub(channel).Generate(HELLO)) == OK
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())) as channel:
            assert code_of(lambda: GenerationServiceStub(channel).Generate(HELLO)) == grpc.StatusCode.UNAVAILABLE
        with grpc.insecure_channel(address) as channel:
            assert code_of(lambda: GenerationServiceStub(channel).Generate(HELLO)) == grpc.StatusCode.UNAVAILABLE
        assert url.startswith("https://")
        import ssl

        context = ssl.create_default_context(cafile=str(tmp_path / "root.pem"))
        assert httpx.get(f"{url}/v1/models", verify=context).status_code == 200


def test_tls_files_that_do_not_do_are_told_before_anything_listens(tls: dict[str, Path], tmp_path: Path) -> None:
    other = trustme.CA().issue_cert("localhost").private_key_pem
    other.write_to_path(tmp_path / "other.pem")
    for fields in (tls | {"tls_key": tmp_path / "other.pem"}, tls | {"tls_cert": tmp_path / "none.pem"}):
        with pytest.raises(ConfigError, match="in PEM"):
            open_socket(ServeConfig(port=0, **fields))
    with pytest.raises(ConfigError, match="need each other"):
        ServeConfig(tls_cert=tls["tls_cert"])


def test_a_key_with_a_password_is_refused_and_not_asked_for(tls: dict[str, Path], tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(tls["tls_key"].read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (tmp_path / "locked.pem").write_bytes(locked)
    with pytest.raises(ConfigError, match="password"):
        open_socket(ServeConfig(port=0, tls_cert=tls["tls_cert"], tls_key=tmp_path / "locked.pem"))
