"""coco-caption's tokeniser without Java: Penn Treebank tokens in lower case, punctuation dropped."""

from __future__ import annotations

import re
import unicodedata

# What coco-caption drops. Its brackets are upper case while its text is lower case, so `-lrb-` stays a word there,
# and here.
_DROPPED = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--"])
_DROPPED |= {"...", ";"}

# Vowel signs (Hindi, Thai) and accents that are characters of their own: Java takes them for letters, Python does not.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c) in ("Mn", "Mc"))
# The Penn Treebank conventions as Stanford's PTBTokenizer 3.4.1 applies them with `-preserveLines -lowerCase`. The
# alternatives are in order of preference; each says what it keeps together.
_TOKEN = re.compile(
    r"""
      (?!(?i:cannot|gonna|gotta|lemme|gimme|wanna)\b) [A-Za-z]+ (?!\S)
    | https?://[^\s"<>|()]*[^\s"<>|().!?,;:'-]
    # no longer than DNS and mail have them, lest each token of a text without spaces look through all the rest of it
    | [\w-]{1,63}(?:\.[\w-]{1,63}){0,9}\.(?:com|net|org|edu)/[^\s"<>|(),]+
    | [A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9_-]+\.)+[A-Za-z]{2,}
    | [#@][A-Za-z]\w*
    | </?[A-Za-z!][^<>\s]*>
    # clitics that leave a word: can|not, gon|na, do|n't, dog|'s
    | (?i:can(?=not\b) | gon(?=na\b) | got(?=ta\b) | lem(?=me\b) | gim(?=me\b) | wan(?=na\b) | more(?='n\b))
    | (?i:'t(?=is\b|was\b) | y'(?=[^\W\d_]))
    | (?i:[a-z]*[a-mo-z](?=n['`]t\b) | n['`]t(?![a-z]))
    | (?i:'(?:[msd]|re|ve|ll)(?![a-z]))
    | (?i:[a-z]+(?='(?:[msd]|re|ve|ll)(?![a-z])))
    # words with an apostrophe of their own
    | (?i:'n(?:'|\b)) | (?i:'(?:em|till?|cause)\b) | '[2-9]0s\b | (?i:(?:ol|dunkin|somethin)'(?![a-z]))
    | (?i:c'est|c'mon|cap'n|e'er|ev'ry|li'l|nat'l|nor'easter|s'mores)
    | [dolnA-HJ-XZ]'(?=[^\W\d_]{2})[^\W_]+ | [dDlLjJ]' | [A-Za-z]+[aeiouyAEIOUY]'[aeiouA-Z][A-Za-z]*
    # numbers, dates, times
    | \d{1,2}[-/]\d{1,2}[-/]\d{2,4}\b | \d{1,2}:\d\d(?=[AaPp]\.?[Mm]\b)
    | [-+]?(?:\d+(?:[.,:]\d+)*|(?:[.,]\d+)+)(?![\w/-])
    # abbreviations and initials keep their full stop
    | (?:[A-Za-z]\.){2,}(?![^\W\d_]) | [A-Za-z]\.(?!\w)
    | (?i:Mr|Mrs|Ms|Drs?|Profs?|Sens?|Reps?|Lt|Col|Gen|Govs?|Rev|Maj|Sgt|Capt|Ste?|Ave|Mt|Hon|Jr|Sr|Bros|Blvd|Rd|Esq
        |Inc|Cos?|Corp|Ltd|vs|etc|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tues?|Wed|Thurs?|Fri|ft)\.(?!\w)
    | (?i:no)\.(?=[ ]?\d) | Ph\.D\.
    # AT&T; hyphenated and slashed compounds; words with a stop inside (U.S.A, dot.com)
    | [A-Z]+(?:[+&][A-Z]+)+
    | [^\W_]+(?:\.[^\W\d_][^\W_]*)+
    | [A-Za-z0-9]+(?:-[A-Za-z0-9]+)*(?:/[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*){1,2}
    | [^\W_]+(?:[-_][^\W_]+)*
    | \.{2,} | -+ | _+ | [!?]+ | `` | '' | \*+ | \S
    """.replace(r"[^\W_]", rf"(?:[^\W_]|[{_MARKS}])"),
    re.VERBOSE,
)
_PUNCTUATION_RUN = re.compile(r'"|\.{2,}|-{2,}')
_WRITTEN_AS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "£": "#", "€": "$"}
BRACKETS = frozenset(_WRITTEN_AS[bracket] for bracket in "()[]{}")
"""What brackets become: words to the scorer, but nothing that people would read in a caption."""
_WRITTEN_AS |= {"½": "1/2", "¼": "1/4", "¾": "3/4", "¢": "cents"}
_TYPEWRITER = str.maketrans(
    {"\u2018": "`", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "--", "\u2014": "--", "\u2026": "..."}
)
# What nobody sees: soft hyphens, which may be inside words; joiners, marks of direction and emojis' variants, which end
# them.
_TYPEWRITER |= {0xAD: ""}
_TYPEWRITER |= dict.fromkeys(
    [*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), *range(0xFE00, 0xFE10), 0xFEFF], " "
)
_ENTITY = re.compile(r"&(amp|lt|gt|quot|apos|nbsp|ndash|mdash);", re.IGNORECASE)
_ENTITIES = {"amp": "&", "lt": " < ", "gt": " > ", "quot": '"', "apos": "'", "nbsp": " ", "ndash": " ", "mdash": " "}


def tokenize(caption: str) -> list[str]:
    """The words of a caption as coco-caption scores them: Penn Treebank tokens in lower case, punctuation dropped.

    Equals `pycocoevalcap`'s Java tokeniser on every Flickr8k caption; on text unlike captions (mark-up, telephone
    numbers, smileys) it comes close and no more. Emojis and other characters that the Java one does not know and drops
    are words here.
    """
    caption = _ENTITY.sub(lambda entity: _ENTITIES[entity[1].lower()], caption).translate(_TYPEWRITER)
    words = (_WRITTEN_AS.get(token, token).lower() for token in _TOKEN.findall(caption))
    return [word for word in words if word not in _DROPPED and not _PUNCTUATION_RUN.fullmatch(word)]
