"""Secrets and benign lines, generated from a seed: what a redactor is measured on.

The shapes are those that providers document or that their issued keys show; this file knows nothing of the redactor's
rules and was written before them. No secret is real, and none stands here as a whole.
"""

from __future__ import annotations

import base64
import json
import string
import uuid
from collections.abc import Callable
from random import Random

from attrs import frozen

ALNUM = string.ascii_letters + string.digits
LOWER = string.ascii_lowercase + string.digits
UPPER = string.ascii_uppercase + string.digits
URLSAFE = ALNUM + "-_"
HEX = "0123456789abcdef"
BASE32 = string.ascii_uppercase + "234567"
BECH32 = "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L"


@frozen
class Sample:
    """One secret in a text. ``parts`` are the strings of which nothing may be left."""

    provider: str
    text: str
    parts: tuple[str, ...]


def chars(rng: Random, alphabet: str, n: int) -> str:
    """``n`` characters with at least one digit where the alphabet has digits: as random keys of that length have."""
    while True:
        made = "".join(rng.choices(alphabet, k=n))
        if n < 8 or not set(alphabet) & set(string.digits) or any(c.isdigit() for c in made):
            return made


def b64(rng: Random, n_bytes: int) -> str:
    return base64.b64encode(rng.randbytes(n_bytes)).decode()


def b64url(rng: Random, n_bytes: int) -> str:
    return base64.urlsafe_b64encode(rng.randbytes(n_bytes)).decode().rstrip("=")


def numbers(rng: Random, low: int, high: int) -> str:
    return chars(rng, string.digits, rng.randint(low, high))


def hex_uuid(rng: Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def jwt(rng: Random) -> str:
    header = {"alg": rng.choice(["HS256", "RS256", "ES256"]), "typ": "JWT"}
    claims = {"sub": numbers(rng, 8, 12), "name": rng.choice(["Ada", "Grace", "Alan"]), "iat": 1_700_000_000}
    encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (header, claims))
    return ".".join([*encoded, b64url(rng, 32)])


#: Tokens that say by their own shape what they are.
TOKENS: dict[str, list[Callable[[Random], str]]] = {
    "aws": [
        lambda r: "AKIA" + chars(r, BASE32, 16),
        lambda r: "ASIA" + chars(r, BASE32, 16),
    ],
    "github": [
        lambda r: "ghp_" + chars(r, ALNUM, 36),
        lambda r: r.choice(["gho_", "ghu_", "ghs_", "ghr_"]) + chars(r, ALNUM, 36),
        lambda r: "github_pat_" + chars(r, ALNUM, 22) + "_" + chars(r, ALNUM, 59),
    ],
    "gitlab": [
        lambda r: "glpat-" + chars(r, URLSAFE, 20),
        lambda r: r.choice(["gldt-", "glrt-", "glptt-"]) + chars(r, URLSAFE, 20),
    ],
    "openai": [
        lambda r: "sk-" + chars(r, ALNUM, 20) + "T3BlbkFJ" + chars(r, ALNUM, 20),
        lambda r: "sk-proj-" + chars(r, URLSAFE, 74) + "T3BlbkFJ" + chars(r, URLSAFE, 74),
        lambda r: "sk-svcacct-" + chars(r, URLSAFE, 58),
    ],
    "anthropic": [lambda r: "sk-ant-api03-" + chars(r, URLSAFE, 93) + "AA"],
    "google": [
        lambda r: "AIza" + chars(r, URLSAFE, 35),
        lambda r: "GOCSPX-" + chars(r, URLSAFE, 28),
        lambda r: "ya29." + chars(r, URLSAFE, 120),
    ],
    "stripe": [
        lambda r: r.choice(["sk_live_", "rk_live_"]) + chars(r, ALNUM, r.choice([24, 99])),
        lambda r: "sk_test_" + chars(r, ALNUM, 24),
        lambda r: "whsec_" + chars(r, ALNUM, 32),
    ],
    "slack": [
        lambda r: f"xoxb-{numbers(r, 11, 13)}-{numbers(r, 11, 13)}-{chars(r, ALNUM, 24)}",
        lambda r: f"xoxp-{numbers(r, 11, 13)}-{numbers(r, 11, 13)}-{numbers(r, 11, 13)}-{chars(r, HEX, 32)}",
        lambda r: f"xapp-1-A{chars(r, UPPER, 10)}-{numbers(r, 12, 13)}-{chars(r, HEX, 64)}",
    ],
    "twilio": [lambda r: "SK" + chars(r, HEX, 32)],
    "sendgrid": [lambda r: "SG." + chars(r, URLSAFE, 22) + "." + chars(r, URLSAFE, 43)],
    "mailgun": [lambda r: "key-" + chars(r, HEX, 32)],
    "mailchimp": [lambda r: chars(r, HEX, 32) + f"-us{r.randint(1, 21)}"],
    "npm": [lambda r: "npm_" + chars(r, ALNUM, 36)],
    "pypi": [lambda r: "pypi-AgEIcHlwaS5vcmc" + chars(r, URLSAFE, r.randint(140, 180))],
    "huggingface": [lambda r: "hf_" + chars(r, string.ascii_letters, 34)],
    "digitalocean": [lambda r: r.choice(["dop_v1_", "doo_v1_", "dor_v1_"]) + chars(r, HEX, 64)],
    "shopify": [lambda r: r.choice(["shpat_", "shpca_", "shpss_"]) + chars(r, HEX, 32)],
    "square": [
        lambda r: "sq0atp-" + chars(r, URLSAFE, 22),
        lambda r: "sq0csp-" + chars(r, URLSAFE, 43),
    ],
    "telegram": [lambda r: f"{numbers(r, 9, 10)}:AA{chars(r, URLSAFE, 33)}"],
    "discord": [
        lambda r: f"{r.choice('MNO')}{chars(r, ALNUM, 23)}.{chars(r, URLSAFE, 6)}.{chars(r, URLSAFE, 27)}",
    ],
    "databricks": [lambda r: "dapi" + chars(r, HEX, 32)],
    "hashicorp": [
        lambda r: "hvs." + chars(r, URLSAFE, 95),
        lambda r: chars(r, ALNUM, 14) + ".atlasv1." + chars(r, URLSAFE, 67),
    ],
    "azure": [lambda r: chars(r, ALNUM, 3) + r.choice(["7Q~", "8Q~"]) + chars(r, URLSAFE + "~.", 31)],
    "linear": [lambda r: "lin_api_" + chars(r, ALNUM, 40)],
    "notion": [lambda r: "ntn_" + chars(r, ALNUM, 46)],
    "figma": [lambda r: "figd_" + chars(r, URLSAFE, 40)],
    "airtable": [lambda r: "pat" + chars(r, ALNUM, 14) + "." + chars(r, HEX, 64)],
    "grafana": [lambda r: "glsa_" + chars(r, ALNUM, 32) + "_" + chars(r, HEX, 8)],
    "newrelic": [lambda r: "NRAK-" + chars(r, UPPER, 27)],
    "sentry": [lambda r: "sntrys_" + b64(r, 90).rstrip("=") + "_" + chars(r, ALNUM, 43)],
    "docker": [lambda r: "dckr_pat_" + chars(r, URLSAFE, 27)],
    "postman": [lambda r: "PMAK-" + chars(r, HEX, 24) + "-" + chars(r, HEX, 34)],
    "supabase": [lambda r: "sbp_" + chars(r, HEX, 40)],
    "planetscale": [lambda r: "pscale_tkn_" + chars(r, URLSAFE, 43)],
    "groq": [lambda r: "gsk_" + chars(r, ALNUM, 52)],
    "replicate": [lambda r: "r8_" + chars(r, ALNUM, 37)],
    "perplexity": [lambda r: "pplx-" + chars(r, ALNUM, 48)],
    "xai": [lambda r: "xai-" + chars(r, ALNUM, 80)],
    "atlassian": [lambda r: "ATATT3xFfGF0" + chars(r, URLSAFE, 170) + "=" + chars(r, UPPER, 8)],
    "dropbox": [lambda r: "sl." + chars(r, URLSAFE, 136)],
    "fly": [lambda r: "FlyV1 fm2_" + b64(r, 120)],
    "rubygems": [lambda r: "rubygems_" + chars(r, HEX, 48)],
    "age": [lambda r: "AGE-SECRET-KEY-1" + chars(r, BECH32, 58)],
    "jwt": [jwt],
}

#: Strings that are secrets by the name they are given.
NAMED: dict[str, list[tuple[tuple[str, ...], Callable[[Random], str]]]] = {
    "aws": [(("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY", "SecretAccessKey"), lambda r: b64(r, 30))],
    "twilio": [(("TWILIO_AUTH_TOKEN", "twilio_auth_token"), lambda r: chars(r, HEX, 32))],
    "datadog": [(("DD_API_KEY", "DATADOG_API_KEY", "dd-api-key"), lambda r: chars(r, HEX, 32))],
    "cohere": [(("COHERE_API_KEY", "co_api_key"), lambda r: chars(r, ALNUM, 40))],
    "mistral": [(("MISTRAL_API_KEY", "mistral_api_key"), lambda r: chars(r, ALNUM, 32))],
    "heroku": [(("HEROKU_API_KEY", "heroku_api_key"), hex_uuid)],
    "cloudflare": [(("CLOUDFLARE_API_TOKEN", "CF_API_TOKEN"), lambda r: chars(r, URLSAFE, 40))],
    "django": [(("SECRET_KEY", "DJANGO_SECRET_KEY"), lambda r: chars(r, LOWER + "!@#^&*(-_=+)", 50))],
    "oauth": [(("client_secret", "CLIENT_SECRET", "clientSecret"), lambda r: chars(r, URLSAFE, 32))],
    "session": [(("access_token", "refresh_token", "ACCESS_TOKEN"), lambda r: chars(r, URLSAFE, 64))],
    "password": [(("password", "DB_PASSWORD", "passwd", "POSTGRES_PASSWORD", "pwd"), lambda r: password(r))],
}

#: How a token is met; {} is its place.
PLACES = (
    "Here is the key, please keep it to yourself: {}",
    "use {} until Friday, then I will rotate it",
    "I pasted {} in the wrong channel yesterday. What now?",
    "export API_TOKEN={}",
    'client = Client(api_key="{}", timeout=30)',
    "    token: {}",
    '  "credential": "{}",',
    "curl -H 'Authorization: Bearer {}' https://api.example.org/v1/items",
    "2026-03-01T09:14:02Z ERROR auth failed for key {} (403)",
    "+const KEY = '{}';",
    "requests.get(url, params={{'key': '{}'}})",
    "https://api.example.org/v1/items?limit=5&token={}",
    "The old one (`{}`) still works on staging.",
    "ENV PROVIDER_KEY {}",
    "{}",
)

#: How a name is given its secret; the first place is the name's.
ASSIGNMENTS = (
    "{}={}",
    "export {}={}",
    '{} = "{}"',
    "{}: {}",
    "  '{}': '{}',",
    '{{"{}": "{}", "region": "eu"}}',
    'os.environ["{}"] = "{}"',
    "+{}='{}'",
)

CHAT_PASSWORDS = (
    "my password is {}",
    "The admin password is {} if you need it.",
    "password: {}",
    "log in as root, passwd {}",
    "mysql -u root -p'{}' shop",
    "The wifi's password was changed to {} today",
)

URLS = (
    "postgres://{user}:{secret}@db.internal:5432/shop",
    "postgresql+psycopg://{user}:{secret}@10.0.3.7/shop?sslmode=require",
    "mongodb+srv://{user}:{secret}@cluster0.ab1cd.mongodb.net/test",
    "redis://:{secret}@cache.internal:6379/0",
    "amqps://{user}:{secret}@mq.internal/vhost",
    "https://{user}:{secret}@git.example.org/team/repo.git",
    "mysql://{user}:{secret}@localhost/app",
    "ftp://{user}:{secret}@files.example.org/incoming",
)

WEBHOOKS: dict[str, Callable[[Random], tuple[str, str]]] = {
    "slack": lambda r: (
        "https://hooks.slack.com/services/",
        f"T{chars(r, UPPER, 8)}/B{chars(r, UPPER, 8)}/{chars(r, ALNUM, 24)}",
    ),
    "discord": lambda r: ("https://discord.com/api/webhooks/", f"{numbers(r, 18, 19)}/{chars(r, URLSAFE, 68)}"),
}


def password(rng: Random) -> str:
    words = ["Tiger", "orchid", "Monday", "velvet", "Falcon", "harbour", "Quartz", "maple"]
    word = rng.choice(words)
    return rng.choice(
        [
            word + rng.choice("!$%&*?") + numbers(rng, 3, 5),
            chars(rng, ALNUM + "!$%*_-", rng.randint(10, 18)),
            f"{word}-{rng.choice(words)}-{numbers(rng, 2, 3)}",
        ]
    )


def card(rng: Random) -> str:
    prefix, length = rng.choice([("4", 16), ("51", 16), ("55", 16), ("37", 15), ("6011", 16), ("2221", 16)])
    body = prefix + "".join(rng.choices(string.digits, k=length - len(prefix) - 1))
    total = sum(int(d) if i % 2 else sum(divmod(2 * int(d), 10)) for i, d in enumerate(reversed(body)))
    digits = body + str(-total % 10)
    sign = rng.choice(["", " ", "-"])
    groups = [digits[:4], digits[4:10], digits[10:]] if length == 15 else [digits[i : i + 4] for i in range(0, 16, 4)]
    return sign.join(groups)


def email(rng: Random) -> str:
    name = rng.choice(["ada", "grace.hopper", "alan_t", "k-johnson", "m.hamilton+lists", "d.ritchie"])
    return f"{name}{rng.choice(['', numbers(rng, 1, 3)])}@{rng.choice(['example.org', 'mail.acme.co.uk', 'lab.io'])}"


def private_key(rng: Random) -> Sample:
    kind = rng.choice(["RSA PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY", "PRIVATE KEY", "DSA PRIVATE KEY"])
    body = b64(rng, rng.choice([120, 610]))
    lines = [body[i : i + 64] for i in range(0, len(body), 64)]
    joint = rng.choice(["\n", "\n", "\\n"])  # the last as in JSON and in .env files
    text = joint.join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----"])
    return Sample("private_key", rng.choice(["{}", "deploy key:\n{}\n(end)", 'KEY="{}"']).format(text), tuple(lines))


def named(rng: Random, provider: str) -> Sample:
    names, make = rng.choice(NAMED[provider])
    secret = make(rng)
    return Sample(provider, rng.choice(ASSIGNMENTS).format(rng.choice(names), secret), (secret,))


def secrets(seed: int = 1, per_provider: int = 6) -> list[Sample]:
    """``per_provider`` samples of each provider and kind, in a fixed order."""
    rng = Random(seed)
    made: list[Sample] = []
    for provider, makers in TOKENS.items():
        for i in range(per_provider):
            secret = makers[i % len(makers)](rng)
            made.append(Sample(provider, rng.choice(PLACES).format(secret), (secret,)))
    for provider in NAMED:
        made += [named(rng, provider) for _ in range(per_provider)]
    for _ in range(per_provider):
        made.append(private_key(rng))
        secret = password(rng)
        made.append(Sample("password", rng.choice(CHAT_PASSWORDS).format(secret), (secret,)))
        secret = chars(rng, ALNUM + "!$*_-.", 14)
        url = rng.choice(URLS).format(user=rng.choice(["app", "ada", "svc-ci"]), secret=secret)
        made.append(Sample("url", rng.choice(["DATABASE_URL={}", "connecting to {} ...", "{}"]).format(url), (secret,)))
        provider = rng.choice(sorted(WEBHOOKS))
        head, secret = WEBHOOKS[provider](rng)
        made.append(Sample(provider, f"curl -d @msg.json {head}{secret}", (secret.rpartition("/")[2],)))
        secret = base64.b64encode(f"ada:{password(rng)}".encode()).decode()
        made.append(Sample("basic", f"Authorization: Basic {secret}", (secret,)))
        secret = b64(rng, 64)
        text = f"DefaultEndpointsProtocol=https;AccountName=acme;AccountKey={secret};EndpointSuffix=core.windows.net"
        made.append(Sample("azure", text, (secret,)))
        secret = email(rng)
        text = rng.choice(["write to {} please", "From: Ada <{}>", "{}"]).format(secret)
        made.append(Sample("email", text, (secret,)))
        secret = card(rng)
        text = rng.choice(["card {} exp 09/28", "Paid with {}.", '"pan": "{}"']).format(secret)
        made.append(Sample("card", text, (secret,)))
    return made


# --- benign lines ---

PROSE = (
    "We ship on Fridays and never deploy on Mondays.",
    "The password policy asks for twelve characters and no reuse.",
    "Please reset your password before the end of the week.",
    "Tokens are counted by the resident tokenizer, keys by their hash.",
    "He said the secret of good bread is time: nothing else.",
    "An API key is needed for the upload; ask the platform team for one.",
    "Token budgets of 4,096 are enough for most prompts.",
    "The key: keep functions short and name them well.",
    "Basic authentication is disabled on the new cluster.",
    "The bearer of this letter is my brother.",
    "I forgot my password again, and the token had expired too.",
    "Password: must be changed every year, says the handbook.",
    "The author's secret: rewriting everything three times.",
    "Access tokens live for one hour, refresh tokens for thirty days.",
    "My pin is on the board in the kitchen, next to the map.",
)

CODE = (
    "password = os.environ['DB_PASSWORD']",
    "token = get_token(user, scope='read')",
    "def check_password(password: str, hashed: bytes) -> bool:",
    "api_key: str | None = None  # read from the settings",
    "self.password = password",
    "if not secret_key: raise ConfigError('secret_key is missing')",
    "const token = await auth.refreshToken(session.token);",
    "PASSWORD=$(cat /run/secrets/db_password)",
    "password: ${DB_PASSWORD}",
    "api_key = settings.api_key",
    "password=None, token=None, secret=None",
    "client_secret: <your client secret>",
    "API_KEY=your-api-key-here",
    'parser.add_argument("--password", help="password of the database")',
    "for token in tokenizer.encode(text): yield token",
    "max_tokens = 4096",
    "n_tokens: int = field(validator=ge(0))",
    "@pytest.mark.parametrize('token', TOKENS)",
    "from huggingface_hub import hf_hub_download, login",
    "SECRET_KEY = env('SECRET_KEY')",
    "token_type = 'bearer'",
    "password_field = By.ID, 'password'",
    'password = getpass.getpass("Password: ")',
    "secret = Secret.from_name('stripe')",
    "{{ secrets.GITHUB_TOKEN }}",
    "npm_config_registry=https://registry.npmjs.org/ npm ci",
    "sk-learn, task-runner and desk-lamp are words",
    "git remote add origin git@github.com:team/repo.git",
    "rsync -a build/ deploy@web1:/srv/www/",
    "pip install 'package @ git+https://github.com/team/package@v1.2.3'",
    '"dependencies": {"@types/node": "^22.1.0", "left-pad@1.3.0": "*"}',
    "key = f'{prefix}-{index:08d}'",
    "token = tokens[position]",
    "keys_and_values = mx.concatenate([keys, values], axis=-1)",
    "primary_key = 'customer_id'",
    "monkey_patch = keyboard.key_down",
    "cache_key = hashlib.sha256(text.encode()).hexdigest()",
    "ssh_key_path = '~/.ssh/id_ed25519'",
    "pad_token_id=0, eos_token='<|im_end|>', bos_token='<s>'",
    "PRIVATE_KEY_FILE=/etc/ssl/private/server.pem",
)


def _benign(rng: Random) -> list[Callable[[], str]]:
    def sha(n: int) -> str:
        return chars(rng, HEX, n)

    return [
        lambda: rng.choice(PROSE),
        lambda: rng.choice(PROSE).lower().rstrip(".") + f", see page {rng.randint(2, 900)}",
        lambda: rng.choice(CODE),
        lambda: " " * rng.choice([2, 4, 8]) + rng.choice(CODE) + rng.choice(["", "  # noqa", ";"]),
        lambda: f"commit {sha(40)}",
        lambda: f"{sha(rng.choice([7, 8, 10]))} fix: off by one in the window of layer {rng.randint(0, 40)}",
        lambda: f"index {sha(7)}..{sha(7)} 100644",
        lambda: f"Merge: {sha(9)} {sha(9)}",
        lambda: f"request_id={hex_uuid(rng)} took {rng.randint(1, 900)} ms",
        lambda: f"{hex_uuid(rng)}",
        lambda: f"FROM python:3.11@sha256:{sha(64)}",
        lambda: f"sha256:{sha(64)}  model.safetensors",
        lambda: f"{sha(32)}  archive.tar.gz",
        lambda: f'"integrity": "sha512-{b64(rng, 64)}",',
        lambda: f"golang.org/x/net v0.{rng.randint(1, 40)}.0 h1:{b64(rng, 32)}",
        lambda: f"![plot](data:image/png;base64,iVBORw0KGgo{b64(rng, 150)})",
        lambda: f"<img src='data:image/jpeg;base64,/9j/{b64(rng, 90)}'>",
        lambda: f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{b64(rng, 31).rstrip('=')} build host",
        lambda: f"2026-02-{rng.randint(10, 28)} 12:{rng.randint(10, 59)}:07,{rng.randint(100, 999)} INFO worker done",
        lambda: f"[{numbers(rng, 10, 10)}.{numbers(rng, 6, 6)}] eth0: link up, {rng.randint(1, 99)} Gbps",
        lambda: f'  File "/usr/lib/python3.11/site-packages/pkg/core.py", line {rng.randint(1, 999)}, in run',
        lambda: f"<function step at 0x7f{sha(10)}>",
        lambda: f'192.168.{rng.randint(0, 255)}.7 - - "GET /v1/items?page={rng.randint(1, 99)} HTTP/1.1" 200 512',
        lambda: (
            f"https://example.org/docs/{rng.choice(['tokens', 'passwords', 'keys'])}.html#part-{rng.randint(1, 20)}"
        ),
        lambda: f"order {numbers(rng, 16, 16)[:-1]}x was shipped with parcel {numbers(rng, 12, 12)}",
        lambda: f"tel. +49 30 {numbers(rng, 7, 8)}, room {rng.randint(1, 400)}",
        lambda: f"epoch {rng.randint(1, 90)}: loss={rng.random():.6f} lr=3e-4 tokens={numbers(rng, 9, 9)}",
        lambda: f"SELECT id, name FROM keys WHERE token_count > {rng.randint(1, 900)} ORDER BY id;",
        lambda: f'etag: W/"{sha(20)}"',
        lambda: f"trace_id={sha(32)} span_id={sha(16)}",
        lambda: f"$2 -> {rng.choice(['alpha', 'beta'])}; weights[{rng.randint(0, 999)}] = {rng.random() - 0.5:.8f}",
        lambda: f"E   AssertionError: assert {rng.randint(0, 99)} == {rng.randint(100, 199)}",
        lambda: f"chunk {b64url(rng, 24)} of lineage {b64url(rng, 24)}",
    ]


def benign(seed: int = 2, n: int = 1000) -> list[str]:
    """``n`` lines without a secret: code, hashes, UUIDs, images, prose, logs."""
    rng = Random(seed)
    makers = _benign(rng)
    return [makers[i % len(makers)]() for i in range(n)]
