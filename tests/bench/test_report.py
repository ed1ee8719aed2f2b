"""What benchmarks print."""

import json

from bitagent_jax.bench import report

ROWS = [{"what": "a", "speed": 1234.5, "ratio": 1.2345}, {"what": "b", "speed": 0.01234, "ratio": None}]


def test_tables_are_markdown_with_three_digits():
    assert report.table(ROWS).splitlines() == [
        "| what | speed | ratio |",
        "| --- | --- | --- |",
        "| a | 1234 | 1.23 |",
        "| b | 0.0123 | - |",
    ]


def test_json_lines_hold_row_and_machine():
    told = report.facts(["numpy"], opengl="some")
    lines = [json.loads(line) for line in report.json_lines("pool", ROWS, told).splitlines()]
    assert [line["speed"] for line in lines] == [1234.5, 0.01234]
    assert all(line["bench"] == "pool" and line["opengl"] == "some" and line["cores"] >= 1 for line in lines)
    assert lines[0]["versions"].keys() == {"numpy"} and lines[0]["processor"] and len(lines[0]["date"]) == 10
