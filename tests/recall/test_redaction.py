"""Redaction: every rule finds its secret and leaves its double alone; the corpus as a whole meets its bars."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory.errors import ConfigError
from agent_memory.recall.protocols import Redactor
from agent_memory.recall.redaction import RuleRedactor
from agent_memory.recall.redaction_rules import RULES, is_luhn
from tests.parts.secret_corpus import Sample, benign, secrets

REDACTOR = RuleRedactor(b"a salt of a test")
ALPHABETS = {
    "h": "0123456789abcdef",
    "a": string.ascii_letters + string.digits,
    "u": string.ascii_uppercase + string.digits,
    "l": string.ascii_lowercase + string.digits,
    "d": string.digits,
    "w": string.ascii_letters + string.digits + "_-",
}

#: kind -> texts with one secret each ({h32}: 32 random characters of an alphabet), and texts that only look like it.
EXAMPLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "private_key": (
        ("-----BEGIN RSA PRIVATE KEY-----\n{a64}\n-----END RSA PRIVATE KEY-----",),
        ("-----BEGIN CERTIFICATE-----",),
    ),
    "aws": (("AKIA{u16}", "A3T{u17}", "ABSK{a120}=="), ("AKIA is their beginning", "AKIA{u20}")),
    "twilio": (("SK{h32}",), ("SK{h31}",)),
    "mailchimp": (("{h32}-us14",), ("{h32}-eu1",)),
    "telegram": (("bot {d9}:AA{w33} runs",), ("12:30:{d9}",)),
    "discord": (
        ("M{a23}.{a6}.{a27}", "https://discord.com/api/webhooks/{d18}/{w68}"),
        ("My.module.function", "discord.com/api/webhooks/docs"),
    ),
    "hashicorp": (("{a14}.atlasv1.{w60}x", "hvs.{w90}9"), ("hvs.short",)),
    "azure": (("{a3}8Q~{w33}", "AccountKey={a86}=="), ("AccountKey=none",)),
    "airtable": (("pat{a14}.{h64}",), ("pattern.{h6}",)),
    "jwt": (("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.{w43}",), ("eyJhbGciOiJIUzI1NiJ9 alone",)),
    "slack": (
        ("xoxb-{d12}-{d12}-{a24}", "https://hooks.slack.com/services/T{u8}/B{u8}/{a24}"),
        ("xoxb-short", "hooks.slack.com/docs"),
    ),
    "teams": (
        ("https://acme.webhook.office.com/webhookb2/{h32}@{h32}/IncomingWebhook/{h32}",),
        ("webhook.office.com/docs",),
    ),
    "zapier": (("https://hooks.zapier.com/hooks/catch/{d7}/{l8}/",), ("https://zapier.com/hooks",)),
    "okta": (("00{w39}7",), ("00{w50}",)),
    "anthropic": (("sk-ant-api03-{w93}AA",), ("sk-ant-api",)),
    "openai": (("sk-proj-{w120}",), ("sk-proj-short",)),
    "openrouter": (("sk-or-v1-{h64}",), ("sk-or-v1-",)),
    "api_key": (("sk-{a48}",), ("sk-learn-like-names-of-many-words", "task-{a20}")),
    "cerebras": (("csk-{a48}",), ("csk-{a8}",)),
    "github": (("ghp_{a36}", "github_pat_{a22}_{a59}"), ("ghp_{a10}", "a_ghp_variable")),
    "gitlab": (("glpat-{w20}",), ("glpat-short",)),
    "google": (("AIza{w35}", "GOCSPX-{w28}"), ("AIzawa is a name",)),
    "stripe": (("sk_live_{a24}", "whsec_{a32}"), ("sk_live_keys",)),
    "sendgrid": (("SG.{w22}.{w43}",), ("SG.short",)),
    "mailgun": (("key-{h32}",), ("key-{h12}", "key-value-store")),
    "npm": (("npm_{a36}",), ("npm_config_registry=https://registry.npmjs.org",)),
    "pypi": (("pypi-AgEIcHlwaS5vcmc{w150}",), ("pypi-server",)),
    "huggingface": (("hf_{a34}",), ("hf_hub_download",)),
    "digitalocean": (("dop_v1_{h64}",), ("dop_v1_{h8}",)),
    "shopify": (("shpat_{h32}",), ("shpat_{h8}",)),
    "square": (("sq0atp-{w22}", "EAAA{w60}"), ("sq0atp-short",)),
    "facebook": (("EAAB{a120}",), ("EAABC",)),
    "databricks": (("dapi{h32}",), ("dapi{h8}",)),
    "linear": (("lin_api_{a40}",), ("lin_api_docs",)),
    "notion": (("ntn_{a46}", "secret_{a43}"), ("secret_name_of_a_variable_of_many_words",)),
    "figma": (("figd_{w40}",), ("figd_{a8}",)),
    "grafana": (("glsa_{a32}_{h8}",), ("glsa_docs",)),
    "newrelic": (("NRAK-{u27}",), ("NRAK-KEYS",)),
    "sentry": (("sntrys_{a120}_{a43}",), ("sntrys_docs",)),
    "docker": (("dckr_pat_{w27}",), ("dckr_pat_docs",)),
    "postman": (("PMAK-{h24}-{h34}",), ("PMAK-{h8}",)),
    "supabase": (("sbp_{h40}",), ("sbp_{h8}",)),
    "planetscale": (("pscale_tkn_{w43}",), ("pscale_tkn_",)),
    "groq": (("gsk_{a52}",), ("gsk_docs",)),
    "replicate": (("r8_{a37}",), ("r8_{a8}",)),
    "perplexity": (("pplx-{a48}",), ("pplx-api",)),
    "xai": (("xai-{a80}",), ("xai-docs",)),
    "nvidia": (("nvapi-{w64}",), ("nvapi-docs",)),
    "langsmith": (("lsv2_pt_{h32}_{h10}",), ("lsv2_pt_",)),
    "pinecone": (("pcsk_{a60}",), ("pcsk_docs",)),
    "tavily": (("tvly-dev-{a32}",), ("tvly-docs",)),
    "jina": (("jina_{a60}",), ("jina_embeddings",)),
    "fireworks": (("fw_{a24}",), ("fw_update",)),
    "voyage": (("pa-{w43}",), ("pa-system",)),
    "atlassian": (("ATATT3xFfGF0{w170}={u8}",), ("ATATT3x",)),
    "dropbox": (("sl.{w136}",), ("sl.no",)),
    "fly": (("fm2_{a120}", "fo1_{w43}"), ("fm2_docs",)),
    "rubygems": (("rubygems_{h48}",), ("rubygems_update",)),
    "crates": (("cio{a32}",), ("cio{a10}", "scion")),
    "nuget": (("oy2{l43}",), ("oy2{l8}",)),
    "clojars": (("CLOJARS_{l60}",), ("CLOJARS_URL",)),
    "age": (("AGE-SECRET-KEY-1{u58}",), ("AGE-SECRET-KEY-1",)),
    "doppler": (("dp.pt.{a43}",), ("dp.pt.x",)),
    "dynatrace": (("dt0c01.{u24}.{u64}",), ("dt0c01.docs",)),
    "alibaba": (("LTAI{a20}",), ("LTAI{a6}",)),
    "tencent": (("AKID{a32}",), ("AKID{a8}",)),
    "adobe": (("p8e-{a32}",), ("p8e-docs",)),
    "artifactory": (("AKCp{a69}",), ("AKCx",)),
    "easypost": (("EZAK{a54}",), ("EZAK{a8}",)),
    "flutterwave": (("FLWSECK_TEST-{h32}-X",), ("FLWSECK-doc",)),
    "frameio": (("fio-u-{w64}",), ("fio-u-docs",)),
    "duffel": (("duffel_test_{w43}",), ("duffel_test_docs",)),
    "shippo": (("shippo_live_{h40}",), ("shippo_live_docs",)),
    "razorpay": (("rzp_live_{a14}",), ("rzp_live_key",)),
    "plaid": (("access-sandbox-{h8}-{h4}-{h4}-{h4}-{h12}",), ("access-sandbox-docs",)),
    "netlify": (("nfp_{a40}",), ("nfp_docs",)),
    "prefect": (("pnu_{a36}",), ("pnu_docs",)),
    "pulumi": (("pul-{h40}",), ("pul-{h8}",)),
    "readme": (("rdme_{l70}",), ("rdme_docs",)),
    "render": (("rnd_{a32}",), ("rnd_seed",)),
    "vercel": (("vcp_{a24}",), ("vcp_docs",)),
    "scalingo": (("tk-us-{w48}",), ("tk-us-docs",)),
    "brevo": (("xkeysib-{h64}-{a16}",), ("xkeysib-docs",)),
    "mailersend": (("mlsn.{h64}",), ("mlsn.docs",)),
    "resend": (("re_{a8}_{a24}",), ("re_compile_all_the_patterns",)),
    "sourcegraph": (("sgp_{h40}",), ("sgp_docs",)),
    "tailscale": (("tskey-auth-{a12}-{a32}",), ("tskey-docs",)),
    "typeform": (("tfp_{w59}",), ("tfp_docs",)),
    "openshift": (("sha256~{w43}",), ("sha256:{h64}",)),
    "buildkite": (("bkua_{h40}",), ("bkua_{h8}",)),
    "circleci": (("CCIPAT_{a22}_{h40}",), ("CCIPAT_docs",)),
    "heroku": (("HRKU-{h8}-{h4}-{h4}-{h4}-{h12}",), ("HRKU-docs",)),
    "onepassword": (("ops_eyJ{a250}", "A3-{u6}-{u6}-{u5}-{u5}-{u5}-{u5}"), ("ops_eyJshort",)),
    "infracost": (("ico-{a32}",), ("ico-files",)),
    "elevenlabs": (("sk_{h48}",), ("sk_{h8}",)),
    "contentful": (("CFPAT-{w43}",), ("CFPAT-docs",)),
    "launchdarkly": (("sdk-{h8}-{h4}-{h4}-{h4}-{h12}",), ("sdk-docs", "api-{h8}")),
    "paypal": (("access_token$production${l16}${h32}",), ("access_token$production",)),
    "sonarqube": (("sqp_{h40}",), ("sqp_{h8}",)),
    "cloudflare": (("v1.0-{h24}-{h146}",), ("v1.0-rc1",)),
    "honeycomb": (("hcaik_{l58}",), ("hcaik_docs",)),
    "yandex": (("AQVN{w36}",), ("AQVN",)),
    "bedrock": (("bedrock-api-key-{a40}",), ("bedrock-api-key-docs",)),
    "clickhouse": (("4b1d{a38}",), ("4b1d{h4}",)),
    "defined": (("dnkey-{a26}-{a52}",), ("dnkey-docs",)),
    "intra42": (("s-s4t2ud-{h64}",), ("s-s4t2ud-docs",)),
    "authress": (("sc_{a12}.{a5}.acc-{a16}.{a40}",), ("sc_one.two.acc-three.four",)),
    "harness": (("pat.{a22}.{a24}.{a20}",), ("pat.docs",)),
    "mapbox": (("sk.{a60}.{a22}",), ("sk.docs",)),
    "maxmind": (("{a6}_{a29}_mmk",), ("a_mmk",)),
    "settlemint": (("sm_aat_{a16}",), ("sm_aat_docs",)),
    "url_password": (
        ("postgres://app:{a12}@db:5432/shop", "redis://:{a12}@cache/0"),
        ("https://example.org:8080/a@b", "postgres://app:$PASSWORD@db/shop", "postgres://user:password@localhost/x"),
    ),
    "basic_auth": (("Authorization: Basic YWRhOlRpZ2VyITEyMw==",), ("basic authentication", "Basic bGVzc29uIG9uZQ==")),
    "bearer": (("Authorization: Bearer {w40}",), ("the bearer of internationalisation",)),
    "authorization": (
        ("Authorization: ApiKey {a24}", "authorization={a24}"),
        ("authorization: required for everybody",),
    ),
    "cookie": (("Set-Cookie: session={a24}; HttpOnly", "PHPSESSID={l26}"), ("session=none", "sid={d20}")),
    "query_token": (("https://x.org/?q=1&token={a24}",), ("https://x.org/?token=yes&key=name",)),
    "password": (
        (
            "<password>Tiger99</password>",
            "define('DB_PASSWORD', 'Tiger99');",
            "Das Passwort ist Tiger99",
            "smtp_pass = Tiger99",
            "{user: 'a', pass: 'Tiger99'}",
            "openssl rsa -passin pass:Tiger99",
            "ALTER USER ada PASSWORD 'Tiger99'",
            "IDENTIFIED BY 'Tiger99'",
            'passphrase "correct horse battery staple"',
            'password = "Swordfish"',
            "DB_PASSWORD=tiger!99",
            "the password is now Maple-7731",
            "mysql -u root -pTiger99",
            "curl -u ada:Tiger99 https://x.org",
            "sshpass -p Tiger99 ssh host",
            "run --password Tiger99",
            "passwd Tiger!99",
            "OLD_PW: Tiger!99",
            r'"{\"password\": \"Swordfish\", \"n\": 1}"',
        ),
        (
            "password = getpass()",
            "password: ${DB_PASSWORD}",
            "the password is too short",
            "password=settings.db.password2",
            "PasswordField('password', 'Password')",
            "all tests pass: 31/31",
            "socks5h://<username>:<password>@proxy-host",
            "1. **Password Hashing:** why",
            "if password > minimum: pass",
            'passphrase: str = ""',
            "a password of 12-characters",
            'help="password of the database"',
        ),
    ),
    "secret": (
        (
            "<apiKey>{a24}</apiKey>",
            "REDISCLI_AUTH={a24}",
            "key: aB3{a24}",
            "APIKEY aB3{a24}",
            "define('API_KEY', '{a24}')",
            "client_secret: {w32}",
            'API_KEY="{a32}"',
            "the api key is {a24}",
            "HUBSPOT={h32}",
            "heroku_auth: {a30}",
            "aws_secret_access_key = {a40}",
        ),
        (
            "api_key = settings.api_key",
            "cache key: {h40}",
            "token {h40}",
            "token = b64encode(userpass).decode()",
            "token = tokens[12]",
            "secret: rewriting it",
            "client_secret: <your client secret>",
        ),
    ),
    "email": (
        ("write to ada.l+x@mail.example.org!",),
        ("git@github.com:team/repo.git", "icon@2x.png", "left-pad@1.3.0"),
    ),
    "card": (
        ("4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005"),
        ("4111 1111 1111 1112", "1234567812345670", "0.4111111111111111", "4111-11111111-1111"),
    ),
}


def filled(template: str, seed: int) -> str:
    rng = Random(f"{template} {seed}")

    def draw(match: re.Match[str]) -> str:
        """Characters that begin with a letter and a digit, as random ones of that length have them."""
        alphabet, n = ALPHABETS[match[1]], int(match[2])
        start = "b7" if match[1] in "halw" and n > 2 else "B7" if match[1] == "u" else ""
        return (start + "".join(rng.choices(alphabet, k=n)))[:n].rstrip("-_").ljust(n, "x" if match[1] in "aw" else "7")

    return re.sub(r"\{([a-z])(\d+)\}", draw, template)


def kinds(text: str) -> set[str]:
    return {found.kind for found in REDACTOR.redact(text).found}


def test_every_rule_has_examples() -> None:
    assert {rule.kind for rule in RULES} == set(EXAMPLES)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_rule_finds_its_secrets(kind: str) -> None:
    for template in EXAMPLES[kind][0]:
        for seed in range(5):
            assert kind in kinds(filled(template, seed)), template


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_rule_leaves_its_doubles_alone(kind: str) -> None:
    for template in EXAMPLES[kind][1]:
        for seed in range(5):
            assert kinds(filled(template, seed)) == set(), template


def test_a_rule_that_is_taken_out_is_missed() -> None:
    for kind in ("github", "private_key", "url_password", "email", "card"):
        less = RuleRedactor(b"a salt of a test", [rule for rule in RULES if rule.kind != kind])
        text = filled(EXAMPLES[kind][0][0], 1)
        assert kind not in {found.kind for found in less.redact(text).found}


def remains(sample: Sample) -> bool:
    """True if eight characters in a row of a secret are left (less a provider's public beginning)."""
    text = REDACTOR.redact(sample.text).text
    parts = [part.removeprefix("rubygems_") for part in sample.parts]
    return any(part[i : i + 8] in text for part in parts for i in range(max(1, len(part) - 7)))


@pytest.mark.parametrize("seed", [1, 11, 12])
def test_of_the_corpus_of_secrets_95_percent_are_found(seed: int) -> None:
    samples = secrets(seed)
    missed = [sample for sample in samples if remains(sample)]
    assert len(samples) >= 200
    assert len({sample.provider for sample in samples}) >= 20
    assert len(missed) <= 0.05 * len(samples), missed


@pytest.mark.parametrize("seed", [2, 21])
def test_of_a_thousand_benign_lines_none_is_touched(seed: int) -> None:
    lines = benign(seed)
    assert [line for line in lines if REDACTOR.redact(line).found] == []
    assert len(lines) == 1000


def test_equal_secrets_have_equal_placeholders_within_a_salt_alone() -> None:
    one, two = filled("ghp_{a36}", 1), filled("ghp_{a36}", 2)
    redacted = REDACTOR.redact(f"{one} {two} {one}").text.split()
    assert redacted[0] == redacted[2] != redacted[1]
    assert re.fullmatch(r"\[REDACTED:github:[0-9a-f]{8}\]", redacted[0])
    assert RuleRedactor(b"another salt").redact(one).text != redacted[0]
    assert RuleRedactor().redact(one).text != RuleRedactor().redact(one).text


def test_found_tells_where_the_placeholders_stand() -> None:
    text = filled("first ghp_{a36}, then ada@example.org.", 1)
    redacted = REDACTOR.redact(text)
    assert [found.kind for found in redacted.found] == ["github", "email"]
    assert all(redacted.text[f.start : f.stop].startswith(f"[REDACTED:{f.kind}:") for f in redacted.found)
    assert redacted.text.startswith("first [")
    assert redacted.text.endswith("].")


def test_a_secret_right_beside_another_is_found_and_both_places_are_told() -> None:
    text = filled("x m.hamilton@example.org-----BEGIN PRIVATE KEY-----\n{a64}\n-----END PRIVATE KEY----- y", 1)
    redacted = REDACTOR.redact(text)
    assert re.fullmatch(r"x \[REDACTED:email:\w{8}\]\[REDACTED:private_key:\w{8}\] y", redacted.text)
    shown = [redacted.text[found.start : found.stop].split(":")[1] for found in redacted.found]
    assert shown == [found.kind for found in redacted.found] == ["email", "private_key"]


def test_a_private_key_that_is_cut_off_is_taken_to_its_end() -> None:
    text = filled("-----BEGIN OPENSSH PRIVATE KEY-----\n{a64}\n{a64}", 3)
    assert not any(line in REDACTOR.redact(text).text for line in text.split("\n")[1:])


def test_many_openings_without_an_end_are_read_once() -> None:
    text = "-----BEGIN PRIVATE KEY-----\n" * 2000
    assert REDACTOR.redact(text).found


PIECES: list[Callable[[Random], str]] = [
    lambda rng: rng.choice(secrets(rng.randint(0, 99), 1)).text,
    lambda rng: rng.choice(benign(rng.randint(0, 99), 40)),
]


@given(
    st.integers(0, 10_000), st.lists(st.sampled_from([0, 1]), min_size=1, max_size=4), st.sampled_from([" ", "\n", ""])
)
def test_redacting_twice_changes_nothing(seed: int, picks: list[int], joint: str) -> None:
    rng = Random(seed)
    once = REDACTOR.redact(joint.join(PIECES[pick](rng) for pick in picks)).text
    assert REDACTOR.redact(once).text == once


@given(st.text(max_size=300))
def test_any_text_is_taken_and_what_is_no_secret_stays(text: str) -> None:
    redacted = REDACTOR.redact(text)
    end = 0
    for found in redacted.found:
        assert redacted.text[end : found.start] in text
        end = found.stop
    assert text.endswith(redacted.text[end:])


def test_case_that_changes_a_texts_length_moves_no_place() -> None:
    text = "İİİ password: Tiger!99 İİ"
    assert REDACTOR.redact(text).text.startswith("İİİ password: [REDACTED:password:")
    assert REDACTOR.redact(text).text.endswith("] İİ")


def test_luhn_knows_a_wrong_digit() -> None:
    assert is_luhn("4111111111111111")
    assert not any(is_luhn(f"411111111111111{digit}") for digit in "023456789")


def test_a_salt_is_bytes_of_a_sound_length() -> None:
    assert isinstance(REDACTOR, Redactor)
    for salt in (b"short", b"x" * 65, "text of a salt"):
        with pytest.raises(ConfigError, match="salt must be 8 to 64 bytes"):
            RuleRedactor(salt)  # type: ignore[arg-type]
