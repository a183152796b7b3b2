"""What makes two errors, conditions or tasks the same: their texts without what differs by chance."""

from __future__ import annotations

import re
from collections.abc import Sequence

from agent_memory.recall.words import question_terms

_MAX_CHARS = 4_000  #: of a text that is looked at
_UUID = re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b")
_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s'\"<>)]{1,500}")
_PATH = re.compile(
    r"(?<![\w/])(?:~|\.{1,2}|[A-Za-z]:)?[/\\](?:[\w.+@-]{1,200}[/\\]?){1,40}|\b[\w-]{1,100}(?:/[\w.-]{1,100}){1,40}"
)
_HEX = re.compile(r"\b0x[0-9a-fA-F]+\b|\b(?=[0-9a-fA-F]*\d)(?=[0-9a-fA-F]*[a-fA-F])[0-9a-fA-F]{7,64}\b")
_QUOTED = re.compile(r"`[^`\n]{1,200}`|'[^'\n]{1,200}'|\"[^\"\n]{1,200}\"|‘[^’\n]{1,200}’")
_REDACTED = re.compile(r"\[REDACTED:([a-z0-9_]{1,40}):[0-9a-f]{8}\]")
#: A number that names the kind of an error and so stays: HTTP 413, Errno 28, exit code 137.
_NUMBER = re.compile(
    r"(?i)(\b(?:https?|errno|status|code|signal)[ :=]{1,2})?(?<![A-Za-z0-9_])-?\d+(?:[.,:]\d+)*(?:[a-z]{1,2}\b)?"
)
_ERROR_LINE = re.compile(r"^\s*(?:E\s+)?(?:[\w.]*(?:Error|Exception|Warning)\b|error|fatal|panic|failed|failure)", re.I)

_LEADING = re.compile(
    r"^(?:(?:if|when|whenever|whether|in case|since|because|as|while|once|unless)\s+)?(?:the|a|an)?\s*"
)
_IF_THEN = re.compile(
    r"^(?:if|when|since|because)\s+(?P<condition>[^,:;]{3,160}?)(?:\s+then\s+|,\s*(?:then\s+)?|:\s*)(?P<choice>\S.{1,160})$",
    re.IGNORECASE | re.DOTALL,
)


def error_signature(observation: str, tool: str = "") -> str:
    """Return the kind of an error: its telling line without paths, numbers, ids, quoted names and secrets.

    Error codes stay (``E0433``, ``HTTP 413``). Where nothing was observed: that ``tool`` failed.
    """
    if len(observation) > _MAX_CHARS:  # a traceback tells at its end
        half = _MAX_CHARS // 2
        observation = f"{observation[:half]}\n{observation[-half:]}"
    line = _telling_line(observation)
    if not line:
        return f"{tool} failed" if tool else "failed"
    line = _REDACTED.sub(r"<\1>", line)
    line = _UUID.sub("<id>", line)
    line = _URL.sub("<url>", line)
    line = _QUOTED.sub("<name>", line)
    line = _PATH.sub("<path>", line)
    line = _HEX.sub("<id>", line)
    line = _NUMBER.sub(lambda found: found[0] if found[1] else "#", line)
    return re.sub(r"[#.:]*#", "#", " ".join(line.split()))[:300]


def _telling_line(text: str) -> str:
    """Of a traceback the last line that names an error, else the first one that does, else the first line."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    if errors:
        return errors[-1] if any(line.startswith("Traceback ") for line in lines) else errors[0]
    return lines[0] if lines else ""


def condition_key(condition: str) -> str:
    """Return a condition without "if", articles, case, numbers and punctuation."""
    plain = " ".join(
        re.sub(r"[^\w\s#%<>=]", " ", re.sub(r"\d+(?:[.,]\d+)*", "#", condition.lower()[:_MAX_CHARS])).split()
    )
    return _LEADING.sub("", plain, count=1).strip()


def choice_key(choice: str) -> str:
    """Return a choice without case and punctuation."""
    return " ".join(re.sub(r"[^\w\s]", " ", choice.lower()[:_MAX_CHARS]).split())


def if_then(action: str) -> tuple[str, str] | None:
    """Return (condition, choice) of an action that is written as "if ..., ..."."""
    found = _IF_THEN.match(action.strip()[:_MAX_CHARS])
    return (found["condition"], found["choice"]) if found else None


def task_words(text: str) -> Sequence[str]:
    """Return the stems of the words that a task is about."""
    return question_terms(text[:_MAX_CHARS])
