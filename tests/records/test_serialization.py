"""Records as JSON: fields that came later are no keys of records that do not use them."""

from __future__ import annotations

import json

from bot.records import Report, SourceCount, from_json, sha256_of, to_json
from tests.support.factories import provenance, report

COUNT = SourceCount(label="chats", documents=9, tokens=90, share=0.5)
OF_0_1 = {
    "label": "chats",
    "documents": 9,
    "tokens": 90,
    "share": 0.5,
    "duplicates_removed": 0,
    "languages": [],
}


def test_a_field_that_came_later_is_left_out_at_its_default() -> None:
    assert json.loads(to_json(COUNT)) == OF_0_1
    assert sha256_of(COUNT) == sha256_of(OF_0_1)
    assert from_json(SourceCount, json.dumps(OF_0_1)) == COUNT
    assert "predictions" not in to_json(provenance())


def test_with_another_value_it_is_read_back() -> None:
    count = SourceCount(
        label="chats",
        documents=9,
        tokens=90,
        share=0.5,
        rows_left_out={"without text": 3},
        parts_left_out=1,
        replaced_characters=2,
    )
    added = {"rows_left_out": {"without text": 3}, "parts_left_out": 1, "replaced_characters": 2}
    assert json.loads(to_json(count)) == OF_0_1 | added
    assert from_json(SourceCount, to_json(count)) == count
    measured = report(predictions=32_704)
    assert from_json(Report, to_json(measured)) == measured
