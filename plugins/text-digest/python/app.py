"""The plugin `text-digest` in Python: what a host hands over, read and answered around ../reference.py."""

import json
import re

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import log
from wit_world.imports.types import Failure_InvalidInput, Payload

from reference import digest

TEXT_BYTES_MAX = 256 * 1024
SENTENCES_DEFAULT = 3
SENTENCES_MAX = 20


class Task(exports.Task):
    def run(self, kind, input):
        if kind != "digest":
            raise invalid(f"there is no kind {kind}")
        answer = digest(*read(input))
        fields = [log.Field(name, str(answer[name])) for name in ("characters", "words")]
        log.write(log.Level.DEBUG, "text digested", fields)
        return Payload("application/json", json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode())


def invalid(text):
    return Err(Failure_InvalidInput(text))


def read(payload):
    media_type, *parameters = (part.strip() for part in payload.content_type.split(";"))
    is_text = media_type.lower() == "text/plain"
    if not is_text and media_type.lower() != "application/json":
        raise invalid(f"the input is {media_type}, and neither text nor JSON")
    charset = next((value[8:].strip('"') for value in parameters if value.lower().startswith("charset=")), "utf-8")
    if is_text and not re.fullmatch("utf-8|us-ascii", charset, re.IGNORECASE):
        raise invalid(f"text in {charset} instead of utf-8")
    try:
        text = payload.bytes.decode()
        text, sentences = (text, SENTENCES_DEFAULT) if is_text else read_json(text)
        length = len(text.encode())
    except ValueError as error:
        # Bytes that are no UTF-8, text that is no JSON, or half a surrogate pair in it.
        raise invalid(str(error)) from None
    if length > TEXT_BYTES_MAX:
        raise invalid(f"text of {length} bytes exceeds the limit of {TEXT_BYTES_MAX}")
    if sentences > SENTENCES_MAX:
        raise invalid(f"{sentences} sentences exceed the limit of {SENTENCES_MAX}")
    return text, sentences


def read_json(text):
    given = json.loads(text)
    if not isinstance(given, dict) or not isinstance(given.get("text"), str):
        raise ValueError("there is no `text`")
    unknown = given.keys() - {"text", "sentences"}
    if unknown:
        raise ValueError(f"unknown field `{min(unknown)}`")
    sentences = given.get("sentences")
    if sentences is None:
        sentences = SENTENCES_DEFAULT
    if type(sentences) is not int or sentences < 0:
        raise ValueError("`sentences` is no whole number")
    return given["text"], sentences
