"""The computed table of Apple's chips."""

import pytest

from benchmarks.roofline import main, seconds, stages
from jvlm_mlx.diagnostics.chips import CHIPS, find_chip


@pytest.mark.parametrize(
    ("name", "tower", "prefill", "decode"),
    [
        ("M1", 3.7, 2.5, (61, 34, 20)),
        ("M2 Pro", 1.4, 0.93, (20, 11, 6.5)),
        ("M4 Max", 0.57, 0.38, (7.6, 4.2, 2.4)),
        ("M5", 0.7, 0.38, (26, 15, 8.4)),
    ],
)
def test_it_agrees_with_an_estimate_by_hand(name, tower, prefill, decode):
    """From operations and bytes alone, with other assumptions about the attainable fraction."""
    found = seconds(find_chip(f"Apple {name}"))
    assert found["tower"] == pytest.approx(tower, rel=0.2)
    assert found["prefill"] == pytest.approx(prefill, rel=0.25)
    for bits, milliseconds in zip(("bfloat16", "8-bit", "4-bit"), decode, strict=True):
        launches = stages()[f"decode, {bits}"][0].launches * 2.4e-3
        # The estimate leaves out what launches cost.
        assert 1e3 * found[f"decode, {bits}"] - launches == pytest.approx(milliseconds, rel=0.15)


def test_every_generation_has_a_row_and_all_is_called_computed(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["roofline"])
    main()
    out = capsys.readouterr().out
    for chip in CHIPS:
        assert f"| {chip.name}, {chip.gpu_cores} cores" in out
    assert {chip.generation for chip in CHIPS} == {1, 2, 3, 4, 5}
    assert "computed, not measured" in out


@pytest.mark.parametrize(
    ("brand", "cores", "bandwidth"),
    [
        ("Apple M1", None, 68),
        ("Apple M1", 7, 68),
        ("Apple M4 Max", 32, 410),
        ("Apple M4 Max", 40, 546),
        ("Apple M4 Max", None, 546),
    ],
)
def test_chips_are_found_by_what_macos_calls_them(brand, cores, bandwidth):
    assert find_chip(brand, cores).bandwidth == bandwidth


@pytest.mark.parametrize("brand", ["AMD EPYC", "Apple M9 Max", "Apple processor", ""])
def test_other_chips_are_not_known(brand):
    assert find_chip(brand) is None


def test_peaks_are_those_that_apple_states():
    stated = {"M1": 2.6, "M1 Pro": 5.2, "M1 Max": 10.4, "M2": 3.6}
    for name, teraflops in stated.items():
        assert find_chip(name).teraflops == pytest.approx(teraflops, rel=0.03)
