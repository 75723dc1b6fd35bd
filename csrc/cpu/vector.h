// SIMD in the vector extension of GCC and Clang: one source for every instruction set.
//
// Included inside the namespace of an instruction set, with SPCL_LANES floats a vector.

constexpr int64_t kLanes = SPCL_LANES;

typedef float Vec __attribute__((vector_size(SPCL_LANES * 4)));
typedef int32_t Mask __attribute__((vector_size(SPCL_LANES * 4)));

#define SPCL_INLINE inline __attribute__((always_inline))
#define SPCL_ALONE __attribute__((noinline))

SPCL_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
SPCL_INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// x - 0 is x whatever x is, so that no subtraction is left; 0 + x is not, where x is -0.
SPCL_INLINE Vec broadcast(float x) { return x - Vec{}; }

SPCL_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

SPCL_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof(v)); }

SPCL_INLINE Vec select(Mask mask, Vec yes, Vec no) { return mask ? yes : no; }

SPCL_INLINE Vec larger(Vec a, Vec b) { return select(a > b, a, b); }

// w in [0, 1]; NaN stays NaN.
SPCL_INLINE Vec clamped_weight(Vec w) {
  w = select(w < 0, Vec{}, w);
  return select(w > 1, broadcast(1), w);
}

// Half by half: a sum lane after lane takes as many additions' latencies as there are lanes.
SPCL_INLINE float sum(Vec v) {
  alignas(64) float lanes[kLanes];
  store(lanes, v);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

SPCL_INLINE float maximum(Vec v) {
  float top = v[0];
  for (int64_t i = 1; i < kLanes; ++i) top = v[i] > top ? v[i] : top;
  return top;
}

// start, start + 1, ...
SPCL_INLINE Mask indices(int64_t start) {
  Mask v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v + static_cast<int32_t>(start);
}

// Which of columns [j, j + kLanes) lie in [begin, end).
SPCL_INLINE Mask in_range(int64_t j, int64_t begin, int64_t end) {
  const Mask column = indices(j);
  return (column >= static_cast<int32_t>(begin)) & (column < static_cast<int32_t>(end));
}

// 2^x for -126 <= x < 127, within 1 ulp; NaN stays NaN.
SPCL_INLINE Vec exp2_bounded(Vec x) {
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const Vec rounded = x + 12582912.0f;
  const Vec f = x - (rounded - 12582912.0f);
  // Minimax polynomial of relative error 1.9e-9 on [-1/2, 1/2].
  Vec p = broadcast(1.53458124e-4f);
  p = p * f + 1.33999309e-3f;
  p = p * f + 9.61848907e-3f;
  p = p * f + 5.55032864e-2f;
  p = p * f + 2.40226462e-1f;
  p = p * f + 6.93147182e-1f;
  p = p * f + 1.0f;
  Mask bits;
  __builtin_memcpy(&bits, &rounded, sizeof(bits));
  Mask scaled;
  __builtin_memcpy(&scaled, &p, sizeof(scaled));
  scaled += bits << 23;
  __builtin_memcpy(&p, &scaled, sizeof(p));
  return p;
}

// exp(x) for every x: 0 below the normal range, inf above it.
SPCL_INLINE Vec exp_any(Vec x) {
  const Vec zero = {};
  const Vec inf = zero + __builtin_inff();
  x *= 1.44269504f;
  const Mask is_low = x < -126.0f, is_high = x >= 127.0f;
  const Vec power = exp2_bounded(select(is_low | is_high, zero, x));
  return select(is_low, zero, select(is_high, inf, power));
}
