#if defined(WEFT_MATH_EXP_LOG_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_EXP_LOG_INL_H_
#undef WEFT_MATH_EXP_LOG_INL_H_
#else
#define WEFT_MATH_EXP_LOG_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <limits>

#include "math/elementary_constants.h"
#include "math/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

// The steps of exp() and log() in elementary.cc, operation by operation, on vectors.

template <class D, class V = hn::Vec<D>>
HWY_INLINE V VectorExp(D d, V x) {
  namespace e = elementary;
  const hn::RebindToUnsigned<D> du;
  const V shift = hn::Set(d, e::kRoundingShift);
  V bounded = hn::IfThenElse(hn::Gt(x, hn::Set(d, e::kExpMax)), hn::Set(d, e::kExpMax), x);
  bounded = hn::IfThenElse(hn::Lt(bounded, hn::Set(d, e::kExpMin)), hn::Set(d, e::kExpMin), bounded);
  const V shifted = hn::Add(hn::Mul(bounded, hn::Set(d, e::kLog2E)), shift);
  const V n = hn::Sub(shifted, shift);
  const V r = hn::Sub(hn::Sub(bounded, hn::Mul(n, hn::Set(d, e::kLn2High))), hn::Mul(n, hn::Set(d, e::kLn2Low)));
  V series = hn::Set(d, e::kExpSeries[0]);
  for (std::size_t k = 1; k < e::kExpSeries.size(); ++k) series = hn::Add(hn::Mul(series, r), hn::Set(d, e::kExpSeries[k]));
  const V mantissa = hn::Add(hn::Set(d, 1.0), hn::Add(r, hn::Mul(hn::Mul(r, r), series)));
  // n + offset from the low bits of the shifted value; each factor 2^m has the bits (m + 1023) << 52.
  const auto exponent = hn::And(hn::Add(hn::BitCast(du, shifted), hn::Set(du, e::kExponentOffset)), hn::Set(du, std::uint64_t{0xFFFF}));
  const auto half = hn::ShiftRight<1>(exponent);
  const auto bias = hn::Set(du, e::kExponentOffset / 2 - 1023);
  const V factor0 = hn::BitCast(d, hn::ShiftLeft<52>(hn::Sub(half, bias)));
  const V factor1 = hn::BitCast(d, hn::ShiftLeft<52>(hn::Sub(hn::Sub(exponent, half), bias)));
  const V result = hn::Mul(hn::Mul(mantissa, factor0), factor1);
  return hn::IfThenElse(hn::IsNaN(x), hn::Set(d, std::numeric_limits<double>::quiet_NaN()), result);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V VectorLog(D d, V x) {
  namespace e = elementary;
  const hn::RebindToUnsigned<D> du;
  const V infinity = hn::Set(d, std::numeric_limits<double>::infinity());
  const V one = hn::Set(d, 1.0);
  const auto subnormal = hn::Lt(x, hn::Set(d, std::numeric_limits<double>::min()));
  const V normal = hn::IfThenElse(subnormal, hn::Mul(x, hn::Set(d, 0x1p54)), x);
  const auto above = hn::Sub(hn::BitCast(du, normal), hn::Set(du, e::kSqrtHalfBits));
  // The biased exponent k + 1023 as a double: the number 2^52 + it, less 2^52 + 1023.
  const auto exponent_bits = hn::ShiftRight<52>(hn::Add(above, hn::Set(du, e::kOneBits)));
  V k = hn::Sub(hn::BitCast(d, hn::Or(exponent_bits, hn::Set(du, std::uint64_t{0x4330000000000000}))), hn::Set(d, 0x1p52 + 1023));
  k = hn::Sub(k, hn::IfThenElseZero(subnormal, hn::Set(d, 54.0)));
  const V m = hn::BitCast(d, hn::Add(hn::And(above, hn::Set(du, std::uint64_t{0x000FFFFFFFFFFFFF})), hn::Set(du, e::kSqrtHalfBits)));
  const V f = hn::Sub(m, one);
  const V s = hn::Div(f, hn::Add(hn::Set(d, 2.0), f));
  const V z = hn::Mul(s, s);
  V series = hn::Set(d, e::kLogSeries[0]);
  for (std::size_t i = 1; i < e::kLogSeries.size(); ++i) series = hn::Add(hn::Mul(series, z), hn::Set(d, e::kLogSeries[i]));
  const V remainder = hn::Mul(series, z);
  const V half_square = hn::Mul(hn::Mul(hn::Set(d, 0.5), f), f);
  const V tail = hn::Add(hn::Mul(s, hn::Add(half_square, remainder)), hn::Mul(k, hn::Set(d, e::kLn2Low)));
  V result = hn::Sub(hn::Mul(k, hn::Set(d, e::kLn2High)), hn::Sub(hn::Sub(half_square, tail), f));
  result = hn::IfThenElse(hn::Eq(x, infinity), infinity, result);
  result = hn::IfThenElse(hn::Eq(x, hn::Zero(d)), hn::Neg(infinity), result);
  const auto valid = hn::Ge(x, hn::Zero(d));
  return hn::IfThenElse(valid, result, hn::Set(d, std::numeric_limits<double>::quiet_NaN()));
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
