"""Keeping secrets out of what a task prints, as it prints it."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # `typing` itself takes as long to import as Python takes to start
if TYPE_CHECKING:
    import re
    from collections.abc import Iterable, Iterator, Sequence

#: What stands where a secret stood.
MASK = "••••••"
#: Shorter texts would blank out half a log, and are no secrets.
SHORTEST = 3


def worth_masking(secrets: Iterable[str]) -> list[str]:
    """The secrets to look for, longest first, so that one within another leaves no rest."""
    return sorted({secret for secret in secrets if len(secret.strip()) >= SHORTEST}, key=len, reverse=True)


def mask_stream(source: int, sink: int, secrets: Sequence[bytes]) -> None:
    """Copy a stream as it comes until it ends, with each secret replaced; both are file numbers."""
    for masked in mask_chunks(iter(lambda: os.read(source, 1 << 16), b""), secrets):
        _write_all(sink, masked)


def mask_chunks(chunks: Iterable[bytes], secrets: Sequence[bytes]) -> Iterator[bytes]:
    """The same bytes as they come, with each secret replaced, also one that is cut between two chunks.

    What may be the beginning of a secret is held back until it is known not to be one.
    """
    import re

    held, pattern = b"", re.compile(b"|".join(map(re.escape, secrets)) or b"(?!)")
    for chunk in chunks:
        held += chunk
        # What may become one of two secrets is held back too, until it is known which.
        sure = len(held) - max((_overlap(held, secret) for secret in secrets), default=0)
        masked, held = _mask(held, pattern, sure)
        yield masked
    yield _mask(held, pattern, len(held))[0]


def _mask(text: bytes, pattern: re.Pattern[bytes], sure: int) -> tuple[bytes, bytes]:
    """The first `sure` bytes with each secret replaced, and the rest; a secret is never cut in two."""
    parts, at = [], 0
    for match in pattern.finditer(text):
        if match.end() > sure:
            sure = min(sure, match.start())
            break
        parts += [text[at : match.start()], MASK.encode()]
        at = match.end()
    return b"".join([*parts, text[at:sure]]), text[sure:]


def _overlap(text: bytes, secret: bytes) -> int:
    """How many of the last bytes of `text` are the first of `secret`."""
    longest = min(len(text), len(secret) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(secret[:size])), 0)


def _write_all(sink: int, data: bytes) -> None:
    while data:
        data = data[os.write(sink, data) :]
