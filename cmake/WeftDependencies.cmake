find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(yaml-cpp REQUIRED)
if(NOT TARGET yaml-cpp::yaml-cpp) # called yaml-cpp before its release 0.8
  add_library(yaml-cpp::yaml-cpp INTERFACE IMPORTED)
  target_link_libraries(yaml-cpp::yaml-cpp INTERFACE yaml-cpp)
endif()
find_package(PkgConfig REQUIRED)
pkg_check_modules(HWY REQUIRED IMPORTED_TARGET libhwy)
pkg_check_modules(HWY_CONTRIB REQUIRED IMPORTED_TARGET libhwy-contrib)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(RE2 REQUIRED IMPORTED_TARGET re2)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(ZLIB REQUIRED IMPORTED_TARGET zlib)

# oneDNN by hand: its own CMake files want OpenCL's headers, which nothing here uses.
find_path(WEFT_DNNL_INCLUDE oneapi/dnnl/dnnl.hpp REQUIRED)
find_library(WEFT_DNNL_LIBRARY dnnl REQUIRED)
add_library(weft_dnnl INTERFACE)
target_include_directories(weft_dnnl SYSTEM INTERFACE ${WEFT_DNNL_INCLUDE})
target_link_libraries(weft_dnnl INTERFACE ${WEFT_DNNL_LIBRARY})

# OpenBLAS as itself, not through the alternatives system, whose reference BLAS may be a hundred times slower.
find_path(WEFT_LAPACKE_INCLUDE lapacke.h REQUIRED)
find_library(WEFT_LAPACKE_LIBRARY lapacke REQUIRED)
find_library(WEFT_OPENBLAS_LIBRARY openblas PATH_SUFFIXES openblas-pthread REQUIRED)
find_path(WEFT_OPENBLAS_INCLUDE cblas.h PATH_SUFFIXES openblas-pthread ${CMAKE_LIBRARY_ARCHITECTURE}/openblas-pthread REQUIRED)
add_library(weft_lapack INTERFACE)
target_include_directories(weft_lapack SYSTEM INTERFACE ${WEFT_LAPACKE_INCLUDE} ${WEFT_OPENBLAS_INCLUDE})
target_link_libraries(weft_lapack INTERFACE ${WEFT_LAPACKE_LIBRARY} ${WEFT_OPENBLAS_LIBRARY})

# Header-only packages: nlohmann-json and CLI11 need no target, only their presence.
find_path(WEFT_JSON_INCLUDE nlohmann/json.hpp REQUIRED)
find_path(WEFT_CLI11_INCLUDE CLI/CLI.hpp REQUIRED)
