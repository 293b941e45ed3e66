"""Tokens of an identity provider: real signatures, the known ways to forge one, keys that come, go and stay away."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_llm import ToyLLM

from qwenstack.core.errors import ConfigError
from qwenstack.serving import ServeConfig, admin_config, create_admin_app, create_app
from qwenstack.serving.identity import STRANGER, Access, Callers, Identity, KeyRing
from qwenstack.serving.oidc import key_set, tokens
from qwenstack.serving.oidc.key_set import FRESH_S, MAX_DOCUMENT_BYTES, RETRY_S, STALE_S, KeySet
from qwenstack.serving.oidc.tokens import LEEWAY_S, TokenVerifier, claim_of, name_of_subject
from qwenstack.serving.oidc_config import OidcConfig
from qwenstack.storage import AuditLog, open_database

ISSUER = "https://id.example/realms/house"
AUDIENCE = "qwenstack"
KEYS_URL = "https://id.example/keys"
NOW_S = 1_800_000_000.0
HOUSE = OidcConfig(issuer=ISSUER, audience=AUDIENCE, jwks_url=KEYS_URL)

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SHORT_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_CURVE_KEY = ec.generate_private_key(ec.SECP384R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
PRIVATE: dict[str, tuple[Any, str]] = {
    "rsa": (RSA_KEY, "RS256"),
    "ec": (EC_KEY, "ES256"),
    "ed": (ED_KEY, "EdDSA"),
    "rsa-2": (OTHER_RSA_KEY, "RS256"),
}


def jwk(key_id: str, private: Any, algorithm: str, **more: str) -> dict[str, Any]:
    written = jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key(), as_dict=True)
    return {**written, "kid": key_id, "use": "sig"} | more


ALL_KEYS = [jwk(name, private, algorithm) for name, (private, algorithm) in PRIVATE.items() if name != "rsa-2"]


@dataclass
class Provider:
    """An identity provider, and two clocks."""

    keys: Any = field(default_factory=lambda: list(ALL_KEYS))
    now_s: float = NOW_S
    uptime_s: float = 1000.0
    asked: list[str] = field(default_factory=list)
    answer: Callable[[httpx.Request], httpx.Response] | None = None
    """Instead of the usual one."""
    config: OidcConfig = HOUSE

    def respond(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(str(request.url))
        if self.answer is not None:
            return self.answer(request)
        if request.url.path.endswith("openid-configuration"):
            return httpx.Response(200, json={"issuer": ISSUER, "jwks_uri": KEYS_URL})
        return httpx.Response(200, json={"keys": self.keys})

    def verifier(self) -> TokenVerifier:
        client = httpx.AsyncClient(transport=httpx.MockTransport(self.respond), follow_redirects=False)
        keys = KeySet(self.config, client=client, monotonic=lambda: self.uptime_s)
        return TokenVerifier(self.config, keys, clock=lambda: self.now_s)


@pytest.fixture
def provider() -> Provider:
    return Provider()


def claims(**changes: object) -> dict[str, object]:
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ann",
        "iat": NOW_S,
        "exp": NOW_S + 300,
        "scope": "openid qwenstack:inference",
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def sign(payload: dict[str, object] | None = None, *, key: str = "rsa", kid: str | None = None) -> str:
    private, algorithm = PRIVATE[key]
    return jwt.encode(payload or claims(), private, algorithm=algorithm, headers={"kid": kid or key})


def part(value: object) -> bytes:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def forge(header: dict[str, object], payload: dict[str, object], signature: bytes = b"") -> str:
    return b".".join([part(header), part(payload), part(signature)]).decode()


@pytest.mark.anyio
@pytest.mark.parametrize("key", ["rsa", "ec", "ed"])
async def test_a_good_token_says_who_and_what(provider: Provider, key: str) -> None:
    verifier = provider.verifier()
    identity = await verifier.identify(sign(key=key))
    assert identity == Identity(tenant="ann", subject="ann", accesses=frozenset({Access.INFERENCE}))
    assert (identity.actor, identity.expires_at_s) == ("oidc:ann", NOW_S + 300 + LEEWAY_S)
    assert await verifier.identify(sign(key=key)) == identity
    assert provider.asked == [KEYS_URL]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another"},
        {"aud": ["another", "more"]},
        {"aud": None},
        {"iss": "https://id.example/realms/other"},
        {"iss": ISSUER + "/"},
        {"iss": None},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"exp": None},
        {"exp": NOW_S - LEEWAY_S},
        {"exp": "tomorrow"},
        {"exp": True},
        {"exp": 10**400},
        {"exp": (NOW_S + 300) * 1000},
        {"iat": None},
        {"iat": NOW_S + LEEWAY_S + 1},
        {"nbf": NOW_S + LEEWAY_S + 1},
    ],
    ids=str,
)
async def test_sec_12_a_token_for_somebody_else_or_another_time_opens_nothing(
    provider: Provider, changes: dict[str, object]
) -> None:
    assert await provider.verifier().identify(sign(claims(**changes))) == STRANGER


@pytest.mark.anyio
async def test_clocks_may_differ_by_a_minute(provider: Provider) -> None:
    verifier = provider.verifier()
    for changes in ({"exp": NOW_S - LEEWAY_S + 1}, {"iat": NOW_S + LEEWAY_S}, {"nbf": NOW_S + LEEWAY_S}):
        assert (await verifier.identify(sign(claims(**changes)))).subject == "ann"
    assert (await verifier.identify(sign(claims(aud=["other", AUDIENCE])))).subject == "ann"


@pytest.mark.anyio
async def test_c10_a_known_token_ends_when_its_time_is_over(provider: Provider) -> None:
    verifier = provider.verifier()
    token = sign()
    for now_s, is_good in ((0, True), (300 + LEEWAY_S - 1, True), (300 + LEEWAY_S, False), (10, True)):
        provider.now_s = NOW_S + now_s
        assert (await verifier.identify(token) != STRANGER) == is_good


def public_bytes(private: Any, encoding: serialization.Encoding) -> bytes:
    return private.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)


def forgeries() -> dict[str, str]:
    """Tokens that nobody signed, by how they try."""
    found = {
        f"alg {name!r}": forge({"alg": name, "typ": "JWT", "kid": "rsa"}, claims())
        for name in ("none", "None", "NONE", "nOnE", "", "HS256", "RS512", "PS256", "ES384", "ES256K", "dir")
    }
    found["no alg"] = forge({"kid": "rsa"}, claims())
    for form, encoding in (("PEM", serialization.Encoding.PEM), ("DER", serialization.Encoding.DER)):
        for name, key in (("rsa", RSA_KEY), ("ec", EC_KEY), ("ed", ED_KEY)):
            head, body = part({"alg": "HS256", "kid": name}), part(claims())
            secret = public_bytes(key, encoding)
            signature = hmac.new(secret, head + b"." + body, hashlib.sha256).digest()
            found[f"HS256 with the public {name} key as {form}"] = b".".join([head, body, part(signature)]).decode()
    own = jwk("own", OTHER_RSA_KEY, "RS256")
    for name, header in {
        "its own key": {"jwk": own},
        "its own address": {"jku": "https://evil.example/keys"},
        "its own certificate": {"x5u": "https://evil.example/cert"},
        "critical": {"crit": ["exp"], "exp": 1},
    }.items():
        found[name] = jwt.encode(claims(), OTHER_RSA_KEY, algorithm="RS256", headers={"kid": "rsa", **header})
    found["another's signature"] = sign(key="rsa-2", kid="rsa")
    found["another kind of key"] = sign(key="ec", kid="rsa")
    found["no kid"] = jwt.encode(claims(), RSA_KEY, algorithm="RS256")
    for name, algorithm in {"a list": ["RS256"], "an object": {}, "a number": 256, "null": None}.items():
        found[f"{name} as alg"] = forge({"alg": algorithm, "kid": "rsa"}, claims())
    found["a kid that is no text"] = forge({"alg": "RS256", "kid": ["rsa"]}, claims(), b"x" * 256)
    found["a path as kid"] = sign(kid="../../../../dev/null")
    found["a query as kid"] = sign(kid="rsa' OR '1'='1")
    head, _, signature = sign().split(".")
    found["other claims"] = f"{head}.{part(claims(sub='root')).decode()}.{signature}"
    found["no signature"] = sign().rpartition(".")[0] + "."
    found["cut"] = sign()[:-4]
    found["an empty ES256 signature"] = forge({"alg": "ES256", "kid": "ec"}, claims(), bytes(64))
    found["no JSON"] = b".".join([part(b"x"), part(b"y"), part(b"z")]).decode()
    found["a list"] = b".".join([part([]), part([]), part(b"")]).decode()
    found["deep"] = b".".join([part(b"[" * 3000), part(b"{}"), part(b"")]).decode()
    found["long"] = sign(claims(more="x" * 9000))
    found["five parts"] = sign() + ".a.b"
    found["signs beyond ASCII"] = sign().replace("e", "е", 1)
    return found


FORGERIES = forgeries()


@pytest.mark.anyio
@pytest.mark.parametrize("name", FORGERIES)
async def test_sec_12_a_forged_token_opens_nothing(provider: Provider, name: str) -> None:
    verifier = provider.verifier()
    assert (await verifier.identify(sign())).subject == "ann"
    assert await verifier.identify(FORGERIES[name]) == STRANGER
    assert set(provider.asked) <= {KEYS_URL}


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60) | st.builds(lambda a, b, c: f"{a}.{b}.{c}", st.text(), st.text(), st.text()))
def test_sec_12_whatever_is_shown_as_a_token_is_answered(text: str) -> None:
    assert asyncio.run(Provider().verifier().identify(text)) == STRANGER


ODD_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["rsa", "RS256"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def objects_with(*names: str) -> st.SearchStrategy[dict[str, object]]:
    return st.dictionaries(st.sampled_from(names), ODD_VALUES)


@settings(max_examples=150, deadline=None)
@given(
    objects_with("alg", "kid", "typ", "b64", "crit", "jwk"),
    objects_with("iss", "aud", "sub", "iat", "exp", "nbf", "scope"),
    st.binary(max_size=8),
)
def test_sec_12_whatever_json_a_token_is_made_of_is_answered(
    header: dict[str, object], payload: dict[str, object], signature: bytes
) -> None:
    assert asyncio.run(Provider().verifier().identify(forge(header, payload, signature))) == STRANGER


@settings(max_examples=100, deadline=None)
@given(objects_with("iss", "aud", "sub", "iat", "exp", "nbf", "scope"), st.booleans())
def test_sec_12_whatever_claims_a_provider_signs_are_answered(odd: dict[str, object], is_else_good: bool) -> None:
    payload = (claims() if is_else_good else {}) | odd
    token = jwt.PyJWS().encode(json.dumps(payload).encode(), ED_KEY, algorithm="EdDSA", headers={"kid": "ed"})
    identity = asyncio.run(Provider().verifier().identify(token))
    assert identity == STRANGER or identity.subject == name_of_subject(str(payload["sub"]))


@pytest.mark.anyio
async def test_a_new_key_is_found_at_once_and_a_withdrawn_one_ends_with_the_next_look(provider: Provider) -> None:
    verifier = provider.verifier()
    old = sign()
    assert (await verifier.identify(old)).subject == "ann"
    provider.uptime_s += RETRY_S
    provider.keys = [jwk("rsa-2", OTHER_RSA_KEY, "RS256")]
    assert (await verifier.identify(sign(key="rsa-2"))).subject == "ann"
    assert await verifier.identify(old) == STRANGER  # although it was good a moment ago


@pytest.mark.anyio
async def test_sec_22_invented_key_ids_do_not_ask_the_provider_again_and_again(provider: Provider) -> None:
    verifier = provider.verifier()
    await asyncio.gather(*(verifier.identify(sign(kid=f"invented-{number}")) for number in range(50)))
    assert len(provider.asked) == 1
    provider.uptime_s += RETRY_S
    await asyncio.gather(*(verifier.identify(sign(kid=f"invented-{number}")) for number in range(50)))
    assert len(provider.asked) == 2


@pytest.mark.anyio
async def test_sec_22_callers_who_leave_do_not_keep_others_from_the_keys(provider: Provider) -> None:
    may_answer = asyncio.Event()

    async def answer_later() -> AsyncIterator[bytes]:
        await may_answer.wait()
        yield json.dumps({"keys": ALL_KEYS}).encode()

    provider.answer = lambda _: httpx.Response(200, content=answer_later())
    verifier = provider.verifier()
    leaving, staying = (asyncio.create_task(verifier.identify(sign(claims(sub=name)))) for name in ("eve", "ann"))
    while not provider.asked:
        await asyncio.sleep(0.01)
    leaving.cancel()
    await asyncio.wait([leaving])
    coming = asyncio.create_task(verifier.identify(sign(claims(sub="ben"))))
    await asyncio.sleep(0.01)
    may_answer.set()
    async with asyncio.timeout(10):
        assert ((await staying).subject, (await coming).subject) == ("ann", "ben")
    assert leaving.cancelled()
    assert len(provider.asked) == 1


@pytest.mark.anyio
async def test_a_question_under_way_ends_when_the_server_does(provider: Provider) -> None:
    is_over = asyncio.Event()

    async def never() -> AsyncIterator[bytes]:
        try:
            await asyncio.sleep(60)
            yield b""
        finally:
            is_over.set()

    provider.answer = lambda _: httpx.Response(200, content=never())
    verifier = provider.verifier()
    caller = asyncio.create_task(verifier.identify(sign()))
    while not provider.asked:
        await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        await verifier.close()
        await is_over.wait()
    await asyncio.wait([caller])


@pytest.mark.anyio
async def test_keys_stay_good_while_the_provider_is_away_but_not_for_ever(
    provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route")

    provider.answer = refuse
    verifier = provider.verifier()
    assert await verifier.identify(sign()) == STRANGER
    assert "cannot be had" in caplog.text
    provider.answer, provider.uptime_s = None, provider.uptime_s + RETRY_S
    assert (await verifier.identify(sign())).subject == "ann"
    provider.answer = refuse
    began_s = provider.uptime_s
    for later_s, is_good in ((FRESH_S + 1, True), (STALE_S - 1, True), (STALE_S + 1, False)):
        provider.uptime_s = began_s + later_s
        for subject in ("ann", f"ben-{later_s}"):  # one that is known, and one that is to be verified
            assert (await verifier.identify(sign(claims(sub=subject))) != STRANGER) == is_good
            await asyncio.sleep(0.01)
    provider.answer, provider.uptime_s = None, provider.uptime_s + RETRY_S
    assert (await verifier.identify(sign())).subject == "ann"


@pytest.mark.anyio
async def test_old_keys_are_looked_at_again_beside_the_work(provider: Provider) -> None:
    verifier = provider.verifier()
    await verifier.identify(sign())
    provider.uptime_s += FRESH_S + 1
    assert (await verifier.identify(sign(claims(sub="ben")))).subject == "ben"
    await asyncio.sleep(0.05)
    assert len(provider.asked) == 2
    await verifier.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(302, headers={"location": "https://id.example/other"}),
        httpx.Response(500),
        httpx.Response(200, headers={"content-encoding": "br"}, stream=httpx.ByteStream(b"x")),
        httpx.Response(200, content=b"[]"),
        httpx.Response(200, content=b"{"),
        httpx.Response(200, content=b'{"keys": {}}'),
        httpx.Response(200, content=b'{"keys": ["x", null, 3]}'),
        httpx.Response(200, content=b" " * (MAX_DOCUMENT_BYTES + 1) + b"{}"),
        httpx.Response(200, json={"keys": [jwk("rsa", SHORT_RSA_KEY, "RS256")]}),
        httpx.Response(200, json={"keys": [jwk("rsa", RSA_KEY, "RS256", use="enc")]}),
        httpx.Response(200, json={"keys": [jwk("rsa", RSA_KEY, "RS256", alg="RS512")]}),
        httpx.Response(200, json={"keys": [jwk("rsa", OTHER_CURVE_KEY, "ES384")]}),
        httpx.Response(200, json={"keys": [{"kty": "oct", "kid": "rsa", "k": "c2VjcmV0", "alg": "HS256"}]}),
        httpx.Response(200, json={"keys": [{"kty": "RSA", "kid": "rsa", "n": "!", "e": "AQAB"}]}),
        httpx.Response(200, json={"keys": [{"kty": "RSA", "kid": "rsa", "n": 5, "e": []}]}),
        httpx.Response(200, json={"keys": [{**jwk("rsa", RSA_KEY, "RS256"), "kid": 3}]}),
    ],
    ids=range(16),
)
async def test_sec_10_what_is_no_set_of_keys_opens_nothing_and_leads_nowhere(
    provider: Provider, answer: httpx.Response
) -> None:
    provider.answer = lambda _: answer
    assert await provider.verifier().identify(sign()) == STRANGER
    secret = hmac.new(b"secret", b"", hashlib.sha256).hexdigest()
    assert await provider.verifier().identify(jwt.encode(claims(), secret, headers={"kid": "rsa"})) == STRANGER
    assert set(provider.asked) == {KEYS_URL}


@pytest.mark.anyio
async def test_a_provider_that_never_ends_its_answer_is_left(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drip() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.01)
            yield b" "

    monkeypatch.setattr(key_set, "FETCH_TIMEOUT_S", 0.2)
    provider.answer = lambda _: httpx.Response(200, content=drip())
    async with asyncio.timeout(10):
        assert await provider.verifier().identify(sign()) == STRANGER


@pytest.mark.anyio
async def test_the_keys_are_where_the_issuer_s_configuration_says(provider: Provider) -> None:
    provider.config = OidcConfig(issuer=ISSUER, audience=AUDIENCE)
    assert (await provider.verifier().identify(sign())).subject == "ann"
    assert provider.asked == [f"{ISSUER}/.well-known/openid-configuration", KEYS_URL]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "document",
    [
        {"issuer": "https://evil.example", "jwks_uri": KEYS_URL},
        {"issuer": ISSUER, "jwks_uri": "http://id.example/keys"},
        {"issuer": ISSUER, "jwks_uri": "http://169.254.169.254/latest/meta-data"},
        {"issuer": ISSUER, "jwks_uri": "file:///etc/passwd"},
        {"issuer": ISSUER, "jwks_uri": "https://user:password@id.example/keys"},
        {"issuer": ISSUER, "jwks_uri": ["https://id.example/keys"]},
        {"issuer": ISSUER},
    ],
    ids=str,
)
async def test_sec_10_a_configuration_that_leads_elsewhere_is_not_followed(
    provider: Provider, document: dict[str, object]
) -> None:
    provider.config = OidcConfig(issuer=ISSUER, audience=AUDIENCE)
    provider.answer = lambda _: httpx.Response(200, json=document)
    assert await provider.verifier().identify(sign()) == STRANGER
    assert provider.asked == [f"{ISSUER}/.well-known/openid-configuration"]


@pytest.mark.anyio
async def test_claims_say_tenant_scopes_and_models_as_the_operator_reads_them(provider: Provider) -> None:
    provider.config = OidcConfig(
        issuer=ISSUER,
        audience=AUDIENCE,
        jwks_url=KEYS_URL,
        tenant_claim="org.id",
        scopes_claim="realm_access.roles",
        models_claim="models",
        roles=("llm-users=inference", "llm-admins=admin", "a=b=metrics"),
    )
    verifier = provider.verifier()
    roles = {"roles": ["llm-users", "a=b", "admin", 7, "qwenstack:admin"]}
    good = claims(org={"id": "team-a"}, realm_access=roles, models=["toy/echo"])
    assert await verifier.identify(sign(good)) == Identity(
        tenant="team-a",
        subject="ann",
        accesses=frozenset({Access.INFERENCE, Access.METRICS}),
        models=frozenset({"toy/echo"}),
    )
    bare = await verifier.identify(sign(claims(org={"id": "auth0|5f7c"})))
    assert (bare.accesses, bare.models) == (frozenset(), frozenset())
    assert bare.tenant == "oidc-" + hashlib.sha256(b"auth0|5f7c").hexdigest()[:32]
    for org in (None, {"id": ""}, {"id": 5}, {"name": "x"}, "team-a"):
        assert await verifier.identify(sign(claims(org=org))) == STRANGER


@pytest.mark.anyio
@pytest.mark.parametrize(
    "subject", ["s" * 96, "s" * 5000, "ann\x00", "ann\n", "\ud800", "sha256:" + "0" * 64], ids=ascii
)
async def test_sec_22_a_subject_that_a_database_may_not_keep_is_counted_by_its_hash(
    provider: Provider, subject: str
) -> None:
    token = jwt.PyJWS().encode(
        json.dumps(claims(sub=subject)).encode(), ED_KEY, algorithm="EdDSA", headers={"kid": "ed"}
    )
    identity = await provider.verifier().identify(token)
    digest = hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()
    assert identity.account == identity.actor == f"oidc:sha256:{digest}"
    assert len(identity.account) <= 100


@pytest.mark.anyio
@pytest.mark.parametrize("subject", ["s" * 95, "auth0|5f7c8ec7", "安娜 <anna@example.com>"])
async def test_a_subject_that_reads_well_is_kept_as_it_is(provider: Provider, subject: str) -> None:
    identity = await provider.verifier().identify(sign(claims(sub=subject)))
    assert identity.account == f"oidc:{subject}"
    assert len(identity.account) <= 100


def test_a_claim_with_dots_in_its_name_comes_before_a_path() -> None:
    assert claim_of({"https://x.y/r": 1, "a": {"b": {"c": 2}}, "a.b": 3}, "https://x.y/r") == 1
    assert claim_of({"a": {"b": {"c": 2}}}, "a.b.c") == 2
    assert claim_of({"a": {"b": 1}, "a.b": 3}, "a.b") == 3
    assert claim_of({"a": 5}, "a.b.c") is None


@pytest.mark.anyio
async def test_known_tokens_are_bounded_and_keys_of_ours_come_first(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MAX_KNOWN_TOKENS", 3)
    verifier = provider.verifier()
    for number in range(10):
        assert (await verifier.identify(sign(claims(sub=f"s{number}")))).subject == f"s{number}"
    assert len(verifier._known) == 3
    callers = Callers(KeyRing(["a-configured-key"], is_closed=True), verifier)
    assert (await callers.identify("a-configured-key", now_ms=0, request_id="r")).may(Access.INFERENCE)
    assert (await callers.identify(sign(), now_ms=0, request_id="r")).subject == "ann"
    assert await callers.identify(None, now_ms=0, request_id="r") == STRANGER
    assert len(provider.asked) == 1


@pytest.mark.anyio
async def test_sec_12_tokens_open_both_applications_as_far_as_they_say(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.now_s = 0  # the application has the real clock
    database = open_database(f"sqlite:///{tmp_path / 'q.db'}")
    monkeypatch.setattr(key_set.httpx, "AsyncClient", _client_of(provider))
    public = create_app(ToyLLM(), ServeConfig(oidc=provider.config), database=database)
    inside = create_admin_app(public, admin_config(ServeConfig(), host="127.0.0.1", port=8001))
    times = {"iat": 1_700_000_000, "exp": 4_000_000_000}
    callers = {
        "": (401, 401),
        "x.y.z": (401, 401),
        forge({"alg": [], "kid": "k"}, claims()): (401, 401),
        sign(claims(**times)): (200, 403),
        sign(claims(**times, scope="openid")): (403, 403),
        sign(claims(**times, scope="qwenstack:admin", sub="root")): (403, 200),
        sign(claims(iat=1, exp=2)): (401, 401),
    }
    async with public.router.lifespan_context(public):
        for app, path, index in ((public, "/v1/models", 0), (inside, "/admin/v1/keys", 1)):
            transport = httpx.ASGITransport(app)
            async with REAL_CLIENT(transport=transport, base_url="http://127.0.0.1:8000") as client:
                for token, expected in callers.items():
                    headers = {"authorization": f"Bearer {token}"} if token else {}
                    assert (await client.get(path, headers=headers)).status_code == expected[index], (path, token)
        headers = {"authorization": f"Bearer {sign(claims(**times, scope='qwenstack:admin', sub='root'))}"}
        async with REAL_CLIENT(transport=httpx.ASGITransport(inside), base_url="http://127.0.0.1") as client:
            assert (await client.post("/admin/v1/keys", json={"name": "n"}, headers=headers)).status_code == 200
    acts = [entry.record for entry in AuditLog(database).newest() if entry.record.action == "key.create"]
    assert [act.actor for act in acts] == ["oidc:root"]


REAL_CLIENT = httpx.AsyncClient


def _client_of(provider: Provider) -> Callable[..., httpx.AsyncClient]:
    def make(**options: Any) -> httpx.AsyncClient:
        assert options == {"follow_redirects": False, "trust_env": False}
        return REAL_CLIENT(transport=httpx.MockTransport(provider.respond), **options)

    return make


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"issuer": "http://id.example"}, "issuer"),
        ({"issuer": "id.example"}, "issuer"),
        ({"issuer": "https://"}, "issuer"),
        ({"jwks_url": "http://id.example/keys"}, "jwks_url"),
        ({"jwks_url": "file:///keys"}, "jwks_url"),
        ({"audience": ""}, "audience"),
        ({"tenant_claim": ""}, "tenant_claim"),
        ({"roles": ("admin",)}, "WORD=SCOPE"),
        ({"roles": ("x=root",)}, "WORD=SCOPE"),
        ({"roles": ("x=public",)}, "WORD=SCOPE"),
        ({"roles": ("x=admin", "x=metrics")}, "two scopes"),
    ],
)
def test_a_wrong_setting_is_named(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        OidcConfig(**({"issuer": ISSUER, "audience": AUDIENCE} | fields))


def test_a_provider_on_this_machine_needs_no_tls() -> None:
    OidcConfig(issuer="http://127.0.0.1:8080/realms/x", audience="a", jwks_url="http://localhost:8080/keys")
