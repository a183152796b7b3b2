"""The rules of ``RuleRedactor``: what secrets look like.

Three sorts, from the most to the least specific: tokens that say by their own shape whose they are (one line each in
``_TOKENS``), places where secrets stand (URLs, headers, command lines, assignments, "my password is ..."), and personal
data (e-mail addresses, payment cards). The shapes are those that providers document or that their issued keys show.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator

from attrs import field, frozen

Spans = Iterable[tuple[int, int]]


@frozen
class Rule:
    """One way in which secrets are found. A text that has none of the ``keywords`` is not looked at."""

    kind: str
    keywords: tuple[str, ...]
    find: Callable[[str, str], Spans] = field(repr=False)  #: half-open spans in a text, given as it is and folded
    folds_case: bool = False  #: keywords are in lower case and are looked for in the folded text


def fold(text: str) -> str:
    """``text`` in lower case, of the same length: places in one are places in the other."""
    folded = text.lower()
    return folded if len(folded) == len(text) else "".join(c.lower() if c.isascii() else c for c in text)


# --- tokens with a shape of their own ---

_HEX, _ALNUM, _WORD, _BASE64 = "a-f0-9", "A-Za-z0-9", r"A-Za-z0-9_\-", r"A-Za-z0-9+/=_\-"

#: kind, how it begins (alternatives by space), characters that follow, fewest, most
_TOKENS = (
    ("anthropic", "sk-ant-", _WORD, 20, 200),
    ("openai", "sk-proj- sk-svcacct- sk-admin- sk-None-", _WORD, 20, 250),
    ("openrouter", "sk-or-v1-", _HEX, 40, 80),
    ("api_key", "sk-", _WORD, 20, 250),
    ("cerebras", "csk-", _ALNUM, 32, 80),
    ("github", "ghp_ gho_ ghu_ ghs_ ghr_", _ALNUM, 30, 255),
    ("github", "github_pat_", _ALNUM + "_", 40, 255),
    ("gitlab", "glpat- gldt- glrt- glptt- glcbt- glft- glagent- glsoat- glimt- gloas- GR1348941", _WORD + ".", 18, 100),
    ("google", "AIza", _WORD, 35, 39),
    ("google", "GOCSPX- ya29. 1//0", _WORD, 20, 400),
    ("stripe", "sk_live_ sk_test_ rk_live_ rk_test_ whsec_ sk_prod_", _ALNUM, 10, 255),
    ("slack", "xoxb- xoxp- xoxa- xoxr- xoxs- xoxo- xoxe- xoxc- xoxd- xoxe.xox xapp-", _WORD + "%", 20, 400),
    ("sendgrid", "SG.", _WORD + ".", 50, 90),
    ("mailgun", "key- pubkey-", _HEX, 32, 32),
    ("npm", "npm_", _ALNUM, 36, 40),
    ("pypi", "pypi-AgE pypi-", _WORD, 50, 1000),
    ("huggingface", "hf_ api_org_", _ALNUM, 30, 60),
    ("digitalocean", "dop_v1_ doo_v1_ dor_v1_", _HEX, 60, 70),
    ("shopify", "shpat_ shpca_ shppa_ shpss_ shptka_", "a-fA-F0-9", 32, 40),
    ("square", "sq0atp- sq0csp- sq0idp-", _WORD, 20, 50),
    ("square", "EAAA", _WORD, 56, 70),
    ("facebook", "EAA", _ALNUM, 60, 300),
    ("databricks", "dapi", _HEX + r"\-", 32, 36),
    ("hashicorp", "hvs. hvb. hvr.", _WORD, 20, 300),
    ("linear", "lin_api_ lin_oauth_", _ALNUM, 32, 80),
    ("notion", "ntn_", _ALNUM, 40, 60),
    ("notion", "secret_", _ALNUM, 40, 60),
    ("figma", "figd_ figdr_ figo_ figor_", _WORD, 30, 60),
    ("airtable", "pat", _ALNUM, 14, 14),  # with the second half below
    ("grafana", "glsa_ glc_ eyJrIjoi", _BASE64, 30, 400),
    ("newrelic", "NRAK- NRJS- NRII- NRBR- NRAA-", _WORD, 19, 40),
    ("sentry", "sntrys_ sntryu_ sntryi_", _BASE64, 40, 400),
    ("docker", "dckr_pat_ dckr_oat_", _WORD, 20, 60),
    ("postman", "PMAK-", _HEX + r"\-", 50, 70),
    ("supabase", "sbp_ sb_secret_", _WORD, 30, 60),
    ("planetscale", "pscale_tkn_ pscale_pw_ pscale_oauth_ pscale_", _WORD + ".=", 30, 80),
    ("groq", "gsk_", _ALNUM, 40, 60),
    ("replicate", "r8_", _ALNUM, 37, 40),
    ("perplexity", "pplx-", _ALNUM, 40, 60),
    ("xai", "xai-", _WORD, 60, 100),
    ("nvidia", "nvapi-", _WORD, 50, 80),
    ("langsmith", "lsv2_pt_ lsv2_sk_ ls__", _HEX + "_", 32, 60),
    ("pinecone", "pcsk_", _ALNUM + "_", 40, 90),
    ("tavily", "tvly-", _WORD, 20, 60),
    ("jina", "jina_", _WORD, 40, 80),
    ("fireworks", "fw_", _ALNUM, 22, 60),
    ("voyage", "pa-", _WORD, 40, 60),
    ("atlassian", "ATATT3x ATCTT3x ATBB", _WORD + "=", 20, 400),
    ("dropbox", "sl. sl.u.", _WORD, 60, 1500),
    ("fly", "fo1_", _WORD, 43, 60),
    ("fly", "fm1r_ fm1a_ fm2_", _BASE64, 60, 2000),
    ("rubygems", "rubygems_", _HEX, 40, 60),
    ("crates", "cio", _ALNUM, 32, 32),
    ("nuget", "oy2", "a-z0-9", 43, 43),
    ("clojars", "CLOJARS_", "a-z0-9", 40, 80),
    ("age", "AGE-SECRET-KEY-1", "0-9A-Z", 50, 64),
    ("doppler", "dp.pt. dp.st. dp.ct. dp.sa. dp.scim. dp.audit.", _WORD + ".", 30, 80),
    ("dynatrace", "dt0c01. dt0s01. dt0s16.", _ALNUM + ".", 60, 120),
    ("alibaba", "LTAI", _ALNUM, 16, 30),
    ("tencent", "AKID", _ALNUM, 32, 40),
    ("adobe", "p8e- p8e_", _ALNUM, 32, 40),
    ("artifactory", "AKC cmVmdGtu", _ALNUM, 16, 90),
    ("easypost", "EZAK EZTK", _ALNUM, 50, 60),
    ("flutterwave", "FLWSECK_TEST- FLWSECK- FLWPUBK_TEST-", _ALNUM, 12, 50),
    ("frameio", "fio-u-", _WORD, 50, 80),
    ("duffel", "duffel_test_ duffel_live_", _WORD + "=", 40, 50),
    ("shippo", "shippo_live_ shippo_test_", _HEX, 38, 42),
    ("razorpay", "rzp_live_ rzp_test_", _ALNUM, 14, 20),
    ("plaid", "access-sandbox- access-production- access-development-", _HEX + r"\-", 36, 36),
    ("netlify", "nfp_ nfc_", _ALNUM, 36, 50),
    ("prefect", "pnu_ pnb_", _ALNUM, 36, 40),
    ("pulumi", "pul-", _HEX, 40, 40),
    ("readme", "rdme_", "a-z0-9", 60, 80),
    ("render", "rnd_", _ALNUM, 28, 40),
    ("vercel", "vcp_ vci_ vca_ vcr_ vck_", _ALNUM, 24, 80),
    ("scalingo", "tk-us-", _WORD, 40, 60),
    ("brevo", "xkeysib- xsmtpsib-", _ALNUM + r"\-", 60, 100),
    ("mailersend", "mlsn.", _HEX, 60, 80),
    ("resend", "re_", _ALNUM + "_", 30, 40),
    ("sourcegraph", "sgp_ slk_", _HEX + "_local", 40, 100),
    ("tailscale", "tskey-auth- tskey-api- tskey-client- tskey-", _WORD, 20, 80),
    ("typeform", "tfp_", _WORD + ".=", 50, 70),
    ("openshift", "sha256~", _WORD, 43, 43),
    ("buildkite", "bkua_ bkct_", _HEX, 40, 60),
    ("circleci", "CCIPAT_ CCIPRJ_", _ALNUM + "_", 40, 90),
    ("heroku", "HRKU-", _WORD, 30, 80),
    ("onepassword", "ops_eyJ", _BASE64, 200, 2000),
    ("infracost", "ico-", _ALNUM, 32, 32),
    ("elevenlabs", "sk_", _HEX, 48, 48),
    ("contentful", "CFPAT-", _WORD, 43, 43),
    ("launchdarkly", "api- sdk- mob-", _HEX + r"\-", 36, 36),
    ("paypal", "access_token$production$ access_token$sandbox$", "a-z0-9$", 40, 70),
    ("sonarqube", "sqp_ squ_ sqa_", _HEX, 40, 40),
    ("cloudflare", "v1.0-", _HEX + r"\-", 60, 180),
    ("honeycomb", "hcaik_ hcbik_ hcxik_ hcamk_", _ALNUM, 50, 70),
    ("yandex", "AQVN t1.", _WORD + ".=", 35, 300),
    ("settlemint", "sm_aat_ sm_pat_ sm_sat_", _ALNUM, 16, 20),
)

#: kind, keywords, pattern: shapes that are more than a beginning
_SHAPES = (
    ("aws", "AKIA ASIA ABIA ACCA", r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Z0-9])"),
    ("aws", "A3T", r"(?<![A-Za-z0-9])A3T[A-Z0-9]{17}(?![A-Z0-9])"),
    ("aws", "ABSK", r"(?<![A-Za-z0-9])ABSK[A-Za-z0-9+/]{100,160}+={0,2}"),
    ("twilio", "SK", r"(?<![A-Za-z0-9])SK[a-f0-9]{32}(?![a-f0-9])"),
    ("mailchimp", "-us", r"(?<![A-Za-z0-9])[a-f0-9]{32}-us[0-9]{1,2}(?![0-9])"),
    ("telegram", ":", r"(?<![0-9])[0-9]{8,10}:[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    ("discord", ".", r"(?<![A-Za-z0-9_-])[MNO][A-Za-z0-9_-]{22,27}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,40}"),
    ("hashicorp", ".atlasv1.", r"(?<![A-Za-z0-9])[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,70}"),
    ("azure", "Q~", r"(?<![A-Za-z0-9])[A-Za-z0-9_~.-]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34}"),
    ("airtable", "pat", r"(?<![A-Za-z0-9])pat[A-Za-z0-9]{14}\.[a-f0-9]{64}"),
    ("jwt", "eyJ", r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,4000}+\.eyJ[A-Za-z0-9_-]{4,8000}+\.?[A-Za-z0-9_-]{0,2000}+"),
    ("jwt", "eyJ", r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,4000}+(?:\.[A-Za-z0-9_-]{0,8000}+){4}"),
    ("slack", "hooks.slack.com", r"hooks\.slack\.com/(?:services|workflows|triggers)/([A-Za-z0-9/_-]{20,120})"),
    ("discord", "/api/webhooks/", r"/api/webhooks/([0-9]{15,22}/[A-Za-z0-9_-]{40,100})"),
    ("teams", "webhook.office.com", r"webhook\.office\.com/([A-Za-z0-9/@_-]{40,250})"),
    ("zapier", "hooks.zapier.com", r"hooks\.zapier\.com/hooks/catch/([A-Za-z0-9/]{10,60})"),
    ("okta", "00", r"(?<![A-Za-z0-9_/+=-])00[A-Za-z0-9_-]{40}(?![A-Za-z0-9_/+=-])"),
    ("azure", "Key= sig=", r"(?:AccountKey|SharedAccessKey|[?&]sig)=([A-Za-z0-9+/%]{40,120}+={0,2})"),
)


def _matches(pattern: str, accepts: Callable[[str], bool], *, folds_case: bool = False) -> Callable[[str, str], Spans]:
    """The spans of a pattern's last group that took part (the whole where it has none) whose text is accepted."""

    def find(text: str, folded: str) -> Iterator[tuple[int, int]]:
        for match in re.finditer(pattern, folded if folds_case else text):
            start, stop = match.span(match.lastindex or 0)
            if accepts(text[start:stop]):
                yield start, stop

    return find


def _is_mixed(value: str) -> bool:
    """True if there are letters and digits: no word, and no number."""
    return any(c.isdigit() for c in value) and any(c.isalpha() for c in value)


def _token_rules() -> Iterator[Rule]:
    for kind, beginnings, alphabet, fewest, most in _TOKENS:
        if (kind, beginnings) == ("airtable", "pat"):
            continue
        openings = tuple(beginnings.split())
        either = "|".join(map(re.escape, sorted(openings, key=len, reverse=True)))
        pattern = f"(?<![A-Za-z0-9])(?:{either})[{alphabet}]{{{fewest},{most}}}+"
        yield Rule(kind, openings, _matches(pattern, _is_random))


def _is_random(token: str) -> bool:
    """True unless a token reads like words joined by signs: it has a digit, or letters of both cases mixed."""
    body = re.split(r"[_.-]", token)[-1] if len(token) < 40 else token
    return any(c.isdigit() for c in token) or bool(re.search(r"[a-z][A-Z].*[A-Z]", body))


# --- private keys ---

_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_END = re.compile(r"-----END (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_KEY_BODY = re.compile(r"(?:\\[nr]|[A-Za-z0-9+/=\s:,.-])*+")


def _private_keys(text: str, _: str) -> Iterator[tuple[int, int]]:
    """From each BEGIN line to its END line; a key that is cut off ends with its last line of base64."""
    place = 0
    while begin := _BEGIN.search(text, place):
        body = _KEY_BODY.match(text, begin.end())
        stop = body.end() if body else begin.end()
        end = _END.search(text, begin.end(), stop + 80)
        place = end.end() if end else stop
        yield begin.start(), place


# --- places where secrets stand ---

_PLACEHOLDERS = re.compile(
    r"""^[$<{%*.\[#]            # a variable, a template's gap, stars
    | your | example | placeholder | change[-_]?me | x{4} | \.\.\. | redacted | dummy | ^(?:my|the|an?|some)[-_ ]
    """,
    re.X | re.I,
)
_WORDS = frozenset(
    "password passwd pass pwd secret token string str text none null true false required optional hidden bearer basic "
    "username user test default invalid missing undefined unknown incorrect forgotten passwort credentials".split()
)
_CODE = re.compile(r"^(?:[A-Za-z_]+[A-Za-z_.]*[(\[]|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+$|[a-z]+(?:_[a-z]+)+\d?$)")


def _is_filled(value: str) -> bool:
    """True if a value is neither a placeholder nor a word that only names what belongs there."""
    return not _PLACEHOLDERS.search(value) and value.lower().strip("'\"") not in _WORDS


def _is_password(value: str) -> bool:
    """True if something that follows the word password looks like one: letters, with a digit or a sign in them."""
    has_letter, has_other = bool(re.search("[A-Za-z]", value)), bool(re.search(r"[0-9!$%&*?#@^]", value))
    is_count = re.fullmatch(r"\d+-[A-Za-z-]+", value)
    is_strong = len(value) >= 6 and has_letter and has_other and not is_count
    return is_strong and _is_filled(value) and not _CODE.match(value)


def _is_quoted_password(value: str) -> bool:
    return len(value) >= 6 and not re.search(r"\s", value) and _is_filled(value)


def _is_key(value: str) -> bool:
    """True if a value looks random: letters and digits, long and varied enough, no code."""
    return _is_quoted_key(value) and not _CODE.match(value)


def _is_quoted_key(value: str) -> bool:
    return len(value) >= 12 and _is_mixed(value) and len(set(value)) >= 6 and _is_filled(value) and " " not in value


def _is_basic(value: str) -> bool:
    """True if base64 holds ``user:password``."""
    try:
        return b":" in base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False


_PASSWORD_NAME = r"(?:passwords?|passwd|passphrase|passcode|pwd|(?<=[_-])pw(?![a-z]))"
_KEY_NAME = (
    r"(?:secret|token|credentials?|(?:api|access|auth|secret|private|signing|encryption|master|account|service|deploy"
    r"|license|app|application|consumer|client|storage|subscription)[_.-]?key)"
)
_SUFFIX = r"(?:[_-]?(?:value|string|text|key|prod|dev|staging|live|test|old|new|[0-9]{1,3}))?"
_TYPED = r"(?::\s?[a-z_][a-z_.| \[\]]{0,30})?"
_ASSIGNED = rf"{_SUFFIX}['\"\]]{{0,3}}{_TYPED}\s{{0,40}}(?:=>|:=|::|={{1,3}}|:)\s{{0,40}}"
_VALUE = r"(?:[bfru]?(?:\"([^\"\n]{4,512})\"|'([^'\n]{4,512})'|`([^`\n]{4,512})`)|['\"]?([^\s\"'`,;<>]{6,512}))"
_SAID = (
    r"(?:[ \t]\w{1,20}){0,4}?[ \t](?:is|was|to|be)(?:[ \t](?:now|still|again|(?:re)?set|changed|rotated)){0,2}"
    r"(?:[ \t]to)?[ \t]?:?[ \t]?[\"'`]?([^\s\"'`]{6,128})"
)
_FLAG = r"--(?:password|passwd|token|api-key|secret|access-token|auth-token)[= ]['\"]?([^\s'\"]{6,512})"
_QUERY = (
    r"[?&](?:access_token|auth_token|token|api_?key|key|secret|signature|password|auth|code)="
    r"([A-Za-z0-9._~%+/-]{12,1000})"
)
_CURL = r"\b(?:curl|wget)\b[^\n]{0,200}?\s(?:-u|--user)[ =]?['\"]?[^\s:'\"]{1,64}:([^\s'\"]{4,128})"
_KEY_SAID = r"(?:api[ _-]?key|token|secret|credential)s?[ \t](?:is|was)[ \t:]{1,3}['\"`]?([^\s\"'`,;<>]{12,512})"
_NAMES = ("password", "passwd", "passphrase", "passcode", "pwd", "_pw", "-pw")
_KEY_NAMES = ("secret", "token", "credential", "key")


def _assigned(
    name: str, accepts_bare: Callable[[str], bool], accepts_quoted: Callable[[str], bool]
) -> Callable[[str, str], Spans]:
    """The values that are assigned to a name: quoted ones whole, bare ones without a sentence's punctuation."""
    pattern = name + _ASSIGNED + _VALUE

    def find(text: str, folded: str) -> Iterator[tuple[int, int]]:
        for match in re.finditer(pattern, folded):
            start, stop = match.span(match.lastindex or 0)
            if match.lastindex != 4:
                if accepts_quoted(text[start:stop]):
                    yield start, stop
            elif accepts_bare(bare := _bare(text[start:stop])):
                yield start, start + len(bare)

    return find


def _said(pattern: str, accepts: Callable[[str], bool]) -> Callable[[str, str], Spans]:
    """The values that a sentence names."""

    def find(text: str, folded: str) -> Iterator[tuple[int, int]]:
        for match in re.finditer(pattern, folded):
            start, stop = match.span(1)
            if accepts(bare := _bare(text[start:stop])):
                yield start, start + len(bare)

    return find


def _bare(value: str) -> str:
    return value.rstrip(".,;:)]}")


_PLACES = (
    Rule("url_password", ("://",), _matches(r"://[^\s/:@'\"<>]{0,128}:([^\s/@'\"<>]{1,256})@", _is_filled)),
    Rule("basic_auth", ("basic ",), _matches(r"(?i)basic[ \t]+([a-z0-9+/]{8,400}={0,2})", _is_basic), True),
    Rule("bearer", ("bearer ",), _matches(r"bearer[ \t]+([a-z0-9._~+/=-]{16,2000})", _is_mixed, folds_case=True), True),
    Rule("query_token", ("=",), _matches(_QUERY, _is_key)),
    Rule("password", ("mysql",), _matches(r"\bmysql\w{0,10}\b[^\n]{0,100}?\s-p['\"]?([^\s'\"]{4,128})", _is_filled)),
    Rule("password", ("curl", "wget"), _matches(_CURL, _is_filled)),
    Rule("password", ("sshpass",), _matches(r"\bsshpass\s+-p\s?['\"]?([^\s'\"]{4,128})", _is_filled)),
    Rule("password", ("--",), _matches(_FLAG, _is_password)),
    Rule("password", _NAMES, _assigned(_PASSWORD_NAME, _is_password, _is_quoted_password), True),
    Rule("password", _NAMES, _said(_PASSWORD_NAME + _SAID, _is_password), True),
    Rule("password", _NAMES, _said(_PASSWORD_NAME + r"[ \t]([^\s\"'`]{6,128})", _is_password), True),
    Rule("secret", _KEY_NAMES, _assigned(_KEY_NAME, _is_key, _is_quoted_key), True),
    Rule("secret", _KEY_NAMES, _said(_KEY_SAID, _is_key), True),
)


# --- personal data ---

_DOMAIN = re.compile(r"@((?:[A-Za-z0-9-]{1,63}\.){1,5}([A-Za-z]{2,24}))(?![A-Za-z0-9_-]|:[A-Za-z~/])")
_LOCAL = re.compile(r"[A-Za-z0-9._%+-]{1,64}$")
_FILES = frozenset("png jpg jpeg gif webp svg ico py js ts css json html md txt yml yaml sh so toml shape".split())


def _emails(text: str, _: str) -> Iterator[tuple[int, int]]:
    """Addresses, found from their @: no scp path, no user part of a URL, no image@2x.png."""
    for domain in _DOMAIN.finditer(text):
        before = text[max(0, domain.start() - 64) : domain.start()]
        local = _LOCAL.search(before)
        if local and domain[2].lower() not in _FILES and "://" not in before.rpartition(" ")[2]:
            yield domain.start() - len(local[0]), domain.end()


_CARD = re.compile(
    r"(?<![\w.-])(?:[0-9]{4}([ -]?)[0-9]{4}\1[0-9]{4}\1[0-9]{4}|[0-9]{4}([ -]?)[0-9]{6}\2[0-9]{4,5})"
    r"(?![\w-])(?!\.[0-9])"
)
_ISSUERS = re.compile(r"4|5[1-5]|2(?:2[2-9]|[3-6]|7[01]|720)|3[47]|3(?:0[0-5]|095|[689])|6(?:011|5|4[4-9]|22)|35")


def _cards(text: str, _: str) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text):
        digits = re.sub("[ -]", "", match[0])
        if _ISSUERS.match(digits) and len(set(digits)) > 1 and is_luhn(digits):
            yield match.span()


def is_luhn(digits: str) -> bool:
    """True if the last digit is the Luhn check digit of the others (ISO/IEC 7812-1, annex B)."""
    values = [int(d) for d in reversed(digits)]
    return sum(d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(values)) % 10 == 0


RULES: tuple[Rule, ...] = (
    Rule("private_key", ("PRIVATE KEY",), _private_keys),
    *(Rule(kind, tuple(keywords.split()), _matches(pattern, _is_mixed)) for kind, keywords, pattern in _SHAPES),
    *_token_rules(),
    *_PLACES,
    Rule("email", ("@",), _emails),
    Rule("card", tuple("0123456789"), _cards),
)
