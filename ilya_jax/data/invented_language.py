"""A small invented language and its translation: other word order, cases, agreement; sentences whose translation is a function.

The generated twin of real pairs of sentences: text in, text out, so that the tokenizer and all that follows is used. The source has
the order subject verb object with adjectives before nouns, plurals in -s and the tenses "will" and -ed. The translation has
the adverb first, then subject, object, verb; adjectives follow their nouns and agree with them in case and number; the verb
agrees with the subject in number and carries the tense. With a second clause ("and") it does all that twice.

  source       the old dak saw-ed two red bims badly  ->  translation   adverb noun-case-number adjective-case-number ... verb
"""

from typing import NamedTuple

import numpy as np

_ONSETS, _VOWELS, _CODAS = "bdfgklmnprstvz", "aeiou", "bdgklmnprt"
_SIZES = {"noun": 60, "verb": 40, "adjective": 24, "adverb": 12}
_CASES = {"subject": ("u", "uin"), "object": ("a", "asin")}  # singular, plural
_AGREEING = {"subject": ("o", "oin"), "object": ("e", "esin")}
_TENSES = {"now": ("et", "ent"), "past": ("avet", "avent"), "future": ("iret", "irent")}


class Lexicon(NamedTuple):
  """kind of word -> (stems of the source, stems of the translation), word by word."""

  stems: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


def lexicon(seed: int = 0) -> Lexicon:
  """The words of language `seed`."""
  rng = np.random.Generator(np.random.Philox(key=[1914, seed]))
  used: set[str] = set()

  def stem(syllables: int) -> str:
    while True:
      parts = [rng.choice(list(_ONSETS)) + rng.choice(list(_VOWELS)) for _ in range(syllables)]
      word = "".join(parts) + str(rng.choice(list(_CODAS)))
      if word not in used:
        used.add(word)
        return word

  def words(count: int) -> tuple[str, ...]:
    return tuple(stem(int(rng.integers(1, 3))) for _ in range(count))

  return Lexicon({kind: (words(count), words(count)) for kind, count in _SIZES.items()})


def sentences(rng: np.random.Generator, words: Lexicon, *, count: int) -> list[tuple[str, str]]:
  """`count` sentences and their translations."""
  made = []
  for _ in range(count):
    clauses = [_clause(rng, words) for _ in range(1 + (rng.random() < 0.3))]
    made.append((" and ".join(source for source, _ in clauses), " ke ".join(target for _, target in clauses)))
  return made


def _clause(rng: np.random.Generator, words: Lexicon) -> tuple[str, str]:
  subject, subject_there, several = _phrase(rng, words, role="subject")
  thing, thing_there, _ = _phrase(rng, words, role="object")
  tense = ("now", "past", "future")[rng.integers(3)]
  verb, verb_there = _drawn(rng, words, "verb")
  shown = {"now": verb if several else verb + "s", "past": verb + "ed", "future": "will " + verb}[tense]
  source, target = [subject, shown, thing], [subject_there, thing_there, verb_there + _TENSES[tense][several]]
  if rng.random() < 0.5:
    adverb, adverb_there = _drawn(rng, words, "adverb")
    source, target = [*source, adverb], [adverb_there, *target]
  return " ".join(source), " ".join(target)


def _phrase(rng: np.random.Generator, words: Lexicon, *, role: str) -> tuple[str, str, int]:
  """A noun with its article and perhaps an adjective, the same in the translation, and 1 where it is plural."""
  several = int(rng.random() < 0.5)
  noun, noun_there = _drawn(rng, words, "noun")
  source, target = [noun + "s" * several], [noun_there + _CASES[role][several]]
  if rng.random() < 0.5:
    adjective, adjective_there = _drawn(rng, words, "adjective")
    source, target = [adjective, *source], [*target, adjective_there + _AGREEING[role][several]]
  return " ".join(["the" if rng.random() < 0.7 else "some", *source]), " ".join(target), several


def _drawn(rng: np.random.Generator, words: Lexicon, kind: str) -> tuple[str, str]:
  here, there = words.stems[kind]
  index = rng.integers(len(here))
  return here[index], there[index]
