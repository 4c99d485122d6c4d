"""Loops that numba compiles for a processor, if it is installed: random words, JPEG, errors and pixels.

They compute what the tensor operations of `randomness`, `jpeg` and `episodes` do, several times faster, and other
threads need not wait for them: the same bits, but for the last ones of errors. They are compiled when they are called
first, and kept on disk.
"""

# mypy: ignore-errors
from __future__ import annotations

from functools import partial

import numpy as np
from numba import njit
from numpy import float32, float64, int32, uint8, uint32, uint64

_WHOLE = int32(16)  # bits behind the point of colours in fixed point


def _compiled(function, **how):
    """A function as numba compiles it when it is called."""
    how |= {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **how)(function)
    except RuntimeError:  # no folder to keep it in
        return njit(**how)(function)


@_compiled
def words(keys, first, golden, mix1, mix2, low, high):
    """The 32-bit halves of the words (SplitMix64) that follow counter ``first``: keys (N,) to numbers (N, count)."""
    for row in range(len(keys)):
        key, lower, upper = uint64(keys[row]), low[row], high[row]
        for number in range(low.shape[1]):
            z = key + (uint64(first) + uint64(number + 1)) * uint64(golden)
            z = (z ^ (z >> uint64(30))) * uint64(mix1)
            z = (z ^ (z >> uint64(27))) * uint64(mix2)
            z = z ^ (z >> uint64(31))
            lower[number] = uint32(z & uint64(0xFFFFFFFF))
            upper[number] = uint32(z >> uint64(32))


@partial(_compiled, fastmath={"reassoc"})
def seen(images, references, errors, pixels):
    """The mean squared error of images, float32 (N, M), and what is seen of them in eight bits."""
    for image in range(len(images)):
        values, wanted, levels, total = images[image], references[image], pixels[image], 0.0
        for place in range(len(values)):
            difference = float64(values[place] - wanted[place])
            total += difference * difference
        for place in range(len(values)):
            levels[place] = uint8(min(max(np.rint(values[place] * float32(255.0)), float32(0.0)), float32(255.0)))
        errors[image] = total / len(values)


@_compiled
def through_jpeg(levels, steps, matrix, made):
    """Images (N, 3, H, W) of whole numbers 0 .. 255 through JPEG, each with its steps, float32 (N, 2, 8, 8)."""
    count, _, height, width = levels.shape
    high, wide = -(-height // 16) * 16, -(-width // 16) * 16
    luma, chroma = np.empty((high, wide), int32), np.empty((2, high // 2, wide // 2), int32)
    full, doubled = np.empty((2, height + height % 2, wide), int32), np.empty((2, height, wide), int32)
    for image in range(count):
        _to_ycc(levels[image], luma, full)
        _transformed(luma, steps[image, 0], matrix)
        for kind in range(2):
            _halved(full[kind], chroma[kind])
            _transformed(chroma[kind], steps[image, 1], matrix)
            _doubled(chroma[kind, : (height + 1) // 2, : (width + 1) // 2], doubled[kind])
        _to_rgb(luma, doubled, made[image])


@_compiled
def _to_ycc(rgb, luma, chroma):
    """Luma, and the chromas with an even number of rows; the last column and row are repeated."""
    _, height, width = rgb.shape
    half, middle = int32(1 << 15), int32((128 << 16) + (1 << 15) - 1)
    for y in range(height):
        reds, greens, blues, row, first, second = rgb[0, y], rgb[1, y], rgb[2, y], luma[y], chroma[0, y], chroma[1, y]
        for x in range(width):
            r, g, b = int32(reds[x]), int32(greens[x]), int32(blues[x])
            row[x] = (int32(19595) * r + int32(38470) * g + int32(7471) * b + half) >> _WHOLE
            first[x] = (int32(-11059) * r + int32(-21709) * g + int32(32768) * b + middle) >> _WHOLE
            second[x] = (int32(32768) * r + int32(-27439) * g + int32(-5329) * b + middle) >> _WHOLE
        row[width:], first[width:], second[width:] = row[width - 1], first[width - 1], second[width - 1]
    for y in range(height, luma.shape[0]):
        luma[y] = luma[height - 1]
    for y in range(height, chroma.shape[1]):
        chroma[:, y] = chroma[:, height - 1]


@_compiled
def _halved(full, half):
    """Means of 2x2 blocks; the rounding bias alternates 1, 2 along a row. The last row is repeated."""
    rows = full.shape[0] // 2
    for y in range(rows):
        upper, lower, row = full[2 * y], full[2 * y + 1], half[y]
        for x in range(half.shape[1]):
            total = upper[2 * x] + upper[2 * x + 1] + lower[2 * x] + lower[2 * x + 1]
            row[x] = (total + int32(1) + (int32(x) & int32(1))) >> int32(2)
    for y in range(rows, half.shape[0]):
        half[y] = half[rows - 1]


@_compiled
def _transformed(plane, steps, matrix):
    """Transform, quantise, and back, in place: eight rows at a time, the blocks in them side by side."""
    height, width = plane.shape
    upwards = float32(1.0 + 2.0**-18)  # as `jpeg` rounds halves away from zero
    wide, over = np.empty((8, width), float32), np.empty((8, width), float32)
    some, more = np.empty((8, width), int32), np.empty((8, width), int32)
    for y in range(8):
        for x in range(width):
            wide[y, x] = steps[y, x % 8]
            over[y, x] = upwards / (float32(8.0) * steps[y, x % 8])
    for top in range(0, height, 8):
        rows = plane[top : top + 8]
        for y in range(8):
            for x in range(width):
                rows[y, x] -= int32(128)
        _turned(rows, some)
        _products(some, more, matrix, int32(11), int32(1 << 10))
        _turned(more, some)
        _products(some, more, matrix, int32(15), int32(1 << 14))
        for y in range(8):
            row, step, share = more[y], wide[y], over[y]
            for x in range(width):
                row[x] = int32(np.rint(float32(row[x]) * share[x])) * int32(step[x])
        _products(more, some, matrix.T, int32(11), int32(1 << 10))
        _turned(some, more)
        _products(more, some, matrix.T, int32(18), int32((1 << 17) + (128 << 18)))
        _turned(some, rows)
        for y in range(8):
            for x in range(width):
                rows[y, x] = min(max(rows[y, x], int32(0)), int32(255))


@_compiled
def _products(rows, made, matrix, shift, bias):
    """The eight rows times a matrix, biased and shifted: no sum is above 2^31."""
    for k in range(8):
        row = made[k]
        m0, m1, m2, m3 = matrix[k, 0], matrix[k, 1], matrix[k, 2], matrix[k, 3]
        m4, m5, m6, m7 = matrix[k, 4], matrix[k, 5], matrix[k, 6], matrix[k, 7]
        for x in range(rows.shape[1]):
            left = m0 * rows[0, x] + m1 * rows[1, x] + m2 * rows[2, x] + m3 * rows[3, x]
            right = m4 * rows[4, x] + m5 * rows[5, x] + m6 * rows[6, x] + m7 * rows[7, x]
            row[x] = (left + right + bias) >> shift


@_compiled
def _turned(rows, made):
    """Each 8x8 block of eight rows transposed."""
    for left in range(0, rows.shape[1], 8):
        for y in range(8):
            for x in range(8):
                made[x, left + y] = rows[y, left + x]


@_compiled
def _doubled(half, made):
    """Twice the height and width by libjpeg's triangle filter, less 128; plain repetition if the width is 2 or less."""
    rows, columns = half.shape
    line = np.empty(columns + 2, int32)
    for y in range(made.shape[0]):
        near, far, row = half[y // 2], half[min(max(y // 2 + (1 if y % 2 else -1), 0), rows - 1)], made[y]
        if columns <= 2:
            for x in range(columns):
                row[2 * x], row[2 * x + 1] = near[x] - int32(128), near[x] - int32(128)
            continue
        for x in range(columns):
            line[x + 1] = int32(3) * near[x] + far[x]
        line[0], line[columns + 1] = line[1], line[columns]
        for x in range(columns):
            row[2 * x] = ((int32(3) * line[x + 1] + line[x] + int32(8)) >> int32(4)) - int32(128)
            row[2 * x + 1] = ((int32(3) * line[x + 1] + line[x + 2] + int32(7)) >> int32(4)) - int32(128)


@_compiled
def _to_rgb(luma, chroma, rgb):
    """Luma and the chromas less 128 to RGB."""
    _, height, width = rgb.shape
    half = int32(1 << 15)
    for y in range(height):
        row, first, second = luma[y], chroma[0, y], chroma[1, y]
        reds, greens, blues = rgb[0, y], rgb[1, y], rgb[2, y]
        for x in range(width):
            red = row[x] + ((int32(91881) * second[x] + half) >> _WHOLE)
            green = row[x] + ((int32(-22554) * first[x] + int32(-46802) * second[x] + half) >> _WHOLE)
            blue = row[x] + ((int32(116130) * first[x] + half) >> _WHOLE)
            reds[x] = min(max(red, int32(0)), int32(255))
            greens[x] = min(max(green, int32(0)), int32(255))
            blues[x] = min(max(blue, int32(0)), int32(255))
