"""The textbook's operations are those of the textbook: checked by hand and against SciPy."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.explain import textbook


def noise(height: int, width: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width)).astype(dtype)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (13, 17)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_sobel_is_scipys(shape, dtype):
    from scipy import ndimage

    grey = noise(*shape, dtype)
    edges = textbook.sobel(grey)
    np.testing.assert_allclose(edges.horizontal, ndimage.sobel(grey.astype(float), axis=0, mode="nearest"))
    np.testing.assert_allclose(edges.vertical, ndimage.sobel(grey.astype(float), axis=1, mode="nearest"))
    np.testing.assert_allclose(edges.magnitude, np.sqrt(edges.horizontal**2 + edges.vertical**2))


def test_a_step_downwards_is_a_horizontal_edge_and_one_to_the_right_a_vertical_one():
    step = np.zeros((4, 5), dtype=np.uint8)
    step[2:] = 255
    edges = textbook.sobel(step)
    assert edges.horizontal[:, 2].tolist() == [0, 1020, 1020, 0]
    assert not edges.vertical.any()
    turned = textbook.sobel(step.T)
    np.testing.assert_array_equal(turned.vertical, edges.horizontal.T)
    assert not turned.horizontal.any()


def test_sobel_by_hand():
    grey = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 90]])
    edges = textbook.sobel(grey)
    assert edges.horizontal[1, 1] == (7 - 1) + 2 * (8 - 2) + (90 - 3)
    assert edges.vertical[1, 1] == (3 - 1) + 2 * (6 - 4) + (90 - 7)
    assert edges.magnitude[1, 1] == pytest.approx(np.hypot(105, 89))


def test_max_pooling_by_hand():
    grey = np.array([[1, 2, 3, 4, 9], [5, 6, 7, 8, 9], [8, 7, 6, 5, 9]], dtype=np.uint8)
    pooled = textbook.max_pool(grey, 2)
    assert pooled.tolist() == [[6, 8]]
    assert pooled.dtype == np.uint8
    assert textbook.max_pool(grey, 3).tolist() == [[8]]
    np.testing.assert_array_equal(textbook.max_pool(grey, 1), grey)


@pytest.mark.parametrize("side", [2, 3, 5])
def test_max_pooling_is_scipys_filter_at_every_block(side):
    from scipy import ndimage

    grey = noise(5 * side, 4 * side)
    # Of the window around each pixel; the window of the pixel in a block's middle is the block.
    middles = slice(side // 2, None, side)
    filtered = ndimage.maximum_filter(grey, size=side)
    np.testing.assert_array_equal(textbook.max_pool(grey, side), filtered[middles, middles])


@pytest.mark.parametrize(("shape", "side"), [((4, 9), 5), ((4, 9), 0), ((4, 9), -1)])
def test_blocks_that_do_not_fit_are_refused(shape, side):
    with pytest.raises(ValueError, match=f"side must be from 1 to 4 for an image of 4 x 9, received {side}"):
        textbook.max_pool(noise(*shape), side)


def test_a_color_image_is_refused():
    with pytest.raises(ValueError, match=r"a grey image must be \(height, width\), received \(4, 4, 3\)"):
        textbook.sobel(np.zeros((4, 4, 3)))
