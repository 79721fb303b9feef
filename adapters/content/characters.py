"""Characters that nobody sees, or that show something else than what is there.

They are refused wherever they stand, in code as well: what an assistant reads must be what its author and its user
see. Those that a script or an emoji needs pass where it needs them, and nowhere else (Unicode 16, chapters 9, 12, 23;
UTS 51 for emoji).
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator

from adapters.content.findings import Fault, Rule

# By number and not by category: what is refused must not depend on the Unicode version of a Python.
_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufdd0-\ufdef" + "".join(
    chr(plane + end) for plane in range(0, 0x110000, 0x10000) for end in (0xFFFE, 0xFFFF)
)
_EMBEDDING_AND_ISOLATE = "\u202a-\u202e\u2066-\u2069"
_DIRECTION_MARK = "\u061c\u200e\u200f"
_JOINER = "\u200c\u200d"
_WORD_BREAK = "\u200b"
_VARIATION = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
# Those that choose between forms of one ideograph or mathematical symbol.
_FORM = "\ufe00-\ufe02\U000e0100-\U000e01ef"
_MONGOLIAN = "\u180b-\u180f"
# Fillers and blanks, invisible operators, controls of hieroglyphs, shorthand and music, tags, and what is set aside for
# more of the kind.
_NEVER_SEEN = (
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u2060-\u2065\u206a-\u206f\u2800\u3164\ufeff\uffa0\ufff0-\ufffc"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
)
_PRIVATE = "\ue000-\uf8ff\U000f0000-\U0010ffff"
_SUSPECT = re.compile(
    "(?P<control>[" + _CONTROL + "])|(?P<bidirectional>[" + _EMBEDDING_AND_ISOLATE + "])"
    "|(?P<invisible>[" + _DIRECTION_MARK + _JOINER + _WORD_BREAK + _VARIATION + _MONGOLIAN + _NEVER_SEEN + "])"
    "|(?P<private>[" + _PRIVATE + "])"
)
# The three flags that are written with tags (UTS 51, annex C); any other sequence of tags is a hidden message.
_FLAGS = re.compile(
    "\U0001f3f4(?:"
    + "|".join("".join(chr(0xE0000 + ord(letter)) for letter in region) for region in ("gbeng", "gbsct", "gbwls"))
    + ")\U000e007f"
)

# Scripts whose letters join by themselves, and those in which a sign that kills the vowel joins them; the names are the
# first words of their letters' names.
_CURSIVE = re.compile("ADLAM|ARABIC|MANDAIC|MONGOLIAN|NKO|SYRIAC")
_CONJOINING = re.compile(
    "BALINESE|BENGALI|CHAKMA|DEVANAGARI|GRANTHA|GUJARATI|GURMUKHI|JAVANESE|KANNADA|KHMER|MALAYALAM|MEETEI|MYANMAR|NEWA|"
    "ORIYA|SINHALA|SUNDANESE|TAMIL|TELUGU|TIRHUTA"
)
_VIRAMA = 9  # as a combining class
_KHMER_SHIFTERS = "\u17c9\u17ca"
# No word of those looked at has more joiners and selectors; a message would need one for each of its bits.
_MAX_IN_A_WORD = 4
_LONG_WORD = 60
_MAX_FORMS = 16
# Scripts without spaces between words, where a zero-width space says where a line may break.
_WITHOUT_SPACES = re.compile("JAVANESE|KHMER|LAO|MYANMAR|TAI|THAI|TIBETAN")
# The blocks of the scripts that run from right to left, and how many characters away from one a mark has its use.
_RIGHT_TO_LEFT = re.compile(
    "[\u0590-\u0619\u061d-\u08ff\ufb1d-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]"
)
_NEAR = 100
# What UTS 51 lists as emoji, by blocks where most of a block is; outside of the last range no more are to come.
_EMOJI = re.compile(
    "[\xa9\xae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u23cf\u23e9-\u23f3\u23f8-\u23fa\u24c2"
    "\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u27bf\u2934\u2935\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u3030\u303d\u3297\u3299"
    "\U0001f000-\U0001faff]"
)
_VARIES_IN_FORM = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd](?:[" + _FORM + "])"
    "|[\u2200-\u22ff\u2a00-\u2aff][\ufe00-\ufe02]"
)

# CommonMark 0.31 section 2.5; names of entities are no longer than this.
ENTITY = re.compile("&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")


def hidden_characters(text: str) -> Iterator[Fault]:
    """Control, bidirectional, invisible and private-use characters; the first of each kind in each line."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return
    forms = re.findall(f"[{_FORM}]", text)
    # Whoever varies ideographs in several ways, or many of them, may be writing a message with the ways.
    has_few_forms = len(set(forms)) <= 1 and len(forms) <= _MAX_FORMS
    for number, line in enumerate(_FLAGS.sub("", text).split("\n"), start=1):
        told: set[Rule] = set()
        for found in _SUSPECT.finditer(line):
            rule = Rule(f"character-{found.lastgroup}")
            if rule not in told and not _is_needed(line, found.start(), has_few_forms):
                told.add(rule)
                yield Fault(number, rule, _remedy(rule, found[0], line[: found.start()]))


def hidden_by_entities(text: str, first: int) -> Iterator[Fault]:
    """The same, where they are written as entities (`&#8203;`, `&shy;`); `first` is the number of the first line."""
    for found in ENTITY.finditer(text):
        if hidden := _SUSPECT.fullmatch(html.unescape(found[0])):
            line = first + text.count("\n", 0, found.start())
            yield Fault(
                line, Rule(f"character-{hidden.lastgroup}"), f"remove `{found[0]}`, which nobody sees when it is shown"
            )


def _is_needed(line: str, at: int, has_few_forms: bool) -> bool:
    """Whether the character there does what its script or an emoji needs it for."""
    character = line[at]
    before, after = line[at - 1 : at], line[at + 1 : at + 2]
    match character:
        case "\u200d" if before == "\ufe0f" or _EMOJI.fullmatch(before):
            base = line[at - 2 : at - 1] if before == "\ufe0f" else before
            return _EMOJI.fullmatch(base) is not None and _EMOJI.fullmatch(after) is not None
        case "\u200c" | "\u200d":
            return _is_few_in_word(line, at) and _joins(line, at)
        case "\u200b":
            return all(_WITHOUT_SPACES.fullmatch(_script(each)) for each in (before, after))
        case "\u061c" | "\u200e" | "\u200f":
            # It says to which side a mark between two directions belongs; more than one in a row says nothing.
            near = line[max(0, at - _NEAR) : at + _NEAR]
            return not re.fullmatch(f"[{_DIRECTION_MARK}]", after) and _RIGHT_TO_LEFT.search(near) is not None
        case "\ufe0e" | "\ufe0f":
            is_keycap = character == "\ufe0f" and before != "" and before in "0123456789#*" and after == "\u20e3"
            return is_keycap or _EMOJI.fullmatch(before) is not None
        case _ if re.fullmatch(f"[{_FORM}]", character):
            return has_few_forms and _VARIES_IN_FORM.fullmatch(before + character) is not None
        case _ if re.fullmatch(f"[{_MONGOLIAN}]", character):
            is_behind_letter = _script(before) == "MONGOLIAN" and not re.fullmatch(f"[{_MONGOLIAN}]", before)
            return is_behind_letter and _is_few_in_word(line, at)
        case _:
            return False


def _is_few_in_word(line: str, at: int) -> bool:
    word = re.split(r"\s", line[max(0, at - _LONG_WORD) : at])[-1]
    return len(re.findall(f"[{_JOINER}{_MONGOLIAN}]", word)) < _MAX_IN_A_WORD


def _joins(line: str, at: int) -> bool:
    """Whether the joiner there shapes the letters beside it (Unicode 16, sections 9.2, 12.1 and 23.2)."""
    before, after = line[at - 1 : at], line[at + 1 : at + 2]
    script = _script(before)
    if _CONJOINING.fullmatch(script):
        is_by_virama = _VIRAMA in (unicodedata.combining(before), unicodedata.combining(after or " "))
        return is_by_virama or (after != "" and after in _KHMER_SHIFTERS)
    if not _CURSIVE.fullmatch(script):
        return False
    second = line[at - 2 : at - 1] if at > 1 else ""
    if line[at] == "\u200c":
        # Between two parts of a word, each of two letters at least, but for the last.
        return _CURSIVE.fullmatch(_script(second)) is not None and _CURSIVE.fullmatch(_script(after)) is not None
    # Within a word letters join anyway: it shows the form of a letter that stands alone, as in an abbreviation.
    return not _script(second) and second not in ("\u200c", "\u200d") and not _script(after)


def _script(character: str) -> str:
    """The first word of the name of a letter or mark, which is its script's; empty for anything else."""
    if not character or unicodedata.category(character)[0] not in "LM":
        return ""
    return unicodedata.name(character, "").partition(" ")[0]


def _remedy(rule: Rule, character: str, before: str) -> str:
    name = unicodedata.name(character, "").lower()
    told = f"U+{ord(character):04X}" + (f" ({name})" if name else "")
    seen = "".join(each for each in before[-24:] if each.isprintable()).strip()
    where = f"after {seen!r}" if seen else "at the beginning of the line"
    match rule:
        case Rule.CHARACTER_CONTROL:
            return f"remove the control character {told} {where}"
        case Rule.CHARACTER_BIDIRECTIONAL:
            return f"remove {told} {where}: with it text reads otherwise than it is"
        case Rule.CHARACTER_PRIVATE:
            return f"replace the private-use character {told} {where}: without its font nobody sees what it means"
        case _:
            return f"remove the invisible {told} {where}"
