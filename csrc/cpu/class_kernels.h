// Sums of rows in double precision: a class can hold most rows, and one running sum of them in
// float32 would lose digits.
//
// Included inside the namespace of an instruction set, after packing.h.

void add_sum_of_rows(const Rows& rows, int64_t begin, int64_t count, const double* factors,
                     double* total) {
  constexpr int64_t kStep = 4;  // rows that are added up before the total is read
  const int64_t end = begin + count;
  for (int64_t i = begin; i < end; i += kStep) {
    const int64_t size = min_of(kStep, end - i);
    const float* row[kStep];
    double factor[kStep];
    for (int64_t k = 0; k < size; ++k) {
      row[k] = row_of(rows, i + k);
      factor[k] = factors ? factors[i + k] : 1;
    }
    if (size < kStep) {
      for (int64_t k = 0; k < size; ++k) {
        for (int64_t d = 0; d < rows.D; ++d) total[d] += factor[k] * row[k][d];
      }
      return;
    }
    for (int64_t d = 0; d < rows.D; ++d) {
      total[d] += (factor[0] * row[0][d] + factor[1] * row[1][d]) +
                  (factor[2] * row[2][d] + factor[3] * row[3][d]);
    }
  }
}

// In sums that wait for none of the others.
double product_with_rest(const float* x, const double* total, double self, int64_t D) {
  constexpr int64_t kChains = 8;
  double sums[kChains] = {};
  int64_t d = 0;
  for (; d + kChains <= D; d += kChains) {
    for (int64_t k = 0; k < kChains; ++k) sums[k] += x[d + k] * (total[d + k] - self * x[d + k]);
  }
  for (; d < D; ++d) sums[0] += x[d] * (total[d] - self * x[d]);
  for (int64_t half = kChains / 2; half > 0; half /= 2) {
    for (int64_t k = 0; k < half; ++k) sums[k] += sums[k + half];
  }
  return sums[0];
}

void add_class_row(double factor, const double* total, const double* weighted, const float* x,
                   int64_t D, float* out) {
  if (!x) {
    for (int64_t d = 0; d < D; ++d) out[d] += static_cast<float>(factor * total[d]);
    return;
  }
  const double twice = 2 * factor;
  for (int64_t d = 0; d < D; ++d) {
    out[d] += static_cast<float>(factor * total[d] + weighted[d] - twice * x[d]);
  }
}
