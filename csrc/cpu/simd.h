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
  typedef double Half __attribute__((vector_size(kBytes)));        // kLanes / 2 doubles
  typedef float HalfReal __attribute__((vector_size(kBytes / 2)));  // kLanes / 2 floats
  typedef int32_t HalfInt __attribute__((vector_size(kBytes / 2)));
  struct Wide {
    Half low, high;
  };

  static RF_HD Real splat(float x) { return x - Real{}; }  // x - 0 is x, whatever x is: no instruction is left of it
  static RF_HD Int to_int(Real x) { return __builtin_convertvector(x, Int); }
  static RF_HD Real to_real(Int i) { return __builtin_convertvector(i, Real); }
  static RF_HD Int below(Real a, Real b) { return a < b; }
  // b where a is not a number
  static RF_HD Real max(Real a, Real b) {
#if RF_AVX512
    return (Real)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
  }

  static RF_HD Real join(HalfReal low, HalfReal high) {
#if RF_AVX512
    return (Real)_mm512_insertf32x8(_mm512_castps256_ps512((__m256)low), (__m256)high, 1);
#elif RF_AVX2
    return (Real)_mm256_set_m128((__m128)high, (__m128)low);
#else
    Real out;
    __builtin_memcpy(&out, &low, kBytes / 2);
    __builtin_memcpy(reinterpret_cast<char*>(&out) + kBytes / 2, &high, kBytes / 2);
    return out;
#endif
  }
  static RF_HD Int join(HalfInt low, HalfInt high) { return (Int)join((HalfReal)low, (HalfReal)high); }

  // a * (first + lane, at most last) + b: the same pixel gets the same bits wherever its lane lies
  static RF_HD Wide index(double first, double last) {
    Wide out;
    for (int i = 0; i < kLanes / 2; ++i) {
      const double low = first + i, high = first + (i + kLanes / 2);
      out.low[i] = low < last ? low : last;
      out.high[i] = high < last ? high : last;
    }
    return out;
  }
  static RF_HD Wide affine(const Wide& x, double a, double b) { return {x.low * a + b, x.high * a + b}; }
  static RF_HD Real narrow(const Wide& x) {
    return join(__builtin_convertvector(x.low, HalfReal), __builtin_convertvector(x.high, HalfReal));
  }

  // x = whole + rest; see ScalarLanes::split_scalar
  static RF_HD void split(const Wide& x, double limit, Int& whole, Real& rest) {
    HalfInt whole_low, whole_high;
    HalfReal rest_low, rest_high;
    split(x.low, limit, whole_low, rest_low);
    split(x.high, limit, whole_high, rest_high);
    whole = join(whole_low, whole_high);
    rest = join(rest_low, rest_high);
  }
  static RF_HD void split(Half x, double limit, HalfInt& whole, HalfReal& rest) {
    constexpr int kFar = 4194304;  // 2^22
    const Half zero{}, high = (limit + 2.0 * kFar) - zero;
    x = x + double(kFar);
    x = x > zero ? x : zero;
    x = x < high ? x : high;
    const HalfInt i = __builtin_convertvector(x, HalfInt);
    rest = __builtin_convertvector(x - __builtin_convertvector(i, Half), HalfReal);
    whole = i - kFar;
  }

  // one bit per lane in which a and b differ
  static RF_HD unsigned differ(Int a, Int b) {
#if RF_AVX512
    return _mm512_cmpneq_epi32_mask((__m512i)a, (__m512i)b);
#elif RF_AVX2
    return 0xffu & ~unsigned(_mm256_movemask_ps((__m256)(a == b)));
#else
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
};

template <>
struct Lanes<double> {
  static constexpr int kLanes = kBytes / 8;
  typedef double Real __attribute__((vector_size(kBytes)));
  typedef int64_t Int __attribute__((vector_size(kBytes)));
  struct Wide {
    Real value;
  };

  static RF_HD Real splat(double x) { return x - Real{}; }
  static RF_HD Int to_int(Real x) { return __builtin_convertvector(x, Int); }
  static RF_HD Real to_real(Int i) { return __builtin_convertvector(i, Real); }
  static RF_HD Int below(Real a, Real b) { return a < b; }
  static RF_HD Real max(Real a, Real b) { return a > b ? a : b; }

  static RF_HD Wide index(double first, double last) {
    Wide out;
    for (int i = 0; i < kLanes; ++i) out.value[i] = first + i < last ? first + i : last;
    return out;
  }
  static RF_HD Wide affine(const Wide& x, double a, double b) { return {x.value * a + b}; }
  static RF_HD Real narrow(const Wide& x) { return x.value; }
  static RF_HD void split(const Wide& x, double, Int& whole, Real& rest) {  // float64 needs no splitting
    whole = Int{};
    rest = x.value;
  }
  static RF_HD unsigned differ(Int a, Int b) {
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
};

// the first `count` lanes; the rest are 0
template <class T>
RF_HD typename Lanes<T>::Real load(const T* from, int count) {
  typename Lanes<T>::Real out{};
  if (count == Lanes<T>::kLanes) {
    __builtin_memcpy(&out, from, kBytes);
  } else {
    for (int i = 0; i < count; ++i) out[i] = from[i];
  }
  return out;
}

template <class T>
RF_HD void store(T* to, typename Lanes<T>::Real value, int count) {
  if (count == Lanes<T>::kLanes) {
    __builtin_memcpy(to, &value, kBytes);
  } else {
    for (int i = 0; i < count; ++i) to[i] = value[i];
  }
}
