// Lanes (see interp.h) made of one SIMD register of pixels, by the compiler's vector extension.
//
// Included by each kernels_<isa>.cpp after its `#pragma GCC target`, inside namespace regframe::RF_ISA: no name here may be
// shared between translation units, or the linker could hand a plain machine the AVX-512 copy of a function.
// No header of the standard library is included here, for the same reason.

// RF_AVX512 and RF_AVX2 come from those files too, since g++ before 13 leaves __AVX512F__ as the command line had it.
#if RF_AVX512
constexpr int kBytes = 64;
#elif RF_AVX2
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;  // SSE2, NEON
#endif

template <class T>
struct Lanes;

template <>
struct Lanes<float> {
  static constexpr int kLanes = kBytes / 4;
  typedef float Real __attribute__((vector_size(kBytes)));
  typedef int32_t Int __attribute__((vector_size(kBytes)));
  static RF_HD Real splat(float x) { return x - Real{}; }  // x - 0 is x, whatever x is: no instruction is left of it
  static RF_HD Int to_int(Real x) { return __builtin_convertvector(x, Int); }
  static RF_HD Real to_real(Int i) { return __builtin_convertvector(i, Real); }
  // b where a is not a number
  static RF_HD Real max(Real a, Real b) {
#if RF_AVX512
    return (Real)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
  }

  static RF_HD Real sqrt(Real x) {
#if RF_AVX512
    return (Real)_mm512_sqrt_ps((__m512)x);
#elif RF_AVX2
    return (Real)_mm256_sqrt_ps((__m256)x);
#else
    for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
  }

  static RF_HD Real floor(Real x) {
#if RF_AVX512
    return (Real)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif RF_AVX2
    return (Real)_mm256_floor_ps((__m256)x);
#else
    const Real whole = to_real(to_int(x));
    return whole > x ? whole - 1.0f : whole;
#endif
  }
  // one bit per lane in which any of f [D] is not in 0 <= f < 1
  template <int D>
  static RF_HD unsigned outside(const Real* f) {
#if RF_AVX512
    unsigned bits = 0;  // as unsigned integers, negative numbers and NaN come after all of them
    for (int d = 0; d < D; ++d) bits |= _mm512_cmpge_epu32_mask((__m512i)f[d], _mm512_set1_epi32(0x3f800000));
    return bits;
#else
    Int in = (f[0] >= 0.0f) & (f[0] < 1.0f);
    for (int d = 1; d < D; ++d) in = in & (f[d] >= 0.0f) & (f[d] < 1.0f);
    return missing(in);
#endif
  }
  // one bit per lane in which a mask of 0 and -1 is 0
  static RF_HD unsigned missing(Int mask) {
#if RF_AVX2
    return 0xffu & ~unsigned(_mm256_movemask_ps((__m256)mask));
#else
    return differ(mask, Int{} - 1);
#endif
  }

  // one bit per lane in which a and b differ
  static RF_HD unsigned differ(Int a, Int b) {
#if RF_AVX512
    return _mm512_cmpneq_epi32_mask((__m512i)a, (__m512i)b);
#elif RF_AVX2
    return 0xffu & ~unsigned(_mm256_movemask_ps((__m256)(a == b)));
#else
    if (__builtin_memcmp(&a, &b, kBytes) == 0) return 0;
    unsigned bits = 0;
    for (int i = 0; i < kLanes; ++i) bits |= unsigned(a[i] != b[i]) << i;
    return bits;
#endif
  }
  static RF_HD bool any(Real x) { return differ((Int)x, Int{}) != 0; }
  // -1 in the lanes whose bit is set
  static RF_HD Int mask(unsigned bits) {
#if RF_AVX512
    return (Int)_mm512_movm_epi32(static_cast<__mmask16>(bits));
#else
    Int lane{};
    for (int i = 0; i < kLanes; ++i) lane[i] = 1 << i;
    return (lane & int32_t(bits)) != 0;
#endif
  }
  static RF_HD float sum(Real x) {
#if RF_AVX512
    return _mm512_reduce_add_ps((__m512)x);
#else
    float out = 0;
    for (int i = 0; i < kLanes; ++i) out += x[i];
    return out;
#endif
  }

  static RF_HD Real gather(const float* base, Int index) {
#if RF_AVX512
    return (Real)_mm512_i32gather_ps((__m512i)index, base, 4);
#elif RF_AVX2
    return (Real)_mm256_i32gather_ps(base, (__m256i)index, 4);
#else
    Real out;
    for (int i = 0; i < kLanes; ++i) out[i] = base[index[i]];
    return out;
#endif
  }
  // base[index] and base[index + 1]: both come with one load of twice the width
  static RF_HD void gather_pair(const float* base, Int index, Real& first, Real& second) {
#if RF_AVX512
    const __m512 low = _mm512_castpd_ps(_mm512_i32gather_pd(_mm512_castsi512_si256((__m512i)index), base, 4));
    const __m512 high = _mm512_castpd_ps(_mm512_i32gather_pd(_mm512_extracti64x4_epi64((__m512i)index, 1), base, 4));
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    first = (Real)_mm512_permutex2var_ps(low, even, high);
    second = (Real)_mm512_permutex2var_ps(low, odd, high);
#else
    first = gather(base, index);
    second = gather(base + 1, index);
#endif
  }

  // four registers [4, kLanes] of base[index] ... base[index + 3]
  static RF_HD void quads(const float* base, Int index, Real* p) {
#if RF_AVX512
    __m512 r[4];  // lanes j, 4 + j, 8 + j, 12 + j
    for (int j = 0; j < 4; ++j) {
      r[j] = _mm512_castps128_ps512(_mm_loadu_ps(base + index[j]));
      r[j] = _mm512_insertf32x4(r[j], _mm_loadu_ps(base + index[4 + j]), 1);
      r[j] = _mm512_insertf32x4(r[j], _mm_loadu_ps(base + index[8 + j]), 2);
      r[j] = _mm512_insertf32x4(r[j], _mm_loadu_ps(base + index[12 + j]), 3);
    }
    const __m512 a = _mm512_unpacklo_ps(r[0], r[1]), b = _mm512_unpackhi_ps(r[0], r[1]);
    const __m512 c = _mm512_unpacklo_ps(r[2], r[3]), d = _mm512_unpackhi_ps(r[2], r[3]);
    p[0] = (Real)_mm512_shuffle_ps(a, c, 0x44);
    p[1] = (Real)_mm512_shuffle_ps(a, c, 0xee);
    p[2] = (Real)_mm512_shuffle_ps(b, d, 0x44);
    p[3] = (Real)_mm512_shuffle_ps(b, d, 0xee);
#elif RF_AVX2
    __m256 r[4];  // lanes j, 4 + j
    for (int j = 0; j < 4; ++j)
      r[j] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(base + index[j])), _mm_loadu_ps(base + index[4 + j]), 1);
    const __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
    const __m256 c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
    p[0] = (Real)_mm256_shuffle_ps(a, c, 0x44);
    p[1] = (Real)_mm256_shuffle_ps(a, c, 0xee);
    p[2] = (Real)_mm256_shuffle_ps(b, d, 0x44);
    p[3] = (Real)_mm256_shuffle_ps(b, d, 0xee);
#else
    for (int i = 0; i < kLanes; ++i)
      for (int k = 0; k < 4; ++k) p[k][i] = base[index[i] + k];
#endif
  }

  // [kLanes, 4] of four registers [4, kLanes], with the numbers of a lane at interleaved(lane)
  static constexpr int interleaved(int lane) { return (lane % 4) * (kLanes / 4) + lane / 4; }
  static RF_HD void interleave(const Real* p, float* to) {
#if RF_AVX512
    const __m512 a = _mm512_unpacklo_ps((__m512)p[0], (__m512)p[1]), b = _mm512_unpackhi_ps((__m512)p[0], (__m512)p[1]);
    const __m512 c = _mm512_unpacklo_ps((__m512)p[2], (__m512)p[3]), d = _mm512_unpackhi_ps((__m512)p[2], (__m512)p[3]);
    _mm512_store_ps(to, _mm512_shuffle_ps(a, c, 0x44));
    _mm512_store_ps(to + 16, _mm512_shuffle_ps(a, c, 0xee));
    _mm512_store_ps(to + 32, _mm512_shuffle_ps(b, d, 0x44));
    _mm512_store_ps(to + 48, _mm512_shuffle_ps(b, d, 0xee));
#elif RF_AVX2
    const __m256 a = _mm256_unpacklo_ps((__m256)p[0], (__m256)p[1]), b = _mm256_unpackhi_ps((__m256)p[0], (__m256)p[1]);
    const __m256 c = _mm256_unpacklo_ps((__m256)p[2], (__m256)p[3]), d = _mm256_unpackhi_ps((__m256)p[2], (__m256)p[3]);
    _mm256_store_ps(to, _mm256_shuffle_ps(a, c, 0x44));
    _mm256_store_ps(to + 8, _mm256_shuffle_ps(a, c, 0xee));
    _mm256_store_ps(to + 16, _mm256_shuffle_ps(b, d, 0x44));
    _mm256_store_ps(to + 24, _mm256_shuffle_ps(b, d, 0xee));
#else
    for (int i = 0; i < kLanes; ++i)
      for (int k = 0; k < 4; ++k) to[4 * interleaved(i) + k] = p[k][i];
#endif
  }
};

template <>
struct Lanes<double> {
  static constexpr int kLanes = kBytes / 8;
  typedef double Real __attribute__((vector_size(kBytes)));
  typedef int64_t Int __attribute__((vector_size(kBytes)));

  static RF_HD Real splat(double x) { return x - Real{}; }
  static RF_HD Int to_int(Real x) { return __builtin_convertvector(x, Int); }
  static RF_HD Real to_real(Int i) { return __builtin_convertvector(i, Real); }
  static RF_HD Real max(Real a, Real b) { return a > b ? a : b; }

  static RF_HD Real sqrt(Real x) {
#if RF_AVX512
    return (Real)_mm512_sqrt_pd((__m512d)x);
#elif RF_AVX2
    return (Real)_mm256_sqrt_pd((__m256d)x);
#else
    for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrt(x[i]);
    return x;
#endif
  }

  static RF_HD Real floor(Real x) {
#if RF_AVX512
    return (Real)_mm512_roundscale_pd((__m512d)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    const Real whole = to_real(to_int(x));
    return whole > x ? whole - 1.0 : whole;
#endif
  }
  template <int D>
  static RF_HD unsigned outside(const Real* f) {
    Int in = (f[0] >= 0.0) & (f[0] < 1.0);
    for (int d = 1; d < D; ++d) in = in & (f[d] >= 0.0) & (f[d] < 1.0);
    return missing(in);
  }
  static RF_HD unsigned missing(Int mask) { return differ(mask, Int{} - 1); }
  static RF_HD unsigned differ(Int a, Int b) {
    if (__builtin_memcmp(&a, &b, kBytes) == 0) return 0;
    unsigned bits = 0;
    for (int i = 0; i < kLanes; ++i) bits |= unsigned(a[i] != b[i]) << i;
    return bits;
  }
  static RF_HD bool any(Real x) { return differ((Int)x, Int{}) != 0; }
  static RF_HD Int mask(unsigned bits) {
    Int lane{};
    for (int i = 0; i < kLanes; ++i) lane[i] = 1 << i;
    return (lane & int64_t(bits)) != 0;
  }
  static RF_HD double sum(Real x) {
    double out = 0;
    for (int i = 0; i < kLanes; ++i) out += x[i];
    return out;
  }
  static RF_HD Real gather(const double* base, Int index) {
#if RF_AVX512
    return (Real)_mm512_i64gather_pd((__m512i)index, base, 8);
#else
    Real out;
    for (int i = 0; i < kLanes; ++i) out[i] = base[index[i]];
    return out;
#endif
  }
  static RF_HD void gather_pair(const double* base, Int index, Real& first, Real& second) {
    first = gather(base, index);
    second = gather(base + 1, index);
  }

  static RF_HD void quads(const double* base, Int index, Real* p) {
    for (int i = 0; i < kLanes; ++i)
      for (int k = 0; k < 4; ++k) p[k][i] = base[index[i] + k];
  }

  static constexpr int interleaved(int lane) { return lane; }
  static RF_HD void interleave(const Real* p, double* to) {
    for (int i = 0; i < kLanes; ++i)
      for (int k = 0; k < 4; ++k) to[4 * i + k] = p[k][i];
  }
};

// base[index] and base[index + 1] of pixels of any type; `end` is that of the memory `base` lies in.
template <class T, class P>
RF_HD void gather_pixels(const P* base, const P* end, typename Lanes<T>::Int index, typename Lanes<T>::Real& first,
                         typename Lanes<T>::Real& second) {
  using L = Lanes<T>;
  if constexpr (sizeof(P) == sizeof(T)) {
    L::gather_pair(base, index, first, second);
  } else {
#if RF_AVX512 || RF_AVX2
    // Four bytes hold both. Those of the last pixels are read from where memory ends, and shifted.
    constexpr int kBits = 8 * sizeof(P);
    constexpr int32_t kMask = (int32_t(1) << kBits) - 1;
    const int64_t room = reinterpret_cast<const char*>(end) - reinterpret_cast<const char*>(base) - 4;
    const int32_t top = room < 0x7fffffff ? static_cast<int32_t>(room) : 0x7fffffff;
    const typename L::Int byte = index * static_cast<int32_t>(sizeof(P));
#if RF_AVX512
    const __m512i at = _mm512_min_epi32((__m512i)byte, _mm512_set1_epi32(top));
    const __m512i shift = _mm512_slli_epi32(_mm512_sub_epi32((__m512i)byte, at), 3);
    const typename L::Int both = (typename L::Int)_mm512_srlv_epi32(_mm512_i32gather_epi32(at, base, 1), shift);
#else
    const __m256i at = _mm256_min_epi32((__m256i)byte, _mm256_set1_epi32(top));
    const __m256i shift = _mm256_slli_epi32(_mm256_sub_epi32((__m256i)byte, at), 3);
    const typename L::Int both =
        (typename L::Int)_mm256_srlv_epi32(_mm256_i32gather_epi32(reinterpret_cast<const int*>(base), at, 1), shift);
#endif
    first = L::to_real(both & kMask);
    second = L::to_real((both >> kBits) & kMask);
#else
    (void)end;
    for (int i = 0; i < L::kLanes; ++i) {
      first[i] = static_cast<T>(base[index[i]]);
      second[i] = static_cast<T>(base[index[i] + 1]);
    }
#endif
  }
}

// 0, 1, 2 ...
template <class T>
RF_HD typename Lanes<T>::Real lane_numbers() {
  typename Lanes<T>::Real out{};
  for (int i = 0; i < Lanes<T>::kLanes; ++i) out[i] = static_cast<T>(i);
  return out;
}

// Which lanes of a register are pixels of the tile: first ... last-1. `from` and `to` are where lane 0 would lie.
struct Span {
  int first, last;

  template <class T>
  RF_HD bool whole() const {
    return first == 0 && last == Lanes<T>::kLanes;
  }
  RF_HD unsigned bits() const { return ((1u << last) - 1u) & ~((1u << first) - 1u); }
};

// the lanes of the span; the rest are 0
template <class T>
RF_HD typename Lanes<T>::Real load(const T* from, Span span) {
#if RF_AVX512
  if constexpr (sizeof(T) == 4) return (typename Lanes<T>::Real)_mm512_maskz_loadu_ps(static_cast<__mmask16>(span.bits()), from);
#endif
  typename Lanes<T>::Real out{};
  if (span.whole<T>()) {
    __builtin_memcpy(&out, from, kBytes);
  } else {
    for (int i = span.first; i < span.last; ++i) out[i] = from[i];
  }
  return out;
}

template <class T>
RF_HD void store(T* to, typename Lanes<T>::Real value, Span span) {
#if RF_AVX512
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>(span.bits()), (__m512)value);
    return;
  }
#endif
  if (span.whole<T>()) {
    __builtin_memcpy(to, &value, kBytes);
  } else {
    for (int i = span.first; i < span.last; ++i) to[i] = value[i];
  }
}

// rounded to the nearest (ties to even) and clamped, where pixels are whole numbers
template <class T, class P>
RF_HD void store_pixels(P* to, typename Lanes<T>::Real value, Span span) {
  if constexpr (sizeof(P) == sizeof(T)) {
    store<T>(to, value, span);
  } else {
    using L = Lanes<T>;
    const typename L::Real zero{}, top = L::splat(static_cast<T>(static_cast<P>(-1)));
    value = L::max(value, zero);
    value = value < top ? value : top;
#if RF_AVX512
    const __m512i whole = _mm512_cvtps_epi32((__m512)value);
    const auto mask = static_cast<__mmask16>(span.bits());
    if constexpr (sizeof(P) == 1)
      _mm512_mask_cvtepi32_storeu_epi8(to, mask, whole);
    else
      _mm512_mask_cvtepi32_storeu_epi16(to, mask, whole);
#else
#if RF_AVX2
    const typename L::Int whole = (typename L::Int)_mm256_cvtps_epi32((__m256)value);
#elif defined(__SSE2__)
    const typename L::Int whole = (typename L::Int)__builtin_ia32_cvtps2dq(value);
#else
    typename L::Int whole;
    for (int i = 0; i < L::kLanes; ++i) whole[i] = static_cast<int32_t>(__builtin_rintf(value[i]));
#endif
    for (int i = span.first; i < span.last; ++i) to[i] = static_cast<P>(whole[i]);
#endif
  }
}
