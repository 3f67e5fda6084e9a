#include "math/gemm.h"

#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.h>

#include <array>
#include <cstdlib>
#include <map>
#include <memory>
#include <string_view>
#include <vector>

#include "math/neural.h"
#include "weft/error.h"

namespace weft::math {
namespace {

// What we call of oneDNN, to be declared and looked up.
#define WEFT_DNNL_FUNCTIONS(X)               \
  X(dnnl_sgemm)                              \
  X(dnnl_version)                            \
  X(dnnl_get_effective_cpu_isa)              \
  X(dnnl_engine_create)                      \
  X(dnnl_stream_create)                      \
  X(dnnl_memory_create)                      \
  X(dnnl_memory_destroy)                     \
  X(dnnl_memory_set_data_handle)             \
  X(dnnl_memory_desc_init_by_strides)        \
  X(dnnl_memory_desc_get_size)               \
  X(dnnl_matmul_desc_init)                   \
  X(dnnl_primitive_attr_create)              \
  X(dnnl_primitive_attr_set_scratchpad_mode) \
  X(dnnl_primitive_attr_destroy)             \
  X(dnnl_primitive_desc_create)              \
  X(dnnl_primitive_desc_query_md)            \
  X(dnnl_primitive_desc_destroy)             \
  X(dnnl_primitive_create)                   \
  X(dnnl_primitive_destroy)                  \
  X(dnnl_primitive_execute)

constexpr const char* kLibraryName = "libdnnl.so.2";

/// The functions that we use, found when the first product is asked for.
struct Library {
  void* handle = nullptr;
  std::string about;
  bool has_bf16 = false;
  bool has_amx = false;
  bool has_vnni = false;
  dnnl_engine_t engine = nullptr;

#define WEFT_DNNL(name) decltype(&::name) name = nullptr;
  WEFT_DNNL_FUNCTIONS(WEFT_DNNL)
#undef WEFT_DNNL
  void (*omp_set_num_threads)(int) = nullptr;

  Library() {
    handle = ::dlopen(kLibraryName, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      const char* why = ::dlerror();
      about = std::string("plain loops; ") + (why == nullptr ? kLibraryName : why);
      return;
    }
    bool complete = true;
    const auto find = [&](const char* name, auto& function) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(handle, name));
      complete = complete && function != nullptr;
    };
#define WEFT_DNNL(name) find(#name, name);
    WEFT_DNNL_FUNCTIONS(WEFT_DNNL)
#undef WEFT_DNNL
    if (!complete || dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success) {
      about = std::string("plain loops; ") + kLibraryName + " lacks what is needed";
      ::dlclose(handle);
      handle = nullptr;
      return;
    }
    // A library of another threading than OpenMP has no such function, and then no threads of OpenMP either.
    omp_set_num_threads = reinterpret_cast<void (*)(int)>(::dlsym(handle, "omp_set_num_threads"));
    const dnnl_version_t* version = dnnl_version();
    const dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    const auto has = [isa](dnnl_cpu_isa_t wanted) { return (isa & wanted) == wanted; };
    has_amx = has(dnnl_cpu_isa_avx512_core_amx);
    has_bf16 = has(dnnl_cpu_isa_avx512_core);  // emulated below avx512_core_bf16
    has_vnni = has(dnnl_cpu_isa_avx512_core_vnni) || has(dnnl_cpu_isa_avx2_vnni);
    about = "oneDNN " + std::to_string(version->major) + "." + std::to_string(version->minor) + "." + std::to_string(version->patch) +
            (has_amx                              ? " (AMX)"
             : has(dnnl_cpu_isa_avx512_core_bf16) ? " (AVX-512, bfloat16)"
             : has(dnnl_cpu_isa_avx512_core)      ? " (AVX-512)"
             : has(dnnl_cpu_isa_avx2)             ? " (AVX2)"
                                                  : "");
  }

  static const Library& get() {
    static const Library library;  // stays loaded: its threads and caches outlive us
    return library;
  }

  /// Every call is one unit of work: threads are above.
  void one_thread() const {
    thread_local bool done = false;
    if (done) return;
    if (omp_set_num_threads != nullptr) omp_set_num_threads(1);
    done = true;
  }
};

void check(dnnl_status_t status, const char* what) {
  if (status == dnnl_success) return;
  throw Error(status == dnnl_out_of_memory ? ErrorCode::out_of_memory : ErrorCode::internal,
              std::string("oneDNN cannot ") + what + " (status " + std::to_string(static_cast<int>(status)) + ")");
}

/// What is multiplied, and what comes out.
struct ProductTypes {
  dnnl_data_type_t a, b, out;
};
constexpr ProductTypes kBf16 = {dnnl_bf16, dnnl_bf16, dnnl_f32};
constexpr ProductTypes kInt8 = {dnnl_u8, dnnl_s8, dnnl_s32};

/// A product of one shape, prepared; for one thread.
class Product {
 public:
  using Shape = std::array<std::size_t, 6>;  // m, n, k, lda, ldb, ldo

  Product(const Library& library, const ProductTypes& types, const Shape& shape) : library_(library) {
    const auto [m, n, k, lda, ldb, ldo] = shape;
    const auto describe = [&](std::size_t rows, std::size_t columns, std::size_t row_step, std::size_t column_step, dnnl_data_type_t type) {
      const dnnl_dims_t dims = {static_cast<dnnl_dim_t>(rows), static_cast<dnnl_dim_t>(columns)};
      const dnnl_dims_t steps = {static_cast<dnnl_dim_t>(row_step), static_cast<dnnl_dim_t>(column_step)};
      dnnl_memory_desc_t desc;
      check(library.dnnl_memory_desc_init_by_strides(&desc, 2, dims, type, steps), "describe a matrix");
      return desc;
    };
    const dnnl_memory_desc_t a = describe(m, k, lda, 1, types.a);
    const dnnl_memory_desc_t b = describe(k, n, 1, ldb, types.b);
    const dnnl_memory_desc_t out = describe(m, n, ldo, 1, types.out);
    dnnl_matmul_desc_t desc;
    check(library.dnnl_matmul_desc_init(&desc, &a, &b, nullptr, &out), "describe a product");
    dnnl_primitive_attr_t attributes = nullptr;
    check(library.dnnl_primitive_attr_create(&attributes), "describe a product");
    library.dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user);
    dnnl_primitive_desc_t primitive_desc = nullptr;
    const dnnl_status_t status = library.dnnl_primitive_desc_create(&primitive_desc, &desc, attributes, library.engine, nullptr);
    library.dnnl_primitive_attr_destroy(attributes);
    check(status, "choose a product of small numbers");
    const dnnl_memory_desc_t* scratch = library.dnnl_primitive_desc_query_md(primitive_desc, dnnl_query_scratchpad_md, 0);
    scratch_.resize(library.dnnl_memory_desc_get_size(scratch));
    const auto memory = [&](const dnnl_memory_desc_t* of, void* data) {
      dnnl_memory_t made = nullptr;
      check(library.dnnl_memory_create(&made, of, library.engine, data), "wrap a matrix");
      return made;
    };
    arguments_ = {dnnl_exec_arg_t{DNNL_ARG_SRC, memory(&a, DNNL_MEMORY_NONE)}, dnnl_exec_arg_t{DNNL_ARG_WEIGHTS, memory(&b, DNNL_MEMORY_NONE)},
                  dnnl_exec_arg_t{DNNL_ARG_DST, memory(&out, DNNL_MEMORY_NONE)},
                  dnnl_exec_arg_t{DNNL_ARG_SCRATCHPAD, memory(scratch, scratch_.data())}};
    const dnnl_status_t made = library.dnnl_primitive_create(&primitive_, primitive_desc);
    library.dnnl_primitive_desc_destroy(primitive_desc);
    check(made, "compile a product");
    check(library.dnnl_stream_create(&stream_, library.engine, dnnl_stream_default_flags), "open a stream");
  }
  ~Product() {
    library_.dnnl_primitive_destroy(primitive_);
    for (const dnnl_exec_arg_t& argument : arguments_) library_.dnnl_memory_destroy(argument.memory);
  }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;

  void run(const void* a, const void* b, void* out) {
    library_.dnnl_memory_set_data_handle(arguments_[0].memory, const_cast<void*>(a));
    library_.dnnl_memory_set_data_handle(arguments_[1].memory, const_cast<void*>(b));
    library_.dnnl_memory_set_data_handle(arguments_[2].memory, out);
    check(library_.dnnl_primitive_execute(primitive_, stream_, static_cast<int>(arguments_.size()), arguments_.data()), "multiply");
  }

 private:
  const Library& library_;
  dnnl_primitive_t primitive_ = nullptr;
  dnnl_stream_t stream_ = nullptr;
  std::array<dnnl_exec_arg_t, 4> arguments_{};
  std::vector<std::uint8_t> scratch_;
};

/// Prepared products are kept for each thread: preparing one costs a tenth of a millisecond. A long run sees few shapes; hostile ones must not fill
/// memory.
void run_product(const ProductTypes& types, const Product::Shape& shape, const void* a, const void* b, void* out) {
  const Library& library = Library::get();
  if (library.handle == nullptr) throw Error(ErrorCode::internal, "products of small numbers need oneDNN: " + library.about);
  library.one_thread();
  thread_local std::map<std::pair<dnnl_data_type_t, Product::Shape>, std::unique_ptr<Product>> products;
  if (products.size() > 256) products.clear();
  std::unique_ptr<Product>& product = products[{types.a, shape}];
  if (!product) product = std::make_unique<Product>(library, types, shape);
  product->run(a, b, out);
}

void plain_nt(std::size_t m, std::size_t n, std::size_t k, const float* a, std::size_t lda, const float* b, std::size_t ldb, float* out,
              std::size_t ldo) {
  if (ldb == k) {
    row_products(DType::f32, reinterpret_cast<const std::byte*>(b), n, k, a, lda, m, out, ldo);
    return;
  }
  for (std::size_t i = 0; i < m; ++i)
    for (std::size_t j = 0; j < n; ++j) out[i * ldo + j] = dot_f32(a + i * lda, b + j * ldb, k);
}

void plain_nn(std::size_t m, std::size_t n, std::size_t k, const float* a, std::size_t lda, const float* b, std::size_t ldb, float* out,
              std::size_t ldo, Sum sum) {
  for (std::size_t i = 0; i < m; ++i) {
    if (sum == Sum::replace) std::fill_n(out + i * ldo, n, 0.0F);
    for (std::size_t p = 0; p < k; ++p) add_scaled(a[i * lda + p], b + p * ldb, out + i * ldo, n);
  }
}

void sgemm(char transposed_a, char transposed_b, std::size_t m, std::size_t n, std::size_t k, const float* a, std::size_t lda, const float* b,
           std::size_t ldb, float* out, std::size_t ldo, Sum sum) {
  const Library& library = Library::get();
  library.one_thread();
  const auto dim = [](std::size_t value) { return static_cast<dnnl_dim_t>(value); };
  check(library.dnnl_sgemm(transposed_a, transposed_b, dim(m), dim(n), dim(k), 1.0F, a, dim(lda), b, dim(ldb), sum == Sum::add ? 1.0F : 0.0F, out,
                           dim(ldo)),
        "multiply");
}

}  // namespace

void gemm_nt(std::size_t m, std::size_t n, std::size_t k, const float* a, std::size_t lda, const float* b, std::size_t ldb, float* out,
             std::size_t ldo, Sum sum) {
  if (m == 0 || n == 0 || (k == 0 && sum == Sum::add)) return;
  if (Library::get().handle != nullptr && k > 0) {
    sgemm('N', 'T', m, n, k, a, lda, b, ldb, out, ldo, sum);
  } else if (sum == Sum::replace) {
    plain_nt(m, n, k, a, lda, b, ldb, out, ldo);
  } else {
    std::vector<float> product(m * n);
    plain_nt(m, n, k, a, lda, b, ldb, product.data(), n);
    for (std::size_t i = 0; i < m; ++i) add_to(product.data() + i * n, out + i * ldo, n);
  }
}

void gemm_nn(std::size_t m, std::size_t n, std::size_t k, const float* a, std::size_t lda, const float* b, std::size_t ldb, float* out,
             std::size_t ldo, Sum sum) {
  if (m == 0 || n == 0) return;
  if (Library::get().handle != nullptr && k > 0)
    sgemm('N', 'N', m, n, k, a, lda, b, ldb, out, ldo, sum);
  else
    plain_nn(m, n, k, a, lda, b, ldb, out, ldo, sum);
}

void gemm_tn(std::size_t m, std::size_t n, std::size_t k, const float* a, std::size_t lda, const float* b, std::size_t ldb, float* out,
             std::size_t ldo) {
  if (m == 0 || n == 0) return;
  if (Library::get().handle != nullptr && k > 0) {
    sgemm('T', 'N', m, n, k, a, lda, b, ldb, out, ldo, Sum::replace);
    return;
  }
  for (std::size_t i = 0; i < m; ++i) std::fill_n(out + i * ldo, n, 0.0F);
  for (std::size_t p = 0; p < k; ++p)
    for (std::size_t i = 0; i < m; ++i) add_scaled(a[p * lda + i], b + p * ldb, out + i * ldo, n);
}

bool prefers_bf16_products() {
  static const bool prefers = [] {
    const Library& library = Library::get();
    if (library.handle == nullptr || !library.has_bf16) return false;
    const char* wanted = std::getenv("WEFT_GEMM");
    return wanted == nullptr ? library.has_amx : std::string_view(wanted) == "bf16";
  }();
  return prefers;
}

void gemm_bf16_nt(std::size_t m, std::size_t n, std::size_t k, const std::uint16_t* a, std::size_t lda, const std::uint16_t* b, std::size_t ldb,
                  float* out, std::size_t ldo) {
  if (m == 0 || n == 0) return;
  if (k == 0) throw Error(ErrorCode::internal, "a product over nothing");
  run_product(kBf16, {m, n, k, lda, ldb, ldo}, a, b, out);
}

bool has_int8_products() {
  const Library& library = Library::get();
  return library.handle != nullptr && library.has_vnni;
}
void gemm_u8s8_nt(std::size_t m, std::size_t n, std::size_t k, const std::uint8_t* a, std::size_t lda, const std::int8_t* b, std::size_t ldb,
                  std::int32_t* out, std::size_t ldo) {
  if (m == 0 || n == 0) return;
  if (k == 0 || k > kMostInt8Columns) throw Error(ErrorCode::internal, "a product of 8-bit integers over too few or too many");
  run_product(kInt8, {m, n, k, lda, ldb, ldo}, a, b, out);
}

std::string gemm_library() { return Library::get().about; }

}  // namespace weft::math
