#include "math/lapack.h"

#include <cblas.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string>

#include "base/check.h"
#include "weft/error.h"

// LAPACK's own functions, column-major; OpenBLAS carries them. Character arguments have hidden lengths at the end.
extern "C" {
using Syevd = void(const char* jobz, const char* uplo, const int* n, double* a, const int* lda, double* w, double* work, const int* lwork, int* iwork,
                   const int* liwork, int* info, std::size_t, std::size_t);
using Gesdd = void(const char* jobz, const int* m, const int* n, double* a, const int* lda, double* s, double* u, const int* ldu, double* vt,
                   const int* ldvt, double* work, const int* lwork, int* iwork, int* info, std::size_t);
using Potrf = void(const char* uplo, const int* n, double* a, const int* lda, int* info, std::size_t);
using Trtri = void(const char* uplo, const char* diag, const int* n, double* a, const int* lda, int* info, std::size_t, std::size_t);
using Geqp3 = void(const int* m, const int* n, double* a, const int* lda, int* jpvt, double* tau, double* work, const int* lwork, int* info);
}

namespace weft::math {
namespace {

struct Library {
  decltype(&cblas_dgemm) dgemm = nullptr;
  decltype(&cblas_sgemm) sgemm = nullptr;
  decltype(&cblas_dsyrk) dsyrk = nullptr;
  Syevd* dsyevd = nullptr;
  Gesdd* dgesdd = nullptr;
  Geqp3* dgeqp3 = nullptr;
  Potrf* dpotrf = nullptr;
  Trtri* dtrtri = nullptr;
};

[[noreturn]] void not_there(const std::string& why) {
  throw Error(ErrorCode::unsupported, "this needs the OpenBLAS library, which cannot be loaded: " + why, {},
              "install it (Debian and Ubuntu: libopenblas0-pthread)");
}

/// OpenBLAS 0.3.21 takes processors that are newer than itself for a Pentium 4 of 2004 and computes four times slower than it could. Tells it, for
/// the time of loading, which of its kernels suit the instructions that are there; what the user chose stays.
class KernelChoice {
 public:
  KernelChoice() {
#if defined(__x86_64__)
    if (std::getenv(kVariable) != nullptr) return;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
    const char* kernels = avx512 ? "SkylakeX" : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? "Haswell" : nullptr;
    set_ = kernels != nullptr && ::setenv(kVariable, kernels, 0) == 0;
#endif
  }
  KernelChoice(const KernelChoice&) = delete;
  KernelChoice& operator=(const KernelChoice&) = delete;
  ~KernelChoice() {
    if (set_) ::unsetenv(kVariable);
  }

 private:
  static constexpr const char* kVariable = "OPENBLAS_CORETYPE";
  bool set_ = false;
};

Library load() {
  void* handle = nullptr;
  const KernelChoice choice;
  for (const char* name : {"libopenblas.so.0", "libopenblas.so"})
    if (handle == nullptr) handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* why = dlerror();
    not_there(why != nullptr ? why : "unknown reason");
  }
  // Never closed: its threads would run on in code that is gone.
  const auto find = [handle]<class Function>(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    if (function == nullptr) not_there(std::string("it has no function ") + name);
  };
  Library library;
  find(library.dgemm, "cblas_dgemm");
  find(library.sgemm, "cblas_sgemm");
  find(library.dsyrk, "cblas_dsyrk");
  find(library.dsyevd, "dsyevd_");
  find(library.dgesdd, "dgesdd_");
  find(library.dgeqp3, "dgeqp3_");
  find(library.dpotrf, "dpotrf_");
  find(library.dtrtri, "dtrtri_");
  decltype(&openblas_set_num_threads) set_num_threads = nullptr;
  find(set_num_threads, "openblas_set_num_threads");
  set_num_threads(1);
  return library;
}

const Library& library() {
  static const Library loaded = load();  // a failure is thrown, and tried again by the next call
  return loaded;
}

int dimension(std::int64_t value) {
  if (value < 0 || value > std::numeric_limits<int>::max())
    throw Error(ErrorCode::invalid_argument, "a matrix has a dimension of " + std::to_string(value) + ", and linear algebra takes up to 2147483647");
  return static_cast<int>(value);
}

CBLAS_TRANSPOSE form(Transpose transpose) { return transpose == Transpose::yes ? CblasTrans : CblasNoTrans; }

/// The answer to a workspace query. Above 2^53 it would be rounded, but then the matrix could not be held either.
int workspace(double answer) { return dimension(static_cast<std::int64_t>(answer)); }

void check(int info, const char* what) {
  if (info != 0) throw Error(ErrorCode::internal, std::string(what) + " did not converge (LAPACK says " + std::to_string(info) + ")");
}

/// x is column-major for LAPACK, that is the transpose: its left vectors are our right ones.
void gesdd(const char* job, std::span<double> x, int rows, int columns, double* values, double* left, double* right) {
  const int least = std::max(1, std::min(rows, columns));
  const int lda = std::max(1, columns);
  std::vector<int> integers(8 * static_cast<std::size_t>(least));
  double answer = 0;
  int size = -1, info = 0;
  library().dgesdd(job, &columns, &rows, x.data(), &lda, values, right, &lda, left, &least, &answer, &size, integers.data(), &info, 1);
  size = workspace(answer);
  std::vector<double> work(static_cast<std::size_t>(size));
  library().dgesdd(job, &columns, &rows, x.data(), &lda, values, right, &lda, left, &least, work.data(), &size, integers.data(), &info, 1);
  check(info, "a singular value decomposition");
}

}  // namespace

void gemm(Transpose a_form, Transpose b_form, std::int64_t m, std::int64_t n, std::int64_t k, double alpha, const double* a, std::int64_t a_stride,
          const double* b, std::int64_t b_stride, double beta, double* c, std::int64_t c_stride) {
  library().dgemm(CblasRowMajor, form(a_form), form(b_form), dimension(m), dimension(n), dimension(k), alpha, a, dimension(a_stride), b,
                  dimension(b_stride), beta, c, dimension(c_stride));
}

void gemm(Transpose a_form, Transpose b_form, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a, std::int64_t a_stride,
          const float* b, std::int64_t b_stride, float beta, float* c, std::int64_t c_stride) {
  library().sgemm(CblasRowMajor, form(a_form), form(b_form), dimension(m), dimension(n), dimension(k), alpha, a, dimension(a_stride), b,
                  dimension(b_stride), beta, c, dimension(c_stride));
}

void add_gram(GramOf side, const double* x, std::int64_t rows, std::int64_t columns, std::span<double> gram) {
  const bool of_rows = side == GramOf::rows;
  const int n = dimension(of_rows ? rows : columns);
  const int k = dimension(of_rows ? columns : rows);
  WEFT_ASSERT(gram.size() == static_cast<std::size_t>(n) * static_cast<std::size_t>(n));
  if (n == 0 || k == 0) return;
  library().dsyrk(CblasRowMajor, CblasUpper, of_rows ? CblasNoTrans : CblasTrans, n, k, 1.0, x, dimension(columns), 1.0, gram.data(), n);
}

void mirror_upper(std::span<double> matrix, std::int64_t n) {
  const auto size = static_cast<std::size_t>(n);
  // In squares that stay in the cache: plain rows against columns would miss it at every element of a large matrix.
  constexpr std::size_t kSquare = 32;
  for (std::size_t top = 0; top < size; top += kSquare)
    for (std::size_t left = 0; left <= top; left += kSquare)
      for (std::size_t i = top; i < std::min(size, top + kSquare); ++i)
        for (std::size_t j = left; j < std::min(i, left + kSquare); ++j) matrix[i * size + j] = matrix[j * size + i];
}

std::vector<double> symmetric_eigen(std::span<double> matrix, std::int64_t n, Vectors vectors) {
  const int size = dimension(n);
  std::vector<double> values(static_cast<std::size_t>(size));
  if (size == 0) return values;
  WEFT_ASSERT(matrix.size() == values.size() * values.size());
  const char* job = vectors == Vectors::yes ? "V" : "N";
  // Our upper triangle is the lower one of the column-major matrix.
  double answer = 0;
  int integers_needed = 0, query = -1, info = 0;
  library().dsyevd(job, "L", &size, matrix.data(), &size, values.data(), &answer, &query, &integers_needed, &query, &info, 1, 1);
  const int work_size = workspace(answer);
  std::vector<double> work(static_cast<std::size_t>(work_size));
  std::vector<int> integers(static_cast<std::size_t>(std::max(1, integers_needed)));
  library().dsyevd(job, "L", &size, matrix.data(), &size, values.data(), work.data(), &work_size, integers.data(), &integers_needed, &info, 1, 1);
  check(info, "an eigenvalue decomposition");
  return values;
}

std::vector<double> singular_values(std::span<double> x, std::int64_t rows, std::int64_t columns) {
  std::vector<double> values(static_cast<std::size_t>(std::min(rows, columns)));
  double none = 0;
  if (!values.empty()) gesdd("N", x, dimension(rows), dimension(columns), values.data(), &none, &none);
  return values;
}

Svd svd(std::span<double> x, std::int64_t rows, std::int64_t columns) {
  Svd result;
  const auto count = static_cast<std::size_t>(std::min(rows, columns));
  result.values.resize(count);
  result.left.resize(count * static_cast<std::size_t>(rows));
  result.right.resize(count * static_cast<std::size_t>(columns));
  if (count > 0) gesdd("S", x, dimension(rows), dimension(columns), result.values.data(), result.left.data(), result.right.data());
  return result;
}

std::vector<std::int64_t> pivoted_qr(std::span<double> x, std::int64_t vectors, std::int64_t length) {
  const int n = dimension(vectors), m = dimension(length);
  if (n == 0 || m == 0) return {};
  std::vector<int> pivots(static_cast<std::size_t>(n));
  std::vector<double> tau(static_cast<std::size_t>(std::min(m, n)));
  double answer = 0;
  int size = -1, info = 0;
  library().dgeqp3(&m, &n, x.data(), &m, pivots.data(), tau.data(), &answer, &size, &info);
  size = workspace(answer);
  std::vector<double> work(static_cast<std::size_t>(size));
  library().dgeqp3(&m, &n, x.data(), &m, pivots.data(), tau.data(), work.data(), &size, &info);
  check(info, "a QR decomposition");
  std::vector<std::int64_t> taken(pivots.size());
  std::transform(pivots.begin(), pivots.end(), taken.begin(), [](int pivot) { return pivot - 1; });
  return taken;
}

// What is the lower triangle by rows is the upper one by columns.
bool cholesky(std::span<double> matrix, std::int64_t n) {
  const int size = dimension(n), lda = std::max(1, size);
  int info = 0;
  library().dpotrf("U", &size, matrix.data(), &lda, &info, 1);
  return info == 0;
}

bool invert_lower(std::span<double> matrix, std::int64_t n) {
  const int size = dimension(n), lda = std::max(1, size);
  int info = 0;
  library().dtrtri("U", "N", &size, matrix.data(), &lda, &info, 1, 1);
  return info == 0;
}

}  // namespace weft::math
