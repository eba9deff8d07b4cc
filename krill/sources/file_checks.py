"""Checks files as a whole: before any work by their first bytes or footer, later by what could be read of them."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from krill.errors import UsageError
from krill.sources.csv_reader import find_csv_problem
from krill.sources.encodings import SAMPLE_BYTES, detect_encoding, find_invalid_utf8, format_conversion
from krill.sources.folders import describe_broken_link
from krill.sources.formats import (
    BOM,
    COMPRESSIONS,
    SUPPORTED_FORMATS,
    TOO_LONG,
    UnreadableRecord,
    parse_file_kind,
    read_beginning,
)
from krill.sources.parquet import find_parquet_problem

MIN_READABLE = 0.2
"""Error if at most this fraction of a file's records can be read: not single records are damaged, but the file is not
what its name says."""
MAX_INVALID = 0.1
"""Fraction of lines in CP949 from which a file is in CP949, not a file in UTF-8 or ASCII with a few damaged lines."""
MIN_JUDGED_RECORDS = 10
"""Number of damaged records from which a part of a file is judged."""
BEGINNING_CHARACTERS = 60
"""Characters of a file's beginning in messages."""

_MAX_POINTER_BYTES = 1024
"""Git LFS: "the file must be smaller than 1024 bytes" (docs/spec.md); a longer text may be about such files."""
_POINTERS = {
    b"version https://git-lfs.github.com/spec/": ("a Git LFS pointer", "git lfs pull"),
    b"/annex/objects/": ("a git-annex pointer", "git annex get"),
}
"""First bytes → what git wrote instead of the content, and the command that gets the content."""
_MAGIC_NUMBERS = {
    "gzip": (b"\x1f\x8b",),
    "zstd": (b"\x28\xb5\x2f\xfd", *(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))),
}
"""First bytes of compressed files (RFC 1952; RFC 8878 including skippable frames)."""
_OTHER_FORMATS = {
    b"PAR1\x15": "a Parquet file; rename it to {stem}.parquet",
    b"ARROW1\0\0": "an Arrow file; convert it to Parquet",
    b"PK\x03\x04": "a ZIP archive (.zip, .xlsx, .docx); extract it: unzip {path}",
    b"BZh91AY&SY": "compressed with bzip2; decompress it: bzip2 -dc {path} > {new}",
    b"\xfd7zXZ\0": "compressed with xz; decompress it: xz -dc {path} > {new}",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive; extract it: 7z x {path}",
    b"%PDF-": "a PDF file; extract its text: pdftotext {path} {stem}.txt",
    b"SQLite format 3\0": "an SQLite database; export its text",
    b"\xff\xff\xff\xff": "a stream of Arrow; convert it to Parquet",
    b"\x04\x22\x4d\x18": "compressed with lz4; decompress it: lz4 -dc {path} > {new}",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old office document (.hwp, .doc, .xls); export its text",
    b"\x93NUMPY": "a NumPy array; export its text",
    b"\x80\x04\x95": "a Python pickle; export its text",
}
"""First bytes → what the file is and how to convert it."""
_TAR_OFFSET = 257
"""Offset of "ustar" in a tar archive (POSIX.1-1988); before it is the name of the first file."""


def find_file_problem(path: Path, column: str) -> str | None:
    """Returns why a file cannot be used, or None; reads only its beginning or footer."""
    kind, compression = parse_file_kind(path)
    if os.path.islink(path) and not os.path.exists(path):
        return describe_broken_link(path)
    if not kind:
        problem = f"is a {''.join(path.suffixes[-2:]) if compression else path.suffix} file"
        return (
            f"{path}: {problem if path.suffix else 'has no suffix'}; krill reads {SUPPORTED_FORMATS}. "
            "Convert it or remove it from data.paths"
        )
    if not path.is_file():
        return f"{path}: is not a regular file; write its text to a file"
    if not os.access(path, os.R_OK):
        return f"{path}: permission denied; make it readable (chmod u+r)"
    if path.stat().st_size == 0:
        return f"{path}: is empty; recreate it or remove it from data.paths"
    try:
        return (
            find_pointer_problem(path)
            or (find_parquet_problem(path, column) if kind == ".parquet" else None)
            or (_find_compression_problem(path, compression) if compression else None)
            or (_find_text_problem(path, kind, column) if kind != ".parquet" else None)
        )
    except OSError as error:
        return describe_read_error(path, error)


def require_readable_records(
    path: Path, texts: Iterator[tuple[int, str | UnreadableRecord]], is_whole: bool
) -> Iterator[tuple[int, str | UnreadableRecord]]:
    """Yields the texts of a file or of its beginning; raises UsageError at the end if nearly none could be read.

    `is_whole`: the texts are those of the whole file; of a beginning a few records do not suffice to judge.
    """
    num_readable, damaged = 0, Counter[str]()
    for number, text in texts:
        if isinstance(text, str) or text.is_intact:
            num_readable += 1
        else:
            damaged[text.reason] += 1
        yield number, text
    num_records = num_readable + damaged.total()
    if damaged.total() < (1 if is_whole else MIN_JUDGED_RECORDS) or num_readable > MIN_READABLE * num_records:
        return
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in damaged.most_common(3))
    share = f"only {num_readable:,}" if num_readable else "none"
    cause = _explain_damage(path, set(damaged))
    raise UsageError(f"{path}: {share} of {num_records:,} records can be read ({reasons}); it {cause}")


def describe_read_error(path: Path, error: OSError) -> str:
    """Returns the message for a file whose beginning cannot be read."""
    if "requires too much memory" in str(error):
        old, new = shlex.quote(str(path)), shlex.quote(str(path.with_name(f"short-{path.name}")))
        return (
            f"{path}: is compressed with a window that is too long for this zstd; compress it again: "
            f"zstd -dc --long=31 {old} | zstd > {new}"
        )
    return f"{path}: cannot be read ({error}); recreate it or remove it from data.paths"


def find_pointer_problem(path: Path) -> str | None:
    """Returns which pointer of git a file is instead of its content, or None."""
    with open(path, "rb") as file:
        beginning = file.read(_MAX_POINTER_BYTES)
    if len(beginning) < _MAX_POINTER_BYTES:
        for first_bytes, (name, command) in _POINTERS.items():
            if beginning.startswith(first_bytes):
                return f"{path}: is {name}, not the file itself; download it: {command}"
    return None


def _find_compression_problem(path: Path, compression: str) -> str | None:
    with open(path, "rb") as file:
        if file.read(4).startswith(_MAGIC_NUMBERS[compression]):
            return None
    name = path.name.removesuffix(path.suffix)
    return (
        f"{path}: is not compressed with {compression} although its suffix says so; "
        f"rename it to {name} or recreate it"
    )


def _find_text_problem(path: Path, kind: str, column: str) -> str | None:
    """Returns why the whole file cannot be read as text; single damaged records are not a problem."""
    beginning = read_beginning(path)
    if not beginning:
        return f"{path}: is empty; recreate it or remove it from data.paths"
    if content := _find_content_problem(path, beginning, is_text=kind == ".txt"):
        return f"{path}: {content}"
    return find_csv_problem(path, column) if kind in (".csv", ".tsv") else None


def _find_content_problem(path: Path, beginning: bytes | None = None, is_text: bool = True) -> str | None:
    """Returns what the content is instead of UTF-8 text, and how to convert it, or None.

    `is_text`: any invalid UTF-8 is a problem; otherwise only if many lines have some.
    """
    beginning = read_beginning(path) if beginning is None else beginning
    kind, compression = parse_file_kind(path)
    old, new = shlex.quote(str(path)), shlex.quote(f"{path.stem.removesuffix(kind)}.new{kind}")
    for name, magic_numbers in _MAGIC_NUMBERS.items():
        if beginning.startswith(magic_numbers):
            suffix = next(suffix for suffix, codec in COMPRESSIONS.items() if codec == name)
            again = f"is compressed twice; decompress it once: {compression} -dc {old} > {new}{suffix}"
            return again if compression else f"is compressed with {name}; rename it to {path.name}{suffix}"
    for first_bytes, message in _OTHER_FORMATS.items():
        if beginning.startswith(first_bytes):
            return "is " + message.format(path=old, stem=shlex.quote(path.stem), new=new)
    if beginning[_TAR_OFFSET:].startswith(b"ustar"):
        return f"is a tar archive; extract it: tar -xf {old}"
    sample = beginning[:SAMPLE_BYTES]
    if not sample.strip(b"\0"):
        return "is filled with zero bytes; recreate it or remove it from data.paths"
    encoding = detect_encoding(sample)
    if encoding and (is_text or encoding != "CP949" or _has_many_invalid_lines(sample)):
        label = "CP949 (EUC-KR)" if encoding == "CP949" else encoding
        return f"is {label}, not UTF-8; convert it: {format_conversion(path, encoding)}"
    invalid = find_invalid_utf8(sample)
    if invalid is not None and is_text:
        line = sample.count(b"\n", 0, invalid) + 1
        return (
            f"is not UTF-8 (line {line}); find its encoding (file -i {old}) and convert it: "
            f"{format_conversion(path, 'ENCODING')}"
        )
    return None


def _has_many_invalid_lines(sample: bytes) -> bool:
    """Returns whether at least MAX_INVALID of the lines that are not blank are not UTF-8."""
    lines = [line for line in sample.removeprefix(BOM).split(b"\n") if line.strip()]
    return sum(find_invalid_utf8(line) is not None for line in lines) >= MAX_INVALID * len(lines)


def _explain_damage(path: Path, reasons: set[str]) -> str:
    """Returns what a file is of which nearly nothing can be read."""
    if reasons == {TOO_LONG.reason}:
        return "can be split into shorter records, or set a higher data.max_record_bytes"
    if parse_file_kind(path)[0] == ".parquet":
        return "was written from text in another encoding or format. Recreate it or remove it from data.paths"
    if content := _find_content_problem(path):
        return content
    beginning = read_beginning(path)[: 4 * BEGINNING_CHARACTERS].decode("utf-8", "replace")
    return f"begins with {beginning[:BEGINNING_CHARACTERS]!r}. Recreate it or remove it from data.paths"
