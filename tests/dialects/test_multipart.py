"""A multipart form, read up to its file and forwarded."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from cuts import cut
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.dialects.multipart import (
    MAX_FIELDS_BYTES,
    MAX_KEPT_BYTES,
    StreamedForm,
    read_form,
)
from nexus_gateway.errors import InvalidRequest

KIND = "multipart/form-data; boundary=XX"
FILE = b"RIFF\r\n--XY\r\n\x00\xff--XX not alone"


def field(name: str, value: str) -> bytes:
    return f'--XX\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def file(data: bytes = FILE) -> bytes:
    head = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
    return head + b"Content-Type: audio/wav\r\n\r\n" + data + b"\r\n"


END = b"--XX--\r\n"
GOOD = field("model", "auto") + field("language", "de") + file() + field("late", "x") + END


async def pieces_of(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def read(*pieces: bytes, kind: str = KIND) -> StreamedForm:
    return await read_form(kind, pieces_of(list(pieces)), sum(map(len, pieces)))


async def sent(form: StreamedForm, model: str) -> bytes:
    body = form.encode(model)
    data = b"".join([piece async for piece in body])
    assert body.length == len(data)
    return data


WANTED = field("model", "whisper") + field("language", "de") + file() + field("late", "x") + END


async def test_only_the_model_changes() -> None:
    form = await read(GOOD)
    assert (form.value("model"), form.value("language"), form.value("late")) == ("auto", "de", None)
    assert await sent(form, "whisper") == WANTED


@given(st.lists(st.integers(0, len(GOOD)), max_size=8))
async def test_a_form_is_read_however_it_is_cut(places: list[int]) -> None:
    form = await read(*[piece for piece in cut(GOOD, places) if piece])
    assert await sent(form, "whisper") == WANTED


async def test_a_short_body_can_be_sent_again() -> None:
    form = await read(*cut(GOOD, [40, 200]))
    for model in ("one", "two"):
        assert await sent(form, model) == WANTED.replace(b"whisper", model.encode())
        assert form.replayable


async def test_a_long_body_can_be_sent_only_once() -> None:
    data = file(b"x" * MAX_KEPT_BYTES)
    form = await read(field("model", "m") + data[:100], data[100:], END)
    assert data in await sent(form, "m")
    assert not form.replayable


async def test_a_model_after_the_file_is_replaced() -> None:
    form = await read(*cut(file() + field("model", "late") + field("language", "de") + END, [30]))
    assert (form.value("model"), form.value("language")) == ("late", "de")
    assert await sent(form, "whisper") == field("model", "whisper") + field("language", "de") + (
        file() + END
    )
    assert form.replayable


async def test_a_model_after_a_long_file_is_kept() -> None:
    data = file(b"x" * MAX_KEPT_BYTES) + field("model", "late") + END
    form = await read(*cut(data, [99, MAX_KEPT_BYTES + 500]))
    assert form.value("model") is None
    assert await sent(form, "whisper") == data


@pytest.mark.proves("S-01")
async def test_fields_that_choose_an_upstream_are_left_out() -> None:
    form = await read(field("api_key", "k") + field("model", "m") + file() + END)
    assert b"api_key" not in await sent(form, "m")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (GOOD, "application/json"),
        (GOOD, "multipart/form-data"),
        (GOOD, 'multipart/form-data; boundary="ä"'),
        (b"garbage", KIND),
        (b"", KIND),
        (END, KIND),
        (field("model", "m") + END, KIND),
        (file(), KIND),
        (file() + field("model", "m"), KIND),
        (b"--XX\r\nno head--XX", KIND),
        (b"--XX\r\nno head\r\n--XX--", KIND),
        (field("prompt", "x" * MAX_FIELDS_BYTES) + file() + END, KIND),
    ],
)
async def test_an_invalid_form_is_rejected(body: bytes, kind: str) -> None:
    pieces = cut(body, [MAX_FIELDS_BYTES // 2, MAX_FIELDS_BYTES + 1]) if len(body) > 999 else [body]
    with pytest.raises(InvalidRequest):
        await read(*pieces, kind=kind)


async def test_a_field_that_is_no_text_is_rejected() -> None:
    invalid = field("model", "").replace(b"\r\n\r\n", b"\r\n\r\n\xff", 1)
    form = await read(invalid + file() + END)
    with pytest.raises(InvalidRequest, match="UTF-8"):
        form.value("model")
