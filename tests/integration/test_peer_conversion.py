"""What tests/bench/peer makes of a GGUF file for vLLM."""

import pathlib
import sys

import gguf
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "bench/peer"))
import gguf_to_hugging_face as conversion  # pylint: disable=wrong-import-position

Q4_1 = gguf.GGMLQuantizationType.Q4_1


def dequantized(parts):
    values, scales, zero_points = (part.astype(np.float32) for part in parts)
    each = conversion.GROUP
    return np.repeat(scales, each, axis=1) * (values - np.repeat(zero_points, each, axis=1))


def test_weights_with_a_zero_point_are_kept():
    generator = np.random.default_rng(1)
    values = generator.integers(0, 16, (6, 128)).astype(np.float32)
    values[:, ::32], values[:, 1::32] = 0, 15  # so that the scale is what follows
    weights = (values - 5) * 0.25
    data = gguf.quantize(weights, Q4_1)
    np.testing.assert_array_equal(gguf.dequantize(data, Q4_1), weights)
    np.testing.assert_array_equal(dequantized(conversion.q4_1_parts(data)), weights)


def test_other_minima_are_rounded_by_half_a_scale_at_most():
    weights = np.random.default_rng(2).standard_normal((8, 256), dtype=np.float32)
    data = gguf.quantize(weights, Q4_1)
    parts = conversion.q4_1_parts(data)
    error = np.abs(dequantized(parts) - gguf.dequantize(data, Q4_1))
    assert (error <= np.repeat(parts[1], conversion.GROUP, axis=1) * 0.501).all()
    assert error.max() > 0


def test_a_group_of_equal_weights():
    parts = conversion.q4_1_parts(gguf.quantize(np.zeros((1, 32), np.float32), Q4_1))
    np.testing.assert_array_equal(dequantized(parts), np.zeros((1, 32)))


def test_awq_packs_even_columns_before_odd_ones():
    columns = np.arange(16).reshape(1, 16)
    packed = conversion.awq_packed(columns).view(np.uint32)
    assert [hex(word) for word in packed[0]] == ["0x75316420", "0xfdb9eca8"]


def test_halves_of_a_head_come_apart():
    rows = np.arange(12).reshape(12, 1)  # 2 heads of 6
    assert conversion.with_halves_apart(rows, 2)[:, 0].tolist() == [
        0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
