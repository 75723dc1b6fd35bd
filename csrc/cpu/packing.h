// How the kernels lay out rows of z, and what bounds them.
//
// Included inside the namespace of an instruction set, after products.h.

SPCL_INLINE const float* row_of(const Rows& rows, int64_t i) {
  return rows.data + (rows.order ? rows.order[i] : i) * rows.stride;
}

void pack_slivers(const Rows& rows, int64_t begin, int64_t count, float* slivers) {
  constexpr int64_t kLine = 16;  // floats of a cache line
  const int64_t D = rows.D;
  for (int64_t j = 0; j < count; j += kCols, slivers += kCols * D) {
    const int64_t width = min_of(kCols, count - j);
    for (int64_t d = 0; d < D; d += kLine) {
      const int64_t depth = min_of(kLine, D - d);
      for (int64_t c = 0; c < width; ++c) {
        const float* row = row_of(rows, begin + j + c) + d;
        for (int64_t k = 0; k < depth; ++k) slivers[(d + k) * kCols + c] = row[k];
      }
      for (int64_t c = width; c < kCols; ++c) {
        for (int64_t k = 0; k < depth; ++k) slivers[(d + k) * kCols + c] = 0;
      }
    }
  }
}

void pack_slices(const Rows& rows, int64_t begin, int64_t count, float* slices) {
  for_each_slice(rows.D, [&](int64_t first, int64_t vectors) {
    const int64_t d = first * kLanes, width = vectors * kLanes;
    const int64_t used = min_of(width, rows.D - d);
    for (int64_t i = 0; i < count; ++i, slices += width) {
      __builtin_memcpy(slices, row_of(rows, begin + i) + d, sizeof(float) * used);
      for (int64_t k = used; k < width; ++k) slices[k] = 0;
    }
  });
}

double max_squared_norm(const Rows& rows, int64_t begin, int64_t count) {
  constexpr int64_t kChains = 4;  // additions that wait for none of the others
  float largest = 0;
  for (int64_t i = begin; i < begin + count; ++i) {
    const float* row = row_of(rows, i);
    Vec squares[kChains] = {};
    int64_t d = 0;
    for (; d + kChains * kLanes <= rows.D; d += kChains * kLanes) {
      for (int64_t c = 0; c < kChains; ++c) {
        const Vec x = load(row + d + c * kLanes);
        squares[c] += x * x;
      }
    }
    for (; d + kLanes <= rows.D; d += kLanes) squares[0] += load(row + d) * load(row + d);
    float total = sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
    for (; d < rows.D; ++d) total += row[d] * row[d];
    if (!(total <= __FLT_MAX__)) return __builtin_inf();
    largest = total > largest ? total : largest;
  }
  return largest;
}
