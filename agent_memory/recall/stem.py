"""Porter's algorithm: English words to stems, so that "deploys", "deployed" and "deploying" are one word to the index.

Source: M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980.
"""

from __future__ import annotations

import re
from functools import lru_cache

_C, _V = "[^aeiou](?:[^aeiouy])*", "[aeiouy][aeiou]*"
_MEASURE_ABOVE_0 = re.compile(f"^(?:{_C})?{_V}{_C}")
_MEASURE_IS_1 = re.compile(f"^(?:{_C})?{_V}{_C}(?:{_V})?$")
_MEASURE_ABOVE_1 = re.compile(f"^(?:{_C})?{_V}{_C}{_V}{_C}")
_HAS_VOWEL = re.compile(f"^(?:{_C})?[aeiouy]")
_SHORT = re.compile(f"^{_C}[aeiouy][^aeiouwxy]$")
_DOUBLE = re.compile(r"([^aeiouylsz])\1$")
_STEP_2 = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "bli": "ble", "alli": "al",
    "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate", "alism": "al",
    "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble", "logi": "log",
}  # fmt: skip
_STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_STEP_4 = (
    "ement", "ance", "ence", "able", "ible", "ment", "ant", "ent", "ism", "ate", "iti", "ous", "ive", "ize", "ion",
    "al", "er", "ic", "ou",
)  # fmt: skip
_ENDS_2 = sorted(_STEP_2, key=len, reverse=True)
_ENDS_3 = sorted(_STEP_3, key=len, reverse=True)


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """Return the stem of a lower-case word; words that are not of English letters alone come back as they are."""
    if len(word) < 3 or not (word.isascii() and word.isalpha()):
        return word
    starts_with_y = word[0] == "y"  # a first y is a consonant
    if starts_with_y:
        word = "Y" + word[1:]
    word = _step_1(word)
    word = _replaced(word, _ENDS_2, _STEP_2)
    word = _replaced(word, _ENDS_3, _STEP_3)
    word = _step_5(_step_4(word))
    return "y" + word[1:] if starts_with_y else word


def _step_1(word: str) -> str:
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if word.endswith("eed"):
        if _MEASURE_ABOVE_0.match(word[:-3]):
            word = word[:-1]
    else:
        cut = 2 if word.endswith("ed") else 3 if word.endswith("ing") else 0
        if cut and _HAS_VOWEL.match(word[:-cut]):
            word = _mended(word[:-cut])
    if word.endswith("y") and _HAS_VOWEL.match(word[:-1]):
        word = word[:-1] + "i"
    return word


def _mended(word: str) -> str:
    """A word whose -ed or -ing was taken off."""
    if word.endswith(("at", "bl", "iz")) or _SHORT.match(word):
        return word + "e"
    return word[:-1] if _DOUBLE.search(word) else word


def _replaced(word: str, ends: list[str], by: dict[str, str]) -> str:
    for end in ends:
        if word.endswith(end):
            root = word[: -len(end)]
            return root + by[end] if _MEASURE_ABOVE_0.match(root) else word
    return word


def _step_4(word: str) -> str:
    for end in _STEP_4:
        if word.endswith(end):
            root = word[: -len(end)]
            is_right = _MEASURE_ABOVE_1.match(root) and (end != "ion" or root.endswith(("s", "t")))
            return root if is_right else word
    return word


def _step_5(word: str) -> str:
    if word.endswith("e"):
        root = word[:-1]
        if _MEASURE_ABOVE_1.match(root) or (_MEASURE_IS_1.match(root) and not _SHORT.match(root)):
            word = root
    if word.endswith("ll") and _MEASURE_ABOVE_1.match(word[:-1]):
        word = word[:-1]
    return word
