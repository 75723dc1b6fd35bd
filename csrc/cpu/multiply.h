// Blocks of a matrix product that live in registers, kRows x (1 or kColVectors) vectors.
//
// Included inside the namespace of an instruction set, after vector.h, with SPCL_ROWS rows: as many
// as leave registers for kColVectors vectors of the right operand and one broadcast value.

constexpr int64_t kRows = SPCL_ROWS;
constexpr int64_t kColVectors = 2;
constexpr int64_t kCols = kColVectors * kLanes;
static_assert(kTile % kRows == 0 && kTile % kCols == 0 && kPad % kLanes == 0);

template <int64_t kValue>
struct Int {
  static constexpr int64_t value = kValue;
};

// Calls f with `rows` as a constant.
template <int64_t kCandidate = kRows, class F>
SPCL_INLINE void with_rows(int64_t rows, F f) {
  if constexpr (kCandidate == 1) {
    f(Int<1>{});
  } else if (rows == kCandidate) {
    f(Int<kCandidate>{});
  } else {
    with_rows<kCandidate - 1>(rows, f);
  }
}

// Calls finish(r, v, vector) with the vectors of a (R, K) times b (K, V * kLanes).
template <int64_t R, int64_t V, class F>
SPCL_INLINE void multiply(int64_t K, const float* a, int64_t a_row_stride, int64_t a_k_stride,
                          const float* b, int64_t b_stride, F finish) {
  Vec sums[R][V] = {};
  for (int64_t k = 0; k < K; ++k) {
    Vec right[V];
    for (int64_t v = 0; v < V; ++v) right[v] = load(b + k * b_stride + v * kLanes);
#pragma GCC unroll 16
    for (int64_t r = 0; r < R; ++r) {
      const Vec left = broadcast(a[r * a_row_stride + k * a_k_stride]);
#pragma GCC unroll 4
      for (int64_t v = 0; v < V; ++v) sums[r][v] += left * right[v];
    }
  }
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t v = 0; v < V; ++v) finish(r, v, sums[r][v]);
  }
}

// strip (R, kTileStride) = rows [i, i + R) of the tile times its columns [begin, end); begin is a
// multiple of kCols, and up to kPad columns past the end are written too.
template <int64_t R>
SPCL_INLINE void dot_products(const Tile& tile, int64_t i, int64_t begin, int64_t end,
                              float* strip) {
  const float* a = tile.rows + i * tile.stride;
  for (int64_t j = begin; j < end; j += kCols) {
    const auto write = [&](int64_t r, int64_t v, Vec x) {
      store(strip + r * kTileStride + j + v * kLanes, x);
    };
    const float* b = tile.packed + j * tile.D;
    if (end - j > kLanes) {
      multiply<R, kColVectors>(tile.D, a, tile.stride, 1, b, kCols, write);
    } else {
      multiply<R, 1>(tile.D, a, tile.stride, 1, b, kCols, write);
    }
  }
}

// Adds a (R, K) times b (K, D), of stride b_stride and padded to kPad columns, to out[0 .. R).
template <int64_t R, int64_t V>
SPCL_INLINE void add_product(int64_t K, const float* a, int64_t a_row_stride, int64_t a_k_stride,
                             const float* b, int64_t b_stride, int64_t num_cols, float* const* out,
                             int64_t d) {
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t v = 0; v < V; ++v) __builtin_prefetch(out[r] + d + v * kLanes, 1);
  }
  multiply<R, V>(K, a, a_row_stride, a_k_stride, b, b_stride, [&](int64_t r, int64_t v, Vec x) {
    float* target = out[r] + d + v * kLanes;
    const int64_t rest = num_cols - v * kLanes;
    if (rest >= kLanes) {
      store(target, load(target) + x);
    } else {
      for (int64_t lane = 0; lane < rest; ++lane) target[lane] += x[lane];
    }
  });
}
