"""Dates in sentences -> seconds since the epoch, UTC noon: absolute ones, and those seen from the day of telling."""

from __future__ import annotations

import calendar
import re
from datetime import UTC, datetime, timedelta

from agent_memory.errors import UnsupportedParameterError, repr_of

_MONTHS = {name.lower(): i for i, name in enumerate(calendar.month_name) if name}
_MONTHS |= {name.lower(): i for i, name in enumerate(calendar.month_abbr) if name}
_DAYS = {name.lower(): i for i, name in enumerate(calendar.day_name)}
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_ISO = re.compile(r"\b(\d{4})-(\d\d)-(\d\d)\b")
_DAY_FIRST = re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? ({_MONTH})\b\.?,?(?: (\d{{4}}))?", re.IGNORECASE)
_MONTH_FIRST = re.compile(rf"\b({_MONTH})\b\.? (\d{{1,2}})(?:st|nd|rd|th)?\b(?:,? (\d{{4}}))?", re.IGNORECASE)
_AGO = re.compile(r"\b(a|one|two|three|four|five|six|\d{1,3}) (day|week|month|year)s? ago\b", re.IGNORECASE)
_LAST = re.compile(rf"\blast (week|month|year|night|{'|'.join(_DAYS)})\b", re.IGNORECASE)
_NEAR = re.compile(r"\b(today|yesterday|tomorrow|this morning)\b", re.IGNORECASE)
_NUMBERS = {"a": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_UNIT_DAYS = {"day": 1, "week": 7, "month": 30, "year": 365}


def read_date(sentence: str, told_at: float) -> float | None:
    """Return the first date that a sentence names, seen from the day on which it was told; None where it names none."""
    told = datetime.fromtimestamp(told_at, UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    if match := _ISO.search(sentence):
        return _at(int(match[1]), int(match[2]), int(match[3]))
    if match := _DAY_FIRST.search(sentence):
        return _at(int(match[3] or told.year), _MONTHS[match[2].lower()], int(match[1]))
    if match := _MONTH_FIRST.search(sentence):
        return _at(int(match[3] or told.year), _MONTHS[match[1].lower()], int(match[2]))
    if match := _AGO.search(sentence):
        n = _NUMBERS.get(match[1].lower()) or int(match[1])
        return (told - timedelta(days=n * _UNIT_DAYS[match[2].lower()])).timestamp()
    if match := _LAST.search(sentence):
        return (told - timedelta(days=_days_back(match[1].lower(), told))).timestamp()
    if match := _NEAR.search(sentence):
        return (told + timedelta(days={"yesterday": -1, "tomorrow": 1}.get(match[1].lower(), 0))).timestamp()
    return None


def _days_back(word: str, told: datetime) -> int:
    if word in _DAYS:
        return (told.weekday() - _DAYS[word] - 1) % 7 + 1
    return {"night": 1, "week": 7, "month": 30, "year": 365}[word]


def _at(year: int, month: int, day: int) -> float | None:
    try:
        return datetime(year, month, day, 12, tzinfo=UTC).timestamp()
    except ValueError:  # the 31st of a short month, a version number
        return None


def seconds_of(at: float | datetime) -> float:
    """Return a caller's time as seconds since the epoch. Raises UnsupportedParameterError."""
    if isinstance(at, datetime):
        try:
            return at.timestamp()
        except (ValueError, OverflowError, OSError) as error:  # the calendar's first and last days, without a zone
            raise UnsupportedParameterError(f"a time cannot be told in seconds: {at!r} ({error})") from None
    if isinstance(at, (int, float)) and not isinstance(at, bool) and -6e10 < at < 2e11:
        return float(at)
    raise UnsupportedParameterError(f"a time must be a datetime or seconds since the epoch, got {repr_of(at)}")
