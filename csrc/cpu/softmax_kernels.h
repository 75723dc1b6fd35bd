// Kernels of the dense sums and gradients, over all pairs of a tile.
//
// Included inside the namespace of an instruction set, after products.h.

SPCL_INLINE Vec times(Vec x, Scale scale) { return x * scale.high + x * scale.low; }

// Whether rows [i, i + num_rows) and columns [j, j + width) hold pairs of a row with itself.
SPCL_INLINE bool has_diagonal(const Tile& tile, int64_t i, int64_t num_rows, int64_t j,
                              int64_t width) {
  return tile.is_diagonal && i < j + width && j < i + num_rows;
}

// The columns [j, j + kLanes) that pair with row i.
SPCL_INLINE Mask pairs_of(const Tile& tile, int64_t i, int64_t j) {
  return in_range(j, first_column(tile, i), tile.n);
}

void exp_sums(const Tile& tile, Scale scale, float* row_sums, float* col_sums, float* cached) {
  Vec row_totals[kTile], col_totals[kTile / kLanes];
  for (int64_t i = 0; i < tile.m; ++i) row_totals[i] = Vec{};
  for (int64_t j = 0; j < tile.n; j += kLanes) col_totals[j / kLanes] = Vec{};
  for_each_micro_tile(
      tile, nullptr, [&](int64_t i, int64_t num_rows, int64_t j, int64_t width, const float* sims) {
        const auto add = [&](auto is_partial) {
          for (int64_t c = 0; c < width; c += kLanes) {
            Vec col_total = col_totals[(j + c) / kLanes];
            for (int64_t r = 0; r < num_rows; ++r) {
              const Vec x = times(load(sims + r * kCols + c), scale);
              if (cached) store(cached + r * kCols + c, x);
              Vec e = exp2_bounded(x);
              if (is_partial.value) e = select(pairs_of(tile, i + r, j + c), e, Vec{});
              row_totals[i + r] += e;
              col_total += e;
            }
            col_totals[(j + c) / kLanes] = col_total;
          }
        };
        if (width % kLanes || has_diagonal(tile, i, num_rows, j, width)) {
          add(Int<true>{});
        } else {
          add(Int<false>{});
        }
        if (cached) cached += kRows * kCols;
      });
  for (int64_t i = 0; i < tile.m; ++i) row_sums[i] = sum(row_totals[i]);
  __builtin_memcpy(col_sums, col_totals, sizeof(float) * tile.n);
}

// A shift that is not finite would turn inf - inf into NaN.
SPCL_INLINE float finite_or_zero(float x) { return x - x == 0 ? x : 0; }

void shifted_exp_sums(const Tile& tile, float tau, float* scratch, float* row_shifts,
                      float* row_sums, float* col_shifts, float* col_sums) {
  const Vec minus_inf = broadcast(-__builtin_inff());
  Vec row_tops[kTile];
  alignas(64) float shifts[kTile], sums[kTile] = {};
  for (int64_t i = 0; i < tile.m; ++i) row_tops[i] = minus_inf;
  for (int64_t j = 0; j < kTile; ++j) shifts[j] = -__builtin_inff();
  for_each_micro_tile(
      tile, nullptr, [&](int64_t i, int64_t num_rows, int64_t j, int64_t width, const float* sims) {
        for (int64_t r = 0; r < num_rows; ++r) {
          for (int64_t c = 0; c < width; c += kLanes) {
            const Vec s =
                select(pairs_of(tile, i + r, j + c), load(sims + r * kCols + c) / tau, minus_inf);
            store(scratch + (i + r) * kTileStride + j + c, s);
            row_tops[i + r] = larger(s, row_tops[i + r]);
            store(shifts + j + c, larger(s, load(shifts + j + c)));
          }
        }
      });
  for (int64_t j = 0; j < kTile; ++j) shifts[j] = finite_or_zero(shifts[j]);
  for (int64_t i = 0; i < tile.m; ++i) {
    row_shifts[i] = finite_or_zero(maximum(row_tops[i]));
    Vec row_sum = {};
    for (int64_t j = first_column(tile, i) / kCols * kCols; j < tile.n; j += kLanes) {
      const Vec s = load(scratch + i * kTileStride + j);
      row_sum += exp_any(s - row_shifts[i]);
      store(sums + j, load(sums + j) + exp_any(s - load(shifts + j)));
    }
    row_sums[i] = sum(row_sum);
  }
  __builtin_memcpy(col_shifts, shifts, sizeof(float) * tile.n);
  __builtin_memcpy(col_sums, sums, sizeof(float) * tile.n);
}

// Adds c_i w_ij + c_j w_ji where row i and columns [j, j + width) have the same label.
SPCL_INLINE void add_positives(const LabelTile& label, int64_t i, int64_t j, int64_t width,
                               const float* exponents, float* h) {
  const Mask y_i = Mask{} + label.y_i[i];
  const float b_i = label.b_i[i], c_i = label.c_i[i];
  for (int64_t c = 0; c < width; c += kLanes) {
    Mask y_j;
    __builtin_memcpy(&y_j, label.y_j + j + c, sizeof(y_j));
    const Vec x = load(exponents + c) * label.slope;
    const Vec value = clamped_weight(x + b_i) * c_i +
                      clamped_weight(x + load(label.b_j + j + c)) * load(label.c_j + j + c);
    store(h + c, load(h + c) + select(y_i == y_j, value, Vec{}));
  }
}

// Row i, columns [j, j + width) of h from their exponents: gradient(i, j, exponents of columns
// j ...) and the positives.
template <class Gradient>
SPCL_INLINE void row_gradient(const Tile& tile, int64_t i, int64_t j, int64_t width,
                              const float* exponents, LabelTiles labels, float* h,
                              Gradient gradient) {
  float* row = h + i * kTileStride + j;
  for (int64_t c = 0; c < width; c += kLanes) {
    store(row + c, gradient(i, j + c, load(exponents + c)));
  }
  for (int64_t k = 0; k < labels.size; ++k) {
    add_positives(labels.labels[k], i, j, width, exponents, row);
  }
  if (has_diagonal(tile, i, 1, j, width)) h[i * kTileStride + i] = 0;
}

// All of h; exponent(dot products) is computed first.
template <class Exponent, class Gradient>
SPCL_INLINE void tile_gradient(const Tile& tile, LabelTiles labels, float* h, Exponent exponent,
                               Gradient gradient) {
  for_each_micro_tile(tile, nullptr,
                      [&](int64_t i, int64_t num_rows, int64_t j, int64_t width, float* sims) {
                        for (int64_t r = 0; r < num_rows; ++r, sims += kCols) {
                          for (int64_t c = 0; c < width; c += kLanes)
                            store(sims + c, exponent(load(sims + c)));
                          row_gradient(tile, i + r, j, width, sims, labels, h, gradient);
                        }
                      });
  mirror(tile, h);
}

void softmax_gradient(const Tile& tile, Scale scale, const float* u_i, const float* u_j,
                      LabelTiles labels, float* h) {
  tile_gradient(
      tile, labels, h, [&](Vec sim) { return times(sim, scale); },
      [&](int64_t i, int64_t j, Vec x) { return exp2_bounded(x) * (load(u_j + j) + u_i[i]); });
}

void cached_softmax_gradient(const Tile& tile, const float* cached, const float* u_i,
                             const float* u_j, LabelTiles labels, float* h) {
  for_each_place(tile, [&](int64_t i, int64_t num_rows, int64_t j, int64_t width) {
    for (int64_t r = 0; r < num_rows; ++r) {
      row_gradient(
          tile, i + r, j, width, cached + r * kCols, labels, h,
          [&](int64_t i, int64_t j, Vec x) { return exp2_bounded(x) * (load(u_j + j) + u_i[i]); });
    }
    cached += kRows * kCols;
  });
  mirror(tile, h);
}

void any_softmax_gradient(const Tile& tile, float tau, const float* a_i, const float* a_j,
                          const float* lse_i, const float* lse_j, LabelTiles labels, float* h) {
  tile_gradient(
      tile, labels, h, [&](Vec sim) { return sim / tau; },
      [&](int64_t i, int64_t j, Vec x) {
        return exp_any(x - lse_i[i]) * a_i[i] + exp_any(x - load(lse_j + j)) * load(a_j + j);
      });
}
