// 3x3 convolutions by Winograd's minimal filtering, F(6x6, 3x3): Lavin and Gray, "Fast Algorithms for Convolutional
// Neural Networks", CVPR 2016. A tile of 6x6 results takes 64 products a pair of channels instead of 324.
//
// Images are (N, H, W, channels), zeros around them, channels a multiple of LANES. Tiles are counted along the rows of
// the images. A call treats the tiles from first to last, TOGETHER at a time, so that they stay in a core's cache.

#include <algorithm>
#include <cstdlib>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16, SUMS = 24;
constexpr long TOGETHER = 48;
#else
constexpr int LANES = 8, SUMS = 12;  // vectors in which a block of a product is summed: most of the registers
constexpr long TOGETHER = 24;
#endif
constexpr int TILE = 6, SIDE = TILE + 2;  // of results, and of the pixels that they depend on
constexpr int PLACES = SIDE * SIDE;
constexpr long SUMMED = 64;  // pixels whose sum goes to memory
constexpr long APART = 64;              // floats: matrices a power of two apart would share the same lines of a cache

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4)));

inline Vector load(const float* at) { return *reinterpret_cast<const Unaligned*>(at); }
inline void store(float* at, Vector value) { *reinterpret_cast<Unaligned*>(at) = value; }

// Matrices by rows: a of a product may be transposed, so both its steps are given.
struct Matrix {
    const float* at;
    long row, column;
};

// R rows of V vectors of a product of the given depth, b (depth, V * LANES) with rows so far apart.
template <int V, int R>
inline void block(Matrix a, const float* b, long apart, long depth, float* made, long wide, bool add) {
    Vector sums[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) sums[r][v] = add ? load(made + r * wide + v * LANES) : Vector{};
    for (long k = 0; k < depth; k++, a.at += a.column, b += apart) {
        Vector right[V];
        for (int v = 0; v < V; v++) right[v] = load(b + v * LANES);
#pragma GCC unroll 24
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) sums[r][v] += a.at[r * a.row] * right[v];
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(made + r * wide + v * LANES, sums[r][v]);
}

template <int V, int R>
inline void last_block(long rows, Matrix a, const float* b, long apart, long depth, float* made, long wide, bool add) {
    if (rows == R)
        block<V, R>(a, b, apart, depth, made, wide, add);
    else if constexpr (R > 1)
        last_block<V, R - 1>(rows, a, b, apart, depth, made, wide, add);
}

template <int V>
inline void columns(long rows, Matrix a, const float* b, long apart, long depth, float* made, long wide, bool add) {
    constexpr int ROWS = SUMS / V;
    for (; rows >= ROWS; rows -= ROWS, a.at += ROWS * a.row, made += ROWS * wide)
        block<V, ROWS>(a, b, apart, depth, made, wide, add);
    if (rows) last_block<V, ROWS - 1>(rows, a, b, apart, depth, made, wide, add);
}

// Columns of a product that are computed together: two vectors wherever they can be.
inline long panel_of(long width) { return width % (2 * LANES) ? LANES : 2 * LANES; }

inline void product(long panel, long rows, Matrix a, const float* b, long apart, long depth, float* made, long wide,
                    bool add) {
    if (panel == LANES)
        columns<1>(rows, a, b, apart, depth, made, wide, add);
    else
        columns<2>(rows, a, b, apart, depth, made, wide, add);
}

// The three transforms along one side of a tile, of the paper's Section 4 with the points 0, 1, -1, 2, -2, 1/2 and -1/2:
// B^T of eight pixels, A^T of eight products, and A of six gradients.
inline void of_pixels(const Vector* d, Vector* made) {
    Vector even = d[2] + d[6] - 4.25f * d[4], odd = d[1] + d[5] - 4.25f * d[3];
    made[0] = d[0] - d[6] + 5.25f * (d[4] - d[2]);
    made[1] = even + odd;
    made[2] = even - odd;
    even = 0.25f * d[2] - 1.25f * d[4] + d[6], odd = 0.5f * d[1] - 2.5f * d[3] + 2.0f * d[5];
    made[3] = even + odd;
    made[4] = even - odd;
    even = 4.0f * d[2] - 5.0f * d[4] + d[6], odd = 2.0f * d[1] - 2.5f * d[3] + 0.5f * d[5];
    made[5] = even + odd;
    made[6] = even - odd;
    made[7] = d[7] - d[1] + 5.25f * (d[3] - d[5]);
}

inline void of_products(const Vector* m, Vector* made) {
    Vector one = m[1] + m[2], two = m[3] + m[4], half = m[5] + m[6];
    made[0] = m[0] + one + two + half;
    made[2] = one + 4.0f * two + 0.25f * half;
    made[4] = one + 16.0f * two + 0.0625f * half;
    one = m[1] - m[2], two = m[3] - m[4], half = m[5] - m[6];
    made[1] = one + 2.0f * two + 0.5f * half;
    made[3] = one + 8.0f * two + 0.125f * half;
    made[5] = one + 32.0f * two + 0.03125f * half + m[7];
}

inline void of_gradients(const Vector* g, Vector* made) {
    Vector even = g[0] + g[2] + g[4], odd = g[1] + g[3] + g[5];
    made[0] = g[0];
    made[1] = even + odd;
    made[2] = even - odd;
    even = g[0] + 4.0f * g[2] + 16.0f * g[4], odd = 2.0f * g[1] + 8.0f * g[3] + 32.0f * g[5];
    made[3] = even + odd;
    made[4] = even - odd;
    even = g[0] + 0.25f * g[2] + 0.0625f * g[4], odd = 0.5f * g[1] + 0.125f * g[3] + 0.03125f * g[5];
    made[5] = even + odd;
    made[6] = even - odd;
    made[7] = g[5];
}

struct Images {
    long height, width, channels;
    long down() const { return (height + TILE - 1) / TILE; }
    long across() const { return (width + TILE - 1) / TILE; }
    bool has(long y, long x) const { return 0 <= y && y < height && 0 <= x && x < width; }
};

struct Tile {
    long top, left;
    const long start;  // of its image, in floats
    Tile(const Images& of, long number)
        : top(number / of.across() % of.down() * TILE),
          left(number % of.across() * TILE),
          start(number / (of.down() * of.across()) * of.height * of.width * of.channels) {}
    long at(const Images& of, long y, long x) const { return start + (y * of.width + x) * of.channels; }
};

inline Vector positive(Vector value, Vector of) { return of > 0.0f ? value : Vector{}; }

// How pixels are seen: as they are, rectified, or normalised and rectified, by a scale and a shift of each channel.
enum How { AS_THEY_ARE, RECTIFIED, NORMALISED };

struct Norm {
    const float *scale, *shift;  // (channels), or null
    How how(bool rectified) const { return scale ? NORMALISED : rectified ? RECTIFIED : AS_THEY_ARE; }
    Vector of(Vector pixels, long channel) const { return pixels * load(scale + channel) + load(shift + channel); }
};

// A tile of SEEN x SEEN pixels from so far before its corner, transformed: rows of channels, one for each place and so
// far apart.
template <int SEEN, int BEFORE, void (*TRANSFORM)(const Vector*, Vector*), How HOW, bool INSIDE>
inline void seen(const float* pixels, const Norm& norm, const Images& of, const Tile& tile, float* made, long apart) {
    for (long c = 0; c < of.channels; c += LANES) {
        Vector columns[SEEN][SIDE];
        for (int x = 0; x < SEEN; x++) {
            Vector column[SEEN];
            for (int y = 0; y < SEEN; y++) {
                long row = tile.top + y - BEFORE, place = tile.left + x - BEFORE;
                bool there = INSIDE || of.has(row, place);
                column[y] = there ? load(pixels + tile.at(of, row, place) + c) : Vector{};
                if (HOW == NORMALISED && there) column[y] = norm.of(column[y], c);
                if (HOW != AS_THEY_ARE) column[y] = positive(column[y], column[y]);
            }
            TRANSFORM(column, columns[x]);
        }
        for (int y = 0; y < SIDE; y++) {
            Vector row[SEEN], line[SIDE];
            for (int x = 0; x < SEEN; x++) row[x] = columns[x][y];
            TRANSFORM(row, line);
            for (int x = 0; x < SIDE; x++) store(made + (SIDE * y + x) * apart + c, line[x]);
        }
    }
}

template <int SEEN, int BEFORE, void (*TRANSFORM)(const Vector*, Vector*), How HOW>
inline void seen(const float* pixels, const Norm& norm, const Images& of, const Tile& tile, float* made, long apart) {
    long first = BEFORE, last = SEEN - 1 - BEFORE;
    if (of.has(tile.top - first, tile.left - first) && of.has(tile.top + last, tile.left + last))
        seen<SEEN, BEFORE, TRANSFORM, HOW, true>(pixels, norm, of, tile, made, apart);
    else
        seen<SEEN, BEFORE, TRANSFORM, HOW, false>(pixels, norm, of, tile, made, apart);
}

inline void see_pixels(const float* pixels, How how, const Norm& norm, const Images& of, const Tile& tile, float* made,
                       long apart) {
    if (how == NORMALISED)
        seen<SIDE, 1, of_pixels, NORMALISED>(pixels, norm, of, tile, made, apart);
    else if (how == RECTIFIED)
        seen<SIDE, 1, of_pixels, RECTIFIED>(pixels, norm, of, tile, made, apart);
    else
        seen<SIDE, 1, of_pixels, AS_THEY_ARE>(pixels, norm, of, tile, made, apart);
}

inline void see_gradients(const float* pixels, const Images& of, const Tile& tile, float* made, long apart) {
    seen<TILE, 0, of_gradients, AS_THEY_ARE>(pixels, {}, of, tile, made, apart);
}

// The 6x6 results of a tile, as far as they lie in the image. They are zero where others, if there are any, are seen as
// not positive; where others are normalised, the sums (2, channels) of the results and of their products with others
// grow.
template <How OTHERS>
inline void show(const float* products, long apart, const float* bias, const float* others, const Norm& norm,
                 const Images& of, const Tile& tile, float* made, float* sums) {
    for (long c = 0; c < of.channels; c += LANES) {
        Vector columns[SIDE][TILE], more = bias ? load(bias + c) : Vector{}, sum{}, mixed{};
        for (int x = 0; x < SIDE; x++) {
            Vector column[SIDE];
            for (int y = 0; y < SIDE; y++) column[y] = load(products + (SIDE * y + x) * apart + c);
            of_products(column, columns[x]);
        }
        for (int y = 0; y < TILE && tile.top + y < of.height; y++) {
            Vector row[SIDE], line[TILE];
            for (int x = 0; x < SIDE; x++) row[x] = columns[x][y];
            of_products(row, line);
            for (int x = 0; x < TILE && tile.left + x < of.width; x++) {
                long place = tile.at(of, tile.top + y, tile.left + x) + c;
                Vector value = line[x] + more;
                if (OTHERS != AS_THEY_ARE) {
                    Vector other = load(others + place);
                    value = positive(value, OTHERS == NORMALISED ? norm.of(other, c) : other);
                    sum += value, mixed += value * other;
                }
                store(made + place, value);
            }
        }
        if (OTHERS == NORMALISED) {
            store(sums + c, load(sums + c) + sum);
            store(sums + of.channels + c, load(sums + of.channels + c) + mixed);
        }
    }
}

// The matrices of some tiles, (tiles, channels) for each place.
struct Matrices {
    const long channels, apart;
    float* const at;
    Matrices(long tiles, long channels)
        : channels(channels),
          apart(tiles * channels + APART),
          at(static_cast<float*>(std::aligned_alloc(64, PLACES * apart * sizeof(float)))) {}
    ~Matrices() { std::free(at); }
    Matrices(const Matrices&) = delete;
    float* tile(long number) const { return at + number * channels; }
    float* matrix(int number) const { return at + number * apart; }
};

}  // namespace

extern "C" {

// The channels that a multiple of is wanted.
int lanes() { return LANES; }

// The columns of filters that lie together.
long panel(long outputs) { return panel_of(outputs); }

// images (N, H, W, inputs), rectified or not, before that normalised by scale and shift (inputs) or these null; filters
// (64, outputs / panel, inputs, panel); bias (outputs) or null -> made (N, H, W, outputs)
//
// If others (N, H, W, outputs) are not null, results are zero where these, normalised if of_others is not null, are not
// positive; if they are normalised, the sums (2, outputs) of results and of results times others grow.
void convolve(const float* images, bool rectified, const float* scale, const float* shift, const float* filters,
              const float* bias, const float* others, const float* scale_of_others, const float* shift_of_others,
              float* sums, float* made, long height, long width, long inputs, long outputs, long first, long last) {
    Images from{height, width, inputs}, to{height, width, outputs};
    Norm norm{scale, shift}, norm_of_others{scale_of_others, shift_of_others};
    How how = norm.how(rectified), how_others = norm_of_others.how(others);
    auto shown = how_others == NORMALISED ? show<NORMALISED> : how_others == RECTIFIED ? show<RECTIFIED> : show<AS_THEY_ARE>;
    Matrices pixels(TOGETHER, inputs), products(TOGETHER, outputs);
    long panel = panel_of(outputs);
    for (long begin = first; begin < last; begin += TOGETHER) {
        long count = std::min(TOGETHER, last - begin);
        for (long t = 0; t < count; t++)
            see_pixels(images, how, norm, from, Tile(from, begin + t), pixels.tile(t), pixels.apart);
        for (int m = 0; m < PLACES; m++)
            for (long o = 0; o < outputs; o += panel)
                product(panel, count, {pixels.matrix(m), inputs, 1}, filters + (m * outputs + o) * inputs, panel,
                        inputs, products.matrix(m) + o, outputs, false);
        for (long t = 0; t < count; t++)
            shown(products.tile(t), products.apart, bias, others, norm_of_others, to, Tile(to, begin + t), made, sums);
    }
}

// images (N, H, W, inputs), seen as convolve does, gradients of the results (N, H, W, outputs)
// -> made (64, outputs / panel, inputs, panel), the gradients of the filters
void correlate(const float* images, bool rectified, const float* scale, const float* shift, const float* gradients,
               float* made, long height, long width, long inputs, long outputs, long first, long last) {
    Images from{height, width, inputs}, to{height, width, outputs};
    Norm norm{scale, shift};
    Matrices pixels(TOGETHER, inputs), errors(TOGETHER, outputs);
    long panel = panel_of(outputs);
    for (long begin = first; begin < last; begin += TOGETHER) {
        long count = std::min(TOGETHER, last - begin);
        for (long t = 0; t < count; t++) {
            see_pixels(images, norm.how(rectified), norm, from, Tile(from, begin + t), pixels.tile(t), pixels.apart);
            see_gradients(gradients, to, Tile(to, begin + t), errors.tile(t), errors.apart);
        }
        for (int m = 0; m < PLACES; m++)
            for (long o = 0; o < outputs; o += panel)
                product(panel, inputs, {pixels.matrix(m), 1, inputs}, errors.matrix(m) + o, outputs, count,
                        made + (m * outputs + o) * inputs, panel, begin > first);
    }
}

// Pixels (first to last, channels) -> their sums and those of their squares (2, channels).
void moments(const float* pixels, float* made, long channels, long first, long last) {
    for (long c = 0; c < 2 * channels; c += LANES) store(made + c, Vector{});
    for (long begin = first; begin < last; begin += SUMMED)
        for (long c = 0; c < channels; c += LANES) {
            Vector sum{}, squares{};
            for (long n = begin; n < std::min(begin + SUMMED, last); n++) {
                Vector value = load(pixels + n * channels + c);
                sum += value, squares += value * value;
            }
            store(made + c, load(made + c) + sum);
            store(made + channels + c, load(made + channels + c) + squares);
        }
}

// Each pixel (first to last, channels) becomes it times a, and another one times b, and c, of its channel.
void blend(float* pixels, const float* others, const float* a, const float* b, const float* c, long channels,
           long first, long last) {
    for (long n = first * channels; n < last * channels; n += channels)
        for (long k = 0; k < channels; k += LANES)
            store(pixels + n + k, load(pixels + n + k) * load(a + k) + load(others + n + k) * load(b + k) + load(c + k));
}
}
