"""Durations as Go writes them."""

from __future__ import annotations

import pytest

from kubern.model.time import duration_ns, duration_s, duration_text


def test_durations() -> None:
    assert [duration_s(t) for t in ("1m30s", "0", "1.5h", "250ms", "-1s")] == [90.0, 0.0, 5400.0, 0.25, -1.0]
    assert [duration_ns(t) for t in ("0" * 300 + "1ns", "+1.s", ".5us", "1µs2μs3ns", "-0", "1.0000000019s")] == [1, 10**9, 500, 3003, 0, 1_000_000_001]
    for bad in ("", "5", "1x", "s", "1s1", "-", ".s", "1s 1s", "1.2.3s", "٣s", "9223372036854775808ns", "9" * 300 + "s"):
        with pytest.raises(ValueError, match="invalid duration"):
            duration_ns(bad)


@pytest.mark.parametrize("text", ["0s", "1ns", "1.5µs", "999.123456ms", "1s", "-1.5s", "1m0s", "1h0m0.5s", "100h59m59.999999999s"])
def test_printed_and_read_again(text: str) -> None:
    assert duration_text(duration_ns(text)) == text
