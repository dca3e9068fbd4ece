"""What the chapters about tagging share: sentences of our own, treebanks, and counting.

A treebank is a folder of Universal Dependencies, say the English Web Treebank, with its train, dev
and test files in CoNLL-U (.conllu or .conllu.gz). None comes with symgrad: see
universaldependencies.org.
"""

from __future__ import annotations

import gzip
from collections import Counter, defaultdict
from pathlib import Path

# A sentence is a list of (word, tag); counts[word][tag] says how often a word was seen with a tag.
Sentence = list[tuple[str, str]]
Counts = dict[str, Counter[str]]

LECTURE = """
the/DET girls/N walk/V
the/DET girls/N take/V a/DET walk/N
"""

# Invented sentences. Many of their words can be a noun or a verb: walk, look, dance, watch, fish.
MORE = """
the/DET girls/N look/V
the/DET boys/N look/V at/P the/DET sea/N
a/DET dog/N walks/V in/P the/DET park/N
they/PRON walk/V to/P the/DET sea/N
they/PRON take/V the/DET boat/N to/P the/DET island/N
we/PRON take/V a/DET look/N at/P the/DET old/ADJ boat/N
the/DET old/ADJ man/N fixed/V the/DET boat/N
we/PRON watch/V the/DET birds/N
the/DET boys/N watch/V the/DET boat/N
her/PRON new/ADJ watch/N stopped/V
the/DET watch/N is/V old/ADJ
the/DET girls/N dance/V slowly/ADV
a/DET slow/ADJ dance/N is/V hard/ADJ
the/DET boys/N fish/V in/P the/DET sea/N
the/DET cook/N takes/V a/DET big/ADJ fish/N
we/PRON cook/V the/DET fish/N slowly/ADV
they/PRON eat/V the/DET fish/N
the/DET dog/N sleeps/V on/P the/DET boat/N
the/DET light/N is/V green/ADJ
a/DET light/ADJ rain/N falls/V on/P the/DET park/N
we/PRON light/V a/DET fire/N
the/DET fire/N is/V big/ADJ
the/DET man/N talks/V to/P the/DET girls/N
we/PRON talk/V and/CONJ we/PRON walk/V
a/DET short/ADJ talk/N is/V a/DET good/ADJ talk/N
they/PRON work/V hard/ADV
the/DET work/N is/V hard/ADJ
the/DET work/N of/P the/DET cook/N is/V good/ADJ
they/PRON rest/V on/P the/DET island/N
the/DET rest/N of/P the/DET fish/N is/V old/ADJ
we/PRON answer/V slowly/ADV
her/PRON answer/N is/V short/ADJ
the/DET birds/N and/CONJ the/DET dog/N sleep/V
the/DET rain/N falls/V softly/ADV
her/PRON dog/N sleeps/V quietly/ADV
they/PRON looked/V at/P the/DET sea/N
we/PRON walked/V slowly/ADV to/P the/DET boat/N
the/DET man/N talked/V loudly/ADV and/CONJ the/DET boys/N watched/V
the/DET girls/N cooked/V and/CONJ the/DET dog/N watched/V
a/DET bird/N rested/V on/P the/DET boat/N
the/DET man/N answered/V quickly/ADV
"""
TRAINING = LECTURE + MORE
DEVELOPMENT = """
the/DET birds/N watch/V the/DET cat/N
a/DET walk/N in/P the/DET snow/N is/V good/ADJ
they/PRON visit/V the/DET old/ADJ man/N
"""
TEST = """
the/DET girls/N fish/V
a/DET boat/N takes/V the/DET boys/N to/P the/DET island/N
we/PRON dance/V in/P the/DET rain/N
they/PRON take/V a/DET rest/N in/P the/DET garden/N
the/DET answer/N of/P the/DET cook/N is/V hard/ADJ
the/DET teacher/N walks/V slowly/ADV
the/DET girls/N light/V the/DET candle/N
her/PRON talk/N is/V good/ADJ
the/DET candle/N burned/V brightly/ADV
they/PRON danced/V and/CONJ the/DET teacher/N clapped/V
a/DET look/N at/P the/DET garden/N is/V good/ADJ
the/DET boys/N shouted/V angrily/ADV
we/PRON light/V the/DET old/ADJ light/N
the/DET light/ADJ boat/N turned/V gently/ADV
they/PRON answer/V the/DET answer/N of/P the/DET teacher/N
the/DET fish/N fish/V in/P the/DET sea/N
"""


def read_sentences(text: str) -> list[Sentence]:
    """Read one sentence a line, each word with its tag behind a slash."""
    pairs = [[tuple(item.split("/")) for item in line.split()] for line in text.splitlines()]
    return [sentence for sentence in pairs if sentence]


def read_conllu(path: Path) -> list[Sentence]:
    """Read words and universal tags from a CoNLL-U file.

    A line holds ten columns: number, word, lemma, tag, ... Comments begin with #. An empty line
    ends a sentence. Numbers such as 1-2 stand before a contraction whose parts (do, n't) follow
    with numbers of their own, and 1.1 is a word that was left out by the writer: neither counts.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    sentences: list[Sentence] = [[]]
    with opened(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            columns = line.rstrip("\n").split("\t")
            if columns == [""]:
                sentences.append([])
            elif columns[0].isdigit():
                sentences[-1].append((columns[1], columns[3]))
    return [sentence for sentence in sentences if sentence]


def treebank(folder: Path) -> list[list[Sentence]]:
    """Find the three parts of a treebank in a folder and read them."""
    parts = []
    for part in ("train", "dev", "test"):
        found = sorted(folder.glob(f"*{part}.conllu")) + sorted(folder.glob(f"*{part}.conllu.gz"))
        if not found:
            raise SystemExit(f"--data: no file *{part}.conllu or *{part}.conllu.gz in {folder}")
        parts.append(read_conllu(found[0]))
        if not parts[-1]:
            raise SystemExit(f"--data: no sentence in {found[0]}")
    return parts


# Counting -----------------------------------------------------------------------------------------
def count(sentences: list[Sentence]) -> Counts:
    """Count n(v, u)."""
    counts: Counts = defaultdict(Counter)
    for sentence in sentences:
        for word, tag in sentence:
            counts[word][tag] += 1
    return counts


def tag_of_unknown(counts: Counts, development: list[Sentence]) -> str:
    """Return the commonest tag of words that were never counted; of all words if all were."""
    unseen = Counter(tag for s in development for word, tag in s if word not in counts)
    every = Counter(tag for s in development for _, tag in s)
    return (unseen or every).most_common(1)[0][0]
