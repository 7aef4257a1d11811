"""Secrets are replaced in a stream however it is cut into pieces."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_run.core.masking import MASK, mask_stream, worth_masking


def masked(pieces: list[bytes], secrets: list[bytes]) -> bytes:
    source, feed = os.pipe()
    drain, sink = os.pipe()
    copier = threading.Thread(target=lambda: (mask_stream(source, sink, secrets), os.close(sink)))
    copier.start()
    for piece in pieces:
        os.write(feed, piece)
    os.close(feed)
    copier.join(10)
    with open(drain, "rb") as stream:
        os.close(source)
        return stream.read()


@given(before=st.binary(max_size=20), after=st.binary(max_size=20), cut=st.integers(0, 60))
def test_a_secret_cut_in_two_anywhere_is_replaced(before: bytes, after: bytes, cut: int) -> None:
    secret = b"hunter2-\xff-swordfish"
    text = before + secret + after
    assert masked([text[:cut], text[cut:]], [secret]) == before + MASK.encode() + after


def test_what_only_begins_like_a_secret_is_printed_in_the_end() -> None:
    assert masked([b"progress: swordf"], [b"swordfish"]) == b"progress: swordf"


def test_what_is_no_beginning_of_a_secret_is_not_held_back() -> None:
    source, feed = os.pipe()
    drain, sink = os.pipe()
    threading.Thread(target=mask_stream, args=(source, sink, [b"swordfish"]), daemon=True).start()
    os.write(feed, b"step 1\n")
    assert os.read(drain, 100) == b"step 1\n"
    os.close(feed)


@pytest.mark.parametrize("secrets", [["token", "token-and-more"], ["token-and-more", "token"]])
def test_a_secret_within_another_leaves_no_rest(secrets: list[str]) -> None:
    found = [secret.encode() for secret in worth_masking(secrets)]
    assert masked([b"x token-and-more y token z"], found).decode() == f"x {MASK} y {MASK} z"


def test_texts_too_short_to_be_secrets_do_not_blank_out_the_log() -> None:
    assert worth_masking(["1", "", "  ", "abc"]) == ["abc"]
