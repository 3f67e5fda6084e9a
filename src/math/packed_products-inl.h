// Products with packed matrices, written once over the vectors of a target. Included once for each, inside a namespace of its own and with that
// target's instructions enabled; no include guard, and nothing else may be included here. V is the target's vectors:
//
//   kLanes           rows that a vector holds
//   kSignedBytes     Dot<8> takes codes - 128 and not codes
//   I, F             kLanes words of 32 bits, kLanes floats

template <int kCount, class Body>
WEFT_PACKED_INLINE void unrolled(Body&& body) {
  [&]<int... i>(std::integer_sequence<int, i...>) WEFT_PACKED_LAMBDA { (body(std::integral_constant<int, i>()), ...); }
  (std::make_integer_sequence<int, kCount>());
}

// ---- Codes: word i of a row holds columns 4i .. 4i + 3 in its bytes, and in c[4 + i] those 16 further

template <class V, int kLeft>
WEFT_PACKED_INLINE typename V::I shifted(typename V::I v) {
  if constexpr (kLeft >= 0)
    return V::template Shl<kLeft>(v);
  else
    return V::template Shr<-kLeft>(v);
}

/// The codes of 32 columns, each in a byte. p: of this vector's first lane.
template <class V, int kBits>
WEFT_PACKED_INLINE void unpack(const std::uint8_t* p, typename V::I (&c)[8]) {
  if constexpr (kBits == 8) {
    unrolled<8>([&](auto k) WEFT_PACKED_LAMBDA { c[k] = V::Load(p + 64 * k); });
  } else if constexpr (kBits >= 4) {
    unrolled<4>([&](auto i) WEFT_PACKED_LAMBDA {
      const typename V::I w = V::Load(p + 64 * i);
      c[i] = V::And(w, V::Bytes(0x0F));
      c[4 + i] = V::And(V::template Shr<4>(w), V::Bytes(0x0F));
    });
  } else {
    const typename V::I first = V::Load(p), second = V::Load(p + 64);
    unrolled<4>([&](auto i) WEFT_PACKED_LAMBDA {
      constexpr int kShift = 2 * decltype(i)::value;
      c[i] = V::And(shifted<V, -kShift>(first), V::Bytes(3));
      c[4 + i] = V::And(shifted<V, -kShift>(second), V::Bytes(3));
    });
  }
  if constexpr (kBits == 5 || kBits == 3) {
    constexpr int kPlace = kBits - 1;
    const typename V::I plane = V::Load(p + 64 * (kBits - 1));
    unrolled<8>([&](auto k)
                    WEFT_PACKED_LAMBDA { c[k] = V::Or(c[k], V::And(shifted<V, kPlace - decltype(k)::value>(plane), V::Bytes(1 << kPlace))); });
  }
  if constexpr (kBits == 6) {
    const typename V::I first = V::Load(p + 256), second = V::Load(p + 320);
    unrolled<4>([&](auto i) WEFT_PACKED_LAMBDA {
      constexpr int kShift = 4 - 2 * decltype(i)::value;
      c[i] = V::Or(c[i], V::And(shifted<V, kShift>(first), V::Bytes(0x30)));
      c[4 + i] = V::Or(c[4 + i], V::And(shifted<V, kShift>(second), V::Bytes(0x30)));
    });
  }
}

// ---- Scales: a weight is s * code - m

template <class V>
WEFT_PACKED_INLINE typename V::F load_numbers(const std::uint8_t* p, std::size_t lane, int kind) {
  if (kind == 0) return V::LoadHalf(p + 2 * lane);
  if (kind == 1) return V::LoadBrain(p + 2 * lane);
  return V::LoadFloat(p + 4 * lane);
}

template <class V, int kBits>
class PlainScales {
 public:
  using F = typename V::F;
  static constexpr int kHalves = 1;
  static constexpr int kBias = 1 << (kBits - 1);

  WEFT_PACKED_INLINE PlainScales(const PackedView& view, std::size_t tile, std::size_t lane, std::size_t first_unit)
      : view_(view),
        lane_(lane),
        left_(view.record_units - first_unit % view.record_units),
        record_(view.scales + tile * view.tile_scales + first_unit / view.record_units * view.record_bytes) {
    load();
  }
  /// For the next unit.
  WEFT_PACKED_INLINE void at(F (&s)[1], F (&m)[1]) {
    if (left_ == 0) {
      record_ += view_.record_bytes;
      left_ = view_.record_units;
      load();
    }
    --left_;
    s[0] = scale_;
    m[0] = taken_;
  }

 private:
  WEFT_PACKED_INLINE void load() {
    scale_ = load_numbers<V>(record_, lane_, view_.scale_kind);
    const std::uint8_t* zeros = record_ + kTileLanes * (view_.scale_kind == 2 ? 4 : 2);
    if (view_.zero_kind == 0)
      taken_ = V::Mul(scale_, V::Set(view_.zero));
    else if (view_.zero_kind == 1)
      taken_ = V::Mul(scale_, V::LoadBytes(zeros + lane_));
    else if (view_.zero_kind == 2)
      taken_ = V::Mul(scale_, load_numbers<V>(zeros, lane_, view_.scale_kind));
    else
      taken_ = load_numbers<V>(zeros, lane_, view_.scale_kind);
  }
  const PackedView& view_;
  std::size_t lane_, left_;
  const std::uint8_t* record_;
  F scale_, taken_;
};

/// Scales of the types with blocks of 256, two steps: d (and one of the minima) for 256 columns, a small number for 32 or 16.
template <class V, int kBits>
class BlockScales {
 public:
  using F = typename V::F;
  static constexpr bool kMinima = kBits == 2 || kBits == 4 || kBits == 5;
  static constexpr int kHalves = kBits == 4 || kBits == 5 ? 1 : 2;
  static constexpr int kBias = kBits == 6 ? 32 : kBits == 3 ? 4 : 0;

  WEFT_PACKED_INLINE BlockScales(const PackedView& view, std::size_t tile, std::size_t lane, std::size_t first_unit)
      : record_bytes_(view.record_bytes),
        lane_(lane),
        unit_(first_unit % 8),
        record_(view.scales + tile * view.tile_scales + first_unit / 8 * view.record_bytes) {
    expand();
  }
  WEFT_PACKED_INLINE void at(F (&s)[kHalves], F (&m)[kHalves]) {
    if (unit_ == 8) {
      record_ += record_bytes_;
      unit_ = 0;
      expand();
    }
    for (int h = 0; h < kHalves; ++h) {
      const std::size_t at = (unit_ * kHalves + static_cast<std::size_t>(h)) * kTileLanes + lane_;
      if constexpr (kBits == 6)
        s[h] = V::Mul(d_, V::LoadSignedBytes(record_ + 32 + at));
      else if constexpr (kBits == 3)
        s[h] = V::Mul(d_, V::Sub(V::LoadBytes(small_ + at), V::Set(32.0F)));
      else
        s[h] = V::Mul(d_, V::LoadBytes(small_ + at));
      if constexpr (kMinima)
        m[h] = V::Mul(least_, V::LoadBytes(minima_ + at));
      else
        m[h] = V::Mul(s[h], V::Set(static_cast<float>(kBias)));
    }
    ++unit_;
  }

 private:
  static WEFT_PACKED_INLINE std::uint64_t word(const std::uint8_t* p) {
    std::uint64_t value;
    std::memcpy(&value, p, 8);
    return value;
  }
  static WEFT_PACKED_INLINE void put(std::uint8_t* p, std::uint64_t value) { std::memcpy(p, &value, 8); }

  WEFT_PACKED_INLINE void expand() {
    d_ = V::LoadHalf(record_ + 2 * lane_);
    if constexpr (kMinima) least_ = V::LoadHalf(record_ + 32 + 2 * lane_);
    constexpr std::uint64_t kEach = 0x0101010101010101;
    if constexpr (kBits == 4 || kBits == 5) {
      const std::uint8_t *low = record_ + 64, *high = low + 128;
      for (int i = 0; i < 64; i += 8) {
        const std::uint64_t a = word(low + i), b = word(low + 64 + i), h = word(high + i);
        put(small_ + i, (a & 15 * kEach) | (h & 3 * kEach) << 4);
        put(small_ + 64 + i, (b & 15 * kEach) | (h & 0x30 * kEach));
        put(minima_ + i, (a >> 4 & 15 * kEach) | (h & 12 * kEach) << 2);
        put(minima_ + 64 + i, (b >> 4 & 15 * kEach) | (h >> 2 & 0x30 * kEach));
      }
    } else if constexpr (kBits == 3) {
      const std::uint8_t *low = record_ + 32, *high = low + 128;
      for (int i = 0; i < 64; i += 8) {
        const std::uint64_t a = word(low + i), b = word(low + 64 + i), h = word(high + i);
        put(small_ + i, (a & 15 * kEach) | (h & 3 * kEach) << 4);
        put(small_ + 64 + i, (b & 15 * kEach) | (h & 12 * kEach) << 2);
        put(small_ + 128 + i, (a >> 4 & 15 * kEach) | (h & 0x30 * kEach));
        put(small_ + 192 + i, (b >> 4 & 15 * kEach) | (h >> 2 & 0x30 * kEach));
      }
    } else if constexpr (kBits == 2) {
      for (int i = 0; i < 256; i += 8) {
        const std::uint64_t a = word(record_ + 64 + i);
        put(small_ + i, a & 15 * kEach);
        put(minima_ + i, a >> 4 & 15 * kEach);
      }
    }
  }
  std::size_t record_bytes_, lane_, unit_;
  const std::uint8_t* record_;
  F d_, least_;
  alignas(64) std::uint8_t small_[kBits == 6 ? 1 : 256];
  alignas(64) std::uint8_t minima_[kMinima ? 256 : 1];
};

template <class V>
WEFT_PACKED_INLINE void store_lanes(typename V::F v, const PackedView& view, std::size_t row, float* out) {
  if (row + V::kLanes <= view.rows) {
    V::Store(v, out + row);
    return;
  }
  alignas(64) float lanes[V::kLanes];
  V::Store(v, lanes);
  for (std::size_t i = 0; row + i < view.rows; ++i) out[row + i] = lanes[i];
}

/// Brings codes that come soon into the cache: few rows of x use them up faster than the prefetcher of the CPU brings them, which starts anew on each
/// page.
template <int kBits>
WEFT_PACKED_INLINE void fetch_ahead(const std::uint8_t* codes) {
  constexpr int kAhead = 2048;
  for (int i = 0; i < kBits; ++i) __builtin_prefetch(codes + kAhead + 64 * i);
}

// ---- Rounded x

/// kRows 0: as many as the input has.
template <class V, int kBits, class Scales, int kRows>
void rounded_rows(const PackedView& view, const PackedInput::View& input, std::size_t first_tile, std::size_t last_tile, float* out,
                  std::size_t out_stride) {
  using F = typename V::F;
  using I = typename V::I;
  constexpr bool kShifted = kBits == 8 && V::kSignedBytes;
  constexpr std::size_t kMost = kRows == 0 ? kMostRows : kRows;
  const std::size_t rows = kRows == 0 ? input.num_rows : kRows;
  for (std::size_t tile = first_tile; tile < last_tile; ++tile)
    for (std::size_t lane = 0; lane < kTileLanes; lane += V::kLanes) {
      Scales scales(view, tile, lane, 0);
      const std::uint8_t* p = view.codes + tile * view.tile_codes + lane * 4;
      const std::int8_t* x = input.codes;
      const float* facts = input.facts;
      F sums[kMost];
      for (std::size_t t = 0; t < rows; ++t) sums[t] = V::Set(0);
      for (std::size_t u = 0; u < view.units; ++u, p += view.unit_bytes) {
        if (kRows != 0 && lane == 0) fetch_ahead<kBits>(p);
        I c[8];
        unpack<V, kBits>(p, c);
        F s[Scales::kHalves], m[Scales::kHalves];
        scales.at(s, m);
        if constexpr (kShifted) {
          for (int h = 0; h < Scales::kHalves; ++h) m[h] = V::Fnma(V::Set(128), s[h], m[h]);
          unrolled<8>([&](auto k) WEFT_PACKED_LAMBDA { c[k] = V::Xor(c[k], V::Bytes(0x80)); });
        }
        for (std::size_t t = 0; t < rows; ++t, x += 32, facts += 4) {
          if constexpr (Scales::kHalves == 1) {
            I dot = V::Zero();
            unrolled<8>([&](auto k) WEFT_PACKED_LAMBDA { dot = V::template Dot<kBits>(dot, c[k], x + 4 * k); });
            sums[t] = V::Fma(V::ToFloat(dot), V::Mul(s[0], V::Each(facts)), sums[t]);
            sums[t] = V::Fnma(m[0], V::Each(facts + 1), sums[t]);
          } else {
            I first = V::Zero(), second = V::Zero();
            unrolled<4>([&](auto k) WEFT_PACKED_LAMBDA {
              first = V::template Dot<kBits>(first, c[k], x + 4 * k);
              second = V::template Dot<kBits>(second, c[4 + k], x + 16 + 4 * k);
            });
            const F both = V::Fma(V::ToFloat(second), s[1], V::Mul(V::ToFloat(first), s[0]));
            sums[t] = V::Fma(both, V::Each(facts), sums[t]);
            sums[t] = V::Fnma(m[0], V::Each(facts + 2), sums[t]);
            sums[t] = V::Fnma(m[1], V::Each(facts + 3), sums[t]);
          }
        }
      }
      for (std::size_t t = 0; t < rows; ++t) store_lanes<V>(sums[t], view, tile * kTileLanes + lane, out + t * out_stride);
    }
}

template <class V, int kBits, class Scales>
void rounded(const PackedView& view, const PackedInput::View& input, std::size_t first_tile, std::size_t last_tile, float* out,
             std::size_t out_stride) {
  switch (input.num_rows) {
    case 1:
      return rounded_rows<V, kBits, Scales, 1>(view, input, first_tile, last_tile, out, out_stride);
    case 4:
      return rounded_rows<V, kBits, Scales, 4>(view, input, first_tile, last_tile, out, out_stride);
    default:
      return rounded_rows<V, kBits, Scales, 0>(view, input, first_tile, last_tile, out, out_stride);
  }
}

// ---- Fine x: three digits of eight bits

/// kRows 0: as many as the input has.
template <class V, int kBits, class Scales, int kRows>
void fine_rows(const PackedView& view, const PackedInput::View& input, std::size_t first_tile, std::size_t last_tile, float* out,
               std::size_t out_stride) {
  using F = typename V::F;
  using I = typename V::I;
  static_assert(Scales::kHalves == 1);
  // Digits may be -128, of which a dot product of signed bytes takes no negative.
  constexpr bool kSplit = kBits == 8 && V::kSignedBytes;
  constexpr std::size_t kMost = kRows == 0 ? kMostRows : kRows;
  const std::size_t rows = kRows == 0 ? input.num_rows : kRows;
  for (std::size_t tile = first_tile; tile < last_tile; ++tile)
    for (std::size_t lane = 0; lane < kTileLanes; lane += V::kLanes) {
      Scales scales(view, tile, lane, 0);
      const std::uint8_t* p = view.codes + tile * view.tile_codes + lane * 4;
      const std::int8_t* x = input.codes;
      const float* facts = input.facts;
      F sums[kMost];
      for (std::size_t t = 0; t < rows; ++t) sums[t] = V::Set(0);
      for (std::size_t u = 0; u < view.units; ++u, p += view.unit_bytes) {
        if (kRows != 0 && lane == 0) fetch_ahead<kBits>(p);
        I c[8];
        unpack<V, kBits>(p, c);
        F s[1], m[1];
        scales.at(s, m);
        const auto dots = [&](const std::int8_t* digits) WEFT_PACKED_LAMBDA {
          I dot = V::Zero();
          if constexpr (kSplit) {
            I top = V::Zero();
            unrolled<8>([&](auto k) WEFT_PACKED_LAMBDA {
              dot = V::template Dot<7>(dot, V::And(c[k], V::Bytes(0x7F)), digits + 4 * k);
              top = V::template Dot<1>(top, V::And(V::template Shr<7>(c[k]), V::Bytes(1)), digits + 4 * k);
            });
            dot = V::AddWords(dot, V::template Shl<7>(top));
          } else {
            unrolled<8>([&](auto k) WEFT_PACKED_LAMBDA { dot = V::template Dot<kBits>(dot, c[k], digits + 4 * k); });
          }
          return dot;
        };
        for (std::size_t t = 0; t < rows; ++t, x += 96, facts += 4) {
          const I low = V::AddWords(V::template Shl<8>(dots(x + 32)), dots(x + 64));
          const F dot = V::Fma(V::ToFloat(dots(x)), V::Set(65536), V::ToFloat(low));
          sums[t] = V::Fma(dot, V::Mul(s[0], V::Each(facts)), sums[t]);
          sums[t] = V::Fnma(m[0], V::Each(facts + 1), sums[t]);
        }
      }
      for (std::size_t t = 0; t < rows; ++t) store_lanes<V>(sums[t], view, tile * kTileLanes + lane, out + t * out_stride);
    }
}

template <class V, int kBits, class Scales>
void fine(const PackedView& view, const PackedInput::View& input, std::size_t first_tile, std::size_t last_tile, float* out, std::size_t out_stride) {
  switch (input.num_rows) {
    case 1:
      return fine_rows<V, kBits, Scales, 1>(view, input, first_tile, last_tile, out, out_stride);
    case 4:
      return fine_rows<V, kBits, Scales, 4>(view, input, first_tile, last_tile, out, out_stride);
    default:
      return fine_rows<V, kBits, Scales, 0>(view, input, first_tile, last_tile, out, out_stride);
  }
}

template <class V>
void split_rows(const float* x, std::size_t stride, std::size_t rows, std::size_t units, std::int8_t* codes, float* facts) {
  using F = typename V::F;
  constexpr float kMostSteps = 127 * 65536;  // which leaves room for the rounding of the largest
  for (std::size_t t = 0; t < rows; ++t)
    for (std::size_t u = 0; u < units; ++u) {
      const float* from = x + t * stride + u * 32;
      std::int8_t* to = codes + (u * rows + t) * 96;
      float* about = facts + (u * rows + t) * 4;
      F most = V::Set(0), poison = V::Set(0);
      for (std::size_t i = 0; i < 32; i += V::kLanes) {
        const F v = V::LoadFloat(from + i);
        most = V::Max(most, V::Abs(v));
        poison = V::Fma(v, V::Set(0), poison);  // NaN once something was not finite
      }
      const float largest = V::MaxOfLanes(most), bad = V::SumOfLanes(poison);
      about[0] = about[1] = about[2] = about[3] = bad;
      if (!(largest >= 1e-30F) || bad != 0) {  // too small for its step, or not finite
        std::memset(to, 0, 96);
        continue;
      }
      const F inverse = V::Set(kMostSteps / largest);
      alignas(64) std::int32_t whole[32];
      for (std::size_t i = 0; i < 32; i += V::kLanes) V::StoreWords(V::ToWords(V::Mul(V::LoadFloat(from + i), inverse)), whole + i);
      std::int32_t sum = 0;
      for (std::size_t i = 0; i < 32; ++i) {
        const std::int32_t value = whole[i], last = static_cast<std::int8_t>(value & 255), rest = (value - last) >> 8,
                           middle = static_cast<std::int8_t>(rest & 255);
        sum += value;
        to[i] = static_cast<std::int8_t>((rest - middle) >> 8);
        to[32 + i] = static_cast<std::int8_t>(middle);
        to[64 + i] = static_cast<std::int8_t>(last);
      }
      about[0] = largest / kMostSteps;
      about[1] = about[0] * static_cast<float>(sum);
    }
}

template <class V>
void round_rows(const float* x, std::size_t stride, std::size_t rows, std::size_t units, std::int8_t* codes, float* facts) {
  using F = typename V::F;
  constexpr std::size_t kVectors = 32 / V::kLanes;
  for (std::size_t t = 0; t < rows; ++t)
    for (std::size_t u = 0; u < units; ++u) {
      const float* from = x + t * stride + u * 32;
      std::int8_t* to = codes + (u * rows + t) * 32;
      float* about = facts + (u * rows + t) * 4;
      F most = V::Set(0), poison = V::Set(0);
      for (std::size_t i = 0; i < kVectors; ++i) {
        const F v = V::LoadFloat(from + i * V::kLanes);
        most = V::Max(most, V::Abs(v));
        poison = V::Fma(v, V::Set(0), poison);  // NaN once something was not finite
      }
      const float largest = V::MaxOfLanes(most);
      const bool is_zero = !(largest >= 1e-36F);  // too small for its step
      const float step = (is_zero ? 0.0F : largest / 127.0F) + V::SumOfLanes(poison);
      const F inverse = V::Set(is_zero ? 0.0F : 127.0F / largest);
      float halves[2];
      for (std::size_t h = 0; h < 2; ++h) {
        F sum = V::Set(0);
        for (std::size_t i = h * kVectors / 2; i < (h + 1) * kVectors / 2; ++i)
          sum = V::Add(sum, V::RoundToBytes(V::Mul(V::LoadFloat(from + i * V::kLanes), inverse), to + i * V::kLanes));
        halves[h] = V::SumOfLanes(sum);
      }
      about[0] = step;
      about[1] = step * (halves[0] + halves[1]);
      about[2] = step * halves[0];
      about[3] = step * halves[1];
    }
}

// ---- Exact x

/// Calls body(column, weight) for the 32 columns of a unit; weights are codes less the bias, or what the table has for them.
template <class V, int kForm, int kBits, int kBias, class Body>
WEFT_PACKED_INLINE void for_weights(const std::uint8_t* codes, std::size_t lane, const typename V::Table& table, Body&& body) {
  if constexpr (kForm == numbers8) {
    unrolled<8>([&](auto k) WEFT_PACKED_LAMBDA {
      typename V::F four[4];
      V::LoadE4m3(codes + lane * 2 + 64 * k, four);
      unrolled<4>([&](auto b) WEFT_PACKED_LAMBDA { body(std::integral_constant<int, 4 * decltype(k)::value + decltype(b)::value>(), four[b]); });
    });
  } else if constexpr (kBits == 4) {
    // Bytes are brought down by where they are loaded from: shifts would compete with the products.
    unrolled<16>([&](auto k) WEFT_PACKED_LAMBDA {
      const typename V::I w = V::Load(codes + lane * 4 + 64 * (k / 4) + k % 4);
      body(k, V::LookUp(table, w));
      body(std::integral_constant<int, 16 + decltype(k)::value>(), V::LookUp(table, V::template Shr<4>(w)));
    });
  } else {
    typename V::I c[8];
    unpack<V, kBits>(codes + lane * 4, c);
    unrolled<8>([&](auto k) WEFT_PACKED_LAMBDA {
      const typename V::I v = V::SubBytes(c[k], V::Bytes(kBias));
      unrolled<4>([&](auto b) WEFT_PACKED_LAMBDA {
        body(std::integral_constant<int, 4 * decltype(k)::value + decltype(b)::value>(), V::template SignedByte<decltype(b)::value>(v));
      });
    });
  }
}

/// What is taken away from s * (code - bias).
template <class V, int kForm, class Scales>
WEFT_PACKED_INLINE void exact_scales(Scales& scales, typename V::F (&s)[Scales::kHalves], typename V::F (&m)[Scales::kHalves]) {
  scales.at(s, m);
  for (int h = 0; h < Scales::kHalves; ++h) {
    if constexpr (kForm == numbers8)
      s[h] = V::Mul(s[h], V::Set(256));  // LoadE4m3 gives less by that
    else if constexpr (kForm != table4 && Scales::kBias != 0)
      m[h] = V::Fnma(s[h], V::Set(static_cast<float>(Scales::kBias)), m[h]);
  }
}

template <class V, int kForm, int kBits, class Scales, int kRows>
WEFT_PACKED_INLINE void exact_rows(const PackedView& view, const PackedInput::View& input, std::size_t first_row, std::size_t tile, float* out,
                                   std::size_t out_stride) {
  using F = typename V::F;
  // A sum that waits for the one before would take longer than the weights.
  constexpr int kParts = kRows == 1 ? 4 : kRows == 2 ? 2 : 1;
  const std::size_t x_step = input.num_rows * 32, fact_step = input.num_rows * 4;
  for (std::size_t lane = 0; lane < kTileLanes; lane += V::kLanes) {
    const typename V::Table table = V::LoadTable(view.table);
    Scales scales(view, tile, lane, 0);
    const std::uint8_t* p = view.codes + tile * view.tile_codes;
    const float* x = input.values + first_row * 32;
    const float* facts = input.facts + first_row * 4;
    F sums[kRows];
    for (int t = 0; t < kRows; ++t) sums[t] = V::Set(0);
    for (std::size_t u = 0; u < view.units; ++u, p += view.unit_bytes, x += x_step, facts += fact_step) {
      if (lane == 0) fetch_ahead<kBits>(p);
      F s[Scales::kHalves], m[Scales::kHalves];
      exact_scales<V, kForm>(scales, s, m);
      F parts[Scales::kHalves][kRows][kParts];
      for (auto& half : parts)
        for (auto& row : half)
          for (F& part : row) part = V::Set(0);
      for_weights<V, kForm, kBits, Scales::kBias>(p, lane, table, [&](auto column, F w) WEFT_PACKED_LAMBDA {
        constexpr int kColumn = decltype(column)::value, kHalf = Scales::kHalves == 1 ? 0 : kColumn / 16;
        for (int t = 0; t < kRows; ++t) {
          F& part = parts[kHalf][t][kColumn % kParts];
          part = V::Fma(w, V::Each(x + t * 32 + kColumn), part);
        }
      });
      for (int t = 0; t < kRows; ++t)
        for (int h = 0; h < Scales::kHalves; ++h) {
          F sum = parts[h][t][0];
          if constexpr (kParts == 2) sum = V::Add(sum, parts[h][t][1]);
          if constexpr (kParts == 4) sum = V::Add(V::Add(sum, parts[h][t][1]), V::Add(parts[h][t][2], parts[h][t][3]));
          sums[t] = V::Fma(sum, s[h], sums[t]);
          if constexpr (kForm != table4 && kForm != numbers8)
            sums[t] = V::Fnma(m[h], V::Each(facts + 4 * t + (Scales::kHalves == 1 ? 1 : 2 + h)), sums[t]);
        }
    }
    for (int t = 0; t < kRows; ++t)
      store_lanes<V>(sums[t], view, tile * kTileLanes + lane, out + (first_row + static_cast<std::size_t>(t)) * out_stride);
  }
}

template <class V, int kForm, int kBits, class Scales>
void exact(const PackedView& view, const PackedInput::View& input, std::size_t first_tile, std::size_t last_tile, float* out,
           std::size_t out_stride) {
  for (std::size_t tile = first_tile; tile < last_tile; ++tile) {
    std::size_t t = 0;
    for (; t + 4 <= input.num_rows; t += 4) exact_rows<V, kForm, kBits, Scales, 4>(view, input, t, tile, out, out_stride);
    for (; t < input.num_rows; ++t) exact_rows<V, kForm, kBits, Scales, 1>(view, input, t, tile, out, out_stride);
  }
}

template <class V>
void copy_rows(const float* x, std::size_t stride, std::size_t rows, std::size_t units, float* values, float* facts) {
  for (std::size_t t = 0; t < rows; ++t)
    for (std::size_t u = 0; u < units; ++u) {
      const float* from = x + t * stride + u * 32;
      float* about = facts + (u * rows + t) * 4;
      std::memcpy(values + (u * rows + t) * 32, from, 32 * sizeof(float));
      float halves[2];
      for (std::size_t h = 0; h < 2; ++h) {
        typename V::F sum = V::Set(0);
        for (std::size_t i = 0; i < 16; i += V::kLanes) sum = V::Add(sum, V::LoadFloat(from + h * 16 + i));
        halves[h] = V::SumOfLanes(sum);
      }
      about[0] = 1;
      about[1] = halves[0] + halves[1];
      about[2] = halves[0];
      about[3] = halves[1];
    }
}

template <class V, int kForm, int kBits, class Scales>
void decode(const PackedView& view, std::size_t tile, std::size_t first_unit, std::size_t num_units, float* out, std::size_t stride) {
  using F = typename V::F;
  for (std::size_t lane = 0; lane < kTileLanes; lane += V::kLanes) {
    const typename V::Table table = V::LoadTable(view.table);
    Scales scales(view, tile, lane, first_unit);
    const std::uint8_t* p = view.codes + tile * view.tile_codes + first_unit * view.unit_bytes;
    float* to = out + lane;
    for (std::size_t u = 0; u < num_units; ++u, p += view.unit_bytes, to += 32 * stride) {
      F s[Scales::kHalves], m[Scales::kHalves];
      exact_scales<V, kForm>(scales, s, m);
      for_weights<V, kForm, kBits, Scales::kBias>(p, lane, table, [&](auto column, F w) WEFT_PACKED_LAMBDA {
        constexpr int kColumn = decltype(column)::value, kHalf = Scales::kHalves == 1 ? 0 : kColumn / 16;
        V::Store(V::Sub(V::Mul(w, s[kHalf]), m[kHalf]), to + static_cast<std::size_t>(kColumn) * stride);
      });
    }
  }
}

/// like: another target whose kernels for exact x are as good; null: none.
template <class V, bool kOwn = true>
constexpr Kernels make_kernels(const char* name, bool has_byte_products = false, const Kernels* like = nullptr) {
  Kernels all = {};
  if (like != nullptr) all = *like;
  all.name = name;
  all.has_byte_products = has_byte_products;
  all.round = round_rows<V>;
  all.split = split_rows<V>;
  all.copy = copy_rows<V>;
#define WEFT_PACKED_FORM(form, bits, scales)                   \
  if constexpr (kOwn) {                                        \
    all.exact[form] = exact<V, form, bits, scales<V, bits>>;   \
    all.decode[form] = decode<V, form, bits, scales<V, bits>>; \
  }
#define WEFT_PACKED_INTEGERS(form, bits, scales) \
  WEFT_PACKED_FORM(form, bits, scales)           \
  all.rounded[form] = rounded<V, bits, scales<V, bits>>;
#define WEFT_PACKED_PLAIN(form, bits)           \
  WEFT_PACKED_INTEGERS(form, bits, PlainScales) \
  all.fine[form] = fine<V, bits, PlainScales<V, bits>>;
  WEFT_PACKED_PLAIN(plain2, 2)
  WEFT_PACKED_PLAIN(plain3, 3)
  WEFT_PACKED_PLAIN(plain4, 4)
  WEFT_PACKED_PLAIN(plain5, 5)
  WEFT_PACKED_PLAIN(plain6, 6)
  WEFT_PACKED_PLAIN(plain8, 8)
  WEFT_PACKED_INTEGERS(k2, 2, BlockScales)
  WEFT_PACKED_INTEGERS(k3, 3, BlockScales)
  WEFT_PACKED_INTEGERS(k4, 4, BlockScales)
  WEFT_PACKED_INTEGERS(k5, 5, BlockScales)
  WEFT_PACKED_INTEGERS(k6, 6, BlockScales)
  WEFT_PACKED_FORM(table4, 4, PlainScales)
  WEFT_PACKED_FORM(numbers8, 8, PlainScales)
#undef WEFT_PACKED_PLAIN
#undef WEFT_PACKED_INTEGERS
#undef WEFT_PACKED_FORM
  return all;
}
