"""Masks direct identifiers in free text: e-mail, account, card, identity and phone numbers.

A net under the contract's identifier fields, not a replacement for them. The rule for numbers is
wide on purpose: any run of seven or more digits, however grouped, is masked unless it reads as a
date or an amount. It misses names, addresses and identifiers made of few digits, and it also masks
some harmless lists of numbers.

The text is NFKC-normalised first, so that full-width letters and digits hide nothing. Every pattern
is linear in the text's length (possessive or bounded repeats only), and masking twice is masking
once: runs are maximal and masked whole, so no mask uncovers the edge of another identifier.
"""

import re
import unicodedata

LEAST_DIGITS = 7  # the shortest local phone numbers

_HIDDEN = re.compile(r"(?<=\d)[\u00ad\u200b-\u200f\u2060-\u2064\ufe0f\u20e3\ufeff]+")
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")  # of other scripts; NFKC leaves them

# Word characters without Chinese, Japanese and Korean, which are written without spaces.
_W = r"[^\W\u2e80-\u9fff\uac00-\ud7af]"
_EMAILS = (
    re.compile(rf"(?<!{_W})(?<![.+%-])(?:{_W}|[.+%-])++\s?@\s?(?:{_W}|-)++(?:\.(?:{_W}|-)++)+"),
    re.compile(r"(?<![\w.+%-])[\w.+%-]++\s?@\s?[\w-]++(?:\.[\w-]++)+"),  # in those scripts
)
_ACCOUNT = re.compile(  # IBAN in groups of four: GB29 NWBK 6016 1331 9268 19
    r"(?<![A-Za-z])[A-Za-z]{2}\d{2}[ -]?[A-Za-z0-9]{4}"
    r"(?:[ -]?(?=[A-Za-z]*\d)[A-Za-z0-9]{4}){1,7}(?:[ -]?\d[A-Za-z0-9]{0,3})?(?![A-Za-z0-9])"
)
_TOKEN = re.compile(r"[A-Za-z0-9]++")
_RUN = re.compile(
    r"(?:\+\s?)?(?:\((?=\d{1,5}\)))?\d"
    r"(?:[\s.,/()_·\-\u2010-\u2015\u2212]{0,3}\d)*+(?:[Xx](?![A-Za-z0-9]))?"
)
_DAY, _MONTH, _YEAR = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])", r"(?:19|20)\d\d"
_HARMLESS = re.compile(
    r"(?<!\S)(?:"
    rf"{_YEAR}[-/.]{_MONTH}[-/.]{_DAY}"
    rf"|(?:{_DAY}[-/.]{_MONTH}|{_MONTH}[-/.]{_DAY})[-/.]{_YEAR}"
    rf"|(?:{_DAY}[/.]{_MONTH}|{_MONTH}[/.]{_DAY})[/.]\d\d"
    r"|\d{1,3}(?:,\d{3}){1,4}(?:\.\d{1,6})?"  # 10,000.50
    r"|\d{1,3}(?:[. ]\d{3}){1,4},\d{1,2}"  # 10.000,50
    r"|\d{1,9}[.,]\d{1,6}"
    r")(?!\S)"
)
_US_OR_BRAZIL = re.compile(r"\d{3}-\d{2}-\d{4}|\d{3}\.\d{3}\.\d{3}-\d{2}")


def mask_identifiers(text: str) -> str:
    """Replace what looks like a direct identifier by its kind in brackets.

    Example:
        >>> mask_identifiers("call 138 0013 8000 or jane@example.com")
        'call [phone] or [email]'
        >>> mask_identifiers("10,000.50 on 2019-05-01 12:30, SSN 123-45-6789")
        '10,000.50 on 2019-05-01 12:30, SSN [id]'
    """
    text = unicodedata.normalize("NFKC", text)
    text = _OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text)
    text = _HIDDEN.sub("", text)
    for email in _EMAILS:
        text = email.sub("[email]", text)
    text = _ACCOUNT.sub(lambda found: _account(found[0], least=10), text)
    text = _TOKEN.sub(lambda found: _account(found[0], least=9), text)
    return _RUN.sub(lambda run: _run(run[0]), text)


def _account(found: str, least: int) -> str:
    digits = sum(map(str.isdigit, found))
    return "[account]" if least <= digits < len(found) - 1 and len(found) >= 13 else found


def _run(run: str) -> str:
    if run.startswith("+"):
        return _number(run)
    parts, end = [], 0
    for harmless in _HARMLESS.finditer(run):
        parts += [_segment(run[end : harmless.start()]), harmless[0]]
        end = harmless.end()
    return "".join([*parts, _segment(run[end:])])


def _segment(segment: str) -> str:
    inner = segment.strip()
    return segment.replace(inner, _number(inner)) if inner else segment


def _number(number: str) -> str:
    digits = re.sub(r"\D", "", number)
    if len(digits) < LEAST_DIGITS:
        return number
    if number.startswith("+"):
        return "[phone]"
    if len(digits) + (number[-1] in "Xx") == 18 or _US_OR_BRAZIL.fullmatch(number):
        return "[id]"
    if 13 <= len(digits) <= 19:
        return "[card]"
    mobile = len(digits) == 11 and digits[0] == "1"  # of China
    grouped = len(digits) < len(number.rstrip("Xx"))
    return "[phone]" if mobile or (grouped and len(digits) <= 12) else "[number]"
