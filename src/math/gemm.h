#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

// Matrix products on one thread, through oneDNN, which is loaded when the first product is asked for (its 40 MB would otherwise weigh on every
// start); without it, plain loops. Class C: the order of a sum is the library's choice for the shape, never that of threads, since each call is one
// unit of work.
namespace weft::math {

enum class Sum : std::uint8_t { replace, add };  ///< what becomes of what stands in out

/// out[i, j] = sum_k a[i, k] b[j, k]. a: [m, k], b: [n, k], out: [m, n]; rows are lda, ldb, ldo elements apart.
void gemm_nt(std::size_t m, std::size_t n, std::size_t k, const float* a, std::size_t lda, const float* b, std::size_t ldb, float* out,
             std::size_t ldo, Sum sum = Sum::replace);
/// out[i, j] = sum_k a[i, k] b[k, j]. b: [k, n].
void gemm_nn(std::size_t m, std::size_t n, std::size_t k, const float* a, std::size_t lda, const float* b, std::size_t ldb, float* out,
             std::size_t ldo, Sum sum = Sum::replace);
/// out[i, j] = sum_k a[k, i] b[k, j]. a: [k, m], b: [k, n].
void gemm_tn(std::size_t m, std::size_t n, std::size_t k, const float* a, std::size_t lda, const float* b, std::size_t ldb, float* out,
             std::size_t ldo);

/// Whether products of bfloat16 are the faster ones here: where the CPU has matrix units for them (AMX). Its vector instructions for bfloat16 are
/// slower than float32's on the machines measured. WEFT_GEMM=bf16 or float32 decides otherwise.
[[nodiscard]] bool prefers_bf16_products();
/// gemm_nt of bfloat16 numbers with sums in float32.
void gemm_bf16_nt(std::size_t m, std::size_t n, std::size_t k, const std::uint16_t* a, std::size_t lda, const std::uint16_t* b, std::size_t ldb,
                  float* out, std::size_t ldo);

/// Whether there are products of 8-bit integers that lose nothing (instructions that add them up in 32 bits: VNNI).
[[nodiscard]] bool has_int8_products();
/// out[i, j] = sum_k a[i, k] b[j, k], exactly; k is at most kMostInt8Columns, so that no sum overflows.
void gemm_u8s8_nt(std::size_t m, std::size_t n, std::size_t k, const std::uint8_t* a, std::size_t lda, const std::int8_t* b, std::size_t ldb,
                  std::int32_t* out, std::size_t ldo);
inline constexpr std::size_t kMostInt8Columns = (std::size_t{1} << 31) / (256 * 128);

/// "oneDNN 2.6.0 (avx512_core_bf16)", or why there is none.
[[nodiscard]] std::string gemm_library();

}  // namespace weft::math
