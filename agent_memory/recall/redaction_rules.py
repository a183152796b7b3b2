"""The rules of ``RuleRedactor``: what secrets look like.

Three sorts, from the most to the least specific: tokens that say by their own shape whose they are
(``token_shapes.py``), places where secrets stand (URLs, headers, command lines, assignments, "my password is ..."),
and personal data (e-mail addresses, payment cards).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator

from attrs import field, frozen

from agent_memory.recall.token_shapes import SHAPES, TOKENS

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
    for kind, beginnings, alphabet, fewest, most in TOKENS:
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
_CODE = re.compile(
    r"^(?:[A-Za-z_]+[A-Za-z_.]*[(\[]|[A-Za-z_]\w{0,40}\([\w.,=]{0,80}\)|(?:[A-Za-z_]\w{0,40}\.){1,4}\w{1,40}[(\[]|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+$|[a-z]+(?:_[a-z]+)+\d?$)"
)


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


def _is_dense(value: str) -> bool:
    """True if a value has capitals, small letters and digits, and is no name in code: a key, not a hash."""
    return _is_key(value) and all(re.search(some, value) for some in ("[A-Z]", "[a-z]", "[0-9]"))


def _is_basic(value: str) -> bool:
    """True if base64 holds ``user:password``."""
    try:
        return b":" in base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False


_PASSWORD_NAME = (
    r"(?:passwords?|passwd|passphrase|passcode|pwd|(?<=[_-])pw(?![a-z])|(?<=[_-])pass(?![a-z])"
    r"|passwort|kennwort|contraseña|wachtwoord|senha)"
)
_KEY_NAME = (
    r"(?:secret|token|credentials?|(?<=[a-z0-9]_)auth|(?:api|access|auth|secret|private|signing|encryption|master|account|service|deploy"
    r"|license|app|application|consumer|client|storage|subscription)[ _.-]?key)"
)
_SUFFIX = r"(?:[_-]?(?:value|string|text|key|prod|dev|staging|live|test|old|new|[0-9]{1,3}))?"
_TYPED = r"(?::\s?[a-z_][a-z_.| \[\]]{0,30})?"
_ASSIGNED = rf"[\\'\"\]]{{0,5}}{_TYPED}\s{{0,40}}(?:=>|:=|::|={{1,3}}|:|>(?!@))\s{{0,40}}"
_ESCAPED = r"\\{1,3}[\"']([^\s\"'\\]{4,512})\\{1,3}[\"']"  #: in quotes, as text within JSON has them
_PLAIN = r"[bfru]?(?:\"([^\"\n]{4,512})\"|'([^'\n]{4,512})'|`([^`\n]{4,512})`)"
_BARE = r"['\"]?([^\s\"'`,;<>]{6,512})"
_VALUE = f"(?:{_ESCAPED}|{_PLAIN}|{_BARE})"
_SAID = (
    r"(?:[ \t]\w{1,20}){0,4}?[ \t](?:is|was|to|be|ist|es|est)"
    r"(?:[ \t](?:now|still|again|(?:re)?set|changed|rotated)){0,2}(?:[ \t]to)?[ \t]?:?[ \t]?[\"'`]?([^\s\"'`]{6,128})"
)
_FLAG = r"--(?:password|passwd|token|api-key|secret|access-token|auth-token)[= ]['\"]?([^\s'\"]{6,512})"
_QUERY = (
    r"[?&](?:access_token|auth_token|token|api_?key|key|secret|signature|password|auth|code)="
    r"([A-Za-z0-9._~%+/-]{12,1000})"
)
_CURL = r"\b(?:curl|wget)\b[^\n]{0,100}?\s(?:-u|--user)[ =]?['\"]?[^\s:'\"]{1,64}:([^\s'\"]{4,128})"
_KEY_ALONE = r"(?<![a-z0-9_-])key['\"]?\s?[:=]\s?['\"`]?([a-z0-9_\-./+=]{20,512})"
_LISTED = r"['\"]\s{0,4},\s{0,4}['\"]([^'\"\n]{6,256})['\"]"  #: define('DB_PASSWORD', '...')
_AUTHORIZATION = r"authorization['\"]?\s{0,3}[:=]\s{0,3}['\"]?(?:[a-z]{1,20}[ \t]{1,3})?([a-z0-9._~+/=(-]{16,2000})"
_COOKIE = (
    r"\b(?:session(?:[_-]?id)?|sid|phpsessid|jsessionid|connect\.sid|[cx]srf[_-]?token)=([a-z0-9%._+/=-]{16,1000})"
)
_NAMES = tuple("password passwd passphrase passcode pwd _pw -pw _pass -pass passwort kennwort contraseña".split())
_NAMES += ("wachtwoord", "senha")
_KEY_NAMES = ("secret", "token", "credential", "key", "_auth")


@frozen
class _Tail:
    """What may follow a name: ``pattern``, whose last group is a bare value and whose other groups are quoted ones."""

    pattern: str
    accepts: Callable[[str], bool]
    accepts_quoted: Callable[[str], bool]

    def span(self, text: str, folded: str, place: int) -> tuple[int, int] | None:
        """Return the value's span; a bare one ends before a sentence's punctuation."""
        match = re.compile(self.pattern).match(folded, place)
        if match is None:
            return None
        start, stop = match.span(match.lastindex or 0)
        if match.lastindex != match.re.groups:
            return (start, stop) if self.accepts_quoted(text[start:stop]) else None
        bare = _bare(text[start:stop])
        return (start, start + len(bare)) if self.accepts(bare) else None


def _named(name: str, *tails: _Tail) -> Callable[[str, str], Spans]:
    """The value that the first fitting tail finds after a name."""

    pattern = name + _SUFFIX

    def find(text: str, folded: str) -> Iterator[tuple[int, int]]:
        finder, place = re.compile(pattern), 0
        while match := finder.search(folded, place):
            place = match.end()
            spans = (tail.span(text, folded, place) for tail in tails)
            if span := next(filter(None, spans), None):
                yield span
                place = span[1]

    return find


def _bare(value: str) -> str:
    return value.rstrip(".,;:)]}*`_")


#: Services whose keys have no shape of their own: what is assigned to a name that begins with theirs.
_SERVICES = (
    "adafruit airtable algolia asana beamer bitbucket bittrex codecov cohere coinbase confluent contentful "
    "datadog discord dropbox droneci facebook fastly finicity finnhub flickr freshbooks gitter gocardless heroku "
    "hubspot intercom jfrog kraken kucoin launchdarkly linkedin lob mailchimp mailgun mattermost messagebird "
    "mistral netlify newrelic notion nytimes okta opsgenie pagerduty rapidapi sendbird sentry shodan snyk sonar "
    "squarespace sumologic travis trello twilio twitch twitter yandex zendesk"
).split()
_SERVICE = (
    rf"(?<![a-z])(?:{'|'.join(_SERVICES)})([\w.-]{{0,24}})[\s'\"`]{{0,6}}"
    r"(?:=>|:=|\|\||\?=|[:=,>]){1,3}[\s'\"`=]{0,6}"
    r"([a-z0-9_\-=%./+~]{16,200})"
)
_NO_SECRET = re.compile(
    r"(?:ids?|names?|urls?|uri|host|version|sha|hash|commit|path|file|region|channel|model|page|org)$"
)


def _services(text: str, folded: str) -> Iterator[tuple[int, int]]:
    """What is assigned to a service's name, unless the name says that it is no secret."""
    for match in re.finditer(_SERVICE, folded):
        start, stop = match.span(2)
        value = _bare(text[start:stop])
        if not _NO_SECRET.search(match[1]) and _is_key(value) and "/" not in value[:8]:
            yield start, start + len(value)


_PASSWORD_TAILS = (
    _Tail(_ASSIGNED + _VALUE, _is_password, _is_quoted_password),
    _Tail(_LISTED, _is_password, _is_password),
    _Tail(_SAID, _is_password, _is_password),
    _Tail(r"[ \t]['\"`]?([^\s\"'`]{6,128})", _is_password, _is_password),
)
_KEY_TAILS = (
    _Tail(_ASSIGNED + _VALUE, _is_key, _is_quoted_key),
    _Tail(_LISTED, _is_quoted_key, _is_quoted_key),
    _Tail(r"s?[ \t](?:is|was)[ \t:]{1,3}['\"`]?([^\s\"'`,;<>]{12,512})", _is_key, _is_key),
    _Tail(r"[ \t]{1,3}['\"`]?([a-z0-9_\-./+=]{20,512})", _is_dense, _is_dense),
)
_PLACES = (
    Rule("url_password", ("://",), _matches(r"://[^\s/:@'\"<>]{0,128}:([^\s/@'\"<>]{1,256})@", _is_filled)),
    Rule("basic_auth", ("basic ",), _matches(r"(?i)basic[ \t]+([a-z0-9+/]{8,400}={0,2})", _is_basic), True),
    Rule("bearer", ("bearer ",), _matches(r"bearer[ \t]+([a-z0-9._~+/=-]{16,2000})", _is_mixed, folds_case=True), True),
    Rule("authorization", ("authorization",), _matches(_AUTHORIZATION, _is_key, folds_case=True), True),
    Rule("cookie", ("=",), _matches(_COOKIE, _is_quoted_key, folds_case=True)),
    Rule("query_token", ("=",), _matches(_QUERY, _is_key)),
    Rule("password", ("mysql",), _matches(r"\bmysql\w{0,10}\b[^\n]{0,100}?\s-p['\"]?([^\s'\"]{4,128})", _is_filled)),
    Rule("password", ("curl", "wget"), _matches(_CURL, _is_filled)),
    Rule("password", ("sshpass",), _matches(r"\bsshpass\s+-p\s?['\"]?([^\s'\"]{4,128})", _is_filled)),
    Rule("password", ("--",), _matches(_FLAG, _is_password)),
    Rule("password", ("pass:",), _matches(r"\bpass:([^\s'\"]{4,128})", _is_password)),
    Rule(
        "password",
        ("identified by",),
        _matches(r"identified by ['\"]([^'\"\n]{4,128})", _is_filled, folds_case=True),
        True,
    ),
    Rule("password", ("pass",), _matches(r"\bpass['\"]?\s?[:=]\s?['\"]([^'\"\n]{6,128})['\"]", _is_password)),
    Rule("password", ("passphrase",), _matches(r"passphrase[ \t:=]{1,4}['\"]([^'\"\n]{8,256})['\"]", _is_filled)),
    Rule("password", _NAMES, _named(_PASSWORD_NAME, *_PASSWORD_TAILS), True),
    Rule("secret", _KEY_NAMES, _named(_KEY_NAME, *_KEY_TAILS), True),
    Rule("secret", ("key",), _matches(_KEY_ALONE, _is_dense, folds_case=True), True),
    Rule("secret", tuple(_SERVICES), _services, True),
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
    *(Rule(kind, tuple(keywords.split()), _matches(pattern, _is_mixed)) for kind, keywords, pattern in SHAPES),
    *_token_rules(),
    *_PLACES,
    Rule("email", ("@",), _emails),
    Rule("card", tuple("0123456789"), _cards),
)
