// Kernels of the positive pairs, over one interval of columns a row.
//
// Included inside the namespace of an instruction set, after products.h.

template <bool kIsHard>
SPCL_INLINE Vec weight_of(Vec loss, float gamma, float inv_gamma) {
  if constexpr (kIsHard) {
    return select(loss <= gamma, broadcast(1), broadcast(gamma == gamma ? 0 : gamma));
  }
  return clamped_weight(1.0f - loss * inv_gamma);
}

// Writes for every strip the columns that any of its rows has positives in.
SPCL_INLINE void strip_ranges(const Tile& tile, const PositiveTile& positive, Range* used) {
  for (int64_t i = 0; i < tile.m; i += kRows) {
    Range range = {kTile, 0};
    for (int64_t r = i; r < min_of(tile.m, i + kRows); ++r) {
      const Range p = positive.positives[r];
      if (p.begin >= p.end) continue;
      range.begin = min_of(range.begin, p.begin);
      range.end = max_of(range.end, p.end);
    }
    used[i / kRows] = range;
  }
}

// Calls visit(i, j, columns [j, j + kLanes) that are positives of row i, their dot products).
template <class Visit>
SPCL_INLINE void for_each_positive(const Tile& tile, const PositiveTile& positive,
                                   const Range* used, Visit visit) {
  for_each_micro_tile(
      tile, used, [&](int64_t i, int64_t num_rows, int64_t j, int64_t width, const float* sims) {
        for (int64_t r = 0; r < num_rows; ++r) {
          const Range p = positive.positives[i + r];
          const int64_t first = max_of(p.begin, first_column(tile, i + r));
          const int64_t begin = max_of(first, j), end = min_of(p.end, j + width);
          if (begin >= end) continue;
          for (int64_t c = (begin - j) / kLanes * kLanes; c < end - j; c += kLanes) {
            const Mask is_pair = in_range(j + c, first, p.end);
            visit(i + r, j + c, is_pair, load(sims + r * kCols + c));
          }
        }
      });
}

template <bool kIsHard>
void positive_sums_as(const Tile& tile, const PositiveTile& positive, float scale,
                      float* row_losses, float* row_weights, float* col_losses,
                      float* col_weights) {
  const float gamma = positive.weight.gamma, inv_gamma = 1 / gamma;
  Range used[kTile / kRows];
  Vec losses_i[kTile], weights_i[kTile];
  alignas(64) float losses_j[kTile] = {}, weights_j[kTile] = {};
  for (int64_t i = 0; i < tile.m; ++i) losses_i[i] = weights_i[i] = Vec{};
  strip_ranges(tile, positive, used);
  for_each_positive(tile, positive, used, [&](int64_t i, int64_t j, Mask is_pair, Vec sim) {
    const Vec s = sim * scale;
    const Vec loss = positive.lse_i[i] - s;
    const Vec w = weight_of<kIsHard>(loss, gamma, inv_gamma);
    weights_i[i] += select(is_pair, w, Vec{});
    losses_i[i] += select(is_pair, w * loss, Vec{});
    if (!positive.lse_j) return;
    const Vec back = load(positive.lse_j + j) - s;
    const Vec back_w = weight_of<kIsHard>(back, gamma, inv_gamma);
    store(weights_j + j, load(weights_j + j) + select(is_pair, back_w, Vec{}));
    store(losses_j + j, load(losses_j + j) + select(is_pair, back_w * back, Vec{}));
  });
  for (int64_t i = 0; i < tile.m; ++i) {
    row_losses[i] = sum(losses_i[i]);
    row_weights[i] = sum(weights_i[i]);
  }
  if (!positive.lse_j) return;
  __builtin_memcpy(col_losses, losses_j, sizeof(float) * tile.n);
  __builtin_memcpy(col_weights, weights_j, sizeof(float) * tile.n);
}

void positive_sums(const Tile& tile, const PositiveTile& positive, float scale, float* row_losses,
                   float* row_weights, float* col_losses, float* col_weights) {
  const auto run = positive.weight.is_hard ? positive_sums_as<true> : positive_sums_as<false>;
  run(tile, positive, scale, row_losses, row_weights, col_losses, col_weights);
}

template <bool kIsHard>
void positive_gradient_as(const Tile& tile, const PositiveTile& positive, float scale,
                          const float* c_i, const float* c_j, float* h, Range* used) {
  const float gamma = positive.weight.gamma, inv_gamma = 1 / gamma;
  strip_ranges(tile, positive, used);
  for (int64_t i = 0; i < tile.m; ++i) {
    for (int64_t j = 0; j < tile.n; j += kLanes) store(h + i * kTileStride + j, Vec{});
  }
  for_each_positive(tile, positive, used, [&](int64_t i, int64_t j, Mask is_pair, Vec sim) {
    const Vec s = sim * scale;
    Vec value = weight_of<kIsHard>(positive.lse_i[i] - s, gamma, inv_gamma) * c_i[i];
    if (positive.lse_j) {
      const Vec back = load(positive.lse_j + j) - s;
      value += weight_of<kIsHard>(back, gamma, inv_gamma) * load(c_j + j);
    }
    store(h + i * kTileStride + j, select(is_pair, value, Vec{}));
  });
  mirror(tile, h);
}

void positive_gradient(const Tile& tile, const PositiveTile& positive, float scale,
                       const float* c_i, const float* c_j, float* h, Range* used) {
  const auto run =
      positive.weight.is_hard ? positive_gradient_as<true> : positive_gradient_as<false>;
  run(tile, positive, scale, c_i, c_j, h, used);
}
