"""The Triton kernels of `picked` and `randomness.noisy_in_one`, for a GPU; torch's CUDA builds bring Triton."""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["height_in", "width_in", "height", "width", "tiles", "tiles_wide"])
def picked_convolution(
    images, weights, biases, which, added, made,
    height_in, width_in, height, width, tiles, tiles_wide,
    i_n, i_c, i_h, i_w, a_n, a_c, a_h, a_w, m_n, m_c, m_h, m_w,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    TERMS: tl.constexpr, WIDE_OUTPUTS: tl.constexpr,
    PACKED: tl.constexpr, ADDED: tl.constexpr, RECTIFIES: tl.constexpr, RECTIFIED: tl.constexpr,
    HIGH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One tile of one image: a sum of products (pixels, terms) @ (terms, outputs), one for each tap or kernel row."""
    image, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    tool = tl.load(which + image)
    if tool >= 0:
        pixel = tl.arange(0, HIGH * WIDE)
        row = (tile // tiles_wide) * HIGH + pixel // WIDE
        column = (tile % tiles_wide) * WIDE + pixel % WIDE
        term, output = tl.arange(0, TERMS), tl.arange(0, WIDE_OUTPUTS)
        first_row, first_column = row * STRIDE - PADDING, column * STRIDE - PADDING
        picture = image.to(tl.int64)
        seen = images + picture * i_n
        products: tl.constexpr = KERNEL if PACKED else KERNEL * KERNEL
        block = weights + tool * (products * TERMS * WIDE_OUTPUTS) + term[:, None] * WIDE_OUTPUTS + output[None, :]
        total = tl.zeros((HIGH * WIDE, WIDE_OUTPUTS), dtype=tl.float32)
        for product in range(products):
            if PACKED:
                y = first_row + product
                x = first_column[:, None] + (term // INPUTS)[None, :]
                known = term < KERNEL * INPUTS
                inside = ((y >= 0) & (y < height_in))[:, None] & (x >= 0) & (x < width_in) & known[None, :]
                place = (y * i_h)[:, None] + x * i_w + ((term % INPUTS) * i_c)[None, :]
            else:
                y, x = first_row + product // KERNEL, first_column + product % KERNEL
                inside = ((y >= 0) & (y < height_in) & (x >= 0) & (x < width_in))[:, None]
                if TERMS > INPUTS:
                    inside = inside & (term < INPUTS)[None, :]
                place = (y * i_h + x * i_w)[:, None] + (term * i_c)[None, :]
            values = tl.load(seen + place, mask=inside, other=0.0)
            if RECTIFIES:
                values = tl.maximum(values, 0.0)
            factors = tl.load(block + product * (TERMS * WIDE_OUTPUTS))
            total = tl.dot(values.to(factors.dtype), factors, total, input_precision="ieee")
        total += tl.load(biases + tool * WIDE_OUTPUTS + output)[None, :]
        inside = ((row < height) & (column < width))[:, None] & (output < OUTPUTS)[None, :]
        if ADDED:
            place = picture * a_n + (row * a_h + column * a_w)[:, None] + (output * a_c)[None, :]
            total += tl.load(added + place, mask=inside, other=0.0).to(tl.float32)
        if RECTIFIED:
            total = tl.maximum(total, 0.0)
        place = picture * m_n + (row * m_h + column * m_w)[:, None] + (output * m_c)[None, :]
        tl.store(made + place, total.to(made.dtype.element_ty), mask=inside)


@triton.jit
def noisy(
    images, scales, keys, made,
    pairs, size, width, area, first, i_n, i_c, i_h, i_w,
    GOLDEN: tl.constexpr, MIX1: tl.constexpr, MIX2: tl.constexpr, TURN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Images plus scaled normal numbers, clipped to [0, 1]: SplitMix64, then Box-Muller, two numbers of each word."""
    image, number = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(keys + image) + (number.to(tl.int64) + (first + 1)) * GOLDEN
    word = (word ^ ((word >> 30) & ((1 << 34) - 1))) * MIX1
    word = (word ^ ((word >> 27) & ((1 << 37) - 1))) * MIX2
    word = word ^ ((word >> 31) & ((1 << 33) - 1))
    radius = (((word >> 32) & 0xFFFFFFFF).to(tl.float32) + 1.0) * (2.0**-32)
    radius = tl.sqrt(-2.0 * tl.log(radius))
    angle = (word & 0xFFFFFFFF).to(tl.float32) * TURN
    scale = tl.load(scales + image)
    for half in tl.static_range(2):
        place = number + half * pairs
        inside = (number < pairs) & (place < size)
        pixel = place % area
        offset = (place // area) * i_c + (pixel // width) * i_h + (pixel % width) * i_w
        value = tl.load(images + image * i_n + offset, mask=inside, other=0.0)
        drawn = (tl.cos(angle) if half == 0 else tl.sin(angle)) * radius
        worse = tl.minimum(tl.maximum(value + drawn * scale, 0.0), 1.0)
        tl.store(made + image * size + place, tl.where(scale > 0.0, worse, value), mask=inside)
