"""The picture: what is drawn, and in which order."""

import struct

import pytest

from benchmarks.harness import Bar, Panel, Spread, bars, pictures, sizes

ONE = Spread(1.0, 1.0, 1.0)


def test_bars_have_the_median_of_ratios_to_the_base():
    found = bars({"purestep": [1.0, 2.0, 3.0], "torch": [2.0, 2.0, 12.0], "late": []}, "purestep")
    assert [bar.name for bar in found] == ["purestep", "torch"]
    assert [bar.label for bar in found] == ["1.00", "2.00"]
    assert found[0].spread == (2000.0, 1500.0, 2500.0)
    assert bars({"torch": [1.0]}, "purestep") == [Bar("torch", Spread(1e3, 1e3, 1e3), "")]


def test_bars_of_one_group_stand_together_in_their_order():
    names = ["purestep", "torch eager", "MLX by hand", "purestep, packed", "torch compiled", "mlx.optimizers"]
    order = [bar.name for bar in pictures.grouped([Bar(name, ONE) for name in names])]
    assert order == [names[0], names[3], names[1], names[4], names[2], names[5]]
    assert pictures.group("something else") == "other"


@pytest.mark.parametrize(("peak", "unit", "shown"), [(2.5e9, "GB", 2.5), (3e6, "MB", 3.0)])
def test_peaks_are_in_a_unit_that_fits_and_unknown_ones_are_left_out(peak, unit, shown):
    panel = sizes("Peak", {"purestep": peak, "torch": None}, "purestep")
    assert panel.unit.startswith(unit)
    assert [bar.spread.median for bar in panel.bars] == pytest.approx([shown])
    assert sizes("Peak", {"torch": None}, "purestep").bars == []


def test_a_picture_is_a_png_that_grows_with_its_bars(tmp_path):
    pytest.importorskip("matplotlib")

    def height(count):
        made = [Bar(f"torch {i}", Spread(2.0 + i, 1.0, 3.0 + i), "1.00") for i in range(count)]
        path = tmp_path / f"{count}.png"
        panels = [Panel("Step", "ms", made, 1.5, "limit"), Panel("Nothing", "ms", [])]
        pictures.draw(panels, path, title="test", below=["machine"])
        header = path.read_bytes()[:24]
        assert header[1:4] == b"PNG"
        return struct.unpack(">I", header[20:24])[0]

    assert height(2) < height(9)


def test_nothing_to_draw_writes_nothing(tmp_path):
    pictures.draw([Panel("Step", "ms", [])], tmp_path / "none.png", title="test")
    assert list(tmp_path.iterdir()) == []
