"""The help of LibreOffice 7.4 in several languages, whose paragraphs carry the same names in each: pairs, and plain English pages.

Debian's libreoffice-help-en-us, -fr, … (MPL-2.0), put into cache_folder() / "raw" / "libreoffice_help" / LANGUAGE by
`scripts/fetch_data libreoffice_help`: 2,561 pages of HTML in each. A heading or paragraph has an id (hd_…, par_…) that its
translations share; a page quotes paragraphs of others, so that the same pair stands on several.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from ilya_jax.cache import cache_folder
from ilya_jax.errors import UserError

NAME = "libreoffice_help"
_PARAGRAPH = re.compile(  # up to its end, or the beginning of the next
  r'<(p|h[1-6])\s[^>]*?\bid="((?:hd|par|tit|bm)_\w+)"[^>]*>(.*?)(?=</\1>|<(?:p|h[1-6])[\s>])', re.DOTALL
)
_BREAK, _MARK = re.compile(r"<br\s*/?>"), re.compile(r"<!--.*?-->|<[^>]*>", re.DOTALL)
_LETTERS = re.compile(r"[^\W\d_]{2}")  # what has no two letters side by side is no sentence in any language


def paragraphs(page: str) -> list[tuple[str, str]]:
  """(id, text) of the named paragraphs and headings of a page of HTML, white space made single.

  By patterns: the pages are written by a program, and Python's HTML parser gives the same nine times slower.
  """
  found = []
  for _, name, inside in _PARAGRAPH.findall(page):
    text = " ".join(html.unescape(_MARK.sub("", _BREAK.sub(" ", inside))).split())
    if _LETTERS.search(text):
      found.append((name, text))
  return found


def folder_of(language: str) -> Path:
  """The folder of a language's pages. Raises UserError where it was not fetched."""
  folder = cache_folder() / "raw" / NAME / language
  if not folder.is_dir():
    raise UserError(f"no {NAME} of {language} in {folder}", "its pages, fetched once", f"run scripts/fetch_data {NAME}")
  return folder


def page_files(language: str) -> tuple[tuple[str, int, int], ...]:
  """(path below the language's folder, size in bytes, time of change in ns) of every page, sorted."""
  folder = folder_of(language)
  files = []
  for path in folder.rglob("*.html"):
    facts = path.stat()
    files.append((path.relative_to(folder).as_posix(), facts.st_size, facts.st_mtime_ns))
  return tuple(sorted(files))


def pairs(source: str, target: str) -> Iterator[tuple[str, str, str]]:
  """(page, text, translation) of every named paragraph that a page has in both languages, in the order of the pages.

  What is the same in both, as names in programs, is left out: it was not translated.
  """
  folders = folder_of(source), folder_of(target)
  for page, _, _ in page_files(source):
    if not (folders[1] / page).is_file():
      continue
    texts, others = (dict(paragraphs((folder / page).read_text())) for folder in folders)
    for name, text in texts.items():
      if others.get(name, text) != text:
        yield page, text, others[name]


def documents(language: str) -> Iterator[tuple[str, bytes]]:
  """(page, its paragraphs as lines of UTF-8) of every page; a paragraph that an earlier page has is left out."""
  folder, seen = folder_of(language), set[str]()
  for page, _, _ in page_files(language):
    lines = []
    for name, text in paragraphs((folder / page).read_text()):
      if name not in seen:
        seen.add(name)
        lines.append(text)
    if lines:
      yield page, ("\n".join(lines) + "\n").encode()
